"""Our own logs as evidence: who the kernel named, whose key approved, which account contained."""

from __future__ import annotations

from contextlib import closing
from pathlib import Path

import pytest

from trainwarden.actors import registry as reg
from trainwarden.custody import readers
from trainwarden.custody.taking import opened, read_all
from trainwarden.keys import SigningKey
from trainwarden.log.journal import LogWriter
from trainwarden.model import (
    Act,
    ActorKind,
    Approval,
    Approved,
    Binding,
    Contained,
    CustodyEvent,
    FileChanged,
    Gap,
    Quarantined,
    SourceKind,
    Writer,
    canonical,
)
from trainwarden.store import Store

KEY = SigningKey(b"\x05" * 32)
CONTEXT = readers.Context(source="s", host="node3", users={1001: "omar"})


def read(journal: Path) -> list[CustodyEvent]:
    with opened(journal) as file:
        head = file.read(4096)
    reader = readers.recognised(head, "journal")
    assert reader.kind is SourceKind.LOG
    with opened(journal) as file:
        items = list(read_all(reader, file, CONTEXT))
    return [item for item in items if isinstance(item, CustodyEvent)]


def test_a_runs_log_tells_the_writer_that_the_kernel_named_and_no_owner(tmp_path: Path) -> None:
    writer = Writer(pid=9, uid=0, login_uid=1001, program="/usr/bin/vim", argv=("vim", "x"))
    entries = [
        FileChanged(path="/lib/a.py", kind="code", sealed="a" * 64, found="b" * 64, wall_ns=7, writer=writer, uid=1002),
        FileChanged(path="/lib/b.py", kind="code", sealed="a" * 64, found="", wall_ns=8, uid=1002, untold="no audit"),
        Gap(attempt=0, rank=0, step=1, reason="none"),
        Approved(seal="c" * 64, approvals=(Approval(seal="c" * 64, actor="ada", key="k", wall_ns=3),)),
        Contained(what="hold", by="vera (uid 1002)", wall_ns=9),
        Quarantined(path="/ckpt/1.pt", digest="d" * 64, reason="tainted", by="vera (uid 1002)", wall_ns=10),
    ]  # fmt: skip
    with closing(LogWriter.create(tmp_path / "log", "trainwarden/a-run", KEY)) as log:
        log.append([canonical(e) for e in entries])
    changed, gone, approved, held, moved = read(tmp_path / "log" / "journal")
    assert (changed.act, changed.account, changed.login, changed.digest) == (Act.WRITE, "root", "omar", "b" * 64)
    assert (changed.line, changed.before, changed.processes[0].argv) == (0, "a" * 64, ("vim", "x"))
    assert (gone.act, gone.account, gone.note) == (Act.DELETE, "", "no audit")  # the file's owner did not write it
    assert (approved.act, approved.account, approved.binding) == (Act.APPROVE, "ada", Binding.KEY)
    assert (held.account, moved.account, moved.path) == ("vera", "vera", "/ckpt/1.pt")


def test_the_log_of_actors_tells_who_was_enrolled_and_revoked(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("TRAINWARDEN_KEY", str(tmp_path / "key"))
    store = Store.open(tmp_path / "store", create=True)
    own = SigningKey.load_or_create()
    reg.enrol(store, own, "tuner", ActorKind.AGENT, KEY.public)
    reg.revoke(store, own, "tuner", "prompted to harm")
    enrolled, revoked = read(store.path / "actors" / "journal")
    assert (enrolled.act, enrolled.account, enrolled.kind) == (Act.GRANT, "tuner", ActorKind.AGENT)
    assert (revoked.act, revoked.account, revoked.note) == (Act.REVOKE, "tuner", "prompted to harm")


def test_the_docs_have_a_row_for_every_kind_of_source() -> None:
    page = (Path(__file__).parents[2] / "docs" / "incident.md").read_text(encoding="utf-8")
    assert [k.value for k in SourceKind if f"| `{k.value}` |" not in page] == []
