"""Detectors: live suspicions from the entries of the log, one detector a file.

To add one: a file here with a class that has `id`, `observe` and `finish` (see `interface.py`), one line in
`all_detectors`, and two tests, one that must fire and its benign twin that must not.
"""

from __future__ import annotations

from trainwarden.detect.checkpoints import Checkpoints
from trainwarden.detect.cleared import Cleared
from trainwarden.detect.clock import Clocks
from trainwarden.detect.continuity import Continuity
from trainwarden.detect.dynamics import Dynamics
from trainwarden.detect.engine import Engine
from trainwarden.detect.environment import Environment
from trainwarden.detect.frozen import Frozen
from trainwarden.detect.gaps import Gaps
from trainwarden.detect.hogs import Hogs
from trainwarden.detect.interface import Detector, Facts
from trainwarden.detect.kills import Kills
from trainwarden.detect.loaded import Loaded
from trainwarden.detect.loss_mask import LossMask
from trainwarden.detect.mappings import Mappings
from trainwarden.detect.metrics import Metrics
from trainwarden.detect.order import Order
from trainwarden.detect.patched import Patched
from trainwarden.detect.precision import Precision
from trainwarden.detect.reduction import Reduction
from trainwarden.detect.replay import Replay
from trainwarden.detect.replicas import Replicas
from trainwarden.detect.rng import Rng
from trainwarden.detect.sampled import SampledUnits
from trainwarden.detect.samples import Samples
from trainwarden.detect.schedule import ScheduleDetector
from trainwarden.detect.skipped import Skipped
from trainwarden.detect.sleep import Sleeps
from trainwarden.detect.stall import Stalls
from trainwarden.detect.update_rule import UpdateRule

__all__ = ["Detector", "Engine", "Facts", "all_detectors"]


def all_detectors(facts: Facts = Facts()) -> tuple[Detector, ...]:  # noqa: B008  frozen
    """A fresh instance of every detector; they remember what they saw and serve one run, which `facts` are about."""
    return (
        Replicas(),
        Reduction(),
        Precision(),
        Continuity(),
        UpdateRule(),
        Cleared(),
        Frozen(),
        Skipped(),
        ScheduleDetector(facts),
        Checkpoints(),
        Loaded(),
        Environment(),
        Patched(),
        Mappings(),
        Order(facts.seeds),
        Samples(),
        Rng(facts.seeds),
        LossMask(),
        Kills(),
        Sleeps(),
        Stalls(),
        Clocks(),
        Hogs(),
        Metrics(),
        Dynamics(),
        SampledUnits(),
        Gaps(),
        Replay(),
    )
