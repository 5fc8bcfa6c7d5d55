"""No live payload passes a scan, and the files that people really have do."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

from tests.gate.corpus.benign import benign
from tests.gate.corpus.payloads import Payload, payloads
from trainwarden.gate.results import Clean, Refused
from trainwarden.gate.scan import scan_file

ROOT = Path(__file__).resolve().parents[2]
PAYLOADS = {p.name: p for p in payloads()}
FEWEST_PAYLOADS, FEWEST_BENIGN = 120, 40


def test_every_payload_is_alive_in_a_process_of_its_own(tmp_path: Path) -> None:
    told = subprocess.run(
        [sys.executable, "-W", "ignore", "-m", "tests.gate.corpus.prove", str(tmp_path)],
        cwd=ROOT,
        env={**os.environ, "OMP_NUM_THREADS": "1"},
        capture_output=True,
        text=True,
        check=True,
    )
    alive = json.loads(told.stdout)
    assert {name: why for name, why in alive.items() if why} == {}
    assert len(alive) == len(PAYLOADS) >= FEWEST_PAYLOADS


@pytest.mark.parametrize("payload", PAYLOADS.values(), ids=lambda p: p.name)
def test_no_live_payload_passes(payload: Payload, tmp_path: Path) -> None:
    path = tmp_path / payload.name
    path.write_bytes(payload.data)
    decision = scan_file(path).decision
    assert isinstance(decision, Refused)
    assert all(o.why for o in decision.objections)


def test_files_that_people_have_are_clean(tmp_path: Path) -> None:
    (tmp_path / "work").mkdir()
    files = benign(tmp_path / "work")
    told = {}
    for name, data in files.items():
        (tmp_path / name).write_bytes(data)
        told[name] = scan_file(tmp_path / name).decision
    assert {name: d for name, d in told.items() if not isinstance(d, Clean)} == {}
    assert len(files) >= FEWEST_BENIGN
