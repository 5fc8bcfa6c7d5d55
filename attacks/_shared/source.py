"""Edits of the job's own scripts, as a commit or a mount makes them, and the honest change that looks like them."""

from __future__ import annotations

import re
from pathlib import Path

from trainwarden.errors import CannotDecide
from trainwarden.redteam.interface import Act, Moment, Twin
from trainwarden.redteam.place import Range

STEP = re.compile(rb"^( +)optimizer\.step\(\)\n", re.MULTILINE)


def script_with(place: Range, pattern: re.Pattern[bytes]) -> Path:
    """The one script of the job that has this line; folders that were copied beside it do not count.

    Raises:
        CannotDecide: none has, or several.
    """
    scripts = sorted((place.job / place.workload.below).rglob("*.py"))
    found = [p for p in scripts if pattern.search(p.read_bytes())]
    if len(found) != 1:
        raise CannotDecide(f"{len(found)} scripts of the job match {pattern.pattern!r}", hint="adapt the attack")
    return found[0]


def say_more(place: Range) -> None:
    """A comment before the job's optimizer step, before anything is sealed."""
    file = script_with(place, STEP)
    place.edit(file, lambda source: STEP.sub(rb"\1# the update of this step\n\g<0>", source, count=1))


COMMENTED = Twin(
    name="a comment",
    does="an honest commit explains the line before the job is sealed",
    acts=(Act(Moment.PREPARE, say_more),),
)
