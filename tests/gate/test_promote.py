"""Names lead to cleared digests only, nothing promoted is lost, and what became known since holds a name back."""

from __future__ import annotations

import shutil
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest
from safetensors.torch import load_file, save_file

sys.path.append(str(Path(__file__).parent))

from yard import KEEPER, MALLORY, Yard, diverged, finding, matched, yard

from trainwarden import descent
from trainwarden import model as m
from trainwarden.cli import main
from trainwarden.config import GateConfig
from trainwarden.custody import ledger as custody
from trainwarden.errors import GateTampered, KeyUnusable, LogError, NotCleared, StoreTampered, UsageError
from trainwarden.gate.decision import Cleared, Undecided
from trainwarden.gate.ledger import ORIGIN, append, read_gate
from trainwarden.gate.manifest import manifest_digest, manifest_of
from trainwarden.gate.promote import in_use, promote, roll_back
from trainwarden.gate.registry import current, fold, history, served
from trainwarden.gate.troubles import look_up
from trainwarden.keys import SigningKey
from trainwarden.log import ask
from trainwarden.log.ask import Cosigned, Reply
from trainwarden.log.cosignature import cosign, verify_cosignature
from trainwarden.log.notes import split_note
from trainwarden.log.tilelog import TileLog, from_folder
from trainwarden.log.vkeys import COSIGNATURE, VerifierKey

__all__ = ["yard"]

POLICY = GateConfig()


def digest(path: Path) -> str:
    return manifest_digest(manifest_of(path))


def put(yard: Yard, path: Path, name: str = "chat") -> m.Promoted:
    return promote(yard.store, name, path, POLICY, KEEPER)


def cleared(yard: Yard, *paths: Path) -> None:
    for path in paths:
        assert isinstance(yard.clear(path), Cleared)


def used(yard: Yard, name: str = "chat") -> str:
    found = in_use(look_up(yard.store, name))
    return found.digest if found else ""


def test_only_what_was_cleared_is_promoted(yard: Yard) -> None:
    run = yard.run(audited=False)
    with pytest.raises(NotCleared, match="was never cleared"):
        put(yard, yard.checkpoint())
    yard.clear(yard.checkpoint())
    with pytest.raises(NotCleared, match="was never cleared"):
        put(yard, yard.checkpoint())
    yard.says(run, matched(0, 7))
    cleared(yard, yard.checkpoint())
    assert put(yard, yard.checkpoint()).digest == used(yard) == digest(yard.checkpoint())


def test_a_file_swapped_after_clearing_is_not_promoted(yard: Yard) -> None:
    yard.run()
    cleared(yard, yard.checkpoint())
    path = yard.checkpoint() / "model.safetensors"
    save_file({"w": load_file(path)["w"] + 1}, path)
    with pytest.raises(NotCleared, match="was never cleared"):
        put(yard, yard.checkpoint())


def test_bytes_swapped_in_the_store_after_clearing_are_not_promoted(yard: Yard) -> None:
    yard.run()
    cleared(yard, yard.checkpoint())
    kept = yard.store.object_path(manifest_of(yard.checkpoint()).files[0].digest)
    kept.chmod(0o644)
    kept.write_bytes(b"x" * kept.stat().st_size)
    with pytest.raises(StoreTampered):
        put(yard, yard.checkpoint())


@pytest.mark.parametrize(
    ("entry", "told"),
    [
        (finding(step=2), "high finding sleep"),
        (diverged(0, 3, at=2), "diverged at step 2"),
        (m.Contained(what="freeze", reason="case 7"), "is frozen"),
    ],
)
def test_an_old_clearance_is_not_enough_after_something_new(yard: Yard, entry: m.Entry, told: str) -> None:
    """And what is served already gives way to the version before it, until it is settled."""
    run = yard.run()
    cleared(yard, yard.checkpoint(4), yard.checkpoint(8))
    old = yard.run("old")
    cleared(yard, yard.checkpoint(8, "old"))
    put(yard, yard.checkpoint(8, "old"))
    put(yard, yard.checkpoint(8))
    yard.says(run, entry)
    if isinstance(entry, m.Contained):
        descent.mark(yard.store, run, frozen=True)
    with pytest.raises(NotCleared, match=told):
        put(yard, yard.checkpoint(4), "other")
    newest, before = look_up(yard.store, "chat")
    assert told in newest.open[0]
    assert (before.open, used(yard)) == ((), digest(yard.checkpoint(8, "old"))), old


def test_what_came_later_and_is_about_later_steps_or_is_mild_holds_nothing_back(yard: Yard) -> None:
    run = yard.run()
    cleared(yard, yard.checkpoint(4))
    put(yard, yard.checkpoint(4))
    yard.says(run, finding(step=6), diverged(4, 7, at=5), finding(step=1, severity=m.Severity.INFO))
    assert look_up(yard.store, "chat")[0].open == ()


def test_a_log_that_was_put_back_or_exchanged_or_is_gone_holds_its_checkpoints_back(yard: Yard) -> None:
    run = yard.run()
    folder = yard.store.run(run).log
    short = {p.name: p.read_bytes() for p in folder.iterdir()}
    yard.says(run, finding(step=6, severity=m.Severity.INFO))
    cleared(yard, yard.checkpoint(4))
    put(yard, yard.checkpoint(4))
    whole = {p.name: p.read_bytes() for p in folder.iterdir()}
    for name, data in short.items():
        (folder / name).write_bytes(data)
    assert "were there when it was cleared" in look_up(yard.store, "chat")[0].open[0]
    yard.says(run, finding(step=5, severity=m.Severity.INFO), finding(step=5, severity=m.Severity.INFO))
    assert "is another one than when it was cleared" in look_up(yard.store, "chat")[0].open[0]
    for name, data in whole.items():
        (folder / name).write_bytes(data)
    assert look_up(yard.store, "chat")[0].open == ()
    folder.rename(folder.with_name("away"))
    assert "cannot be looked at" in look_up(yard.store, "chat")[0].open[0]


def test_a_checkpoint_that_is_refused_later_gives_way_and_comes_back_when_it_is_cleared_anew(yard: Yard) -> None:
    run = yard.run()
    cleared(yard, yard.checkpoint(4), yard.checkpoint(8))
    put(yard, yard.checkpoint(4))
    put(yard, yard.checkpoint(8))
    at = len(list(yard.store.run(run).log.iterdir())) and fold(read_gate(yard.store)).size
    yard.says(run, m.Contained(what="freeze", reason="case 7"))
    descent.mark(yard.store, run, frozen=True)
    yard.clear(yard.checkpoint(8))
    assert f"refused by entry {at}" in look_up(yard.store, "chat")[0].open[0]
    assert used(yard) == ""
    descent.mark(yard.store, run, frozen=False)
    from trainwarden.casefile import read_entries

    yard.says(run, m.Undone(of=len(read_entries(yard.store.run(run))[0]) - 1))
    assert used(yard) == digest(yard.checkpoint(4))
    cleared(yard, yard.checkpoint(8))
    assert used(yard) == digest(yard.checkpoint(8))


def test_an_open_incident_on_a_run_holds_its_checkpoints_back_until_it_is_closed(
    yard: Yard, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("TRAINWARDEN_KEY", str(tmp_path / "key"))
    run, other = yard.run(), yard.run("other")
    cleared(yard, yard.checkpoint(), yard.checkpoint(8, "other"))
    put(yard, yard.checkpoint(8, "other"))
    put(yard, yard.checkpoint())
    by = custody.signer(yard.store)
    incident = custody.open_incident(yard.store, by, "case 7").id
    custody.add_to(yard.store, by, incident, runs=[run])
    assert "is open on run" in look_up(yard.store, "chat")[0].open[0]
    assert used(yard) == digest(yard.checkpoint(8, "other")), other
    told = yard.clear(yard.checkpoint())
    assert isinstance(told, Undecided)
    assert "incident i1 is open" in told.missing[0].what
    with pytest.raises(NotCleared, match="incident i1 is open"):
        put(yard, yard.checkpoint(), "web")
    custody.close_incident(yard.store, by, incident, "a failed disk")
    assert used(yard) == digest(yard.checkpoint())
    journal = yard.store.path / "custody" / "journal"
    journal.write_bytes(journal.read_bytes().replace(b"failed", b"filled"))
    assert used(yard) == ""


def test_a_clearance_by_another_policy_is_not_enough(yard: Yard) -> None:
    yard.run()
    cleared(yard, yard.checkpoint())
    stricter = GateConfig(findings=m.Severity.LOW)
    with pytest.raises(NotCleared, match="by another policy"):
        promote(yard.store, "chat", yard.checkpoint(), stricter, KEEPER)


def test_a_rollback_drops_what_it_leaves_and_passes_over_what_is_open(yard: Yard) -> None:
    yard.run("a")
    bad = yard.run("b")
    yard.run("c")
    paths = [yard.checkpoint(8, n) for n in "abc"]
    cleared(yard, *paths)
    for path in paths:
        put(yard, path)
    yard.says(bad, finding(step=1))
    entry = roll_back(yard.store, "chat", KEEPER, "case 7")
    assert (entry.digest, entry.left) == (digest(paths[0]), digest(paths[2]))
    assert [p.digest for p in look_up(yard.store, "chat")] == [digest(paths[0])]
    with pytest.raises(NotCleared, match="no earlier checkpoint"):
        roll_back(yard.store, "chat", KEEPER, "again")
    with pytest.raises(UsageError, match="nothing is served as web"):
        roll_back(yard.store, "web", KEEPER, "")
    kinds = [type(e) for _, e in history(read_gate(yard.store), "chat")]
    assert kinds == [m.Promoted] * 3 + [m.RolledBack]


def test_of_two_who_promote_at_once_one_wins_and_the_other_is_told(yard: Yard, tmp_path: Path) -> None:
    """Two processes, many rounds on one name: every promotion follows on the one before it, none is lost."""
    yard.run("a")
    yard.run("b")
    cleared(yard, yard.checkpoint(8, "a"), yard.checkpoint(8, "b"))
    script = tmp_path / "race.py"
    script.write_text(
        "import sys\nfrom pathlib import Path\n"
        "from trainwarden.config import GateConfig\nfrom trainwarden.errors import NotCleared\n"
        "from trainwarden.gate.promote import promote\nfrom trainwarden.keys import SigningKey\n"
        "from trainwarden.store import Store\n"
        "store, won, lost = Store.open(Path(sys.argv[1])), 0, 0\n"
        "for _ in range(12):\n"
        "    try:\n"
        "        promote(store, 'chat', Path(sys.argv[2]), GateConfig(), SigningKey(b'\\x41' * 32)); won += 1\n"
        "    except NotCleared as e:\n"
        "        assert 'meanwhile' in str(e); lost += 1\n"
        "print(won, lost)\n"
    )
    racers = [
        subprocess.Popen(
            [sys.executable, str(script), str(yard.store.path), str(yard.checkpoint(8, n))],
            stdout=subprocess.PIPE,
            text=True,
        )
        for n in "ab"
    ]
    told = [r.communicate(timeout=240)[0].split() for r in racers]
    assert [r.returncode for r in racers] == [0, 0]
    happened = [e for _, e in history(read_gate(yard.store), "chat")]
    assert len(happened) == sum(int(won) for won, _ in told)
    assert all(int(won) + int(lost) == 12 for won, lost in told)


# --------------------------------------------------------------------------- the log itself


def clearance(letter: str) -> m.CheckpointCleared:
    return m.CheckpointCleared(digest=letter * 64, place="/x", policy="p", findings=m.Severity.MEDIUM, runs=())


BEGUN = m.GateBegun(key="k")
A, B = clearance("a"), clearance("b")


@pytest.mark.parametrize(
    ("entries", "why"),
    [
        ((A,), "names the keeper"),
        ((BEGUN, BEGUN), "names the keeper"),
        ((BEGUN, m.Promoted(name="n", digest="a" * 64, cleared=1)), "was never cleared"),
        ((BEGUN, A, m.Promoted(name="n", digest="a" * 64, cleared=0)), "cleared by entry 1"),
        (
            (
                BEGUN,
                A,
                m.ClearanceRefused(digest="a" * 64, place="", reasons=()),
                m.Promoted(name="n", digest="a" * 64, cleared=1),
            ),
            "was refused",
        ),
        (
            (
                BEGUN,
                A,
                B,
                m.Promoted(name="n", digest="a" * 64, cleared=1),
                m.Promoted(name="n", digest="b" * 64, cleared=2),
            ),
            "n was aaaa",
        ),
        ((BEGUN, A, m.RolledBack(name="n", digest="a" * 64, left="")), "n was nothing"),
        (
            (
                BEGUN,
                A,
                m.Promoted(name="n", digest="a" * 64, cleared=1),
                m.RolledBack(name="n", digest="b" * 64, left="a" * 64),
            ),
            "never was bbbb",
        ),
    ],
)
def test_entries_that_do_not_follow_are_refused(entries: tuple[m.GateEntry, ...], why: str) -> None:
    with pytest.raises(GateTampered, match=why):
        fold(entries)


def test_what_is_served_follows_from_the_entries_alone() -> None:
    entries = (
        BEGUN,
        A,
        B,
        m.Promoted(name="n", digest="a" * 64, cleared=1),
        m.Promoted(name="n", digest="b" * 64, cleared=2, previous="a" * 64),
    )
    assert [p.digest[0] for p in served(entries, "n")] == ["b", "a"]
    found = current(entries, "n")
    assert found is not None
    assert found.digest[0] == "b"
    assert current(entries, "m") is None
    assert served(entries, "n", {"b" * 64: ("bad",)})[0].open == ("bad",)


def test_a_gate_log_that_was_edited_or_is_anothers_is_not_believed(yard: Yard) -> None:
    append(yard.store, KEEPER, lambda _: A)
    with pytest.raises(KeyUnusable, match="not kept by your key"):
        append(yard.store, MALLORY, lambda _: B)
    with pytest.raises(GateTampered, match="is kept by"):
        read_gate(yard.store, MALLORY.public)
    with pytest.raises(GateTampered, match="does not follow"):
        append(yard.store, KEEPER, lambda _: m.Promoted(name="n", digest="b" * 64, cleared=0))
    assert len(read_gate(yard.store)) == 2
    journal = yard.store.path / "gate" / "log" / "journal"
    data = journal.read_bytes()
    journal.write_bytes(data.replace(b"a" * 64, b"b" * 64))
    with pytest.raises(GateTampered, match="does not verify"):
        read_gate(yard.store)
    with pytest.raises(LogError):
        append(yard.store, KEEPER, lambda _: B)


def test_the_gates_log_is_cosigned_and_published_and_what_was_put_back_since_is_told(
    yard: Yard, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("TRAINWARDEN_KEY", str(tmp_path / "nobody"))
    witness = SigningKey(b"\x11" * 32)
    named = ("--witness", VerifierKey("w/one", witness.public, COSIGNATURE).text)
    log = yard.store.path / "gate" / "log"

    def answers(url: str, key: VerifierKey, note: str, proof: Callable[[int], list[bytes]]) -> Reply:
        text = split_note(note.encode())[0]
        return Cosigned(verify_cosignature(text, cosign(text, key.name, witness, 9)[:-1], key))

    def status() -> tuple[int, str]:
        capsys.readouterr()
        return main(["status", "--store", str(yard.store.path), *named]), capsys.readouterr().out

    assert main(["log", "cosign", "gate", "--store", str(yard.store.path), *named]) == 3, "nothing was decided yet"
    yard.run()
    cleared(yard, yard.checkpoint(4), yard.checkpoint(8))
    put(yard, yard.checkpoint(4))
    shutil.copytree(log, tmp_path / "earlier")
    put(yard, yard.checkpoint(8))
    monkeypatch.setattr(ask, "collect", answers)
    asked = named[1] + "=http://w"
    assert main(["log", "cosign", "gate", "--store", str(yard.store.path), "--witness", asked]) == 0
    code, told = status()
    assert (code, "the gate's log: 1 cosignatures, 1 needed: w/one" in told) == (0, True), told
    publish = ["log", "publish", "gate", "--store", str(yard.store.path), "--to", str(tmp_path / "site")]
    assert main(publish) == 0
    published = TileLog.open(from_folder(tmp_path / "site"), VerifierKey(ORIGIN, KEEPER.public))
    assert [m.decode_gate_entry(data) for _, data in published.entries()] == list(read_gate(yard.store))
    assert "\u2014 w/one " in published.head.note
    cosigned = (log / "cosigned").read_bytes()
    shutil.rmtree(log)
    shutil.copytree(tmp_path / "earlier", log)
    (log / "cosigned").write_bytes(cosigned)
    code, told = status()
    assert (code, "the log was rolled back: witnesses cosigned size 5" in told) == (1, True), told
    assert main(publish) == 1, "what others have read is not taken back"
