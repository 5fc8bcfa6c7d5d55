"""Public statements held against an account: supported, refuted or undetermined, with the interval and the evidence.

Rules
-----
* A statement is a measure and a bound. It is supported or refuted only where the whole interval says so.
* A line of which something is not known has no highest value: what it could only refute by that stays undetermined.
* Records that no measure reads (`needs`) keep a statement from being supported, and never keep it from being refuted.
* No job in the records that a statement is about: undetermined. Silence is no evidence.

Trust: a file of claims is somebody's words. It says `said_by` a role; statements about persons have no measure here.
"""

from __future__ import annotations

import fnmatch
import math
import tomllib
from collections.abc import Sequence
from enum import StrEnum
from pathlib import Path
from typing import Literal, TypeAlias

import msgspec

from trainwarden.durable import hint_for
from trainwarden.errors import UsageError
from trainwarden.respond.account.lines import Account, JobAccount, Range, total

EXAMPLE = Path(__file__).with_name("claims.toml")
_HINT = "docs/damage.md#claims shows the format; `trainwarden claims --example` prints one"
Measure: TypeAlias = Literal[
    "gpus_disrupted", "jobs_affected", "gpu_hours", "cost", "delay_hours", "served_tainted", "none"
]
_BOUNDS = ("more_than", "at_least", "less_than", "at_most")
_UNITS = {
    "gpus_disrupted": "GPUs",
    "jobs_affected": "jobs",
    "gpu_hours": "GPU-hours",
    "delay_hours": "hours",
    "served_tainted": "checkpoints",
    "none": "",
}


class Stand(StrEnum):
    """How a statement stands."""

    SUPPORTED = "supported"
    REFUTED = "refuted"
    UNDETERMINED = "undetermined"


class Claim(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """One public statement, and what it says of what is measured."""

    id: str
    text: str
    measure: Measure
    said_by: str = ""  # a role, never a name
    more_than: float | None = None
    at_least: float | None = None
    less_than: float | None = None
    at_most: float | None = None
    jobs: tuple[str, ...] = ()  # patterns over commands and run ids (served_tainted: names); empty: all
    needs: tuple[str, ...] = ()  # records that it takes and that are not among ours

    @property
    def bound(self) -> tuple[str, float] | None:
        """The name and value of its bound; None where nothing is measured."""
        return next(((b, v) for b in _BOUNDS if (v := getattr(self, b)) is not None), None)

    @property
    def subject(self) -> str:
        """What it is about, in words."""
        return "serving name" if self.measure == "served_tainted" else "job"


class _File(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    claim: tuple[Claim, ...]


class Held(msgspec.Struct, frozen=True, kw_only=True):
    """What came of one statement."""

    claim: Claim
    stand: Stand
    why: str
    measured: Range | None = None
    unit: str = ""
    evidence: tuple[str, ...] = ()  # runs
    missing: tuple[str, ...] = ()  # what would decide, or could still change it


def read_claims(path: Path) -> tuple[Claim, ...]:
    """The statements of a file.

    Raises:
        UsageError: the file cannot be read, is not TOML, or a statement lacks what it needs.
    """
    try:
        found = msgspec.convert(tomllib.loads(path.read_text(encoding="utf-8")), _File).claim
    except OSError as e:
        raise UsageError(f"cannot read {path}: {e.strerror}", hint=hint_for(e)) from e
    except (tomllib.TOMLDecodeError, UnicodeDecodeError) as e:
        raise UsageError(f"{path} is not valid TOML: {e}", hint=_HINT) from e
    except msgspec.ValidationError as e:
        raise UsageError(f"{path}: {e}", hint=_HINT) from e
    ids = [c.id for c in found]
    for claim in found:
        if problem := _problem(claim, ids):
            raise UsageError(f"{path}: claim {claim.id!r} {problem}", hint=_HINT)
    return found


def _problem(claim: Claim, ids: Sequence[str]) -> str:
    bounds = [b for b in _BOUNDS if getattr(claim, b) is not None]
    if ids.count(claim.id) > 1:
        return "is there twice"
    if claim.measure == "none":
        return "" if not bounds and claim.needs else "measures nothing: it has `needs`, and no bound"
    if len(bounds) != 1:
        return f"has {len(bounds)} bounds ({', '.join(bounds) or 'none'}); it takes one of {', '.join(_BOUNDS)}"
    return "" if math.isfinite(getattr(claim, bounds[0])) else f"has a bound that is no number: {bounds[0]}"


class _Measured(msgspec.Struct, frozen=True):
    """What was measured, what its highest value does not hold, and which runs or checkpoints it is of."""

    value: Range
    unknown: tuple[str, ...] = ()
    evidence: tuple[str, ...] = ()


def hold(claim: Claim, account: Account) -> Held:
    """Hold one statement against an account."""
    if claim.bound is None:
        why = "no record of training says so or otherwise"
        return Held(claim=claim, stand=Stand.UNDETERMINED, why=why, missing=claim.needs)
    found = _served(claim, account) if claim.measure == "served_tainted" else _trained(claim, account)
    if found is None:
        missing = (f"records of {claim.subject} that match {', '.join(claim.jobs) or 'anything'}", *claim.needs)
        why = f"the records know no {claim.subject} that it is about"
        return Held(claim=claim, stand=Stand.UNDETERMINED, why=why, missing=missing)
    stand = _stand(claim.bound, found.value, open_above=bool(found.unknown))
    if stand is Stand.SUPPORTED and claim.needs:
        stand = Stand.UNDETERMINED
    return Held(
        claim=claim,
        stand=stand,
        why=_why(claim, stand, found, account.currency),
        measured=found.value,
        unit=_unit(claim, account.currency),
        evidence=found.evidence,
        missing=(*found.unknown, *claim.needs) if stand is Stand.UNDETERMINED else (),
    )


def _served(claim: Claim, account: Account) -> _Measured | None:
    """Altered checkpoints among those that serving was given; None where it was given none of these names."""
    served = [s for s in account.served if _matches(claim, [s.name])]
    if not served:
        return None
    return _Measured(total([s.tainted for s in served]), evidence=tuple(s.digest for s in served if s.tainted.high))


def _trained(claim: Claim, account: Account) -> _Measured | None:
    """What is measured of the jobs that it is about; None where there is none."""
    jobs = [j for j in account.jobs if _matches(claim, [" ".join(j.command), *j.runs])]
    if not jobs:
        return None
    hit = tuple(run for j in jobs if _is_hit(j).mid for run in j.runs)
    match claim.measure:
        case "gpus_disrupted":
            return _Measured(total([_is_hit(j) * j.gpus for j in jobs]), evidence=hit)
        case "jobs_affected":
            return _Measured(total([_is_hit(j) for j in jobs]), evidence=hit)
        case "delay_hours":
            return _Measured(max((j.delay for j in jobs), key=lambda r: r.mid), account.unknown, hit)
        case "cost":
            return _Measured(_cost(account, jobs), account.unknown, hit)
        case _:
            return _Measured(_lost(account, jobs), account.unknown, hit)


def _lost(account: Account, jobs: Sequence[JobAccount]) -> Range:
    """GPU-hours; of all jobs with what is given in the settings."""
    return account.lost if len(jobs) == len(account.jobs) else total([j.lost for j in jobs])


def _cost(account: Account, jobs: Sequence[JobAccount]) -> Range:
    if len(jobs) == len(account.jobs):
        return account.cost
    rates, lost = sorted(p.per_gpu_hour for p in account.priced), _lost(account, jobs)
    return Range(lost.low * rates[0], lost.mid * rates[len(rates) // 2], lost.high * rates[-1])


def _matches(claim: Claim, names: Sequence[str]) -> bool:
    return not claim.jobs or any(fnmatch.fnmatch(name, pattern) for name in names for pattern in claim.jobs)


def _is_hit(job: JobAccount) -> Range:
    """Was this job affected, as 0 or 1: for certain, most likely, and possibly."""
    certain = job.diverged or job.lost.low > 0
    likely = certain or job.lost.mid > 0
    possible = likely or job.lost.high > 0 or job.unaudited > 0
    return Range(float(certain), float(likely), float(possible))


def _stand(bound: tuple[str, float], measured: Range, *, open_above: bool) -> Stand:
    name, value = bound
    high = math.inf if open_above else measured.high
    above, below = {
        "more_than": (measured.low > value, high <= value),
        "at_least": (measured.low >= value, high < value),
        "less_than": (measured.low >= value, high < value),
        "at_most": (measured.low > value, high <= value),
    }[name]
    if not above and not below:
        return Stand.UNDETERMINED
    return Stand.SUPPORTED if above == (name in ("more_than", "at_least")) else Stand.REFUTED


def _unit(claim: Claim, currency: str) -> str:
    return currency if claim.measure == "cost" else _UNITS[claim.measure]


def _figure(value: float) -> str:
    """A number as a person would write it: whole from a hundred on, three digits below."""
    return f"{value:,.0f}" if abs(value) >= 100 or value == round(value) else f"{value:.3g}"


def _why(claim: Claim, stand: Stand, found: _Measured, currency: str) -> str:
    name, value = claim.bound or ("", 0.0)
    said = f"{name.replace('_', ' ')} {_figure(value)} {_unit(claim, currency)}"
    low, mid, high = (_figure(v) for v in (found.value.low, found.value.mid, found.value.high))
    told = f"measured {low} to {high}, most likely {mid}"
    if stand is not Stand.UNDETERMINED:
        return f"it says {said}; {told}"
    if found.unknown:
        return f"it says {said}; {told}; the highest value is open"
    reason = "what it also needs is not among the records" if claim.needs else "the range reaches over the bound"
    return f"it says {said}; {told}; {reason}"
