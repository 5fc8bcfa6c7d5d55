"""An optimizer's update did something else than its rule: from the supervisor's recomputation of random slices.

The supervisor holds the rules (`supervise/rules.py`); this turns what differs into findings. What is not compared (an
optimizer without a rule here, a closure that is called several times) is told once, with the class's name.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping

from trainwarden.model import Confidence, Detail, Entry, Finding, Misfit, Severity, Stage, UpdateSeen

MAX_TOLD = 10_000
_BENIGN = (
    "a hook of the optimizer changes weights or state in the same call (a norm constraint, an average)",
    "a defect of the library itself",
)
_BENIGN_OTHER = ("the optimizer is not torch's own and departs from the rule of its name now and then",)


class UpdateRule:
    """Tells of every `UpdateSeen` with a difference, and once of what is not compared."""

    id = "update-rule"

    def __init__(self) -> None:
        self._told: set[tuple[int, str, str]] = set()

    def observe(self, index: int, entry: Entry, detail: Mapping[Stage, Detail] | None) -> Iterable[Finding]:
        if not isinstance(entry, UpdateSeen):
            return ()
        if entry.misfits:
            return tuple(_differs(index, entry, misfit, rest) for misfit, rest in _causes(entry.misfits))
        cause = (entry.attempt, entry.kind, entry.unchecked)
        if not entry.unchecked or cause in self._told or len(self._told) >= MAX_TOLD:
            return ()
        self._told.add(cause)
        return (_not_compared(index, entry),)

    def finish(self) -> Iterable[Finding]:
        return ()


def _causes(misfits: tuple[Misfit, ...]) -> list[tuple[Misfit, int]]:
    """One misfit for each part and explanation, with how many other tensors have the same."""
    groups: dict[tuple[str, str], list[Misfit]] = {}
    for misfit in misfits:
        groups.setdefault((misfit.part, misfit.fits), []).append(misfit)
    return [(some[0], len(some) - 1) for some in groups.values()]


def _differs(index: int, entry: UpdateSeen, misfit: Misfit, others: int) -> Finding:
    within = misfit.part == "gradient"
    what = "weights" if misfit.part == "weights" else misfit.part
    fits = f" ({misfit.fits})" if misfit.fits else ""
    more = f" and of {others} other{'s' if others > 1 else ''}" if others else ""
    own = entry.kind.startswith("torch.optim.")
    clipped = within and misfit.seen * misfit.expected >= 0  # what a hook that clips does
    seen = (
        f"Rank {entry.rank}'s update at step {entry.step} did not leave the {what} of {misfit.tensor!r}{more} as "
        f"{entry.rule} does{fits}: {misfit.seen:.9g} in place of {misfit.expected:.9g}, element {misfit.element}, "
        f"{misfit.wrong} of {misfit.looked} looked at."
    )
    if within:
        seen = (
            f"Rank {entry.rank}'s update at step {entry.step} used another gradient of {misfit.tensor!r} than it was "
            f"given{fits}: {misfit.seen:.9g} in place of {misfit.expected:.9g}, element {misfit.element}."
        )
    return Finding(
        detector=UpdateRule.id,
        severity=Severity.HIGH if own and not clipped else Severity.MEDIUM,
        confidence=Confidence.MEDIUM,
        seen=seen,
        expected=f"{entry.kind} moves weights and state by the rule of {entry.rule}, within rounding.",
        step=entry.step,
        attempt=entry.attempt,
        ranks=(entry.rank,),
        stage=Stage.WEIGHTS if misfit.part == "weights" else Stage.OPTIMIZER_STATE,
        tensor=misfit.tensor,
        evidence=(index,),
        benign=("a hook of the optimizer clips or scales gradients",) if within else _BENIGN if own else _BENIGN_OTHER,
        wall_ns=entry.wall_ns,
    )


def _not_compared(index: int, entry: UpdateSeen) -> Finding:
    partly = "only in part " if entry.rule else "not "
    return Finding(
        detector=UpdateRule.id,
        severity=Severity.INFO,
        confidence=Confidence.HIGH,
        seen=f"Updates by {entry.kind} are {partly}compared with a rule: {entry.unchecked}.",
        expected="The rule of every optimizer is known, and every tensor can be looked at.",
        step=entry.step,
        attempt=entry.attempt,
        evidence=(index,),
        benign=("the job uses an optimizer that is not in the list",),
        wall_ns=entry.wall_ns,
    )
