"""Jobs of training frameworks, guarded and replayed with the means of tests/audit."""

from __future__ import annotations

import sys
from collections.abc import Callable
from pathlib import Path

import pytest

sys.path.append(str(Path(__file__).parents[1] / "audit"))

from guarded_job import Job, make_job


@pytest.fixture
def guarded(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Callable[[str], Job]:
    """Makes a job of a script; where nothing is declared, since no configuration lies beside it."""
    return lambda script: make_job(tmp_path, monkeypatch, script)
