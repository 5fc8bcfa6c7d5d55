"""The account: no GPU-second twice, known losses found again, honest time not accused, what is not known said."""

from __future__ import annotations

import math
import sys
from dataclasses import replace
from pathlib import Path

import msgspec
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from trainwarden import model as m
from trainwarden.config import DamageConfig
from trainwarden.respond.account.account import account
from trainwarden.respond.account.columns import Cause, Job, Spell, rows_of
from trainwarden.respond.account.lines import HOUR, Account, Line, Range
from trainwarden.respond.account.natural import (
    best_interval,
    count_bounds,
    excess,
    expected,
    expected_ettr,
    poisson_quantile,
)
from trainwarden.respond.account.plane import NO_BREAK, Kind, cut
from trainwarden.respond.account.reading import job_of, spread
from trainwarden.respond.account.slowdown import level_for
from trainwarden.respond.account.tally import Place, divide, tally
from trainwarden.respond.account.wandering import reach, student_t

sys.path.insert(0, str(Path(__file__).parent))
from expanded import entries

CONFIG = DamageConfig()


def job(
    attempts: list[tuple[float, int, list[float], float]],
    ends: dict[int, Cause] | None = None,
    *,
    name: str = "r",
    slept: dict[int, float] | None = None,
    tainted: dict[int, int] | None = None,
    ranks: int = 4,
) -> Job:
    """A job of attempts (start, first step, seconds of each step, seconds until its end); a second to load."""
    found: dict[str, list[float]] = {n: [] for n in ("attempt", "step", "began", "ended", "slept")}
    spells = []
    for number, (start, first, seconds, tail) in enumerate(attempts):
        at = start + 1.0
        for i, taken in enumerate(seconds):
            found["attempt"].append(number)
            found["step"].append(first + i)
            found["began"].append(at)
            found["ended"].append(at + taken)
            found["slept"].append((slept or {}).get(first + i, 0.0))
            at += taken
        spells.append(Spell(lane=0, attempt=number, ranks=float(ranks), started=start, ended=at + tail))
    n = len(found["step"])
    return Job(
        runs=(name,), command=("train.py",), ranks=ranks,
        rows=rows_of(**found, lane=[0] * n, ranks=[float(ranks)] * n),
        spells=tuple(spells),
        ends=dict.fromkeys(range(len(attempts)), Cause.ORDER) | (ends or {}),
        tainted=tainted or {},
    )  # fmt: skip


def hours(found: Account, line: Line) -> Range:
    return next(a.hours for a in found.amounts if a.line is line)


times = st.floats(0, 100, allow_nan=False)
rows = st.lists(st.tuples(st.integers(0, 2), st.integers(0, 3), st.integers(0, 8), times, times), max_size=40)
spells = st.lists(st.tuples(st.integers(0, 2), st.integers(0, 3), times, times), max_size=8)
causes = st.dictionaries(st.integers(0, 3), st.sampled_from(list(Cause)))
taints = st.dictionaries(st.integers(0, 3), st.integers(0, 8), max_size=2)


def hostile(
    rows: list[tuple[int, ...]], spells: list[tuple[float, ...]], ends: dict[int, Cause], bad: dict[int, int]
) -> Job:
    """A job of claims that need not fit together: clocks that go back, steps that overlap, attempts nobody started."""
    lane, attempt, step, a, b = zip(*rows, strict=True) if rows else ([], [], [], [], [])
    return Job(
        runs=("r",), command=(), ranks=3,
        rows=rows_of(
            lane=lane, attempt=attempt, step=step, ranks=[1.0] * len(rows), began=np.minimum(a, b),
            ended=np.maximum(a, b), slept=[0.5] * len(rows),
        ),
        spells=tuple(Spell(x, y, 1.0, min(s, t), max(s, t)) for x, y, s, t in {p[:2]: p for p in spells}.values()),
        ends=ends, tainted=bad,
    )  # fmt: skip


@settings(deadline=None, max_examples=150)
@given(rows, spells, causes, taints, st.floats(0, 60), st.floats(0, 60))
def test_each_gpu_second_is_in_one_parcel_and_each_part_of_it_in_one_place(rows, spells, ends, bad, level, usual):  # type: ignore[no-untyped-def]
    made = hostile(rows, spells, ends, bad)
    parcels = cut(made)
    for lane in set(parcels.lane.tolist()):
        mine = parcels.where(parcels.lane == lane)
        assert np.all(mine.began[1:] >= mine.ended[:-1] - 1e-9)  # end to end: no second is in two
        assert np.all(mine.ended >= mine.began)
    parts = divide(parcels, made, level, usual)
    assert np.all(parts.base >= 0)
    assert np.all(parts.beyond >= -1e-9)
    assert np.allclose(parts.base + parts.beyond, parcels.seconds * parcels.ranks)  # and in no third place
    assert set(parts.base_place.tolist()) <= {Place.PROGRESS, Place.DISCARDED, Place.INVALIDATED}
    assert set(parts.beyond_place.tolist()) <= {Place.PROGRESS, Place.SLOWDOWN, Place.INTERRUPTION}
    told = tally(parcels, made, level, usual)
    lines = [told.progress, *told.interruption.values(), *told.discarded.values(), told.slowdown, told.invalidated]
    assert sum(lines) == pytest.approx(told.held)


@settings(deadline=None, max_examples=60)
@given(rows, spells, causes, taints, st.one_of(st.just(-math.inf), times))
def test_the_lines_and_what_is_no_loss_sum_to_what_was_held(rows, spells, ends, bad, since):  # type: ignore[no-untyped-def]
    found = account([hostile(rows, spells, ends, bad)], CONFIG, since=since)
    held = [hours(found, line).mid for line in (Line.INTERRUPTION, Line.DISCARDED, Line.SLOWDOWN, Line.INVALIDATED)]
    assert found.useful + found.natural.mid + sum(held) == pytest.approx(found.held, abs=1e-9)
    assert all(0 <= a.hours.low <= a.hours.mid + 1e-12 <= a.hours.high + 2e-12 for a in found.amounts)


@settings(deadline=None)
@given(st.lists(st.floats(0.01, 50), min_size=1, max_size=30), st.floats(0, 1))
def test_the_level_cuts_off_just_the_loss(seconds: list[float], share: float) -> None:
    d, ranks = np.asarray(seconds), np.arange(1.0, len(seconds) + 1)
    loss = share * float((d * ranks).sum())
    level = level_for(d, ranks, loss)
    assert float((np.maximum(0.0, d - level) * ranks).sum()) == pytest.approx(loss, rel=1e-6, abs=1e-6)


def test_a_kill_by_a_named_process_costs_the_wait_and_the_steps_made_again() -> None:
    killed = job([(0, 0, [2.0] * 6, 5), (30, 4, [2.0] * 4, 0)], {0: Cause.SENDER})
    found = account([killed], CONFIG)
    # 5 s until the end, 12 s until the next start (18 → 30), 1 s to load; two steps of 2 s again; on four ranks
    assert hours(found, Line.INTERRUPTION) == Range(*[4 * 18 / HOUR] * 3)
    assert hours(found, Line.DISCARDED).mid == pytest.approx(4 * 4 / HOUR)
    assert found.natural.high == pytest.approx(0)


@pytest.mark.parametrize("cause", [Cause.SIGNAL, Cause.OTHER])
def test_one_failure_that_nobody_is_named_for_is_not_called_sabotage(cause: Cause) -> None:
    found = account([job([(0, 0, [2.0] * 6, 5), (30, 4, [2.0] * 4, 0)], {0: cause})], CONFIG)
    assert (found.lost.low, found.lost.mid) == (0, 0)
    assert found.lost.high == pytest.approx(4 * 22 / HOUR)
    assert found.natural.mid == pytest.approx(4 * 22 / HOUR)


def test_a_stop_in_order_is_no_loss() -> None:
    found = account([job([(0, 0, [2.0] * 6, 1), (30, 6, [2.0] * 4, 0)])], CONFIG)
    assert found.lost.mid == 0
    assert found.natural.mid == 0


def honest_then(seconds: list[float], **more: object) -> Job:
    usual = [1.0, 1.02, 0.98, 1.01] * 20
    return job([(0, 0, usual, 0.0), (101.0, 80, seconds, 0.0)], **more)  # type: ignore[arg-type]


def test_slowdown_is_found_against_the_jobs_own_time_before() -> None:
    found = account([honest_then([1.25] * 40)], CONFIG, since=100.0)
    assert hours(found, Line.SLOWDOWN).mid == pytest.approx(4 * 39 * 0.2475 / HOUR, rel=0.02)
    assert [b.name for b in found.jobs[0].baselines if b.chosen] == ["before"]


def test_what_slows_honest_jobs_too_is_nobodys_doing() -> None:
    peer = honest_then([1.25, 1.27, 1.23, 1.26] * 10, name="peer")
    found = account([honest_then([1.25, 1.24, 1.26, 1.25] * 10)], CONFIG, honest=[peer], since=100.0)
    assert hours(found, Line.SLOWDOWN).mid == 0
    assert hours(found, Line.SLOWDOWN).high > 0
    assert [b.name for b in found.jobs[0].baselines if b.chosen] == ["peers"]


def test_what_lies_after_the_window_is_left_out() -> None:
    usual, late = [1.0, 1.02, 0.98, 1.01] * 20, [1.25] * 40 + [9.0] * 40
    struck = job([(0, 0, usual, 0.0), (101.0, 80, late, 0.0)])
    peer = job([(0, 0, usual, 0.0), (101.0, 80, [1.0] * 60 + [9.0] * 40, 0.0)], name="peer")
    found = account([struck], CONFIG, honest=[peer], since=100.0, until=150.0)
    assert found.jobs[0].steps == 39
    assert hours(found, Line.SLOWDOWN).mid == pytest.approx(4 * 38 * 0.25 / HOUR, rel=0.05)


def test_an_honest_run_of_the_same_command_is_a_counterfactual() -> None:
    slow, fast = job([(0, 0, [1.5, 1.4] * 40, 0)]), job([(0, 0, [1.0, 1.1] * 40, 0)], name="honest")
    found = account([slow], CONFIG, honest=[fast])
    assert hours(found, Line.SLOWDOWN).mid == pytest.approx(4 * 79 * 0.4 / HOUR, rel=0.02)
    assert found.honest == ("honest",)


def test_one_slow_day_that_honest_time_never_had_does_not_stand_out() -> None:
    rare = [1.0, 1.02, 0.98, 1.01] * 9 + [1.6] * 4
    found = account([honest_then(rare)], CONFIG, since=100.0)
    assert hours(found, Line.SLOWDOWN).mid == 0  # a slow node, as they come: it lies in one place
    assert hours(found, Line.SLOWDOWN).high >= 4 * 4 * 0.6 / HOUR


def test_quantiles_of_student_and_what_few_blocks_tell() -> None:
    assert student_t(0.975, 4) == pytest.approx(2.776, abs=0.02)
    assert student_t(0.995, 10) == pytest.approx(3.169, abs=0.01)
    steady, wandering = (
        np.asarray([1.0, 1.01, 0.99, 1.0] * 8),
        np.asarray([1.01] * 8 + [0.99] * 8 + [1.01] * 8 + [0.99] * 8),
    )
    assert reach(wandering, wandering, 1) > 3 * reach(steady, steady, 1)
    assert reach(steady, steady, 8) > reach(steady, steady, 1)


def test_recorded_sleep_counts_only_where_the_step_was_longer_for_it() -> None:
    seconds = [1.0] * 20 + [1.5, 1.0] * 5
    found = account([job([(0, 0, seconds, 0)], slept={20 + i: 0.5 for i in range(10)})], CONFIG)
    assert hours(found, Line.SLOWDOWN).low == pytest.approx(4 * 5 * 0.5 / HOUR)  # the other five hid behind something
    assert "delay of every step alike" in "".join(found.unknown)


def test_what_one_rank_sleeps_its_peers_wait_for_in_the_next_step() -> None:
    found = account([job([(0, 0, [1.0] * 20 + [1.0, 1.5] * 5, 0)], slept={20 + 2 * i: 0.5 for i in range(5)})], CONFIG)
    assert hours(found, Line.SLOWDOWN).low == pytest.approx(4 * 5 * 0.5 / HOUR)


def test_honest_jitter_is_no_slowdown_without_anything_to_compare_with() -> None:
    found = account([job([(0, 0, [1.0, 1.3, 0.9, 1.1] * 10, 0)])], CONFIG)
    assert found.lost.mid == 0
    assert found.lost.low == 0


def test_results_on_an_altered_step_are_invalid_until_they_are_made_again() -> None:
    once = job([(0, 0, [2.0] * 8, 0)], tainted={0: 5})
    assert hours(account([once], CONFIG), Line.INVALIDATED).mid == pytest.approx(4 * 6 / HOUR)
    again = job([(0, 0, [2.0] * 8, 0), (30, 5, [2.0] * 3, 0)], {0: Cause.VERDICT}, tainted={0: 5})
    found = account([again], CONFIG)
    assert hours(found, Line.INVALIDATED).mid == 0
    assert hours(found, Line.DISCARDED).mid == pytest.approx(4 * 6 / HOUR)


def test_what_is_not_known_is_said_and_what_is_given_is_counted() -> None:
    bare = account([replace(job([(0, 0, [1.0] * 5, 0)]), unaudited=5)], CONFIG)
    assert [u.split(":")[0] for u in bare.unknown] == [
        "slowdown",
        "invalidated results",
        "knock-on preemption",
        "staff",
    ]
    config = DamageConfig(staff_hours=30, staff_price=50, preempted_gpu_hours=10, prices={"own": 2.0})
    given = account([job([(0, 0, [1.0] * 5, 0)])], config)
    assert [u.split(":")[0] for u in given.unknown] == ["slowdown"]
    assert given.cost == Range(1520.0, 1520.0, 1520.0)


def test_read_from_records_of_every_rank_the_account_is_that_of_the_columns() -> None:
    made = job(
        [(1000, 0, [2.0] * 6, 5), (1030, 4, [2.0, 2.5, 2.0, 2.5], 2), (1050, 6, [2.0] * 5, 0)],
        {0: Cause.SENDER, 1: Cause.SIGNAL},
        slept={5: 0.5, 7: 0.5},
    )
    read = job_of(["r"], [entries(made)], ("train.py",))
    assert read.ends == made.ends
    assert (read.ranks, len(read.rows.step)) == (4, 4 * len(made.rows.step))
    a, b = account([read], CONFIG), account([replace(made, unaudited=read.unaudited)], CONFIG)
    for line in Line:
        assert hours(a, line).mid == pytest.approx(hours(b, line).mid, abs=1e-9)
        assert hours(a, line).high == pytest.approx(hours(b, line).high, abs=1e-9)
    assert (a.held, a.natural.mid) == (pytest.approx(b.held), pytest.approx(b.natural.mid))


def recovered(*, differs: bool) -> Account:
    """A run of eight steps whose step 5 was altered, taken back to step 4 and gone on with as another run."""
    old, new = job([(1000, 0, [2.0] * 8, 3)]), job([(1100, 4, [2.0] * 6, 0)], name="new")
    segment = m.Segment(attempt=0, first=4, last=7)
    at = m.Location(step=5, rank=0, stage=m.Stage.WEIGHTS)
    verdict = m.Diverged(segment=segment, at=at, coverage=m.Coverage(records=4, digests=1), seconds=9.0)
    log = [*entries(old), *([verdict] if differs else []), m.Recovered(from_step=4, new_run="new", checkpoint="c")]
    return account([job_of(["r", "new"], [log, entries(new)])], CONFIG)


def test_a_run_and_the_one_that_recovers_it_are_one_job() -> None:
    found = recovered(differs=True)
    assert found.jobs[0].runs == ("r", "new")
    assert hours(found, Line.DISCARDED).low == pytest.approx(4 * 8 / HOUR)  # steps 4 to 7, the altered one among them
    assert hours(found, Line.INTERRUPTION).low == pytest.approx(4 * (1101 - 1017) / HOUR)
    assert hours(found, Line.INVALIDATED).high == 0  # made again
    assert hours(found, Line.REPLAY).mid == pytest.approx(4 * 9 / HOUR)


def test_a_recovery_without_a_verdict_is_not_put_down_to_interference() -> None:
    found = recovered(differs=False)
    assert hours(found, Line.INTERRUPTION).high == 0
    assert hours(found, Line.DISCARDED).high == 0


def test_a_pause_that_a_sealed_script_makes_is_its_own_until_it_is_found_suspicious() -> None:
    made = job([(1000, 0, [1.0, 1.0, 1.5, 1.0, 1.0, 1.5, 1.0, 1.0], 0)], slept={2: 0.5, 5: 0.5})
    log = [msgspec.structs.replace(e, unsealed=()) if isinstance(e, m.Idled) else e for e in entries(made)]
    at = next(i for i, e in enumerate(log) if isinstance(e, m.Idled))
    sure = {"severity": m.Severity.MEDIUM, "confidence": m.Confidence.MEDIUM}
    told = m.Finding(detector="sleep", seen="", expected="", evidence=(at,), **sure)

    def slowdown(log: list[m.Entry]) -> float:
        return hours(account([job_of(["r"], [log])], CONFIG), Line.SLOWDOWN).mid

    assert slowdown(log) == 0
    assert slowdown([*log, told]) == pytest.approx(4 * 1.0 / HOUR)


def test_a_launcher_that_ends_its_own_ranks_and_root_are_not_a_named_sender() -> None:
    def ended(sender: m.Writer, code: int = -9) -> Cause:
        start = m.ProcessStarted(
            attempt=0, rank=0, world=1, pid=5, argv=(), cwd="", executable="", env_digest="", numerics=m.Numerics()
        )
        end = m.ProcessExited(attempt=0, rank=0, pid=5, code=code, sender=sender)
        launcher = m.ProcessExited(attempt=0, rank=-1, pid=4, code=1)
        return job_of(["r"], [[start, end, launcher]]).ends[0]

    assert ended(m.Writer(pid=77, uid=1007)) is Cause.SENDER
    assert ended(m.Writer(pid=4, uid=1007)) is Cause.SIGNAL
    assert ended(m.Writer(pid=77, uid=0)) is Cause.SIGNAL
    assert ended(m.Writer(pid=77, uid=1007), code=-11) is Cause.SENDER  # a crash signal that somebody sent


def test_a_job_that_loaded_a_file_of_an_altered_state_is_tainted_too() -> None:
    bad = replace(job([(0, 0, [1.0] * 8, 0)], tainted={0: 3}), saved=((0, 2, "early"), (0, 6, "late")))
    after = replace(job([(20, 0, [1.0] * 4, 0)], name="next"), loaded=((0, "late"),), saved=((0, 4, "later"),))
    third = replace(job([(40, 0, [1.0] * 4, 0)], name="third"), loaded=((0, "later"),))
    clean = replace(job([(20, 0, [1.0] * 4, 0)], name="clean"), loaded=((0, "early"),))
    assert [j.tainted for j in spread([bad, after, third, clean])] == [{0: 3}, {0: 0}, {0: 0}, {}]


def test_a_step_is_discarded_by_the_end_that_led_before_it() -> None:
    parcels = cut(job([(0, 0, [1.0] * 10, 0), (20, 8, [1.0] * 4, 0), (40, 2, [1.0] * 12, 0)]))
    steps = parcels.where(parcels.kind == Kind.STEP)
    by = {
        (a, s): after
        for a, s, after in zip(steps.attempt.tolist(), steps.step.tolist(), steps.after.tolist(), strict=True)
    }
    assert [by[0, s] for s in range(10)] == [NO_BREAK] * 2 + [1] * 6 + [0] * 2
    assert [by[1, s] for s in range(8, 12)] == [1] * 4
    assert {by[2, s] for s in range(2, 14)} == {NO_BREAK}


def test_natural_failures_are_counted_as_published_and_bounded_as_poisson() -> None:
    assert expected_ettr(nodes=1536, failures=0.0065, restart=600, interval=1800) == pytest.approx(0.8267, abs=1e-3)
    assert best_interval(nodes=512, failures=0.0042, write=60) == pytest.approx(2196, abs=1)
    assert count_bounds(0).low == 0
    assert count_bounds(0).high == pytest.approx(3.69, abs=0.05)  # exact: 3.689
    assert count_bounds(25).low == pytest.approx(16.18, abs=0.05)  # exact: 16.179
    assert count_bounds(25).high == pytest.approx(36.90, abs=0.05)  # exact: 36.905
    assert (poisson_quantile(4.0, 0.975), poisson_quantile(4.0, 0.025)) == (8, 1)
    assert poisson_quantile(900.0, 0.975) == pytest.approx(959, abs=1)
    assert expected(1000, 0, 0, (2.3, 6.5)) == Range(2.3, pytest.approx(3.87, abs=0.01), 6.5)
    assert excess(12, Range(8, 10, 14)).mid == 0
    assert excess(60, Range(8, 10, 14)).mid == 50
