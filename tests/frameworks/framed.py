"""What the tests of frameworks share: guarded jobs of two ranks, with a foothold that a replay does not have.

The script under test looks for `foothold.txt` beside it, which is no sealed file: it stands for code that an insider
brought in, and is absent where the script is replayed.
"""

from __future__ import annotations

import importlib.util
import sys
from collections.abc import Sequence
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parents[1] / "audit"))

import pytest
from guarded_job import Job

from trainwarden.audit.engine import Audit
from trainwarden.audit.recorded import Recorded
from trainwarden.audit.replay import replay
from trainwarden.audit.starts import Start
from trainwarden.model import Diverged, Finding, Gap, Location, Matched, Severity, Verdict

QUIET = (Severity.INFO, Severity.LOW)
FOOTHOLD = "foothold.txt"
RESUME = '[replay]\nresume = "--resume {checkpoint}"\n'


def needs(*modules: str) -> None:
    """Skip a test module without these. They are not imported here: Lightning changes the environment of who does."""
    for name in modules:
        if importlib.util.find_spec(name) is None:
            pytest.skip(f"no {name}: pip install 'trainwarden[frameworks]'", allow_module_level=True)


def assert_quiet(recorded: Recorded) -> None:
    """Everything was seen, and no finding is above low."""
    assert not [e for e in recorded.entries if isinstance(e, Gap)]
    assert not [e for e in recorded.entries if isinstance(e, Finding) and e.severity not in QUIET]


def assert_matched(job: Job, recorded: Recorded) -> list[Verdict]:
    """Every segment replays bit for bit."""
    said = Audit(recorded, job.room).run(recorded.history.segments)
    assert said
    assert all(isinstance(v, Matched) for v in said), said
    return said


def assert_from_the_middle(job: Job, recorded: Recorded, kind: Start, first: int, last: int, attempt: int = 0) -> None:
    """A replay that begins in mid-run, in this way, gives every step from `first` on."""
    result = replay(recorded, job.room, attempt, first, last, kind)
    assert result.divergence is None, result
    assert set(result.matched) >= set(range(first, last + 1)), result


def located(job: Job, recorded: Recorded) -> Location:
    """Where the one difference lies that the audit finds."""
    said: Sequence[Verdict] = Audit(recorded, job.room).run(recorded.history.segments, first_only=True)
    (found,) = [v for v in said if isinstance(v, Diverged)]
    assert all(isinstance(v, Matched | Diverged) for v in said), said
    return found.at
