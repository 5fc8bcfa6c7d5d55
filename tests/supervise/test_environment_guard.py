"""Which comparison answers a start: the seal's own walk while the watch vouches for it, and none that is too old."""

from __future__ import annotations

import time
from collections.abc import Sequence

import pytest
from supervised import Bench

from trainwarden.errors import StoreError
from trainwarden.model import FileChanged
from trainwarden.supervise.environment import EnvironmentGuard

CHANGE = FileChanged(path="/env/torch.py", kind="environment", sealed="a" * 64, found="")
EDIT = FileChanged(path="/code/train.py", kind="code", sealed="b" * 64, found="")


class FakeWatch:
    """Vouches since some time ago, and tells what it was given when it is asked to settle."""

    def __init__(self, since: float) -> None:
        self.since = since
        self.waiting: list[FileChanged] = []
        self.guard: EnvironmentGuard | None = None

    def settle(self) -> None:
        while self.waiting and self.guard:
            self.guard.changed(self.waiting.pop())


class Guarded:
    def __init__(self, bench: Bench, since: float, on_disk: Sequence[FileChanged] = (), refuse: bool = True) -> None:
        self.compared: list[tuple[str, ...]] = []
        self.on_disk = list(on_disk)
        self.guard = EnvironmentGuard(bench.store, bench.ledger, self._check, refuse=refuse)
        self.watch = FakeWatch(since)
        self.watch.guard = self.guard

    def _check(self, kinds: Sequence[str]) -> Sequence[FileChanged]:
        self.compared.append(tuple(kinds))
        return [change for change in self.on_disk if change.kind in kinds]


def test_the_seals_own_walk_is_the_comparison_of_the_environment_and_code_is_compared_again(bench: Bench) -> None:
    it = Guarded(bench, since=time.monotonic(), on_disk=[EDIT])
    it.guard.begin(it.watch)
    assert it.guard.may_start() == ""
    assert it.compared == [("code", "data")]
    told = [entry for entry in bench.finish() if isinstance(entry, FileChanged)]
    assert [change.path for change in told] == [EDIT.path]


@pytest.mark.parametrize("age", [float("inf"), 1_000.0])
def test_a_watch_that_does_not_vouch_or_an_old_walk_makes_everything_be_compared(bench: Bench, age: float) -> None:
    it = Guarded(bench, since=time.monotonic() - age, on_disk=[CHANGE])
    it.guard.begin(it.watch)
    assert it.compared == [("environment", "code", "data")]
    assert CHANGE.path in it.guard.may_start()


def test_what_the_watch_knows_by_the_time_of_the_question_refuses_the_start(bench: Bench) -> None:
    it = Guarded(bench, since=time.monotonic())
    it.guard.begin(it.watch)
    assert it.guard.may_start() == ""
    it.watch.waiting.append(CHANGE)
    assert CHANGE.path in it.guard.may_start()


def test_a_change_told_before_the_first_comparison_is_not_forgotten_by_it(bench: Bench) -> None:
    it = Guarded(bench, since=time.monotonic())
    it.watch.waiting.append(CHANGE)
    it.guard.begin(it.watch)
    assert CHANGE.path in it.guard.may_start()


def test_an_environment_that_cannot_be_compared_refuses_the_start(bench: Bench) -> None:
    def fails(kinds: Sequence[str]) -> Sequence[FileChanged]:
        raise StoreError("the manifest cannot be read")

    guard = EnvironmentGuard(bench.store, bench.ledger, fails, refuse=True)
    assert "could not be compared" in guard.may_start()
