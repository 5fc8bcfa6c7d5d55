"""The sampled audit keeps its budget, draws after commitment, and says what it could not do (no torch in sight)."""

from __future__ import annotations

import secrets
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
from guarded_job import plain_seal

from trainwarden.audit.randomness import Beacon, LogServer, Random, System, of_note, source_for
from trainwarden.audit.recorded import Recorded
from trainwarden.audit.unitrun import Outcome
from trainwarden.audit.units import MOST_WAITING, UnitAudit
from trainwarden.errors import LogError
from trainwarden.keys import SigningKey
from trainwarden.log.journal import LogWriter
from trainwarden.log.reader import LogReader
from trainwarden.model import (
    Entry,
    Numerics,
    ProcessStarted,
    StepRecord,
    Unit,
    UnitAudited,
    UnitKind,
    UnitResult,
    UnitsDrawn,
    canonical,
    decode_entry,
)
from trainwarden.sampling import drawn_again
from trainwarden.store import RunDir, Store
from trainwarden.supervise.private import new_digest_key, write_env

EVERY = 10  # steps between kept states


class FakeCpu:
    """A clock of CPU seconds that moves when a unit is run."""

    def __init__(self, job: float) -> None:
        self.used, self.audit = job, 0.0

    def job(self) -> float:
        return self.used

    def spent(self) -> float:
        return self.audit


class FakeRunner:
    """Matches everything, at a price; remembers what was in the log when it was asked."""

    warm: tuple[tuple[int, int], ...] = ()
    ahead = False

    def __init__(self, cpu: FakeCpu, entries: Callable[[], list[Entry]]) -> None:
        self.cpu, self.entries = cpu, entries
        self.prices = {UnitKind.NEAR: 4.0, UnitKind.FAR: 60.0}  # 4 CPU seconds a step
        self.ran: list[Unit] = []
        self.closed = False

    def effort(self, recorded: Recorded, unit: Unit) -> tuple[int, int]:
        return (0, 1) if unit.kind is UnitKind.NEAR else (0, 15)

    def run(self, recorded: Recorded, unit: Unit, everything: Callable[[], Recorded]) -> Outcome:
        drawn = [u for e in self.entries() if isinstance(e, UnitsDrawn) for u in e.units]
        assert unit in drawn, "the draw is in the log before its unit is run"
        self.ran.append(unit)
        self.cpu.audit += self.prices[unit.kind]
        told = UnitAudited(
            attempt=unit.attempt, step=unit.step, rank=unit.rank, kind=unit.kind, result=UnitResult.MATCHED
        )
        return Outcome(audited=told)

    def close(self) -> None:
        self.closed = True


class Place:
    """A run of two ranks with states kept every ten steps, and its log."""

    def __init__(self, folder: Path) -> None:
        self.store = Store.open(folder / "store", create=True)
        self.run: RunDir = self.store.create_run()
        self.log = LogWriter.create(self.run.log, f"test/{self.run.id}", SigningKey(secrets.token_bytes(32)))
        new_digest_key(self.run.private)
        env = write_env(self.run.private, {})
        numerics = Numerics(machine="m", isa="i", threads=1, torch="t", python="p", accelerator="")
        for rank in (0, 1):
            self.append(
                ProcessStarted(
                    attempt=0,
                    rank=rank,
                    world=2,
                    pid=1,
                    argv=("python",),
                    cwd=str(folder),
                    executable="python",
                    env_digest=env,
                    numerics=numerics,
                )
            )

    def append(self, entry: Entry) -> None:
        self.log.append([canonical(entry)])

    def train(self, first: int, last: int) -> None:
        records = [
            StepRecord(attempt=0, rank=rank, world=2, step=step, optimizer=0, seq=step, stages={})
            for step in range(first, last)
            for rank in (0, 1)
        ]
        self.log.append([canonical(r) for r in records])
        for rank in (0, 1):
            folder = self.run.snapshots / f"a0-r{rank}"
            folder.mkdir(parents=True, exist_ok=True)
            for done in range(first + 1, last + 1):
                if done % EVERY == 0:
                    (folder / f"full-{done:08d}.safetensors").write_bytes(b"state")

    def entries(self) -> list[Entry]:
        with LogReader.open(self.run.log) as reader:
            return [decode_entry(leaf) for _, leaf in reader.entries()]

    def audit(self, cpu: FakeCpu, budget: float, source: object = None) -> tuple[UnitAudit, FakeRunner]:
        runner = FakeRunner(cpu, self.entries)
        seal = plain_seal(self.run.path)
        source = source or System()
        return UnitAudit(self.store, self.run, seal, runner, source, cpu, budget, self.append), runner  # type: ignore[arg-type]


@pytest.fixture
def place(tmp_path: Path) -> Iterator[Place]:
    place = Place(tmp_path)
    yield place
    place.log.close()


def exhaust(audit: UnitAudit) -> None:
    while audit.turn(hurry=True) == 0:
        pass


def test_the_budget_is_kept_and_what_it_does_not_pay_for_waits(place: Place) -> None:
    cpu = FakeCpu(job=0.0)
    audit, runner = place.audit(cpu, 0.05)
    for begin in range(0, 400, 50):
        place.train(begin, begin + 50)
        cpu.used += 400.0
        exhaust(audit)
        assert cpu.audit <= 0.05 * cpu.used + 1e-9, "never more than the share, whatever was drawn"
    assert audit.waiting <= MOST_WAITING
    draws = [e for e in place.entries() if isinstance(e, UnitsDrawn)]
    assert len(draws) == 8
    assert all(drawn_again(place.run.id, place.entries(), d) == d.units for d in draws)
    assert draws[3].chances[UnitKind.NEAR] > draws[3].chances[UnitKind.FAR], "cheap units are drawn more often"
    assert {step for d in draws for _, step in d.near} == set(range(EVERY, 400, EVERY))
    audit.close()
    assert runner.closed


def test_a_short_run_buys_no_unit(place: Place) -> None:
    place.train(0, 20)
    audit, runner = place.audit(FakeCpu(job=10.0), 0.01)
    exhaust(audit)
    assert runner.ran == []
    assert [len(e.chances) for e in place.entries() if isinstance(e, UnitsDrawn)] == [2], "it was drawn, at its chance"
    audit.close()


def test_drawn_units_beyond_the_room_are_said_to_be_undecided(place: Place) -> None:
    place.train(0, 20)
    audit, runner = place.audit(FakeCpu(job=1.0), 1e9)
    runner.cpu.audit = 1e12  # nothing can be paid any more
    exhaust(audit)
    told = [e for e in place.entries() if isinstance(e, UnitAudited)]
    assert runner.ran == []
    assert audit.waiting == MOST_WAITING
    assert len(told) == 40 - MOST_WAITING
    assert {t.result for t in told} == {UnitResult.UNDECIDED}
    audit.close()


def test_states_that_waiting_units_need_outlive_the_recorders_own(place: Place) -> None:
    place.train(8, 14)
    audit, runner = place.audit(FakeCpu(job=1.0), 1e9)
    runner.cpu.audit = 1e12
    exhaust(audit)
    for path in place.run.snapshots.glob("a0-r*/full-*"):
        path.unlink()
    assert {p.name for p in place.run.pinned.glob("*/*")} == {"full-00000010.safetensors"}
    audit.close()
    assert not place.run.pinned.exists()


class Later:
    """A source that has nothing until it is let."""

    value: bytes | None = None

    def after(self, last: int) -> Random | None:
        return Random(source="log server", value=self.value) if self.value else None


def test_nothing_is_drawn_before_randomness_that_came_after_the_records(place: Place) -> None:
    source = Later()
    place.train(0, 20)
    audit, _ = place.audit(FakeCpu(job=1e6), 1.0, source)
    exhaust(audit)
    assert not [e for e in place.entries() if isinstance(e, UnitsDrawn)]
    assert audit.problem
    place.train(20, 40)
    source.value = b"\x07" * 32
    exhaust(audit)
    first, second = [e for e in place.entries() if isinstance(e, UnitsDrawn)]
    assert sum(first.of.values()) == sum(second.of.values()) == 40, "what came later waits for later randomness"
    audit.close()


def test_a_beacon_counts_only_when_it_says_something_new(tmp_path: Path) -> None:
    path, now = tmp_path / "beacon", [0.0]
    path.write_text("round 1")
    beacon = Beacon(str(path), lambda: now[0])
    assert beacon.after(10) is None, "what it says already was known"
    now[0] += 60
    assert beacon.after(10) is None
    path.write_text("round 2")
    now[0] += 60
    random = beacon.after(10)
    assert random is not None
    assert random.proof.endswith(b"round 2".hex())


def test_the_signature_under_a_head_is_the_randomness_and_a_note_without_one_is_none(tmp_path: Path) -> None:
    note = "log\n3\nroot\n\n— log c2lnbmF0dXJl\n"
    assert of_note(note) == of_note(note.replace("root", "other")), "by its signature alone"
    assert of_note(note) != of_note(note.replace("c2ln", "c2lo"))
    with pytest.raises(LogError):
        of_note("log\n3\nroot\n\n")
    assert isinstance(source_for(tmp_path, ""), System)
    assert LogServer(tmp_path).after(5) is None
