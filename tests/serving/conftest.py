from __future__ import annotations

from pathlib import Path

import pytest
from gated import Gated


@pytest.fixture
def gated(tmp_path: Path) -> Gated:
    return Gated(tmp_path)
