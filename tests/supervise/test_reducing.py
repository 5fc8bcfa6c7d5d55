"""Keyed sums of ranks judged: what a mean does not explain is a fault, and rounding, clipping and scalers are none."""

from __future__ import annotations

import random
from collections.abc import Callable
from typing import Any

import pytest
from msgspec.json import encode
from msgspec.structs import replace

from trainwarden import wire
from trainwarden.model import Entry, ReductionFault, ReductionSeen
from trainwarden.supervise.reducing import Judged
from trainwarden.supervise.reduction import MAX_OPEN, ReductionDesk

NAMES = ("a.weight", "a.bias", "b.weight", "b.bias")


def sums(world: int = 3, noise: float = 3e-6, clip: float = 0.5, step: int = 0) -> dict[int, wire.Sums]:
    """What honest ranks tell of one update."""
    draw = random.Random(step)
    local = {r: [[draw.gauss(0, 1) for _ in range(8)] for _ in NAMES] for r in range(world)}
    reduced = [
        [sum(x) / world * (1 + draw.gauss(0, noise)) for x in zip(*t, strict=True)]
        for t in zip(*local.values(), strict=True)
    ]
    return {
        rank: wire.Sums(
            step=step,
            ranks=tuple(range(world)),
            rows=tuple(
                wire.SumsOf(
                    n, "float32", 100, tuple(own[t]), tuple(reduced[t]), (), tuple(clip * x for x in reduced[t])
                )
                for t, n in enumerate(NAMES)
            ),
        )
        for rank, own in local.items()
    }


def altered(told: wire.Sums, tensors: set[str] = set(NAMES), **change: Callable[[float], float]) -> wire.Sums:  # noqa: B006
    """The same with every number of the named fields passed through a function."""
    rows = []
    for row in told.rows:
        fields: dict[str, Any] = {f: tuple(map(by, getattr(row, f))) for f, by in change.items()}
        rows.append(replace(row, **fields) if row.name in tensors else row)
    return replace(told, rows=tuple(rows))


def entered(factor: float, rank: int = 1, tensors: set[str] = set(NAMES), world: int = 3) -> dict[int, wire.Sums]:  # noqa: B006
    """One rank's gradients entered with another factor than one: all ranks got what came of it."""
    told = sums(world)
    for other in told:
        rows = tuple(
            replace(
                row, reduced=tuple(x + (factor - 1) * y / world for x, y in zip(row.reduced, own.local, strict=True))
            )
            if row.name in tensors
            else row
            for row, own in zip(told[other].rows, told[rank].rows, strict=True)
        )
        told[other] = altered(replace(told[other], rows=rows), used=lambda x: 0.0)
    return told


def kinds(told: dict[int, wire.Sums]) -> list[tuple[str, tuple[int, ...]]]:
    return [(f.kind, f.ranks) for f in Judged(told).faults]


@pytest.mark.parametrize("world", [1, 2, 3, 64])
def test_rounding_and_clipping_are_no_fault(world: int) -> None:
    judged = Judged(sums(world))
    assert (judged.faults, judged.parts, judged.unchecked) == ([], 4, "")


@pytest.mark.parametrize("factor", [-1.0, 0.0, 1.01, 0.5, 100.0])
def test_a_rank_that_entered_with_another_factor_is_named(factor: float) -> None:
    (fault,) = Judged(entered(factor)).faults
    assert (fault.kind, fault.ranks, fault.tensors) == ("rank", (1,), NAMES)
    assert fault.factor == pytest.approx(factor, abs=1e-2)


def test_one_tensor_of_one_rank_is_named() -> None:
    (fault,) = Judged(entered(-1, rank=2, tensors={"b.weight"})).faults
    assert (fault.kind, fault.ranks, fault.tensors) == ("rank", (2,), ("b.weight",))


def test_another_divisor_is_told_from_a_rank() -> None:
    told = {r: altered(s, reduced=lambda x: 3 * x) for r, s in sums().items()}
    (fault,) = Judged(told).faults
    assert (fault.kind, fault.ranks, fault.factor) == ("divisor", (), pytest.approx(3))


def test_what_no_single_rank_explains_is_said_so() -> None:
    draw = random.Random(9)
    noise = {x: draw.gauss(0, 1) for row in sums()[0].rows for x in row.reduced}
    told = {r: altered(s, reduced=lambda x: x + noise[x], used=lambda x: 0.0) for r, s in sums().items()}
    assert kinds(told)[0] == ("unexplained", ())


def test_a_receiver_that_got_something_else_is_named() -> None:
    told = sums()
    told[2] = altered(told[2], {"a.bias"}, reduced=lambda x: -x, used=lambda x: -x)
    assert ("received", (2,)) in kinds(told)


def test_a_sign_turned_after_the_reduction_is_told_from_clipping() -> None:
    told = {r: altered(s, {"a.bias"}, used=lambda x: -x) for r, s in sums().items()}
    (fault,) = Judged(told).faults
    assert (fault.kind, fault.ranks, fault.tensors) == ("turned", (0, 1, 2), ("a.bias",))


def test_clipping_by_value_is_only_a_change() -> None:
    told = {r: altered(s, {"a.bias"}, used=lambda x: max(-0.1, min(0.1, x))) for r, s in sums().items()}
    assert kinds(told) == [("changed", (0, 1, 2))]


def test_gradients_that_a_scaler_will_skip_are_not_judged() -> None:
    told = {r: altered(s, reduced=lambda x: float("inf"), used=lambda x: float("nan")) for r, s in sums().items()}
    judged = Judged(told)
    assert (judged.faults, judged.parts) == ([], 0)


def test_no_numbers_that_a_rank_may_tell_end_the_desk() -> None:
    values = [1e308, -1e308, 5e-324, 0.0, float("inf"), float("nan")]
    draw = random.Random(1)
    for step in range(200):
        wild = {"local": lambda x: draw.choice(values), "reduced": lambda x: draw.choice(values)}
        told = {r: altered(s, **wild, used=lambda x: draw.choice(values)) for r, s in sums(step=step).items()}
        judged = Judged(told)
        assert (judged.unchecked, 0 <= judged.parts <= len(NAMES) * (1 + len(told))) == ("", True)
        assert all(set(f.tensors) <= set(NAMES) and set(f.ranks) <= set(told) for f in judged.faults)
        assert encode(judged.faults)  # what is found goes into the log


def test_empty_gradients_are_no_fault() -> None:
    told = {r: altered(s, local=lambda x: 0.0, reduced=lambda x: 0.0, used=lambda x: 0.0) for r, s in sums().items()}
    assert Judged(told).faults == []


def test_ranks_that_reduce_other_tensors_are_not_compared() -> None:
    told = sums()
    told[1] = replace(told[1], rows=told[1].rows[:2])
    assert "different names" in Judged(told).unchecked


class _Ledger:
    def __init__(self) -> None:
        self.entries: list[Entry] = []

    def submit(self, entry: Entry) -> bool:
        self.entries.append(entry)
        return True


def at_desk(*told: tuple[int, int, wire.Sums]) -> list[ReductionSeen]:
    ledger = _Ledger()
    desk = ReductionDesk(ledger)  # type: ignore[arg-type]
    for rank, step, message in told:
        desk.seen(0, rank, step, message)
    desk.close()
    return [e for e in ledger.entries if isinstance(e, ReductionSeen)]


def test_the_desk_waits_for_all_ranks_and_tells_at_the_end_how_much_was_compared() -> None:
    honest = [(rank, step, message) for rank in range(3) for step in range(5) for message in [sums(step=step)[rank]]]
    (told,) = at_desk(*honest)
    assert (told.updates, told.parts, told.faults) == (5, 20, ())


def test_the_desk_logs_the_same_fault_a_few_times_and_counts_the_rest() -> None:
    entries = at_desk(*((rank, step, message) for step in range(50) for rank, message in entered(-1).items()))
    assert 2 < len(entries) < 20
    assert entries[-1].updates == 50
    assert sum(len(e.faults) for e in entries) + entries[-1].more == 50
    assert isinstance(entries[0].faults[0], ReductionFault)


def test_updates_that_ranks_of_other_hosts_do_not_tell_of_here_are_said_not_to_be_compared() -> None:
    (told,) = at_desk(*((0, step, sums(step=step)[0]) for step in range(MAX_OPEN + 9)))
    assert "of 9 updates not all ranks told here" in told.unchecked
