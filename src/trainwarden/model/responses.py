"""What was done about it: each act is an entry of the log of the run that it concerns."""

from __future__ import annotations

from enum import StrEnum
from typing import Literal

from trainwarden.model.base import Noun
from trainwarden.model.findings import Confidence, Finding, Severity


class Action(StrEnum):
    """What policy demands when something is found, mildest first; each is done together with those before it."""

    NOTE = "note"  # it is in the log
    ALERT = "alert"  # and sent over the alert channels
    HOLD = "hold"  # and the job is paused until it is let go on
    STOP = "stop"  # or its command ended in order
    RECOVER = "recover"  # and the run taken back to the last cleared checkpoint


ACTIONS = tuple(Action)
"""All actions, mildest first."""


class Alert(Noun):
    """The findings of one cause, as they are known when this is written. A suspicion, like each of them."""

    id: str  # "a1", "a2", … within its run
    severity: Severity  # the highest of its findings
    confidence: Confidence  # the highest of its findings
    title: str  # one plain sentence
    first: Finding  # that it began with
    findings: tuple[int, ...]  # log indexes, the first of them
    count: int = 1  # findings in all
    detectors: tuple[str, ...] = ()
    ranks: tuple[int, ...] = ()
    first_step: int = -1
    last_step: int = -1
    benign: tuple[str, ...] = ()  # benign explanations not yet excluded


class Responded(Noun, tag="responded"):
    """What was done about an alert, told when it was done."""

    alert: Alert
    action: Action
    failed: str = ""  # why it could not be done, or not in full
    wall_ns: int = 0


class Released(Noun, tag="released"):
    """A held job was let go on. `by`: who asked for it, as far as the system tells."""

    by: str
    wall_ns: int = 0


class Undelivered(Noun, tag="undelivered"):
    """Alerts that could not be sent over one channel, told at the first and at the end."""

    channel: str
    reason: str
    alerts: int = 1
    wall_ns: int = 0


class Recovered(Noun, tag="recovered"):
    """A run was taken back to `from_step` and resumed as run `new_run` in the sealed environment."""

    from_step: int
    new_run: str
    checkpoint: str
    wall_ns: int = 0


class Contained(Noun, tag="contained"):
    """What somebody did to contain a run, apart from files moved, which are `Quarantined`."""

    what: Literal["hold", "stop", "freeze", "revoke"]
    subject: str = ""  # the actor whose key was revoked
    reason: str = ""
    by: str = ""  # account and login as the system tells them; an account is not a person
    wall_ns: int = 0


class Undone(Noun, tag="undone"):
    """An act of containment was taken back: that at log index `of`."""

    of: int
    by: str = ""
    wall_ns: int = 0


class Quarantined(Noun, tag="quarantined"):
    """An artefact moved out of the way, by digest; nothing is ever deleted."""

    path: str
    digest: str
    reason: str
    wall_ns: int = 0
    by: str = ""  # who contained the run, "" when it was moved by a recovery


class Restored(Noun, tag="restored"):
    """A file put back from the store: as it was sealed, or as a cleared checkpoint had it."""

    path: str
    digest: str
    wall_ns: int = 0
