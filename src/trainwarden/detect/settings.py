"""What detectors read off the settings of a parameter group."""

from __future__ import annotations

from collections.abc import Mapping


def rate(group: Mapping[str, object]) -> float:
    """A group's learning rate; 1 where it has none that is a number, so that nobody takes it for standing still."""
    value = group.get("lr", 1.0)
    return float(value) if isinstance(value, int | float) else 1.0
