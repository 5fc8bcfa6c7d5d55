"""Closed forms of learning-rate schedules: those that a project declares, and those of torch's schedulers (pure).

Source: torch.optim.lr_scheduler, each class's closed form as its documentation gives it. A schedule here is a
function from the number of scheduler steps to the learning rate.
"""

from __future__ import annotations

import math
from bisect import bisect_right
from collections.abc import Callable, Mapping
from typing import Any, TypeAlias

Schedule: TypeAlias = Callable[[int], float]
_KEYS: dict[str, tuple[str, ...]] = {
    "constant": ("lr", "warmup"),
    "linear": ("peak", "warmup", "total", "final"),
    "cosine": ("peak", "warmup", "total", "final"),
    "step": ("lr", "every", "gamma", "warmup"),
}


def declared(text: str) -> Schedule:
    """The schedule that `[expect] lr` declares: a kind and its numbers, `cosine peak=3e-4 warmup=100 total=1000`.

    Raises:
        ValueError: the text is no such schedule.
    """
    kind, *words = text.split()
    if kind not in _KEYS:
        raise ValueError(f"lr = {text!r}: {kind!r} is none of {', '.join(_KEYS)}")
    numbers: dict[str, float] = {}
    for word in words:
        key, _, value = word.rpartition("=")
        key = key or _KEYS[kind][0]
        if key not in _KEYS[kind]:
            raise ValueError(f"lr = {text!r}: {kind} has no {key!r}, it has {', '.join(_KEYS[kind])}")
        numbers[key] = float(value)
    needed = {"constant": ("lr",), "step": ("lr", "every", "gamma")}.get(kind, ("peak", "total"))
    missing = [key for key in needed if key not in numbers]
    if missing or (kind == "step" and numbers["every"] < 1):
        raise ValueError(f"lr = {text!r}: {kind} needs {', '.join(needed)}")
    return _declared(kind, numbers)


def _declared(kind: str, n: Mapping[str, float]) -> Schedule:
    peak, warmup, final = n.get("peak", n.get("lr", 0.0)), n.get("warmup", 0.0), n.get("final", 0.0)
    span = max(1.0, n.get("total", 0.0) - warmup)

    def rate(step: int) -> float:
        if step < warmup:
            return peak * step / warmup
        done = min(1.0, (step - warmup) / span)
        match kind:
            case "linear":
                return peak + (final - peak) * done
            case "cosine":
                return final + (peak - final) * 0.5 * (1 + math.cos(math.pi * done))
            case "step":
                return peak * math.pow(n["gamma"], (step - warmup) // n["every"])
            case _:
                return peak

    return rate


def of_torch(kind: str, state: Mapping[str, Any], initial: float) -> Schedule | None:
    """The rate of a group with this initial rate under one of torch's schedulers; None where there is no closed form.

    `state` is what its `state_dict` holds.

    Raises:
        KeyError, TypeError, ValueError, ArithmeticError: the state is not that scheduler's.
    """
    form = _FORMS.get(kind)
    return form(state, initial) if form else None


def _step(s: Mapping[str, Any], initial: float) -> Schedule:
    gamma, size = float(s["gamma"]), int(s["step_size"])
    return lambda e: initial * math.pow(gamma, e // size)


def _multi_step(s: Mapping[str, Any], initial: float) -> Schedule:
    gamma = float(s["gamma"])
    milestones = sorted(int(m) for m, times in s["milestones"].items() for _ in range(min(int(times), 1000)))
    return lambda e: initial * math.pow(gamma, bisect_right(milestones, e))


def _exponential(s: Mapping[str, Any], initial: float) -> Schedule:
    gamma = float(s["gamma"])
    return lambda e: initial * math.pow(gamma, e)


def _cosine(s: Mapping[str, Any], initial: float) -> Schedule:
    low, span = float(s["eta_min"]), int(s["T_max"])
    return lambda e: low + (initial - low) * (1 + math.cos(math.pi * e / span)) / 2


def _linear(s: Mapping[str, Any], initial: float) -> Schedule:
    first, last, total = float(s["start_factor"]), float(s["end_factor"]), int(s["total_iters"])
    return lambda e: initial * (first + (last - first) * min(total, e) / total)


def _constant(s: Mapping[str, Any], initial: float) -> Schedule:
    factor, total = float(s["factor"]), int(s["total_iters"])
    return lambda e: initial * (factor if e < total else 1.0)


def _polynomial(s: Mapping[str, Any], initial: float) -> Schedule:
    total, power = int(s["total_iters"]), float(s["power"])
    return lambda e: initial * math.pow(1.0 - min(total, e) / total, power)


_FORMS: dict[str, Callable[[Mapping[str, Any], float], Schedule]] = {
    f"torch.optim.lr_scheduler.{name}": form
    for name, form in {
        "StepLR": _step,
        "MultiStepLR": _multi_step,
        "ExponentialLR": _exponential,
        "CosineAnnealingLR": _cosine,
        "LinearLR": _linear,
        "ConstantLR": _constant,
        "PolynomialLR": _polynomial,
    }.items()
}
