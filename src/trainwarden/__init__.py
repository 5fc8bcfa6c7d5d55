"""TrainWarden keeps AI training honest: it seals a run, records it, catches and proves interference, undoes it.

This file is loaded in every Python process below `trainwarden run`, so it imports the standard library only; each
name of the spine is fetched from its module on first use.
"""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from trainwarden.audit.engine import Audit
    from trainwarden.audit.proving import prove
    from trainwarden.audit.recorded import Recorded
    from trainwarden.casefile import CaseFile, load_case
    from trainwarden.checks import verify_run
    from trainwarden.config import Config, load_config
    from trainwarden.errors import TrainWardenError
    from trainwarden.gate.loader import load
    from trainwarden.keys import SigningKey
    from trainwarden.log.reader import LogReader
    from trainwarden.log.verify import verify_log
    from trainwarden.model import (
        Checkpoint,
        Diverged,
        Entry,
        Explanation,
        Finding,
        Inconclusive,
        Matched,
        Seal,
        SignedSeal,
        Stage,
        Standing,
        StepRecord,
        TreeHead,
        Verdict,
    )
    from trainwarden.report.html import write_html
    from trainwarden.seal.check import check_seal
    from trainwarden.seal.command import parse_command
    from trainwarden.seal.room import build_room
    from trainwarden.seal.seal import seal_command
    from trainwarden.store import Store
    from trainwarden.supervise.supervisor import supervise

_SPINE = {
    "audit.engine": ("Audit",),
    "audit.proving": ("prove",),
    "audit.recorded": ("Recorded",),
    "casefile": ("CaseFile", "load_case"),
    "checks": ("verify_run",),
    "config": ("Config", "load_config"),
    "errors": ("TrainWardenError",),
    "gate.loader": ("load",),
    "keys": ("SigningKey",),
    "log.reader": ("LogReader",),
    "log.verify": ("verify_log",),
    "model": (
        *("Checkpoint", "Diverged", "Entry", "Explanation", "Finding", "Inconclusive", "Matched", "Seal"),
        *("SignedSeal", "Stage", "Standing", "StepRecord", "TreeHead", "Verdict"),
    ),
    "report.html": ("write_html",),
    "seal.check": ("check_seal",),
    "seal.command": ("parse_command",),
    "seal.room": ("build_room",),
    "seal.seal": ("seal_command",),
    "store": ("Store",),
    "supervise.supervisor": ("supervise",),
}
_HOME = {name: module for module, names in _SPINE.items() for name in names}

__all__ = [
    "Audit",
    "CaseFile",
    "Checkpoint",
    "Config",
    "Diverged",
    "Entry",
    "Explanation",
    "Finding",
    "Inconclusive",
    "LogReader",
    "Matched",
    "Recorded",
    "Seal",
    "SignedSeal",
    "SigningKey",
    "Stage",
    "Standing",
    "StepRecord",
    "Store",
    "TrainWardenError",
    "TreeHead",
    "Verdict",
    "build_room",
    "check_seal",
    "load",
    "load_case",
    "load_config",
    "parse_command",
    "prove",
    "seal_command",
    "supervise",
    "verify_log",
    "verify_run",
    "write_html",
]


def __getattr__(name: str) -> object:
    """The spine's `name`, imported from its module on first use."""
    if name not in _HOME:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return getattr(importlib.import_module(f"{__name__}.{_HOME[name]}"), name)
