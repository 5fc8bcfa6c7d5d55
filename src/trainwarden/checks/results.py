"""What a check found: that it holds, that it does not, or that it was not made."""

from __future__ import annotations

from collections.abc import Callable
from typing import TypeAlias

import msgspec


class Passed(msgspec.Struct, frozen=True, tag="passed"):
    """The check was made and holds; `seen` says over how much."""

    seen: str


class Failed(msgspec.Struct, frozen=True, tag="failed"):
    """The check was made and does not hold."""

    reason: str


class NotChecked(msgspec.Struct, frozen=True, tag="not checked"):
    """The check could not be made; never a pass."""

    reason: str


Result: TypeAlias = Passed | Failed | NotChecked


class Check(msgspec.Struct, frozen=True):
    """One check by name and its result."""

    name: str
    result: Result


Progress: TypeAlias = Callable[[str], None]


class LogServer(msgspec.Struct, frozen=True):
    """Ask the log servers that a run was sent to, at `url` if one is given; `key` is the public key they must have."""

    url: str = ""
    key: str = ""
