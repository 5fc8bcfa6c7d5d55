"""Where a step's time goes: parts, sleeps with their place, idle steps; steady waits and loaders are not special."""

from __future__ import annotations

import pickle
import select
import threading
import time
from collections.abc import Callable, Iterator
from typing import TypeVar

import pytest

from trainwarden.model import Idled, StepTimes
from trainwarden.record import sleeps, stacks
from trainwarden.record.observers.sampler import Looks, Scheduled, most
from trainwarden.record.observers.timing import OTHER, OWN, WINDOW, Timing, Usual

T = TypeVar("T")


class Rank:
    """Stands for the recorder."""

    world, done, paused, part = 1, 0, False, ""

    def __init__(self) -> None:
        self.notes: list[Idled | StepTimes] = []

    def note(self, note: Idled | StepTimes) -> None:
        self.notes.append(note)

    def guarded(self, what: str, action: Callable[[], T]) -> T:
        return action()


class Bucket:
    def is_last(self) -> bool:
        return True


@pytest.fixture
def rank(monkeypatch: pytest.MonkeyPatch) -> Rank:
    monkeypatch.setattr(sleeps, "_listeners", [])
    monkeypatch.setattr(time, "sleep", sleeps.unheard)
    sleeps.arm()
    return Rank()


@pytest.fixture
def timing(rank: Rank) -> Iterator[Timing]:
    timing = Timing(rank)  # type: ignore[arg-type]
    timing.joined()
    yield timing
    timing.leaving()


def nothing() -> None:
    pass


def step(
    timing: Timing,
    rank: Rank,
    loading: Callable[[], object] = nothing,
    forward: Callable[[], object] = nothing,
    update: Callable[[], object] = nothing,
    between: Callable[[], object] = nothing,
) -> None:
    """One step as the recorder tells of it."""
    timing.loader_begins(None)
    loading()
    timing.loader_gave(None, None)
    timing.step_begins()
    timing.forward(None, (), {})  # type: ignore[arg-type]
    forward()
    timing.backward(None)
    timing.bucket(Bucket())
    timing.backward_done()
    timing.before_update(None, 0)  # type: ignore[arg-type]
    update()
    timing.after_update(None, 0, False)  # type: ignore[arg-type]
    rank.done += 1
    timing.boundary()
    between()


def wait(seconds: float) -> Callable[[], object]:
    return lambda: select.select([], [], [], seconds)


def nap() -> None:
    time.sleep(0.03)


def test_each_part_of_a_step_has_its_own_time(timing: Timing, rank: Rank) -> None:
    for _ in range(3):
        step(timing, rank, loading=wait(0.02), update=wait(0.01))
    timing.leaving()
    (times,) = rank.notes
    assert isinstance(times, StepTimes)
    parts = {p.part: p for p in times.parts}
    assert (times.steps, times.step) == (3, 2)
    assert parts["loading"].wall_ns >= 60_000_000
    assert parts["loading"].longest_ns >= 20_000_000
    assert parts["update"].wall_ns >= 30_000_000
    assert parts["loading"].cpu_ns < parts["loading"].wall_ns


def test_a_sleep_is_told_with_its_step_part_and_place(timing: Timing, rank: Rank) -> None:
    step(timing, rank)
    step(timing, rank, update=nap)
    (told,) = rank.notes
    assert isinstance(told, Idled)
    (sleep,) = told.sleeps
    assert (told.step, sleep.part, sleep.calls, sleep.asked_ns) == (1, "update", 1, 30_000_000)
    assert sleep.slept_ns >= 30_000_000
    assert [f.function for f in sleep.frames[:2]] == ["nap", "step"]
    assert sleep.frames[0].file == __file__
    assert told.idle_ns == 0


def test_a_place_that_sleeps_in_every_step_is_not_told_without_end(timing: Timing, rank: Rank) -> None:
    for _ in range(70):
        step(timing, rank, between=lambda: time.sleep(0.0015))
    told = [n.sleeps[0].seen for n in rank.notes if isinstance(n, Idled)]
    assert told == [*range(1, 17), 64]


def test_idling_now_and_then_is_told_where_it_was(timing: Timing, rank: Rank) -> None:
    if Scheduled.of_thread(threading.get_native_id()).queued() < 0:
        pytest.skip("the kernel keeps no schedstat of threads")
    for i in range(20):
        step(timing, rank, forward=wait(0.5 if i == 15 else 0.0))
    (told,) = [n for n in rank.notes if isinstance(n, Idled) and n.step == 15]
    assert told.part == "forward"
    assert told.idle_ns > 200_000_000
    assert told.stack[0].function == "wait.<locals>.<lambda>"
    assert told.samples > 0


def test_waiting_steadily_and_waiting_for_peers_is_not_told(timing: Timing, rank: Rank) -> None:
    for _ in range(20):
        step(timing, rank, forward=wait(0.03))
    rank.world = 2
    timing._sampler.stop()  # type: ignore[union-attr]  # nobody saw what it did
    time.sleep(0.0)
    step(timing, rank, forward=wait(0.3))
    assert [n for n in rank.notes if isinstance(n, Idled) and n.idle_ns and n.step == 20] == []


def test_looks_are_counted_by_part() -> None:
    looks = Looks({("forward", ()): 2, ("reduction", ()): 9})
    assert most(looks, OWN) == ((), 2)
    assert most(looks, OTHER) == ((), 0)
    assert most(Looks(), OWN) == ((), 0)


def test_what_is_usual_follows_the_newest_values() -> None:
    usual = Usual()
    assert usual.at(0.5) == 0
    for value in [1] * WINDOW + [9] * WINDOW:
        usual.add(value)
    assert (usual.at(0.0), usual.at(0.5), usual.at(1.0), len(usual)) == (9, 9, 9, WINDOW)


def test_a_sleep_behaves_as_ever(rank: Rank) -> None:
    assert (time.sleep.__name__, time.sleep.__module__) == ("sleep", "time")
    with pytest.raises(ValueError, match="non-negative"):
        time.sleep(-1)
    with pytest.raises(TypeError):
        time.sleep("x")  # type: ignore[arg-type]

    class Retries:
        pause = time.sleep

    Retries().pause(0)
    assert pickle.loads(pickle.dumps(time.sleep)) is time.sleep
    sleeps.arm()
    assert time.sleep.__wrapped__ is sleeps.unheard  # type: ignore[attr-defined]


def test_stacks_of_all_threads_are_told_and_the_training_one_first() -> None:
    told = stacks.stacks(7, threading.get_ident(), "update")
    assert (told.token, told.part, told.threads[0].trains, told.threads[0].name) == (7, "update", True, "MainThread")
    assert told.threads[0].native == threading.get_native_id()
    assert told.threads[0].frames[0].function == "test_stacks_of_all_threads_are_told_and_the_training_one_first"
