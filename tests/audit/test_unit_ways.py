"""How a unit's replays lead to what is said of it: nobody is accused for want of peers or of a counter."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest

from trainwarden.audit import unitrun
from trainwarden.audit.starts import Start
from trainwarden.audit.unitrun import UnitRunner
from trainwarden.errors import CannotDecide
from trainwarden.lineage import Attempt
from trainwarden.model import (
    Coverage,
    Diverged,
    Inconclusive,
    Location,
    Matched,
    Segment,
    Stage,
    Unit,
    UnitKind,
    UnitResult,
)

UNIT = Unit(attempt=0, step=10, rank=1, kind=UnitKind.NEAR)
AT = Location(step=10, rank=1, stage=Stage.LOCAL_GRADIENTS)
SEGMENT = Segment(attempt=0, first=0, last=10)
EXACT = {
    "matched": Matched(segment=SEGMENT, coverage=Coverage()),
    "diverged": Diverged(segment=SEGMENT, at=AT, coverage=Coverage()),
    "inconclusive": Inconclusive(segment=SEGMENT, reasons=("too far",)),
}


class Record:
    """As much of a recorded run as choosing a way needs."""

    def attempt(self, number: int) -> Attempt:
        return Attempt(number=number, world=2, ranks=(0, 1), base=0, last=20)


@pytest.fixture
def runner(monkeypatch: pytest.MonkeyPatch) -> Callable[..., tuple[UnitRunner, list[str]]]:
    """A runner whose replays come out as told: "same", "other" or "fails"."""
    monkeypatch.setattr(unitrun, "kept_states", lambda recorded, attempt: {9, 10})

    def make(alone: str, together: str, exact: str = "inconclusive") -> tuple[UnitRunner, list[str]]:
        runner, ran = UnitRunner(lambda: None), []  # type: ignore[arg-type,return-value]

        def comes_out(how: str, name: str, processes: int) -> Any:
            ran.append(name)
            if how == "fails":
                raise CannotDecide("no object from another rank")
            at = AT if how == "other" else None
            return unitrun._Looked(at=at, coverage=Coverage(), stages=(), processes=processes)

        def by_itself(*args: Any) -> Any:
            try:
                return comes_out(alone, "alone", 1)
            except CannotDecide:
                runner._failures += 1
                raise

        monkeypatch.setattr(runner, "_alone", by_itself)
        monkeypatch.setattr(runner, "_together", lambda *args: comes_out(together, "together", 2))
        monkeypatch.setattr(runner, "_exact", lambda *args: (ran.append("exact"), EXACT[exact])[1])
        return runner, ran

    return make


def said(runner: UnitRunner) -> UnitResult:
    recorded: Any = Record()
    return runner.run(recorded, UNIT, lambda: recorded).audited.result


@pytest.mark.parametrize("alone", ["other", "fails"])
def test_a_rank_that_needs_its_peers_is_run_with_them_from_then_on(runner: Any, alone: str) -> None:
    made, ran = runner(alone, "same")
    assert said(made) is UnitResult.MATCHED
    assert (ran[0], ran[-1]) == ("alone", "together")
    assert "exact" not in ran
    ran.clear()
    assert said(made) is UnitResult.MATCHED
    assert ran == ["together"], "it is not tried alone again"


def test_a_script_with_state_of_its_own_is_not_accused(runner: Any) -> None:
    made, ran = runner("other", "other", "matched")
    assert said(made) is UnitResult.MATCHED
    assert ran[-1] == "exact"
    assert made._ways(Record(), UNIT, 0) == [Start.START], "no state is substituted any more"


def test_what_an_exact_replay_confirms_is_a_verdict_and_the_next_one_costs_no_other(runner: Any) -> None:
    made, ran = runner("other", "other", "diverged")
    recorded: Any = Record()
    first = made.run(recorded, UNIT, lambda: recorded)
    assert (first.audited.result, first.diverged.segment) == (
        UnitResult.DIVERGED,
        Segment(attempt=0, first=0, last=10),
    )
    assert said(made) is UnitResult.DIFFERS
    assert ran.count("exact") == 1


def test_without_an_exact_replay_a_difference_stays_one(runner: Any) -> None:
    made, _ = runner("other", "other", "inconclusive")
    assert said(made) is UnitResult.DIFFERS


def test_a_script_that_no_kept_state_suits_is_not_tried_in_vain_for_ever(runner: Any) -> None:
    made, ran = runner("fails", "fails")
    assert [said(made) for _ in range(3)] == [UnitResult.UNDECIDED] * 3
    ran.clear()
    assert made._ways(Record(), UNIT, 0) == [Start.START]
