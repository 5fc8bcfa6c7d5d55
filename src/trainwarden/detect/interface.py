"""The seam of all detectors.

Rules
-----
* A detector is pure: entries in, findings out. No torch, file, network or clock; times come from the entries.
* Entries come in the order of the log, which says little about the order of ranks: a rank can be steps ahead.
* Entries are claims of suspect hosts. Nothing in one may make a detector fail, or grow without bound.
* A finding is raised at the first entry that shows it. It names what was seen and expected, the log indexes it
  rests on, and the benign explanations that are not excluded yet.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import Protocol, TypeAlias

import msgspec

from trainwarden.model import Detail, Entry, Finding, Stage

Expected: TypeAlias = "bool | int | float | str | tuple[float, ...]"


class Facts(msgspec.Struct, frozen=True):
    """What the seal and the project's settings say of a run before it starts; empty where they say nothing."""

    argv: tuple[str, ...] = ()
    seeds: dict[str, int] = {}
    expect: dict[str, Expected] = {}


class Detector(Protocol):
    """Looks for one kind of interference."""

    @property
    def id(self) -> str:
        """Its name in findings, docs and rules."""

    def observe(self, index: int, entry: Entry, detail: Mapping[Stage, Detail] | None) -> Iterable[Finding]:
        """Take in the entry at log `index`, with a step record's details when they are at hand."""

    def finish(self) -> Iterable[Finding]:
        """What can only be said once the log has ended."""
