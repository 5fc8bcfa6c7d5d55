"""Crashes and failures at every write of the log server: nothing acknowledged is lost, nothing is there twice."""

from __future__ import annotations

import errno
import random

import pytest

from benchmarks.log_crashes import (
    GROUPS,
    KEY,
    ORIGIN,
    SMALL,
    Crash,
    Faults,
    Faulty,
    Server,
    crashes,
    losses,
    new_index,
    read_log,
    request,
    run_until,
    running,
)
from trainwarden.errors import LogError, LogFenced, LogTampered, RequestRefused, SignatureInvalid
from trainwarden.keys import SigningKey
from trainwarden.log.protocol import Appended
from trainwarden.log.server.tilelog import CHECKPOINT, HEAD, TileLog


def test_a_death_before_and_after_every_write_loses_nothing_acknowledged() -> None:
    found = list(crashes(SMALL))
    assert len(found) > 60
    assert [lost for _, lost in found if lost] == []


def test_a_death_while_a_full_tile_is_written_loses_nothing_acknowledged() -> None:
    found = list(crashes(GROUPS, first=3, every=11))
    assert len(found) > 20
    assert [lost for _, lost in found if lost] == []


def test_a_second_death_during_the_recovery_loses_nothing_acknowledged() -> None:
    """Every first point, then a random point of the recovery and of what follows."""
    random.seed(5)
    point, recoveries = 0, 0
    while True:
        files: dict[str, bytes] = {}
        acked: dict[tuple[str, str, int], int] = {}
        index, faults = new_index(), Faults(crash_at=point)
        try:
            with running(files, index, faults) as server:
                run_until(server, acked, SMALL)
            break
        except Crash:
            pass
        for again in (random.randrange(6), random.randrange(30)):
            try:
                with running(files, index, Faults(crash_at=again)) as server:
                    run_until(server, acked, SMALL)
            except Crash:
                recoveries += 1
        with running(files, index, Faults()) as server:
            run_until(server, acked, SMALL)
        assert losses(files, acked, SMALL) == 0
        assert len(read_log(files)) == len(acked) == 4
        point += 1
    assert recoveries > 30


@pytest.mark.parametrize("code", [errno.ENOSPC, errno.EIO])
@pytest.mark.parametrize("fail_for", [1, 4])
def test_a_store_that_fails_at_any_write_refuses_and_works_again(code: int, fail_for: int) -> None:
    point, refused = 0, 0
    while True:
        files: dict[str, bytes] = {}
        acked: dict[tuple[str, str, int], int] = {}
        with running(files, new_index(), Faults()) as server:
            before = faults_of(server).points
            faults = faults_of(server)
            faults.fail_at, faults.fail_for, faults.code = before + point, fail_for, code
            answers = [a for group in SMALL for a in tried(server, acked, group)]
            for _ in range(fail_for):  # each try uses up at least one of the failures
                run_until(server, acked, SMALL)
        assert losses(files, acked, SMALL) == 0
        assert len(read_log(files)) == len(acked) == 4
        failed = [a for a in answers if isinstance(a, RequestRefused)]
        assert all(a.status in (409, 503) and a.hint for a in failed)
        refused += len(failed)
        if faults.points <= before + point:
            break
        point += 3 if fail_for > 1 else 1
    assert refused > 20


def faults_of(server: Server) -> Faults:
    assert isinstance(server.store, Faulty)
    return server.store.faults


def tried(server: Server, acked: dict[tuple[str, str, int], int], group) -> list[Appended | RequestRefused]:  # type: ignore[no-untyped-def]
    answers = server.send(*group)
    for append, answer in zip(group, answers, strict=True):
        if isinstance(answer, Appended):
            acked.update({(append.host, append.run, append.first + i): x for i, x in enumerate(answer.indexes)})
    return answers


# --------------------------------------------------------------------------- two writers


def test_of_two_writers_on_one_store_one_is_fenced_and_nothing_acknowledged_is_lost() -> None:
    files: dict[str, bytes] = {}
    acked: dict[tuple[str, str, int], int] = {}
    with running(files, new_index(), Faults()) as one, running(files, new_index(), Faults()) as two:
        run_until(one, acked, SMALL[:1])
        (answer,) = two.send(request("c", "r", 0, 2))
        assert isinstance(answer, RequestRefused)
        assert answer.status == 503
        assert "another writer" in str(answer)
        with pytest.raises(LogFenced):
            two.log.settle()
        run_until(one, acked, SMALL[1:])
    assert losses(files, acked, SMALL) == 0
    assert len(read_log(files)) == 4


@pytest.mark.parametrize("seed", range(12))
def test_a_writer_that_slept_through_the_other_ones_batches_never_puts_the_checkpoint_back(seed: int) -> None:
    """The first writer stops at a random write; another takes over and goes on; then the first one wakes."""
    draw = random.Random(seed)
    files: dict[str, bytes] = {}
    acked: dict[tuple[str, str, int], int] = {}
    with running(files, new_index(), Faults()) as one:
        run_until(one, acked, SMALL[:1])
        sleep_at = faults_of(one).points + draw.randrange(1, 12)
        other = SleepingFaults(files, acked, sleep_at, faults_of(one).points)
        one.store.faults = one.log._store.faults = other  # type: ignore[attr-defined]
        tried(one, acked, (request("d", "r", 0, 2),))
        size = len(read_log(files))
        tried(one, acked, (request("d", "r", 0, 2),))
    assert other.woke
    assert losses(files, acked, [*SMALL, (request("d", "r", 0, 2),)]) == 0
    assert len(read_log(files)) >= size >= len(acked)
    assert len(set(read_log(files))) == len(read_log(files)), "an item is there twice"


class SleepingFaults(Faults):
    """At one point, lets another server do its work before this one goes on."""

    def __init__(self, files: dict[str, bytes], acked: dict[tuple[str, str, int], int], at: int, points: int) -> None:
        super().__init__()
        self.files, self.acked, self.at, self.points, self.woke = files, acked, at, points, False

    def point(self) -> None:
        super().point()
        if not self.woke and self.points > self.at:
            self.woke = True
            with running(self.files, new_index(), Faults()) as two:
                run_until(two, self.acked, SMALL[1:])


# --------------------------------------------------------------------------- a store that was changed


def grown() -> dict[str, bytes]:
    files: dict[str, bytes] = {}
    with running(files, new_index(), Faults()) as server:
        run_until(server, {}, SMALL)
    return files


def reopen(files: dict[str, bytes], key: SigningKey = KEY, origin: str = ORIGIN) -> None:
    TileLog.open(Faulty(files, Faults()), origin, key).close()


def test_a_store_that_was_changed_does_not_open() -> None:
    reopen(grown())
    old = {}
    with running(old, new_index(), Faults()) as server:
        run_until(server, {}, SMALL[:1])
    for change in (
        {HEAD: None},
        {CHECKPOINT: None},
        {HEAD: old[HEAD]},
        {"tile/0/000.p/4": bytes(128)},
        {"tile/0/000.p/4": b"short"},
        {"tile/entries/000.p/4": None},
        {HEAD: b"not a note"},
    ):
        files = {n: d for n, d in (grown() | change).items() if d is not None}
        with pytest.raises(LogTampered):
            reopen(files)


def test_a_head_whose_staged_entries_were_removed_or_changed_does_not_open() -> None:
    files: dict[str, bytes] = {}
    with running(files, new_index(), Faults()) as server:
        run_until(server, {}, SMALL[:1])
        faults_of(server).fail_at = faults_of(server).points + 8
        faults_of(server).fail_for = 99
        assert isinstance(server.send(request("e", "r", 0, 1))[0], RequestRefused)
    (staged,) = (n for n in files if n.startswith("staging/"))
    assert files[HEAD] != files[CHECKPOINT], "the head was committed and not yet published"
    for data in (None, files[staged][:-1], b""):
        changed = {n: d for n, d in (files | {staged: data}).items() if d is not None}
        with pytest.raises(LogTampered, match="staged"):
            reopen(changed)
    reopen(files)
    assert len(read_log(files)) == 3


def test_another_key_or_origin_does_not_open_the_log() -> None:
    with pytest.raises(SignatureInvalid):
        reopen(grown(), SigningKey(b"\x09" * 32))
    with pytest.raises(LogTampered, match="expected 'other'"):
        reopen(grown(), origin="other")


def test_an_index_that_saw_more_than_the_log_has_is_an_alarm() -> None:
    """The whole store was put back to an earlier, validly signed state."""
    files: dict[str, bytes] = {}
    index = new_index()
    with running(files, index, Faults()) as server:
        run_until(server, {}, SMALL[:1])
        earlier = dict(files)
        run_until(server, {}, SMALL[1:])
    with running(earlier, index, Faults()) as server, pytest.raises(LogTampered, match="put back"):
        server.sequencer.start()
    index.rebuild()
    with running(earlier, index, Faults()) as server:
        assert index.catch_up(server.log) == 2


def test_an_index_of_a_rewritten_log_is_an_alarm() -> None:
    index = new_index()
    with running({}, index, Faults()) as server:
        run_until(server, {}, SMALL)
    with running({}, new_index(), Faults()) as server:
        run_until(server, {}, [(request("x", "r", 0, 5),)])
        with pytest.raises(LogTampered, match="rewritten"):
            index.catch_up(server.log)


def test_a_server_without_agreement_between_log_and_index_admits_nothing() -> None:
    files: dict[str, bytes] = {}
    index = new_index()
    with running(files, index, Faults()) as server:
        run_until(server, {}, SMALL)
        server.sequencer._agreed = False
        index.faults = Faults(fail_at=0)
        index._insert = lambda *_: pytest.fail("nothing is to be inserted")  # type: ignore[method-assign]
        del files["tile/0/000.p/4"]
        server.log._settled = False
        (answer,) = server.send(request("z", "r", 0, 1))
    assert isinstance(answer, RequestRefused)
    assert answer.status == 503
    assert isinstance(server.sequencer.failure, LogError)
