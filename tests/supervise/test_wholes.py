"""Shares of sharded weights: added up over ranks, compared over restarts, masked before they are logged."""

from __future__ import annotations

import pytest

from trainwarden.model import Finding, Severity, StepRecord
from trainwarden.record.shares import NOTHING, Sum, add, packed
from trainwarden.supervise.wholes import WholeDesk, whole

KEY = bytes(range(32))
STATE: Sum = (5, 6, 7, (1 << 64) - 1)
OTHER: Sum = (5, 6, 7, 8)


def cut(state: Sum, ranks: int) -> list[Sum]:
    """Shares of so many ranks that add up to a state."""
    parts: list[Sum] = [(11 * r, 3 * r, r, 2 * r) for r in range(1, ranks)]
    a, b, c, d = add(parts)
    rest = add([state, (-a % (1 << 64), -b % (1 << 64), -c % (1 << 64), -d % (1 << 64))])
    return [rest, *parts]


def records(attempt: int, step: int, ranks: int, left: Sum = NOTHING, began: Sum | None = None) -> list[StepRecord]:
    begun = cut(began, ranks) if began else [None] * ranks
    return [
        StepRecord(
            attempt=attempt, rank=r, world=ranks, step=step, optimizer=0, seq=step, stages={},
            share=packed(share).hex(), began=packed(b).hex() if b else "",
        )
        for r, (share, b) in enumerate(zip(cut(left, ranks), begun, strict=True))
    ]  # fmt: skip


def told(*groups: list[StepRecord]) -> tuple[list[Finding], list[StepRecord]]:
    findings: list[Finding] = []
    desk = WholeDesk(findings.append, KEY)
    return findings, [desk.seen(record) for group in groups for record in group]


@pytest.mark.parametrize("ranks", [1, 2, 3])
def test_a_restart_under_another_cut_that_begins_with_the_same_whole_is_silent(ranks: int) -> None:
    findings, _ = told(records(0, 3, 2, left=STATE), records(1, 4, ranks, began=STATE))
    assert findings == []


@pytest.mark.parametrize("ranks", [1, 2, 3])
def test_a_restart_that_begins_with_another_whole_is_told(ranks: int) -> None:
    findings, _ = told(records(0, 3, 2, left=STATE), records(1, 4, ranks, began=OTHER))
    (found,) = findings
    assert (found.detector, found.severity, found.attempt, found.step) == ("checkpoints", Severity.HIGH, 1, 4)


def test_a_step_that_was_done_twice_may_be_gone_on_from_either_time() -> None:
    findings, _ = told(
        records(0, 3, 2, left=STATE), records(1, 3, 2, left=OTHER), records(2, 4, 2, began=STATE),
        records(3, 4, 2, began=OTHER),
    )  # fmt: skip
    assert findings == []


def test_what_not_every_rank_has_told_is_not_compared() -> None:
    findings, _ = told(records(0, 3, 2, left=STATE), records(1, 4, 2, began=OTHER)[:1])
    assert findings == []


def test_the_log_has_no_share_in_the_clear_and_the_auditor_reads_the_whole() -> None:
    raw = records(0, 3, 3, left=STATE, began=OTHER)
    _, logged = told(raw)
    assert not {x for r in raw for x in (r.share, r.began)} & {x for r in logged for x in (r.share, r.began)}
    assert whole(KEY, logged) == STATE
    assert whole(bytes(32), logged) != STATE
    assert whole(KEY, logged[:2]) is None


@pytest.mark.parametrize("share", ["zz", "00", "0" * 62])
def test_a_share_that_is_none_closes_the_connection(share: str) -> None:
    desk = WholeDesk(lambda finding: None, KEY)
    (record,) = records(0, 0, 1)
    with pytest.raises(ValueError):
        desk.seen(StepRecord(**{f: getattr(record, f) for f in record.__struct_fields__} | {"share": share}))
