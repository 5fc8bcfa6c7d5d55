"""Recoveries as whole acts, and one after the other until the command ends in order or somebody must look.

Rules
-----
* One recovery: end what outlived the run → replay what its newest checkpoint lacks → quarantine and restore → start, as
  a new run whose parent is the old one → replay its first steps beside it.
* A chain goes on as long as policy asks for the recovery of the run that ended last. What the user ends is over.
* It gives up after `most` recoveries in a row that got no further than one before, and after `in_all`. After the first
  of such a row it waits, after each further one twice as long.
* The recovery for which one detector asks the `clean_room_after`th time goes on in a clean room, and so do those after
  it: what is done to the shared environment there reaches the run no more, and does not stop it either. Kills,
  data, code and checkpoints are not covered by a room.
* Whatever is broken off between two acts, `trainwarden recover last --apply` goes on with.

Trust: as `respond.recover`. Nothing here decides that something is sabotage: policy asks, verdicts say where to go.
"""

from __future__ import annotations

import os
import signal
import time
from collections import Counter
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field

import msgspec

from trainwarden.casefile import CaseFile
from trainwarden.config import Config
from trainwarden.detect import Engine, all_detectors
from trainwarden.errors import CannotDecide, LogError, NothingCleared, SealBroken, TrainWardenError, UsageError
from trainwarden.keys import SigningKey
from trainwarden.log.reader import LogReader
from trainwarden.model import ACTIONS, Action, SignedSeal, StepRecord, decode_entry
from trainwarden.respond.answer import response_to
from trainwarden.respond.beside import Beside, in_words
from trainwarden.respond.clear import MakeRoom, clear, open_case
from trainwarden.respond.hears import Hears
from trainwarden.respond.plan import Plan, make_plan
from trainwarden.respond.point import Point
from trainwarden.respond.recover import apply_plan, loaded_its_checkpoint, resume
from trainwarden.respond.survivors import end_survivors
from trainwarden.seal.room import build_room
from trainwarden.store import Store
from trainwarden.supervise.events import Event, RunResult
from trainwarden.supervise.ledger import Watcher

_LONGEST_WAIT = 300.0  # seconds between two recoveries that get no further


@dataclass(frozen=True)
class Means:
    """What every recovery of one command needs."""

    store: Store
    config: Config
    key: SigningKey
    env: Mapping[str, str]  # of the job
    hears: Hears = field(default_factory=Hears)
    config_file: str = ""
    watcher: Callable[[SignedSeal], Watcher] = lambda _: Engine(all_detectors())
    jobs: int = 0  # replays side by side, 0: as many as the processors hold
    make_room: MakeRoom = build_room
    sleep: Callable[[float], None] = time.sleep


class Link(msgspec.Struct, frozen=True, kw_only=True):
    """One run of a chain: why and from where it went on, how it ended, and what each part of getting there took."""

    run: str
    exit_code: int
    records: int
    parent: str = ""
    cause: str = ""  # the detector that asked for the recovery, "" for the first run and for one that a person started
    from_step: int = 0
    checkpoint: str = ""
    replayed: int = 0  # steps that were replayed first
    clean_room: str = ""  # the kind of room it ran in
    replays: str = ""  # whether its own first steps replay
    loaded: bool = True  # it read the checkpoint that it was to go on from
    seconds: dict[str, float] = {}  # "end", "replay", "plan", "restore", "start"; "first_step": from then to its first


@dataclass(frozen=True)
class Recovery:
    """What one recovery did."""

    plan: Plan
    result: RunResult
    link: Link


@dataclass(frozen=True)
class Chain:
    """Every run of one command. `gave_up` says why it did not go on though policy asked for it, "" when it did."""

    result: RunResult
    links: tuple[Link, ...]
    gave_up: str = ""
    hint: str = ""

    @property
    def exit_code(self) -> int:
        """The last run's; 1 when that ended well and was not to be trusted."""
        return 1 if self.gave_up and not self.result.exit_code else self.result.exit_code


def recover(means: Means, run: str, *, from_start: bool = False, clean_room: bool = False, cause: str = "") -> Recovery:
    """Take a run back and let it go on; from the main thread.

    Raises:
        NothingCleared: there is no state to go back to.
        CannotDecide: something cannot be restored, or is written to meanwhile.
        LogTampered, LogLocked, SealBroken, StoreError, StoreTampered, UsageError: as the parts of it.
    """
    clock, store = _Clock(), means.store
    case = _ended(means, run)
    clock.lap("end")
    before = len(case.entries)
    point = Point(checkpoint=None, why="asked for")
    if not from_start:
        case, point = clear(store, case, means.key, means.hears, jobs=means.jobs, make_room=means.make_room)
    clock.lap("replay")
    plan = make_plan(store, case, means.config.replay.resume, point)
    clock.lap("plan")
    if case.seal is None:
        raise CannotDecide(f"run {case.run} has no readable seal", hint=f"trainwarden verify {case.run}")
    means.hears.says(headline(plan))
    apply_plan(store, store.run(case.run), case.seal, plan, means.key, means.hears.says, clean_room=clean_room)
    clock.lap("restore")
    settings = means.config.recover
    beside = Beside(store, first=settings.verify_steps, ahead=settings.clear_ahead, make_room=means.make_room)
    result = _gone_on(means, case.seal, plan, beside, clock, clean_room=clean_room)
    link = Link(
        run=result.run_id,
        exit_code=result.exit_code,
        records=result.records,
        parent=case.run,
        cause=cause,
        from_step=plan.from_step,
        checkpoint=plan.checkpoint,
        replayed=_steps_judged(case.entries[before:]),
        clean_room=result.room,
        replays=in_words(beside) if settings.verify_steps else "not asked for",
        loaded=loaded_its_checkpoint(store, plan, result.run_id),
        seconds=clock.seconds,
    )
    return Recovery(plan, result, link)


def _ended(means: Means, run: str) -> CaseFile:
    """The case of a run of which nothing runs any more."""
    case = open_case(means.store, run)
    for survivor in end_survivors(means.store.run(case.run)):
        means.hears.says(f"ended process {survivor.pid}, which outlived run {case.run}: {survivor.words}")
    return case


def _gone_on(
    means: Means, seal: SignedSeal, plan: Plan, beside: Beside, clock: _Clock, *, clean_room: bool
) -> RunResult:
    """Run the plan's command in its folder to its end, and note when it began and made its first step."""

    def on_event(event: Event) -> None:
        clock.once("start")
        means.hears.event(event)

    os.chdir(plan.cwd)
    config = _in_room(means.config) if clean_room else means.config
    result = resume(
        means.store,
        means.store.run(plan.run),
        seal,
        plan,
        config,
        means.key,
        env=means.env,
        on_event=on_event,
        progress=means.hears.sealing,
        watcher=means.watcher,
        response=response_to(config),
        beside=beside,
        config_file=means.config_file,
        clean_room=clean_room,
    )
    if (first := _first_step(means.store, result.run_id)) is not None:
        clock.seconds["first_step"] = round(first - clock.wall("start"), 3)
    return result


def keep_going(means: Means, first: RunResult, links: tuple[Link, ...] = (), *, clean_room: bool = False) -> Chain:
    """Recover as often as policy asks for it after `first`, within the limits; from the main thread."""
    links = links or (link_of(first),)
    state = _State(means.config, clean_room or bool(first.room))
    result = first
    with interruptible():
        while result.asked is Action.RECOVER and not result.interrupted:
            cause = result.alert.first.detector if result.alert else ""
            if why := state.spent():
                return Chain(result, links, why, f"trainwarden show {result.run_id}; then trainwarden recover last")
            try:
                means.sleep(state.asked_by(cause))
                if state.room:
                    means.hears.says(f"{cause} asked {state.causes[cause]} times: it goes on in a clean room")
                done = recover(means, result.run_id, clean_room=state.room, cause=cause)
            except NothingCleared as e:
                return Chain(result, links, str(e), e.hint)
            except TrainWardenError as e:
                means.hears.says(f"the recovery failed: {e}" + (f" ({e.hint})" if e.hint else ""))
                state.failed(e)
                continue
            state.went_on(done)
            result, links = done.result, (*links, done.link)
    return Chain(result, links)


def link_of(result: RunResult) -> Link:
    """The first run of a chain."""
    return Link(run=result.run_id, exit_code=result.exit_code, records=result.records, clean_room=result.room)


def headline(plan: Plan) -> str:
    """Where a plan goes back to."""
    if not plan.checkpoint:
        return f"run {plan.run} starts again from the beginning"
    return f"run {plan.run} goes back to step {plan.from_step} ({plan.checkpoint})"


class _State:
    """Counts recoveries, and decides on limits, waiting and the clean room."""

    def __init__(self, config: Config, room: bool) -> None:
        self._settings, self.room = config.recover, room
        self._no_room = False  # one cannot be made or entered here
        self.causes: Counter[str] = Counter()
        self._in_all = self._in_vain = 0
        self._furthest = -1

    def spent(self) -> str:
        """Why it must not go on, "" when it may."""
        if self._in_all >= self._settings.in_all:
            return f"{self._in_all} recoveries of one command are as many as [recover] in_all allows"
        if self._in_vain >= self._settings.most:
            return f"{self._in_vain} recoveries in a row got no further than step {max(self._furthest, 0)}"
        return ""

    def asked_by(self, cause: str) -> float:
        """One more is asked for: the seconds to wait before it."""
        self.causes[cause] += 1
        after = self._settings.clean_room_after
        if after and self.causes[cause] >= after and not self._no_room:
            self.room = True
        self._in_all += 1
        if not self._in_vain:
            return 0.0
        return float(min(self._settings.backoff_seconds * 2 ** (self._in_vain - 1), _LONGEST_WAIT))

    def went_on(self, done: Recovery) -> None:
        """A recovery started its run."""
        further = done.plan.from_step > self._furthest
        self._in_vain = 0 if further else self._in_vain + 1
        self._furthest = max(self._furthest, done.plan.from_step)

    def failed(self, error: TrainWardenError) -> None:
        """A recovery was not possible this time."""
        self._in_vain += 1
        if isinstance(error, SealBroken):
            self.causes["environment"] += 1
        if self.room and isinstance(error, UsageError | CannotDecide):
            self.room, self._no_room = False, True


def _in_room(config: Config) -> Config:
    """Changes of what the room covers are told, and are no reason to end a run that does not see them."""
    asked = config.policy.detectors
    others = asked.get("environment", asked.get("default", Action.ALERT))
    milder = min(others, Action.ALERT, key=ACTIONS.index)
    policy = msgspec.structs.replace(config.policy, detectors={**asked, "environment": milder})
    return msgspec.structs.replace(config, policy=policy)


class _Clock:
    """Seconds of each part, one after the other."""

    def __init__(self) -> None:
        self._last = time.monotonic()
        self._wall: dict[str, float] = {}
        self.seconds: dict[str, float] = {}

    def lap(self, name: str) -> None:
        """The part `name` ends now."""
        now = time.monotonic()
        self.seconds[name] = round(now - self._last, 3)
        self._wall[name] = time.time()
        self._last = now

    def once(self, name: str) -> None:
        """The same for the first call."""
        if name not in self.seconds:
            self.lap(name)

    def wall(self, name: str) -> float:
        """When it ended, by the wall clock."""
        return self._wall.get(name, time.time())


def _first_step(store: Store, run: str) -> float | None:
    """When the first step record of a run was made, by its rank's clock."""
    with suppress(LogError), LogReader.open(store.run(run).log) as log:
        for _, leaf in log.entries():
            entry = decode_entry(leaf)
            if isinstance(entry, StepRecord):
                return entry.wall_ns / 1e9
    return None


def _steps_judged(entries: tuple[object, ...]) -> int:
    segments = (getattr(e, "segment", None) for e in entries)
    return sum(s.last - s.first + 1 for s in segments if s is not None)


@contextmanager
def interruptible() -> Iterator[None]:
    """A signal to end is an interrupt: what is under way ends in order, and all that it started with it."""

    def interrupt(number: int, _: object) -> None:
        raise KeyboardInterrupt

    ours = [s for s in (signal.SIGTERM, signal.SIGHUP) if signal.getsignal(s) is signal.SIG_DFL]
    for number in ours:
        signal.signal(number, interrupt)
    try:
        yield
    finally:
        for number in ours:
            signal.signal(number, signal.SIG_DFL)
