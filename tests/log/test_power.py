"""The power is cut at every call that changes the disk: journal, witness and shipping client keep their word."""

from __future__ import annotations

import os
import random
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
from log_server import ORIGIN, SERVER_KEY, LogServer
from power import KEPT, LOST, MIXED, Cut, Disk
from recorded_rows import make_run, step_records

from trainwarden.errors import LogError
from trainwarden.keys import SigningKey
from trainwarden.log.client.session import Shipping
from trainwarden.log.client.shipper import Event, Limits
from trainwarden.log.client.state import Target
from trainwarden.log.client.verify import verify_shipped
from trainwarden.log.journal import LogWriter
from trainwarden.log.merkle import Tree, leaf_hash
from trainwarden.log.notes import sign_head
from trainwarden.log.protocol import read_entry
from trainwarden.log.reader import LogReader
from trainwarden.log.vkeys import VerifierKey
from trainwarden.log.witness import Accepted, Submission
from trainwarden.log.witness_state import Witness
from trainwarden.model import Finding, RecordBatch, decode_leaf
from trainwarden.store import RunDir

KEY = SigningKey(b"\x01" * 32)


class Elsewhere(RunDir, frozen=True):
    """A run whose log lies on another disk than what is known of its shipping."""

    journal: Path

    @property
    def log(self) -> Path:
        return self.journal


kinds = pytest.mark.parametrize("kind", [LOST, KEPT, MIXED])


def cuts(tmp_path: Path, kind: str, monkeypatch: pytest.MonkeyPatch, life: Callable[[Path], None]) -> Iterator[Path]:
    """Cut the power at every call of `life` in a new folder; the folders that are found afterwards."""
    point, ended = 0, False
    while not ended:
        disk = Disk(tmp_path / f"disk{point}", cut_at=point)
        with disk.on(monkeypatch):
            try:
                life(disk.root)
                ended = True
            except Cut:
                pass
        found = disk.after(kind, tmp_path / f"after{point}", random.Random(point))
        disk.close()
        with monkeypatch.context() as patch:
            patch.setattr(os, "fsync", lambda fd: None)
            yield found
        point += 1


@kinds
def test_a_journal_keeps_every_acknowledged_entry(kind: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    acked: list[bytes] = []

    def life(folder: Path) -> None:
        acked.clear()
        log = LogWriter.create(folder / "run" / "log", "trainwarden/x", KEY)
        for n in range(3):
            batch = [b"entry %d.%d" % (n, i) for i in range(n + 1)]
            log.append(batch)
            acked.extend(batch)

    points = 0
    for found in cuts(tmp_path, kind, monkeypatch, life):
        points += 1
        try:
            log = LogWriter.open(found / "run" / "log", KEY)
        except LogError:
            assert acked == []
            LogWriter.create(found / "run" / "log", "trainwarden/x", KEY).close()
            continue
        log.close()
        with LogReader.open(found / "run" / "log", KEY.public) as kept:
            entries = [data for _, data in kept.entries()]
        assert entries[: len(acked)] == acked
        assert len(entries) - len(acked) <= 3, "at most the batch that was being written"
    assert points > 25


@kinds
def test_a_witness_never_forgets_a_head_that_it_cosigned(
    kind: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    tree = Tree(leaf_hash(b"%d" % i) for i in range(9))
    released: list[int] = []

    def opened(folder: Path) -> Witness:
        log = VerifierKey("a/log", KEY.public)
        return Witness(folder / "state" / "w", "w/one", SigningKey(b"w" * 32), lambda origin: [log], lambda: 7)

    def submission(old: int, size: int) -> Submission:
        note = sign_head("a/log", size, tree.root(size), KEY).note.encode()
        return Submission(old, tuple(tree.consistency_proof(old, size)), note)

    def life(folder: Path) -> None:
        released.clear()
        witness = opened(folder)
        for old, size in ((0, 5), (5, 9)):
            assert witness.submit(submission(old, size)).line
            released.append(size)

    points = 0
    for found in cuts(tmp_path, kind, monkeypatch, life):
        points += 1
        witness = opened(found)
        for size in range(max(released, default=0)):
            assert not isinstance(witness.submit(submission(0, size)).decision, Accepted), "rolled back"
        witness.close()
    assert points > 12


@kinds
def test_a_client_goes_on_under_the_same_numbers_with_the_same_bytes(
    kind: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    rows = step_records(12)
    run = make_run(tmp_path, [list(rows[:5]), list(rows[5:])])
    (tmp_path / "key").write_text((b"h" * 32).hex())
    (tmp_path / "key").chmod(0o600)
    target = Target(
        url="http://log.invalid",
        origin=ORIGIN,
        server_key=SERVER_KEY.public,
        host="node1",
        host_key=str(tmp_path / "key"),
    )
    server = LogServer()

    def ship(folder: Path, records: int) -> None:
        here, told = Elsewhere(run.id, folder, run.log), list[Event]()
        limits = Limits(records=records, batches=1)
        shipping = Shipping.open(here, target, told.append, limits=limits, transport=server)
        try:
            assert shipping.drain(60)
        finally:
            shipping.close()
        assert [e for e in told if isinstance(e, Finding)] == []

    def life(folder: Path) -> None:
        server.__init__()  # type: ignore[misc]
        ship(folder, 3)

    points = 0
    for found in cuts(tmp_path, kind, monkeypatch, life):
        points += 1
        ship(found, 4)  # what is not known to be sent may now be cut in another way
        assert verify_shipped(Elsewhere(run.id, found, run.log), target, server).entries == 12
        kept = [decode_leaf(read_entry(e)[1]) for e in server.entries]
        assert [i for b in kept if isinstance(b, RecordBatch) for i in range(b.first, b.last + 1)] == list(range(12))
    assert points > 25
