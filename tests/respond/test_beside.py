"""The replay beside a run is started early, and once more where its script could not be started so early."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from trainwarden.model import Coverage, Matched, Segment
from trainwarden.respond import beside as beside_module
from trainwarden.respond.beside import Beside
from trainwarden.store import Store

MATCHED = Matched(segment=Segment(attempt=0, first=0, last=3), coverage=Coverage(), mode="start")


class Following:
    """Stands for `audit.follow.Follow`: each start runs as the test says."""

    def __init__(self, *runs: tuple[bool, tuple[str, ...], bool]) -> None:
        self.runs, self.started = list(runs), 0  # (begun, problems, a verdict), in order

    def __call__(
        self, recorded: object, room: object, number: int, read: object, on_verdict: Callable[[Matched], None], **_: Any
    ) -> SimpleNamespace:
        self.started += 1
        begun, problems, matches = self.runs.pop(0)

        def run(enough: object) -> tuple[str, ...]:
            if matches:
                on_verdict(MATCHED)
            return problems

        return SimpleNamespace(begun=begun, run=run, divergence=None, matched_first=False)


class Begun:
    """Stands for what the log says of attempts."""

    def __init__(self) -> None:
        self.steps = False

    def newest(self) -> int:
        return 0

    def stepped(self, attempt: int) -> bool:
        return self.steps


@pytest.fixture
def beside(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Beside:
    store = Store.open(tmp_path / "store", create=True)
    made = Beside(store, ahead=True, make_room=lambda *_: None)  # type: ignore[arg-type, return-value]
    monkeypatch.setattr(made, "_case", lambda run: SimpleNamespace(entries=()))
    monkeypatch.setattr(beside_module, "_WAITS_SECONDS", 0.001)
    monkeypatch.setattr(beside_module, "recorded_of", lambda *_: SimpleNamespace(seal=None))
    monkeypatch.setattr(beside_module, "Tail", lambda *_: SimpleNamespace(close=lambda: None))
    return made


def follow(beside: Beside, begun: Begun, told: list[Any], monkeypatch: pytest.MonkeyPatch, runs: Following) -> bool:
    monkeypatch.setattr(beside_module, "Follow", runs)
    run = beside._store.create_run()
    return beside._follow_next(run.id, begun, told.append)  # type: ignore[arg-type]


def test_a_script_that_fails_before_the_first_step_is_followed_from_its_first_step_on(
    beside: Beside, monkeypatch: pytest.MonkeyPatch
) -> None:
    begun, told = Begun(), []
    early, late = Following((False, ("no such file",), False)), Following((True, (), True))
    assert follow(beside, begun, told, monkeypatch, early)
    assert follow(beside, begun, told, monkeypatch, late)
    assert (early.started, late.started, told) == (1, 0, [])  # it waits for the steps
    begun.steps = True
    assert follow(beside, begun, told, monkeypatch, late)
    assert (late.started, told) == (1, [MATCHED])
    assert not follow(beside, begun, told, monkeypatch, late)  # and is followed no third time


@pytest.mark.parametrize("run", [(True, ("no such file",), False), (False, ("it ended",), True), (False, (), False)])
def test_what_was_followed_or_failed_later_is_not_followed_again(
    beside: Beside, monkeypatch: pytest.MonkeyPatch, run: tuple[bool, tuple[str, ...], bool]
) -> None:
    begun, told, runs = Begun(), [], Following(run)
    assert follow(beside, begun, told, monkeypatch, runs)
    assert not follow(beside, begun, told, monkeypatch, runs)
    assert (runs.started, told) == (1, [MATCHED] if run[2] else [])
