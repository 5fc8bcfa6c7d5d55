"""Shipping a run's log: whatever fails or lies in between, every entry arrives once, in order, and proven."""

from __future__ import annotations

import os
import random
import time
from collections.abc import Iterator
from pathlib import Path

import log_server as sim
import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st
from log_server import FAULTS, ORIGIN, SERVER_KEY, FaultyServer, LogServer
from recorded_rows import KEY, make_run, step_record, step_records

from trainwarden.errors import KeyUnusable, LogError, LogLocked, LogTampered
from trainwarden.log import records
from trainwarden.log.client.packing import entry_hash
from trainwarden.log.client.session import Shipping
from trainwarden.log.client.shipper import SHIPPING, SPLIT_VIEW, Event, Limits, Shipped, Told
from trainwarden.log.client.state import ShippingState, Target, read_alarms, read_receipts
from trainwarden.log.journal import LogWriter
from trainwarden.log.merkle import leaf_hash, verify_consistency
from trainwarden.log.notes import parse_head, sign_head, verify_head
from trainwarden.log.protocol import read_entry
from trainwarden.log.reader import LogReader
from trainwarden.model import (
    Entry,
    Finding,
    Gap,
    LoggedEntry,
    RecordBatch,
    RunEnded,
    Sealed,
    canonical,
    decode_leaf,
)
from trainwarden.store import RunDir

SEALED = Sealed(run="20260101-000000-aaaa", seal="00", key=KEY.public)
FOUND = Gap(attempt=0, rank=1, step=3, reason="a gap")
ENDED = RunEnded(code=0, records=60, wall_ns=1)


@pytest.fixture
def target(tmp_path: Path) -> Target:
    return make_target(tmp_path)


def make_target(folder: Path) -> Target:
    path = folder / "hostkey"
    if not path.exists():
        path.write_text((b"h" * 32).hex())
        path.chmod(0o600)
    return Target(
        url="http://log.invalid", origin=ORIGIN, server_key=SERVER_KEY.public, host="node1", host_key=str(path)
    )


@pytest.fixture
def folder(tmp_path: Path) -> RunDir:
    rows: list[Entry] = list(step_records(60))
    return make_run(tmp_path, [[SEALED], rows[:20], [*rows[20:30], FOUND, *rows[30:]], [ENDED]])


def local(folder: RunDir) -> list[bytes]:
    with LogReader.open(folder.log) as log:
        return [data for _, data in log.entries()]


def ship(
    folder: RunDir, target: Target, server: FaultyServer | LogServer, steps: int = 1000, limits: Limits | None = None
) -> list[Event]:
    """Step until everything is there, without waiting for anything."""
    told: list[Event] = []
    shipping = Shipping.open(
        folder, target, told.append, limits=limits or Limits(records=16, batches=1), transport=server
    )
    try:
        for _ in range(steps):
            shipping.shipper.step(hurry=True)
            if shipping.shipper.done:
                return told
        return told
    finally:
        shipping.close()


def arrived(server: LogServer, run: str, host: str = "node1") -> list[tuple[int, bytes]]:
    """(log index, leaf hash) of every entry that the server holds of a run, in the order of its log."""
    found: list[tuple[int, bytes]] = []
    for i, entry in enumerate(server.entries):
        try:
            bound, leaf = read_entry(entry)
        except LogTampered:
            continue
        if (bound.host, bound.run) != (host, run):
            continue
        match decode_leaf(leaf):
            case RecordBatch() as batch:
                table = records.read_batch(server.objects[i], batch)
                found += zip(table.column("index").to_pylist(), table.column("leaf").to_pylist(), strict=True)
            case LoggedEntry() as entry_leaf:
                found.append((entry_leaf.index, bytes.fromhex(entry_leaf.leaf)))
                assert entry_leaf.entry == "" or leaf_hash(entry_leaf.entry.encode()).hex() == entry_leaf.leaf
    return found


def check_all_there(server: LogServer, folder: RunDir) -> None:
    assert arrived(server, folder.id) == [(i, leaf_hash(data)) for i, data in enumerate(local(folder))]


def findings(told: list[Event]) -> list[Finding]:
    return [e for e in told if isinstance(e, Finding)]


# -- what arrives


def test_every_entry_arrives_once_in_order_with_records_in_batches(folder: RunDir, target: Target) -> None:
    server = LogServer()
    told = ship(folder, target, server)
    check_all_there(server, folder)
    kinds = [type(decode_leaf(read_entry(e)[1])) for e in server.entries]
    assert kinds.count(LoggedEntry) == 3
    assert kinds.count(RecordBatch) < 12
    assert findings(told) == []
    assert told[-1] == Shipped(entries=63, of=63)


def test_each_batch_carries_a_signed_head_of_the_hosts_log_that_covers_it(folder: RunDir, target: Target) -> None:
    server = LogServer()
    ship(folder, target, server)
    batches = [b for e in server.entries if isinstance(b := decode_leaf(read_entry(e)[1]), RecordBatch)]
    for batch in batches:
        assert verify_head(batch.head.encode(), KEY.public).size > batch.last


def test_shipping_twice_sends_nothing_twice(folder: RunDir, target: Target) -> None:
    server = LogServer()
    ship(folder, target, server)
    entries, requests = list(server.entries), server.requests
    ship(folder, target, server)
    assert (server.entries, server.requests) == (entries, requests)


def test_entries_that_come_later_are_sent_then(folder: RunDir, target: Target) -> None:
    server = LogServer()
    ship(folder, target, server)
    log = LogWriter.open(folder.log, KEY)
    log.append([canonical(FOUND), canonical(step_record(99))])
    log.close()
    ship(folder, target, server)
    check_all_there(server, folder)


def test_a_client_that_is_behind_sends_several_full_batches_in_one_request(folder: RunDir, target: Target) -> None:
    server, told = LogServer(), list[Event]()
    shipping = Shipping.open(
        folder, target, told.append, limits=Limits(records=8, batches=3, seconds=1e9), transport=server
    )
    try:
        while shipping.shipper.step() == 0.0:
            pass
        assert sum(isinstance(e, Shipped) for e in told) == 3
        check_all_there(server, folder)
    finally:
        shipping.close()
    sizes = [leaf.count for e in server.entries if isinstance(leaf := decode_leaf(read_entry(e)[1]), RecordBatch)]
    assert max(sizes) == 8
    assert sum(sizes) == 60


def test_records_wait_for_their_batch_and_findings_do_not(tmp_path: Path, target: Target) -> None:
    folder = make_run(tmp_path, [[SEALED], list(step_records(4)), [FOUND], list(step_records(3, seed=1))])
    server = LogServer()
    shipping = Shipping.open(folder, target, lambda e: None, limits=Limits(seconds=1e9), transport=server)
    for _ in range(5):
        shipping.shipper.step()
    assert [i for i, _ in arrived(server, folder.id)] == [0, 1, 2, 3, 4, 5]
    assert not shipping.shipper.done
    assert shipping.drain(0)
    shipping.close()
    check_all_there(server, folder)


def test_entries_too_large_for_a_leaf_travel_as_its_object_or_stay(tmp_path: Path, target: Target) -> None:
    large = Gap(attempt=0, rank=0, step=0, reason="x" * 70_000)
    huge = Gap(attempt=0, rank=0, step=0, reason="y" * 5_000_000)
    odd = step_record(1, step=1 << 80)
    folder = make_run(tmp_path, [[SEALED, large, huge, odd, step_record(2)]])
    server = LogServer()
    ship(folder, target, server)
    check_all_there(server, folder)
    assert server.objects[1] == canonical(large)
    assert 2 not in server.objects
    assert isinstance(decode_leaf(read_entry(server.entries[3])[1]), LoggedEntry)


# -- what fails on the way


@pytest.mark.parametrize("skip", [0, 1, 2])
@pytest.mark.parametrize("name", FAULTS)
def test_one_fault_at_any_request_loses_and_doubles_nothing(
    name: str, skip: int, folder: RunDir, target: Target
) -> None:
    server = FaultyServer()
    kind, fault = FAULTS[name]
    server.faults = [(kind, FaultyServer.honest)] * skip + [(kind, fault)]
    told = ship(folder, target, server)
    check_all_there(server.server, folder)
    assert server.faults == []
    assert findings(told) == []
    assert [e.sentence.partition(":")[0] for e in told if isinstance(e, Told)] in (
        ["The log is not being sent", "The log is being sent again."],
        [],  # nothing came before that could have been answered again, or that an older head could leave out
    )


def test_a_server_that_says_when_to_come_back_is_left_alone_until_then(folder: RunDir, target: Target) -> None:
    server = FaultyServer()
    server.faults = [("append", sim.status(429, **{"retry-after": "7"})), ("append", sim.status(503))]
    shipping = Shipping.open(folder, target, lambda e: None, transport=server)
    assert shipping.shipper.step(hurry=True) >= 7
    assert 0 < shipping.shipper.step(hurry=True) <= 60
    shipping.close()


def test_pauses_grow_and_have_a_limit(folder: RunDir, target: Target) -> None:
    server = FaultyServer()
    server.faults = [("append", sim.away)] * 40
    shipping = Shipping.open(folder, target, lambda e: None, transport=server)
    pauses = [shipping.shipper.step(hurry=True) for _ in range(40)]
    shipping.close()
    assert max(pauses) <= 60
    assert pauses[0] < 0.6
    assert min(pauses[10:]) >= 30


@given(
    names=st.lists(st.sampled_from(sorted(FAULTS)), max_size=12),
    restarts=st.lists(st.integers(0, 30), max_size=4),
    size=st.integers(1, 20),
)
@example(names=["answer lost", "tiles away", "bad tile", "earlier answer"], restarts=[0, 1, 0], size=1)
@settings(max_examples=20, deadline=None)
def test_property_any_faults_and_restarts_every_entry_arrives_once_in_order(
    tmp_path_factory: pytest.TempPathFactory, names: list[str], restarts: list[int], size: int
) -> None:
    tmp = tmp_path_factory.mktemp("ship")
    rows: list[Entry] = list(step_records(25))
    folder = make_run(tmp, [[SEALED, *rows[:7]], [FOUND], rows[7:], [ENDED]])
    server = FaultyServer()
    server.faults = [FAULTS[name] for name in names]
    target, limits = make_target(tmp), Limits(records=size, items=3)
    for steps in restarts:
        ship(folder, target, server, steps, limits)
    ship(folder, target, server, 400, limits)
    server.faults.clear()
    ship(folder, target, server, 400, limits)
    check_all_there(server.server, folder)


# -- what lies


def twin_of(server: LogServer) -> LogServer:
    """Another history under the same key, of the same size."""
    other = LogServer()
    other.hosts, other.items = dict(server.hosts), {k: list(v) for k, v in server.items.items()}
    for i, entry in enumerate(server.entries):
        other.add(entry if i else b"another beginning", server.objects.get(i, b""))
    return other


def half_shipped(folder: RunDir, target: Target, server: FaultyServer) -> None:
    ship(folder, target, server, steps=3)
    assert 0 < len(server.server.entries) < 7


def test_split_view_at_one_size_is_an_alarm_with_both_heads(folder: RunDir, target: Target) -> None:
    server = FaultyServer()
    half_shipped(folder, target, server)
    size = server.server.tree.size

    def forked(f: FaultyServer, *request: object) -> sim.Reply:
        reply = f.honest(*request)  # type: ignore[arg-type]
        return sim.changed(reply, head=sign_head(ORIGIN, size, b"f" * 32, SERVER_KEY).note)

    server.faults = [("append", forked)]
    (found,) = findings(ship(folder, target, server))
    assert found.detector == SPLIT_VIEW
    (alarm,) = read_alarms(folder.shipping, target)
    first, second = (verify_head(note.encode(), SERVER_KEY.public) for note in (alarm.first, alarm.second))
    assert (first.size, first.root) != (second.size, second.root)
    assert first.size == second.size == size
    check_all_there(server.server, folder)  # and it went on once the server told one story again


def test_forked_head_is_an_alarm_whose_evidence_convicts_by_itself(folder: RunDir, target: Target) -> None:
    server = FaultyServer()
    half_shipped(folder, target, server)
    server.server = twin_of(server.server)
    told = ship(folder, target, server, steps=20)
    (found,) = findings(told)
    assert found.detector == SPLIT_VIEW
    (alarm,) = read_alarms(folder.shipping, target)
    first, second = (verify_head(note.encode(), SERVER_KEY.public) for note in (alarm.first, alarm.second))
    proof = [bytes.fromhex(h) for h in alarm.proof]
    begins = bytes.fromhex(alarm.begins)
    verify_consistency(first.size, second.size, proof, begins, bytes.fromhex(second.root))
    assert begins.hex() != first.root
    assert first.note in found.seen.replace("\\n", "\n")
    assert [r for r in read_receipts(folder.shipping, target) if parse_head(r.head.encode()).root == second.root] == []


def test_damaged_tiles_are_a_fault_and_no_split_view(folder: RunDir, target: Target) -> None:
    server = FaultyServer()
    half_shipped(folder, target, server)
    server.faults = [("tile", sim.bad_tile), ("append", FaultyServer.honest)] * 6
    assert findings(ship(folder, target, server)) == []
    check_all_there(server.server, folder)


def test_server_rolled_back_to_a_backup_is_an_alarm(folder: RunDir, target: Target) -> None:
    server = FaultyServer()
    backup = server.server.copy()
    half_shipped(folder, target, server)
    server.server = backup
    (found,) = findings(ship(folder, target, server, steps=20))
    assert found.detector == SHIPPING
    assert "gone back" in found.seen


def test_rolled_back_head_for_a_while_is_refused_and_for_ever_is_an_alarm(folder: RunDir, target: Target) -> None:
    server = FaultyServer()
    half_shipped(folder, target, server)
    server.faults = [("append", sim.older_head)] * 2
    assert findings(ship(folder, target, server, steps=2)) == []
    server.faults = [("append", sim.older_head)] * 200
    found = findings(ship(folder, target, server, steps=20))
    assert [f.detector for f in found] == [SHIPPING]


def test_wrong_key_for_ever_is_an_alarm_and_never_a_receipt(folder: RunDir, target: Target) -> None:
    server = FaultyServer()
    server.faults = [("append", sim.other_key)] * 20
    found = findings(ship(folder, target, server, steps=20))
    assert [f.detector for f in found] == [SHIPPING]
    assert read_receipts(folder.shipping, target) == []


def test_server_that_acknowledges_what_it_does_not_keep_gets_no_receipt(folder: RunDir, target: Target) -> None:
    server = FaultyServer()

    def drops(f: FaultyServer, *request: object) -> sim.Reply:
        kept = f.server.copy()
        reply = f.honest(*request)  # type: ignore[arg-type]
        f.server = kept
        f.server.add(b"padding")
        return sim.changed(reply, head=f.server.head().note)

    server.faults = [("append", drops)] * 10
    found = findings(ship(folder, target, server, steps=10))
    assert [f.detector for f in found] == [SHIPPING]
    assert read_receipts(folder.shipping, target) == []


def test_another_entry_under_our_number_is_an_alarm(folder: RunDir, target: Target) -> None:
    server = LogServer()
    ship(folder, target, server)
    state = next(folder.shipping.iterdir())
    (state / "receipts").write_bytes(b"")  # the shipping state is put back, and the run cut differently
    (state / "outbox").unlink()
    told = ship(folder, target, server, steps=5, limits=Limits(records=3))
    assert [f.detector for f in findings(told)] == [SHIPPING]
    assert "another entry" in findings(told)[0].seen
    check_all_there(server, folder)


def test_own_log_rewritten_is_a_finding_and_nothing_more_is_sent(folder: RunDir, target: Target) -> None:
    server = LogServer()
    journal = folder.log / "journal"
    journal.write_bytes(journal.read_bytes().replace(b'"rank":3', b'"rank":4', 1))
    told: list[Event] = []
    shipping = Shipping.open(folder, target, told.append, transport=server)
    assert not shipping.follow(lambda seconds: False, 0)
    shipping.close()
    assert [f.detector for f in findings(told)] == [SHIPPING]
    assert len(server.entries) <= 1


def test_an_unsigned_own_head_is_refused(folder: RunDir, target: Target) -> None:
    told: list[Event] = []
    shipping = Shipping.open(folder, target, told.append, public_key=SERVER_KEY.public, transport=LogServer())
    assert not shipping.follow(lambda seconds: False, 0)
    shipping.close()
    assert "contradicts" in findings(told)[0].seen


def test_clocks_that_jump_either_way_lose_and_double_nothing(
    folder: RunDir, target: Target, monkeypatch: pytest.MonkeyPatch
) -> None:
    server, told, draw = LogServer(), list[Event](), random.Random(3)
    monkeypatch.setattr(time, "time_ns", lambda: draw.randrange(-(10**18), 3 * 10**18))
    monkeypatch.setattr(time, "time", lambda: draw.uniform(-1e9, 3e9))
    limits = Limits(records=16, batches=1)
    shipping = Shipping.open(folder, target, told.append, limits=limits, transport=server)
    monkeypatch.setattr(shipping.shipper, "_clock", lambda: draw.uniform(-1e9, 1e9))
    for _ in range(200):
        shipping.shipper.step()
    assert shipping.shipper.done, "what waits for its batch is not held for ever by a clock that was put back"
    shipping.close()
    check_all_there(server, folder)
    assert findings(told) == []


# -- the spool


def test_full_spool_is_one_gap_and_is_told_again_once_caught_up(folder: RunDir, target: Target) -> None:
    server = FaultyServer()
    server.faults = [("append", sim.away)] * 6
    told = ship(folder, target, server, limits=Limits(records=16, spool=10_000))
    gaps = [e for e in told if isinstance(e, Gap)]
    assert len(gaps) == 1
    assert "10000" in gaps[0].reason
    assert [e.sentence for e in told if isinstance(e, Told)][-1].startswith("The log server has caught up")
    check_all_there(server.server, folder)


# -- crashes


class Died(BaseException):
    """The process was killed here."""


CALLS = ("fsync", "write", "replace", "link", "ftruncate", "open")


def kill_at(monkeypatch: pytest.MonkeyPatch, point: int, after: bool) -> Iterator[int]:
    """Let the process die before or after its `point`-th call that may change the disk; gives the calls made."""
    made = 0
    for name in CALLS:
        real = getattr(os, name)

        def call(*args: object, real: object = real, **kwargs: object) -> object:
            nonlocal made
            made += 1
            if made == point + 1 and not after:
                raise Died
            result = real(*args, **kwargs)  # type: ignore[operator]
            if made == point + 1:
                raise Died
            return result

        monkeypatch.setattr(os, name, call)
    yield made
    monkeypatch.undo()
    yield made


@pytest.mark.parametrize("after", [False, True], ids=["not persisted", "persisted"])
def test_killed_at_every_call_that_changes_the_disk(
    after: bool, tmp_path: Path, target: Target, monkeypatch: pytest.MonkeyPatch
) -> None:
    folder = make_run(tmp_path, [[SEALED, step_record(0)], [FOUND, step_record(1)]])
    point, ended = 0, False
    while not ended:
        server = LogServer()
        here = RunDir(folder.id, folder.path)
        kill = kill_at(monkeypatch, point, after)
        next(kill)
        try:
            ship(here, target, server, limits=Limits(records=1, items=2))
            ended = True
        except Died:
            pass
        finally:
            next(kill)
        ship(here, target, server, limits=Limits(records=1, items=2))
        check_all_there(server, here)
        receipts = read_receipts(here.shipping, target)
        assert [s.first for r in receipts for s in r.sent] == [0, 1, 2, 3]
        for path in here.shipping.iterdir():
            for file in path.iterdir():
                file.unlink()
        point += 1
    assert point > 20


def test_receipt_torn_at_every_byte_is_sent_again_and_doubles_nothing(folder: RunDir, target: Target) -> None:
    server = LogServer()
    ship(folder, target, server, limits=Limits(records=64))
    receipts = next(folder.shipping.iterdir()) / "receipts"
    whole = receipts.read_bytes()
    entries = list(server.entries)
    last = len(whole) - len(whole.rpartition(b"\x93")[2])
    for cut in {0, 1, 11, 12, 13, last, len(whole) - 1} | set(range(20, len(whole), 97)):
        receipts.write_bytes(whole[:cut] + (b"\0" * 30 if cut % 2 else b""))
        ship(folder, target, server, steps=50, limits=Limits(records=64))
        assert server.entries == entries
        receipts.write_bytes(whole)


def test_full_disk_is_a_pause_and_loses_nothing(
    folder: RunDir, target: Target, monkeypatch: pytest.MonkeyPatch
) -> None:
    server = LogServer()
    told: list[Event] = []
    shipping = Shipping.open(folder, target, told.append, limits=Limits(records=16, batches=1), transport=server)
    real = os.fsync

    def full(fd: int) -> None:
        raise OSError(28, "No space left on device")

    for i in range(12):
        monkeypatch.setattr(os, "fsync", full if i % 2 else real)
        shipping.shipper.step(hurry=True)
    monkeypatch.undo()
    assert shipping.drain(0)
    shipping.close()
    check_all_there(server, folder)
    assert any(isinstance(e, Told) and "No space" in e.sentence for e in told)


def test_two_shippers_of_one_run_exclude_each_other(folder: RunDir, target: Target) -> None:
    shipping = Shipping.open(folder, target, lambda e: None, transport=LogServer())
    with pytest.raises(LogLocked):
        Shipping.open(folder, target, lambda e: None, transport=LogServer())
    shipping.close()
    Shipping.open(folder, target, lambda e: None, transport=LogServer()).close()


def test_damaged_outbox_is_one_clear_error(folder: RunDir, target: Target) -> None:
    ship(folder, target, LogServer(), steps=1)
    (next(folder.shipping.iterdir()) / "outbox").write_bytes(b"\xc1 no msgpack")
    with pytest.raises(LogError, match="is damaged"):
        Shipping.open(folder, target, lambda e: None, transport=LogServer())


def test_host_key_that_others_can_read_is_refused(folder: RunDir, target: Target) -> None:
    Path(target.host_key).chmod(0o644)
    with pytest.raises(KeyUnusable):
        Shipping.open(folder, target, lambda e: None, transport=LogServer())


@given(st.binary(max_size=300))
@example(b"\x00\x00\x00\x00" + b"\x00" * 8)
@settings(max_examples=60, deadline=None)
def test_fuzz_receipts_that_are_garbage_are_cut(tmp_path_factory: pytest.TempPathFactory, data: bytes) -> None:
    tmp = tmp_path_factory.mktemp("receipts")
    target = make_target(tmp)
    state = ShippingState.open(tmp, target)
    state.close()
    (state.folder / "receipts").write_bytes(data)
    again = ShippingState.open(tmp, target)
    assert (again.seq, again.index, (again.folder / "receipts").stat().st_size) == (0, 0, 0)
    again.close()


def test_receipts_name_the_entries_of_the_protocol(folder: RunDir, target: Target) -> None:
    server = LogServer()
    ship(folder, target, server)
    sent = [s for r in read_receipts(folder.shipping, target) for s in r.sent]
    assert [s.index for s in sent] == list(range(len(server.entries)))
    hashes = [entry_hash("node1", folder.id, seq, s.object, s.leaf) for seq, s in enumerate(sent)]
    assert hashes == [leaf_hash(e) for e in server.entries]
