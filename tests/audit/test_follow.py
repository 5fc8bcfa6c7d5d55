"""A replay that follows a run: a verdict for each segment while the record grows, and none too many."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path

import msgspec
import pytest

from trainwarden.audit import follow as follow_module
from trainwarden.audit.compare import Seen
from trainwarden.audit.follow import LEAD, Follow
from trainwarden.audit.plan import Plan
from trainwarden.audit.recorded import Recorded
from trainwarden.audit.runner import Ended, Pace, Saving
from trainwarden.audit.starts import Start, Way
from trainwarden.lineage import Attempt
from trainwarden.model import (
    CheckpointSaved,
    Detail,
    Entry,
    Matched,
    ProcessStarted,
    Stage,
    StageDigest,
    StepRecord,
)

WORLD, EVERY = 2, 4
IN_ORDER = Ended(problems=(), unfit=(), loaded=(), opened=(), seconds=0.0)


def record(step: int, rank: int = 0, weights: str = "", attempt: int = 0, optimizer: int = 0) -> StepRecord:
    stages = {Stage.WEIGHTS: StageDigest(root=weights or f"w{step}.{optimizer}", tensors=1)}
    return StepRecord(attempt=attempt, rank=rank, world=WORLD, step=step, optimizer=optimizer, seq=step, stages=stages)


class _Store:
    """Files by digest, kept in a folder."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        folder.mkdir()

    def has(self, digest: str) -> bool:
        return (self.folder / digest).exists()

    def object_path(self, digest: str) -> Path:
        return self.folder / digest


class Record(Recorded):
    """A record that lies in memory: what `Follow` asks of it, and nothing else."""

    def __init__(self, store: _Store, base: int = 0) -> None:
        self.store = store  # type: ignore[assignment]
        self.entries: list[Entry] = []
        self.key = bytes(32)
        self.opened = {}
        self._saves, self._own_saves, self._starts, self._updates = [], [], {}, {}
        self._attempt = Attempt(number=0, world=WORLD, ranks=(0, 1), base=base, last=base)
        self.seal = _Sealed()  # type: ignore[assignment]

    def attempt(self, number: int) -> Attempt:
        return self._attempt

    def starts(self, attempt: int) -> list[tuple[ProcessStarted, dict[str, str]]]:
        return [(None, {})] * WORLD  # type: ignore[list-item]

    def seen(self, record: StepRecord) -> Seen:
        return Seen(record=record, details={})

    def begun(self, record: StepRecord) -> Detail | None:
        return None


class _Sealed:
    class seal:
        class comparison:
            activations_every = 4


class _Space:
    """Where the replay's files lie: the recorded paths under another root."""

    def __init__(self, root: Path) -> None:
        self.root = root

    def map_path(self, path: str) -> str:
        return f"{self.root}{path}"

    def remove(self) -> None:
        pass


@dataclass
class Scene:
    """A run whose log grows as the test says, and a replay of it that runs for itself."""

    folder: Path
    base: int = 0
    steps: int = 1000  # that the replayed script makes by itself
    replayed: dict[tuple[int, int], str] = field(default_factory=dict)  # (step, rank) → other weights
    files: dict[int, bytes] = field(default_factory=dict)  # steps done → other bytes of the replay's checkpoint
    renames: bool = False  # the replay's checkpoint is written beside its place first
    unfit: str = ""
    problems: tuple[str, ...] = ()
    verdicts: list[Matched] = field(default_factory=list)
    reached: dict[int, int] = field(default_factory=dict)  # rank → the last step that its replay made
    over: bool = False
    enough: Callable[[Follow], bool] = lambda follow: False

    def __post_init__(self) -> None:
        self.record = Record(_Store(self.folder / "store"), self.base)
        self.new: list[Entry] = []
        self.follow: Follow
        self.ended: list[tuple[str, ...]] = []

    def begin(self, first: int = 0) -> None:
        self.follow = Follow(self.record, None, 0, self.read, self.verdicts.append, first=first)  # type: ignore[arg-type]
        self.thread = threading.Thread(target=self._run, daemon=True)
        self.thread.start()

    def _run(self) -> None:
        self.ended.append(self.follow.run(lambda follow: self.over or self.enough(follow)))

    def read(self) -> Sequence[Entry]:
        count = len(self.new)
        new = self.new[:count]
        del self.new[:count]
        return new

    def steps_done(self, first: int, last: int, ranks: Sequence[int] = (0, 1)) -> None:
        self.new += [record(step, rank) for step in range(first, last + 1) for rank in ranks]

    def saved(self, done: int, content: bytes = b"", path: str = "", renamed_from: str = "") -> None:
        digest = f"d{done}"
        (self.record.store.folder / digest).write_bytes(content or b"state %d" % done)  # type: ignore[attr-defined]
        save = CheckpointSaved(
            attempt=0,
            rank=0,
            step=done,
            path=path or f"/ck-{done}.pt",
            digest=digest,
            size=1,
            format="pt",
            renamed_from=renamed_from,
        )
        self.new.append(save)

    def wait(self, count: int) -> list[tuple[int, int]]:
        """The segments matched so far, once there are so many or the following has ended."""
        until = time.monotonic() + 20
        while len(self.verdicts) < count and self.thread.is_alive() and time.monotonic() < until:
            time.sleep(0.005)
        return [(v.segment.first, v.segment.last) for v in self.verdicts]

    def end(self) -> list[tuple[int, int]]:
        """What was matched when it ended by itself."""
        self.thread.join(60)
        assert not self.thread.is_alive()
        return [(v.segment.first, v.segment.last) for v in self.verdicts]

    # -- the replay

    def replay(
        self,
        ranks: object,
        space: _Space,
        key: bytes,
        every: int,
        on_step: Callable[[Seen], None],
        on_saved: Callable[[Saving], None],
        stop: Callable[[], bool],
        pace: Pace,
    ) -> Ended:
        if self.unfit:
            pace.unfit(self.unfit)
        threads = [
            threading.Thread(target=self._rank, args=(rank, space, on_step, on_saved, pace)) for rank in range(WORLD)
        ]
        for thread in threads:
            thread.start()
        while any(t.is_alive() for t in threads) and not stop():
            time.sleep(0.002)
        pace.end()
        for thread in threads:
            thread.join()
        return msgspec.structs.replace(IN_ORDER, problems=self.problems)

    def _rank(
        self,
        rank: int,
        space: _Space,
        on_step: Callable[[Seen], None],
        on_saved: Callable[[Saving], None],
        pace: Pace,
    ) -> None:
        plan: Plan | None = Plan(first=0, last=-1, follow=True, held=True)
        for at in range(self.steps):
            while plan is not None and at > plan.last:
                plan = pace.further(rank, plan)
            if plan is None:
                return
            step = self.base + at
            made = record(step, rank, self.replayed.get((step, rank), f"w{step}.0"))
            on_step(Seen(record=msgspec.structs.replace(made, step=at), details={}))
            self.reached[rank] = step
            if rank == 0 and (step + 1) % EVERY == 0:
                file = Path(space.map_path(f"/ck-{step + 1}.pt"))
                first = Path(space.map_path(f"/new-{step + 1}")) if self.renames else file
                first.write_bytes(self.files.get(step + 1, b"state %d" % (step + 1)))
                on_saved(Saving(rank=0, path=first, done=at + 1, format="torch"))
                if self.renames:
                    first.rename(file)
                    on_saved(Saving(rank=0, path=file, done=at + 1, format="torch", renamed_from=str(first)))


@pytest.fixture
def scene(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Scene]:
    made = Scene(tmp_path)
    (tmp_path / "space").mkdir()
    monkeypatch.setattr(follow_module, "new_workspace", lambda room: _Space(tmp_path / "space"))
    monkeypatch.setattr(follow_module, "ranks_of", lambda *_: [])
    monkeypatch.setattr(
        follow_module,
        "prepare",
        lambda recorded, attempt, first, last, kind: Way(
            kind=Start.START, files=(), plans=(Plan(first=0, last=0),) * WORLD, resumes_from="", first=first
        ),
    )
    monkeypatch.setattr(follow_module.given, "strayed", lambda *_: [])
    monkeypatch.setattr(follow_module.runner, "run", made.replay)
    yield made
    made.over = True
    if hasattr(made, "thread"):
        made.thread.join(60)


def test_each_segment_has_its_verdict_while_the_run_goes_on(scene: Scene) -> None:
    scene.begin()
    scene.steps_done(0, 3)
    scene.saved(4)
    assert scene.wait(1) == [(0, 3)]
    assert scene.thread.is_alive()
    scene.steps_done(4, 11)
    scene.saved(8)
    scene.saved(12)
    assert scene.wait(3) == [(0, 3), (4, 7), (8, 11)]
    assert [v.files for v in scene.verdicts] == [("d4",), ("d8",), ("d12",)]
    assert [v.coverage.records for v in scene.verdicts] == [8, 8, 8]
    assert {v.mode for v in scene.verdicts} == {"start"}


def test_it_may_be_started_before_the_first_step_and_is_held_until_every_rank_has_made_one(scene: Scene) -> None:
    scene.begin()
    time.sleep(0.2)
    assert not scene.follow.begun
    scene.steps_done(0, 5, ranks=(0,))
    time.sleep(0.2)
    assert scene.reached == {}
    scene.steps_done(0, 5, ranks=(1,))
    scene.saved(4)
    assert scene.wait(1) == [(0, 3)]
    assert scene.follow.begun


def test_it_runs_no_further_than_the_slowest_rank_was_recorded(scene: Scene) -> None:
    scene.begin()
    scene.steps_done(0, 9, ranks=(0,))
    scene.steps_done(0, 2, ranks=(1,))
    until = time.monotonic() + 20
    while scene.reached != {0: 2 + LEAD, 1: 2 + LEAD} and time.monotonic() < until:
        time.sleep(0.005)
    time.sleep(0.2)
    assert scene.reached == {0: 2 + LEAD, 1: 2 + LEAD}


def test_a_tampered_step_ends_it_and_what_came_before_stays_matched(scene: Scene) -> None:
    scene.replayed = {(6, 1): "honest"}  # and the record has what the attack made of it
    scene.begin()
    scene.steps_done(0, 9)
    scene.saved(4)
    scene.saved(8)
    assert scene.end() == [(0, 3)]
    at = scene.follow.divergence
    assert at is not None
    assert (at.step, at.rank, at.stage) == (6, 1, Stage.WEIGHTS)


def test_a_tampered_checkpoint_ends_it_without_a_verdict_on_its_segment(scene: Scene) -> None:
    scene.begin()
    scene.steps_done(0, 5)
    scene.saved(4, b"edited")
    assert scene.end() == []
    at = scene.follow.divergence
    assert at is not None
    assert (at.step, at.stage, at.tensor) == (3, Stage.CHECKPOINT, "/ck-4.pt")


def test_a_file_that_the_record_lacks_keeps_its_segment_open(scene: Scene) -> None:
    scene.begin()
    scene.steps_done(0, 7)
    scene.saved(4, path="/other.pt")
    time.sleep(0.3)
    assert scene.wait(0) == []
    scene.saved(4)
    assert scene.wait(1) == [(0, 3)]


def test_a_file_that_was_renamed_before_the_watcher_could_read_it_closes_its_segment(scene: Scene) -> None:
    scene.renames = True
    scene.begin()
    scene.steps_done(0, 9)
    scene.saved(4, path="/ck-4.pt", renamed_from="/new-4")  # `/new-4` was gone when it was looked at
    scene.saved(8, path="/new-8")
    assert scene.wait(1) == [(0, 3)]
    scene.saved(8, path="/ck-8.pt", renamed_from="/new-8")
    assert scene.wait(2) == [(0, 3), (4, 7)]
    assert [v.files for v in scene.verdicts] == [("d4",), ("d8",)]


def test_part_of_a_checkpoint_on_both_sides_is_no_ground_while_the_job_still_saves(
    scene: Scene, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(follow_module, "_STILL_SECONDS", 600.0)
    scene.begin()
    scene.steps_done(0, 3)
    scene.saved(4)
    time.sleep(0.5)
    assert scene.wait(0) == []
    scene.steps_done(4, 4)
    assert scene.wait(1) == [(0, 3)]


def test_a_record_of_one_rank_alone_is_no_ground_for_a_verdict(scene: Scene) -> None:
    scene.begin()
    scene.steps_done(0, 3, ranks=(0,))
    scene.steps_done(0, 2, ranks=(1,))
    scene.saved(4)
    time.sleep(0.3)
    assert scene.wait(0) == []
    scene.steps_done(3, 3, ranks=(1,))
    assert scene.wait(1) == [(0, 3)]


def test_an_update_that_was_recorded_and_never_replayed_keeps_its_segment_open(scene: Scene) -> None:
    scene.begin()
    scene.steps_done(0, 5)
    scene.new += [record(2, rank, optimizer=1) for rank in range(WORLD)]
    scene.saved(4)
    scene.enough = lambda follow: follow.settled
    assert scene.end() == []


def test_other_numerics_end_it_before_any_verdict(scene: Scene) -> None:
    scene.unfit = "rank 0: an exact replay needs the recorded numerics"
    scene.begin()
    scene.steps_done(0, 5)
    scene.saved(4)
    assert scene.end() == []


def test_the_first_steps_have_a_verdict_of_their_own(scene: Scene) -> None:
    scene.base = 8
    scene.record = Record(_Store(scene.folder / "again"), base=8)
    scene.begin(first=2)
    scene.steps_done(8, 9)
    assert scene.wait(1) == [(8, 9)]
    assert scene.follow.matched_first
    scene.steps_done(10, 12)
    scene.saved(12)
    assert scene.wait(2) == [(8, 9), (10, 11)]


def test_of_a_run_with_fewer_steps_the_first_are_those_that_it_has(scene: Scene) -> None:
    scene.begin(first=8)
    scene.steps_done(0, 2)
    time.sleep(0.2)
    assert scene.wait(0) == []

    def enough(follow: Follow) -> bool:
        follow.no_more()
        return follow.judged

    scene.enough = enough
    assert scene.end() == [(0, 2)]
    assert scene.follow.matched_first


def test_what_the_log_still_has_when_the_run_is_taken_back_is_judged_first(scene: Scene) -> None:
    scene.steps_done(0, 6)
    scene.saved(4)
    scene.enough = lambda follow: follow.settled
    scene.record.entries = list(scene.read())
    for entry in scene.record.entries:
        scene.record.grow(entry)
    scene.begin()
    assert scene.end() == [(0, 3)]


def test_a_new_attempt_is_seen(scene: Scene) -> None:
    scene.begin()
    scene.steps_done(0, 4)
    scene.saved(4)
    scene.wait(1)
    assert not scene.follow.superseded
    numerics = msgspec.convert({}, type=dict)
    scene.new.append(
        ProcessStarted(
            attempt=1, rank=0, world=WORLD, pid=1, argv=(), cwd="/", executable="", env_digest="", numerics=numerics
        )
    )
    scene.enough = lambda follow: follow.superseded and follow.settled
    assert scene.end() == [(0, 3)]


def test_a_script_that_ends_by_itself_waits_for_the_record_of_its_last_file(scene: Scene) -> None:
    scene.steps = 8
    scene.begin()
    scene.steps_done(0, 7)
    scene.saved(4)
    scene.wait(1)
    time.sleep(0.2)
    scene.saved(8)
    assert scene.wait(2) == [(0, 3), (4, 7)]


def test_a_replay_that_fails_ends_the_following(scene: Scene) -> None:
    scene.steps, scene.problems = 2, ("rank 0 ended with status 1",)
    scene.begin()
    scene.steps_done(0, 5)
    scene.saved(4)
    assert scene.end() == []
    assert scene.ended == [scene.problems]
