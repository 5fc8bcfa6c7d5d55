"""Who is drawn and what it buys, as arithmetic."""

from __future__ import annotations

import hashlib
import math

import pytest

from trainwarden.model import (
    Entry,
    SampledAudit,
    Stage,
    StepRecord,
    UnitAudited,
    UnitKind,
    UnitResult,
    UnitsDrawn,
)
from trainwarden.sampling import Window, chances, detection, draw, drawn, drawn_again, lot, needed, sampled

NONE: frozenset[tuple[int, int]] = frozenset()


def record(step: int, rank: int = 0, optimizer: int = 0, attempt: int = 0) -> StepRecord:
    return StepRecord(attempt=attempt, rank=rank, world=2, step=step, optimizer=optimizer, seq=step, stages={})


def test_a_lot_is_what_the_format_says() -> None:
    said = hashlib.sha256(b"trainwarden unit\nrun\n1\n7\n3\n" + b"seed").digest()
    assert lot(b"seed", "run", 1, 7, 3) == int.from_bytes(said[:8], "big")


def test_units_are_drawn_as_often_as_their_chance_says_and_independently_of_each_other() -> None:
    n = 20_000
    hits = sum(drawn(b"r", "run", 0, step, step % 3, 0.1) for step in range(n))
    assert abs(hits - 0.1 * n) < 5 * math.sqrt(0.09 * n)
    assert drawn(b"r", "run", 0, 1, 1, 1.0)
    assert not drawn(b"r", "run", 0, 1, 1, 0.0)
    other = [drawn(b"other", "run", 0, step, 0, 0.5) for step in range(64)]
    assert other != [drawn(b"r", "run", 0, step, 0, 0.5) for step in range(64)], "other randomness, other units"


def test_a_step_of_several_optimizers_is_one_unit_and_windows_share_none() -> None:
    window = Window()
    for index, r in enumerate([record(0), record(0, optimizer=1), record(0, rank=1), record(1)]):
        window.add(index, r)
    assert (window.first, window.last) == (0, 3)
    after = Window()
    after.follow(window)
    after.add(4, record(1, optimizer=1))
    after.add(5, record(2))
    assert window.take() == [(0, 0, 0), (0, 0, 1), (0, 1, 0)]
    assert after.take() == [(0, 2, 0)]


def log_of(steps: int, seed: bytes, chance: float) -> list[Entry]:
    entries: list[Entry] = [record(s, rank) for s in range(steps) for rank in (0, 1)]
    window = Window()
    for i, e in enumerate(entries):
        assert isinstance(e, StepRecord)
        window.add(i, e)
    odds = {UnitKind.NEAR: 1.0, UnitKind.FAR: chance}
    near = frozenset({(0, 5)})
    units = draw("run", seed, window.take(), near, odds)
    made = UnitsDrawn(
        source="system",
        randomness=seed.hex(),
        first=0,
        last=len(entries) - 1,
        chances=odds,
        of={UnitKind.NEAR: 2, UnitKind.FAR: 2 * steps - 2},
        near=tuple(near),
        units=units,
    )
    return [*entries, made]


def test_an_outsider_makes_the_same_draw_again_and_sees_one_that_was_left_out() -> None:
    entries = log_of(50, b"\x01" * 32, 0.2)
    told = entries[-1]
    assert isinstance(told, UnitsDrawn)
    assert drawn_again("run", entries, told) == told.units
    assert {(u.step, u.rank) for u in told.units} >= {(5, 0), (5, 1)}
    assert drawn_again("another", entries, told) != told.units


def test_the_expected_cost_of_a_draw_is_the_budget() -> None:
    costs = {UnitKind.NEAR: 2.0, UnitKind.FAR: 40.0}
    odds = chances(0.01, 50_000.0, 100_000, 0.04, costs)
    expected = 100_000 * (0.04 * odds[UnitKind.NEAR] * 2.0 + 0.96 * odds[UnitKind.FAR] * 40.0)
    assert expected == pytest.approx(500.0)
    alone = chances(0.01, 50_000.0, 100_000, 0.0, costs)
    assert alone[UnitKind.NEAR] == 0.0
    assert 100_000 * alone[UnitKind.FAR] * 40.0 == pytest.approx(500.0), "without near units all goes to the others"
    assert set(chances(0.01, 1.0, 0, 0.0, costs).values()) == {0.0}


def test_what_sampling_finds_is_one_minus_what_it_misses() -> None:
    assert detection(0.01, 1) == pytest.approx(0.01)
    assert detection(0.01, 100) == pytest.approx(1 - 0.99**100)
    assert detection(1e-12, 1) == pytest.approx(1e-12), "not rounded away"
    assert (detection(1.0, 1), detection(1.0, 0), detection(0.0, 1000)) == (1.0, 0.0, 0.0)
    assert needed(0.01) == 299
    assert detection(0.01, 299) >= 0.95 > detection(0.01, 298)
    assert needed(0.0) is None
    assert needed(1.0) == 1


def test_only_what_was_decided_counts_as_covered() -> None:
    entries = log_of(10, b"\x02" * 32, 1.0)
    at = len(entries) - 1

    def told(step: int, result: UnitResult) -> UnitAudited:
        kind = UnitKind.NEAR if step == 5 else UnitKind.FAR
        return UnitAudited(
            attempt=0, step=step, rank=0, kind=kind, result=result, draw=at, stages=(Stage.BATCH, Stage.RNG)
        )

    entries += [told(5, UnitResult.MATCHED), told(6, UnitResult.UNDECIDED), told(7, UnitResult.DIFFERS)]
    entries.append(SampledAudit(budget=0.01, job_cpu_ns=100, spent_ns=1, waiting=17))
    said = sampled(entries)
    assert said is not None
    assert (said.all.units, said.all.drawn, said.all.audited) == (20, 20, 1)
    assert said.all.share == pytest.approx(0.05)
    assert (said.kinds[UnitKind.NEAR].share, said.kinds[UnitKind.FAR].share) == (0.5, 0.0)
    assert said.waiting == 17
    assert said.detects[10] == pytest.approx(1 - 0.95**10)
    assert sampled(entries[:20]) is None, "no draw, no sampled audit"
