"""What a guarded run tells while it goes on, how it ended, and the seam for whoever works beside it."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Protocol, TypeAlias

from trainwarden.log.client.shipper import Shipped
from trainwarden.model import (
    Action,
    Alert,
    Entry,
    Finding,
    SignedSeal,
    Undelivered,
)
from trainwarden.store import RunDir
from trainwarden.supervise.responding import Told


@dataclass(frozen=True)
class Started:
    """The command is about to run, guarded as run `run_id`."""

    run_id: str
    seal: SignedSeal


@dataclass(frozen=True)
class Notice:
    """Something that the user should know now and that is no finding."""

    sentence: str
    hint: str = ""


class Beside(Protocol):
    """Works beside a run while its command runs, such as an audit of what is recorded already (`respond.beside`)."""

    def begin(self, run: RunDir, sealed: SignedSeal, submit: Callable[[Entry], object]) -> None:
        """The command is about to run; `submit` appends to the run's log until `end` has returned."""

    def end(self, *, wait: bool, taken_back: bool = False) -> None:
        """The command has ended. With `wait` what it must finish may take its time; called twice at most.

        With `taken_back` the run is about to be recovered, and what is known of its checkpoints is waited for.
        """


Event: TypeAlias = Started | Notice | Finding | Told | Undelivered


@dataclass(frozen=True)
class RunResult:
    """How a guarded run ended. `exit_code` is the command's, negative for the signal that ended it."""

    run_id: str
    exit_code: int
    findings: tuple[Finding, ...] = ()
    records: int = 0
    log_whole: bool = True  # False: the log could not be written to its end
    shipped: Shipped | None = None  # how much of the log is on the log server, None: there is none
    room: str = ""  # the kind of clean room that it ran in, "" for none
    asked: Action | None = None  # STOP or RECOVER when policy demanded it, also of a command that had ended already
    alert: Alert | None = None  # that it was demanded for
    interrupted: int = 0  # the signal with which the user ended it, 0 for none
