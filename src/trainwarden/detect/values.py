"""Values of settings against each other: equal up to rounding, a smooth schedule's, and in words (pure)."""

from __future__ import annotations

from typing import Any

NEAR = 1e-5  # relative: rounding of a schedule that was computed in another order
_SMOOTHLY = 0.1  # of a value, from one update to the next


def near(a: float, b: float) -> bool:
    """Whether two numbers are equal up to rounding."""
    return abs(a - b) <= NEAR * max(abs(a), abs(b)) + 1e-15


def same(found: object, wanted: object) -> bool:
    """Whether a setting is what was declared, its numbers up to rounding."""
    if isinstance(found, list | tuple) and isinstance(wanted, list | tuple):
        return len(found) == len(wanted) and all(same(a, b) for a, b in zip(found, wanted, strict=True))
    if isinstance(found, bool) or isinstance(wanted, bool):
        return found == wanted
    if isinstance(found, int | float) and isinstance(wanted, int | float):
        return near(float(found), float(wanted))
    return found == wanted


def smoothly(old: object, new: object) -> bool:
    """Whether one value can follow the other in a schedule: all numbers in it changed by a small share."""
    if isinstance(old, list | tuple) and isinstance(new, list | tuple) and len(old) == len(new):
        return all(a == b or smoothly(a, b) for a, b in zip(old, new, strict=True))
    if isinstance(old, bool) or isinstance(new, bool) or not isinstance(old, int | float):
        return False
    if not isinstance(new, int | float):
        return False
    return abs(new - old) <= _SMOOTHLY * max(abs(new), abs(old)) or abs(new - old) <= 1e-4


def difference(one: tuple[dict[str, Any], ...], other: tuple[dict[str, Any], ...]) -> str:
    """The first setting in which two lists of groups differ, for the end of a sentence; "" where none does."""
    for n, (a, b) in enumerate(zip(one, other, strict=False)):
        for key in a:
            if a[key] != b.get(key):
                return f": {key} of group {n} is {text(a[key])} and {text(b.get(key))}"
    return ""


def text(value: object) -> str:
    """A setting for a sentence."""
    return (f"{value:.6g}" if isinstance(value, float) else str(value))[:80]
