"""Entries about time and hosts, made short."""

from __future__ import annotations

from trainwarden.model import (
    ClockShifted,
    Entry,
    Foreign,
    HostCrowded,
    Idled,
    RankSeen,
    Sleep,
    StackFrame,
    Stalled,
)

SITE = "/env/lib/python3.11/site-packages"
SCRIPT = StackFrame(file="/job/train.py", line=40, function="main")
TORCH = StackFrame(file=f"{SITE}/torch/optim/adamw.py", line=230, function="AdamW.step")
PLANTED = StackFrame(file="/home/other/helper.py", line=7, function="nap")
LIBRARY = StackFrame(file="/usr/lib/python3.11/threading.py", line=629, function="Event.wait")
COLLECTIVE = StackFrame(file=f"{SITE}/torch/distributed/distributed_c10d.py", line=2810, function="all_reduce")


def slept(
    step: int,
    seen: int = 1,
    *,
    part: str = "update",
    frames: tuple[StackFrame, ...] = (TORCH, SCRIPT),
    unsealed: tuple[str, ...] = (),
    rank: int = 0,
) -> Idled:
    call = Sleep(part=part, calls=1, asked_ns=100_000_000, slept_ns=100_100_000, frames=frames, seen=seen)
    return Idled(
        attempt=0, rank=rank, step=step, wall_ns=500_000_000, usual_ns=400_000_000, part=part, sleeps=(call,),
        unsealed=unsealed,
    )  # fmt: skip


def idled(step: int, *, unsealed: tuple[str, ...] = (), accelerator: bool = False) -> Idled:
    return Idled(
        attempt=0, rank=0, step=step, wall_ns=700_000_000, usual_ns=400_000_000, idle_ns=300_000_000, part="forward",
        stack=(LIBRARY, TORCH, SCRIPT), samples=9, accelerator=accelerator, unsealed=unsealed,
    )  # fmt: skip


def standing(rank: int, *frames: StackFrame, collective: bool = False, state: str = "S", **more: object) -> RankSeen:
    return RankSeen(
        rank=rank, pid=100 + rank, answered=bool(frames), state=state, collective=collective, frames=frames,
        **more,  # type: ignore[arg-type]
    )  # fmt: skip


def stalled(*ranks: RankSeen, kind: str = "stall", step: int = 12) -> Stalled:
    return Stalled(kind=kind, attempt=0, step=step, seconds=61.0, usual_seconds=0.4, ranks=ranks)


def told_of_hosts() -> list[Entry]:
    """One entry for each of these detectors that makes it speak."""
    return [
        slept(3, frames=(PLANTED, SCRIPT), unsealed=(PLANTED.file,)),
        stalled(standing(0, PLANTED, SCRIPT)),
        ClockShifted(kind="host", by_ns=3_600_000_000_000, over_ns=1_000_000_000),
        HostCrowded(
            attempt=0, ranks=(0,), kind="cpu", waiting_share=0.5, usual_share=0.01, seconds=30.0,
            processes=(Foreign(pid=7, uid=1001, program="/usr/bin/miner", cpu_share=1.9),),
        ),
    ]  # fmt: skip
