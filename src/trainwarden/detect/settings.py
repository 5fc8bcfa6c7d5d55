"""What detectors read off the settings of a parameter group."""

from __future__ import annotations

from collections.abc import Mapping


def rate(group: Mapping[str, object], otherwise: float = 1.0) -> float:
    """A group's learning rate. Where it has none that is a number: 1, so that nobody takes it for standing still."""
    value = group.get("lr")
    return float(value) if isinstance(value, int | float) else otherwise
