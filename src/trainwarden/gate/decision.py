"""What clearing a checkpoint comes to: frozen, consumed with `match` and `assert_never`."""

from __future__ import annotations

from typing import TypeAlias

import msgspec

from trainwarden.model import CheckpointCleared


class Missing(msgspec.Struct, frozen=True, kw_only=True):
    """Something that is not known, and the command that would settle it."""

    what: str
    command: str


class Cleared(msgspec.Struct, frozen=True, kw_only=True, tag="cleared"):
    """It may be served."""

    clearance: CheckpointCleared


class Refused(msgspec.Struct, frozen=True, kw_only=True, tag="refused"):
    """It may not be served."""

    digest: str
    reasons: tuple[str, ...]


class Undecided(msgspec.Struct, frozen=True, kw_only=True, tag="undecided"):
    """It may not be served yet."""

    digest: str
    missing: tuple[Missing, ...]


Decision: TypeAlias = Cleared | Refused | Undecided


class Checked(msgspec.Struct, frozen=True):
    """What one check found: reasons to refuse, and what it could not find out. Neither is a pass of this check."""

    reasons: tuple[str, ...] = ()
    missing: tuple[Missing, ...] = ()

    def __add__(self, other: Checked) -> Checked:
        return Checked(self.reasons + other.reasons, self.missing + other.missing)


def refuse(reason: str) -> Checked:
    """A check that found a reason to refuse."""
    return Checked(reasons=(reason,))


def lacks(what: str, command: str) -> Checked:
    """A check that could not find something out."""
    return Checked(missing=(Missing(what=what, command=command),))
