"""A run stands still while its ranks live, or one rank is silent while its peers go on.

The ranks that hold it up are those whose training thread is not waiting in a collective. Each is named with the place
where it stands. Severity: high where that code is not sealed, medium where it was stopped by a signal, info where
sealed code computes (a long evaluation looks so), low else.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping

from trainwarden.detect import frames
from trainwarden.model import Confidence, Detail, Entry, Finding, RankSeen, Severity, Stage, Stalled

_COMPUTES = 0.5  # share of one CPU
_NAMED = 3
_BENIGN_WORK = ("a long evaluation, export or compilation between steps",)
_BENIGN_WAIT = (
    "a slow or full file system, a data source that does not answer",
    "a network that lost a peer",
    "somebody debugs the process",
)


class Stalls:
    """Names who holds up a run."""

    id = "stall"

    def observe(self, index: int, entry: Entry, detail: Mapping[Stage, Detail] | None) -> Iterable[Finding]:
        return (_finding(index, entry),) if isinstance(entry, Stalled) and entry.ranks else ()

    def finish(self) -> Iterable[Finding]:
        return ()


def culprits(ranks: tuple[RankSeen, ...]) -> tuple[RankSeen, ...]:
    """The ranks that their peers wait for; all of them where every rank waits in a collective."""
    stopped = tuple(r for r in ranks if _is_stopped(r))
    holding = tuple(r for r in ranks if not r.collective)
    return stopped or holding or ranks


def _is_stopped(rank: RankSeen) -> bool:
    return rank.state in ("T", "t")


def _finding(index: int, entry: Stalled) -> Finding:
    named = culprits(entry.ranks)
    severity, benign = _judge(named)
    told = "; ".join(_told(r) for r in named[:_NAMED])
    more = f"; and {len(named) - _NAMED} more" if len(named) > _NAMED else ""
    return Finding(
        detector=Stalls.id,
        severity=severity,
        confidence=Confidence.HIGH if severity is Severity.HIGH else Confidence.MEDIUM,
        seen=f"{_what(entry, named)} {told}{more}.",
        expected=_expected(entry),
        step=entry.step,
        attempt=entry.attempt,
        ranks=tuple(r.rank for r in named),
        evidence=(index,),
        benign=benign,
        wall_ns=entry.wall_ns,
    )


def _expected(entry: Stalled) -> str:
    if entry.usual_seconds <= 0:
        return "A run that was started makes its first step."
    return f"A step is completed about every {entry.usual_seconds:.3g} s, as before."


def _what(entry: Stalled, named: tuple[RankSeen, ...]) -> str:
    if entry.kind == "silent":
        return f"Rank {named[0].rank} has told nothing for {entry.seconds:.0f} s while its peers went on:"
    after = f"after step {entry.step - 1}" if entry.step > 0 else "before the first step"
    all_wait = " every rank waits for its peers:" if all(r.collective for r in named) and len(named) > 1 else ""
    return f"No rank has completed a step for {entry.seconds:.0f} s, {after};{all_wait}"


def _judge(named: tuple[RankSeen, ...]) -> tuple[Severity, tuple[str, ...]]:
    if any(r.unsealed for r in named):
        return Severity.HIGH, ("code that was edited after the run was sealed",)
    if any(_is_stopped(r) for r in named):
        return Severity.MEDIUM, ("the scheduler suspended the job", "somebody debugs the process")
    if all(r.cpu_share >= _COMPUTES and not r.collective for r in named):
        return Severity.INFO, _BENIGN_WORK
    return Severity.LOW, (*_BENIGN_WAIT, *_BENIGN_WORK)


def _told(rank: RankSeen) -> str:
    return f"rank {rank.rank} (process {rank.pid}) {_state(rank)}{_stands(rank)}"


def _state(rank: RankSeen) -> str:
    if _is_stopped(rank):
        by = rank.stopped_by
        who = f" by process {by.pid} ({by.program or 'gone'}, user {by.uid})" if by else ""
        return f"is stopped{who or ' by a signal whose sender is not known'}"
    if rank.state in ("", "Z", "X"):
        return "has ended"
    doing = "computes" if rank.cpu_share >= _COMPUTES else "waits"
    if not rank.answered:
        doing += " and does not answer: native code holds the interpreter"
    return doing + (f", in the kernel in {rank.waits_in}" if rank.waits_in else "")


def _stands(rank: RankSeen) -> str:
    if not rank.frames:
        return ""
    inner, own = frames.caller(rank.frames), frames.own(rank.frames)
    via = f", called from {frames.place(own)}" if own != inner else ""
    unsealed = f", not in the seal: {', '.join(rank.unsealed)}" if rank.unsealed else ""
    part = f" in the part {rank.part!r}" if rank.part else ""
    return f" at {frames.place(inner)}{via}{part}{unsealed}"
