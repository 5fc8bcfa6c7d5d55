"""Detectors: live suspicions from the entries of the log, one detector a file.

To add one: a file here with a class that has `id`, `observe` and `finish` (see `interface.py`), one line in
`all_detectors`, and two tests, one that must fire and its benign twin that must not.
"""

from __future__ import annotations

from trainwarden.detect.checkpoints import Checkpoints
from trainwarden.detect.continuity import Continuity
from trainwarden.detect.engine import Engine
from trainwarden.detect.environment import Environment
from trainwarden.detect.gaps import Gaps
from trainwarden.detect.interface import Detector
from trainwarden.detect.kills import Kills
from trainwarden.detect.mappings import Mappings
from trainwarden.detect.patched import Patched
from trainwarden.detect.replay import Replay
from trainwarden.detect.replicas import Replicas

__all__ = ["Detector", "Engine", "all_detectors"]


def all_detectors() -> tuple[Detector, ...]:
    """A fresh instance of every detector; they remember what they saw and serve one run."""
    return (
        Replicas(),
        Continuity(),
        Checkpoints(),
        Environment(),
        Patched(),
        Mappings(),
        Kills(),
        Gaps(),
        Replay(),
    )
