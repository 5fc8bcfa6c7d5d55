"""Sleep, stall, clock, hogs, and who sent a signal: what must be told, and the benign twins that must not."""

from __future__ import annotations

import signal

import pytest
from hosts import COLLECTIVE, LIBRARY, PLANTED, SCRIPT, TORCH, idled, slept, stalled, standing
from records import exited, feed, step

from trainwarden.detect.clock import Clocks
from trainwarden.detect.hogs import Hogs
from trainwarden.detect.kills import Kills
from trainwarden.detect.sleep import Sleeps
from trainwarden.detect.stall import Stalls
from trainwarden.model import (
    ClockShifted,
    Foreign,
    HostCrowded,
    ProcessExited,
    Severity,
    StackFrame,
    Stalled,
    StepTimes,
    Writer,
)

# -- sleep


def test_one_sleep_through_unsealed_code_inside_a_step_is_high_and_names_its_place() -> None:
    (found,) = feed(Sleeps(), [slept(9, frames=(PLANTED, TORCH, SCRIPT), unsealed=(PLANTED.file,))])
    assert (found.severity, found.step, found.ranks) == (Severity.HIGH, 9, (0,))
    assert "0.1 s asked for" in found.seen
    assert f"called by nap ({PLANTED.file}:7)" in found.seen
    assert f"Not in the seal: {PLANTED.file}" in found.seen


def test_unsealed_code_that_calls_a_sealed_helper_to_sleep_is_high_too() -> None:
    helper = StackFrame(file="/env/lib/python3.11/site-packages/tenacity/nap.py", line=31, function="sleep")
    (found,) = feed(Sleeps(), [slept(9, frames=(helper, PLANTED, SCRIPT), unsealed=(PLANTED.file,))])
    assert found.severity is Severity.HIGH


def test_code_that_lies_in_no_file_and_sleeps_inside_a_step_is_medium() -> None:
    made = StackFrame(file="<string>", line=1, function="nap")
    (found,) = feed(Sleeps(), [slept(9, frames=(made, SCRIPT))])
    assert found.severity is Severity.MEDIUM
    assert feed(Sleeps(), [slept(9, part="between", frames=(made, SCRIPT))]) == []


def test_what_cannot_be_checked_here_is_said_once() -> None:
    times = StepTimes(attempt=0, rank=0, step=255, steps=256, queued_ns=-1, accelerator=True)
    found = feed(Sleeps(), [times, times])
    assert [f.severity for f in found] == [Severity.INFO, Severity.INFO]
    assert all("not checked" in f.seen for f in found)
    assert feed(Sleeps(), [StepTimes(attempt=0, rank=0, step=255, steps=256, queued_ns=0)]) == []


def test_unsealed_code_that_sleeps_between_steps_is_medium() -> None:
    (found,) = feed(Sleeps(), [slept(9, part="between", frames=(PLANTED, SCRIPT), unsealed=(PLANTED.file,))])
    assert found.severity is Severity.MEDIUM


def test_sealed_code_that_sleeps_now_and_then_inside_a_step_is_medium() -> None:
    fed = [step(0), *(slept(at, seen) for seen, at in enumerate((11, 30, 52, 71), 1))]
    (found,) = feed(Sleeps(), fed)
    assert (found.severity, found.step) == (Severity.MEDIUM, 52)
    assert "in 3 of 53 steps" in found.seen


def test_sealed_code_that_sleeps_in_every_step_is_low() -> None:
    (found,) = feed(Sleeps(), [step(0), *(slept(i, i + 1) for i in range(40))])
    assert (found.severity, found.step) == (Severity.LOW, 15)


def test_pauses_between_steps_and_in_loaders_are_silent() -> None:
    for part in ("between", "loading"):
        assert feed(Sleeps(), [step(0), *(slept(i, i + 1, part=part, frames=(SCRIPT,)) for i in range(40))]) == []


def test_one_or_two_sleeps_of_sealed_code_are_silent() -> None:
    assert feed(Sleeps(), [step(0), slept(20, 1), slept(80, 2)]) == []


def test_idle_bursts_that_nothing_explains_are_low_and_name_the_place() -> None:
    (found,) = feed(Sleeps(), [idled(at) for at in (20, 50, 90, 130, 170)])
    assert (found.severity, found.evidence) == (Severity.LOW, (0, 1, 2, 3))
    assert "idle for 1.2 s in 4 of the steps 20 to 130" in found.seen
    assert "AdamW.step" in found.seen  # not the library function that waits


def test_idle_bursts_in_unsealed_code_are_medium() -> None:
    (found,) = feed(Sleeps(), [idled(at, unsealed=("/x.py",)) for at in (20, 50, 90, 130)])
    assert found.severity is Severity.MEDIUM


def test_a_few_idle_steps_far_apart_and_waits_for_an_accelerator_are_silent() -> None:
    assert feed(Sleeps(), [idled(at) for at in range(0, 2000, 120)]) == []
    assert feed(Sleeps(), [idled(at, accelerator=True) for at in range(20)]) == []


# -- stall


def test_the_rank_that_is_in_no_collective_is_the_culprit() -> None:
    waiting = standing(1, COLLECTIVE, SCRIPT, collective=True)
    (found,) = feed(Stalls(), [stalled(standing(0, LIBRARY, TORCH, SCRIPT), waiting)])
    assert (found.ranks, found.severity, found.step) == ((0,), Severity.LOW, 12)
    assert "AdamW.step" in found.seen
    assert "called from main (/job/train.py:40)" in found.seen


def test_a_standstill_in_unsealed_code_is_high() -> None:
    (found,) = feed(Stalls(), [stalled(standing(0, PLANTED, SCRIPT, unsealed=(PLANTED.file,)))])
    assert found.severity is Severity.HIGH
    assert f"nap ({PLANTED.file}:7)" in found.seen


def test_a_stopped_rank_is_the_culprit_and_its_stopper_is_named() -> None:
    stopped = standing(1, state="T", stopped_by=Writer(pid=55, uid=1001, program="/bin/bash"))
    (found,) = feed(Stalls(), [stalled(standing(0, COLLECTIVE, collective=True), stopped)])
    assert (found.ranks, found.severity) == ((1,), Severity.MEDIUM)
    assert "is stopped by process 55 (/bin/bash, user 1001)" in found.seen


def test_a_rank_that_does_not_answer_is_told_by_what_the_kernel_says() -> None:
    (found,) = feed(Stalls(), [stalled(standing(0, waits_in="futex (futex_wait_queue)"))])
    assert "does not answer" in found.seen
    assert "in the kernel in futex" in found.seen


def test_where_all_wait_for_each_other_nobody_is_singled_out() -> None:
    (found,) = feed(Stalls(), [stalled(*(standing(r, COLLECTIVE, SCRIPT, collective=True) for r in (0, 1)))])
    assert found.ranks == (0, 1)
    assert "every rank waits for its peers" in found.seen


def test_a_long_evaluation_is_information_only() -> None:
    evaluation = StackFrame(file="/job/train.py", line=90, function="evaluate")
    (found,) = feed(Stalls(), [stalled(standing(0, TORCH, evaluation, cpu_share=0.98))])
    assert found.severity is Severity.INFO
    assert "called from evaluate (/job/train.py:90)" in found.seen


def test_a_silent_rank_is_told_and_a_standstill_without_ranks_is_not() -> None:
    (found,) = feed(Stalls(), [stalled(standing(1, SCRIPT), kind="silent")])
    assert "Rank 1 has told nothing for 61 s while its peers went on" in found.seen
    assert feed(Stalls(), [Stalled(kind="stall", attempt=0, step=1, seconds=1.0, usual_seconds=0.0)]) == []


# -- clock


@pytest.mark.parametrize(
    ("shift", "severity", "text"),
    [
        (ClockShifted(kind="host", by_ns=-3_600_000_000_000), Severity.LOW, "set back by 3.6e+03 s"),
        (ClockShifted(kind="host", by_ns=400_000_000), Severity.INFO, "set forward by 0.4 s"),
        (ClockShifted(kind="slept", by_ns=90_000_000_000), Severity.INFO, "stood still for 90 s"),
        (ClockShifted(kind="rank", by_ns=-86_400_000_000_000, attempt=0, rank=1), Severity.MEDIUM, "behind the clock"),
    ],
)
def test_clock_shifts_are_told_by_kind(shift: ClockShifted, severity: Severity, text: str) -> None:
    (found,) = feed(Clocks(), [shift])
    assert found.severity is severity
    assert text in found.seen


def test_records_with_honest_times_raise_no_clock_finding() -> None:
    assert feed(Clocks(), [step(i) for i in range(5)]) == []


# -- hogs


def test_who_crowds_a_host_is_named_and_a_host_without_foreign_processes_is_silent() -> None:
    crowd = Foreign(pid=7, uid=1001, program="/usr/bin/miner", cpu_share=1.9)
    told = HostCrowded(attempt=0, ranks=(0, 1), kind="cpu", waiting_share=0.45, usual_share=0.02, processes=(crowd,))
    (found,) = feed(Hogs(), [told])
    assert found.severity is Severity.LOW
    assert "45% of the time (usually 2%)" in found.seen
    assert "process 7 (/usr/bin/miner, user 1001) takes 1.9 CPUs" in found.seen
    assert feed(Hogs(), [HostCrowded(attempt=0, ranks=(0, 1), kind="cpu", waiting_share=0.45)]) == []


def test_squatters_of_an_accelerator_are_named() -> None:
    crowd = Foreign(pid=7, uid=1001, program="python", device="GPU-1", memory_mib=20_000)
    (found,) = feed(Hogs(), [HostCrowded(attempt=0, ranks=(0,), kind="accelerator", processes=(crowd,))])
    assert "takes 20000 MiB of GPU-1" in found.seen


# -- kills: who


def killed(**fields: object) -> ProcessExited:
    return ProcessExited(attempt=0, rank=0, pid=100, code=-signal.SIGKILL, **fields)  # type: ignore[arg-type]


def test_the_sender_of_a_kill_is_named() -> None:
    sender = Writer(pid=77, uid=1001, program="/usr/bin/python3.11")
    (found,) = feed(Kills(), [killed(sender=sender, told_by="the kernel's signal trace")])
    assert "sent by process 77 (/usr/bin/python3.11, user 1001) as the kernel's signal trace told" in found.seen
    assert not any("memory ran out" in b for b in found.benign)


def test_the_out_of_memory_killer_is_told_as_such_and_low() -> None:
    (found,) = feed(Kills(), [killed(told_by="the kernel's log: its OOM killer")])
    assert found.severity is Severity.LOW
    assert "told by the kernel's log: its OOM killer" in found.seen


def test_where_the_system_does_not_tell_that_is_said() -> None:
    (found,) = feed(Kills(), [killed(untold="the system does not tell; no audit log: Permission denied")])
    assert "the system does not tell" in found.seen
    assert feed(Kills(), [exited(0, 0, goodbye=True)]) == []
