"""Flags of precision and communication: changes, differences between ranks, variables outside of the seal."""

from __future__ import annotations

import pytest
from records import feed

from trainwarden.detect.precision import Precision
from trainwarden.model import PrecisionSeen, Severity

FLAGS = {"matmul precision": "highest", "autocast": "off", "threads": "4", "timeout": "1800 s"}


def told(rank: int = 0, step: int = 0, attempt: int = 0, **flags: str) -> PrecisionSeen:
    named = {name.replace("_", " "): value for name, value in flags.items()}
    return PrecisionSeen(attempt=attempt, rank=rank, step=step, flags=FLAGS | named)


@pytest.mark.parametrize(
    ("flag", "value", "severity"),
    [("matmul_precision", "medium", Severity.MEDIUM), ("autocast", "cpu bfloat16, off", Severity.MEDIUM),
     ("threads", "1", Severity.LOW)],
)  # fmt: skip
def test_a_change_in_mid_run_is_told_once_for_all_ranks(flag: str, value: str, severity: Severity) -> None:
    (found,) = feed(Precision(), [told(0), told(1), told(0, 7, **{flag: value}), told(1, 7, **{flag: value})])
    assert (found.ranks, found.step, found.severity, found.evidence) == ((0,), 7, severity, (0, 2))
    assert f"{flag.replace('_', ' ')} from {FLAGS[flag.replace('_', ' ')]} to {value}" in found.seen


def test_a_rank_of_other_precision_is_named() -> None:
    (found,) = feed(Precision(), [told(0), told(1), told(2, autocast="cpu bfloat16")])
    assert (found.ranks, found.severity) == ((2,), Severity.MEDIUM)
    assert "Ranks 0 and 2 differ: autocast off and cpu bfloat16" in found.seen


def test_equal_ranks_later_attempts_and_flags_that_were_not_read_are_silent() -> None:
    same = [told(r) for r in range(4)]
    assert feed(Precision(), same) == []
    assert feed(Precision(), [*same, told(0, attempt=1, threads="2"), told(1, attempt=1, threads="2")]) == []
    assert feed(Precision(), [*same, told(0, 5, timeout="?"), told(0, 9)]) == []
    assert feed(Precision(), [*same, told(0, 5, ddp1_static_graph="False")]) == []  # a second module came


def test_hosts_with_other_threads_are_only_a_low_finding() -> None:
    assert [f.severity for f in feed(Precision(), [told(0), told(1, threads="8")])] == [Severity.LOW]


def test_variables_outside_of_the_seal_are_a_note_and_those_of_torchrun_none() -> None:
    def unsealed(**names: str) -> PrecisionSeen:
        return PrecisionSeen(attempt=0, rank=0, step=0, flags=FLAGS, began={"NCCL_ALGO": "Ring"}, unsealed=names)

    (found,) = feed(Precision(), [unsealed(NCCL_ALGO="")])
    assert (found.severity, "began with NCCL_ALGO='Ring', sealed: ''" in found.seen) == (Severity.INFO, True)
    assert feed(Precision(), [unsealed(OMP_NUM_THREADS="", TORCH_NCCL_ASYNC_ERROR_HANDLING="")]) == []
