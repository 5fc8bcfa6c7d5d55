"""The machine a figure was measured on, and the file it is written to."""

from __future__ import annotations

import datetime
import json
import os
import platform
import subprocess
from collections.abc import Sequence
from pathlib import Path
from typing import Any

ROOT = Path(__file__).parents[1]
RESULTS = ROOT / "results"


def machine() -> dict[str, Any]:
    """Processor, cores, memory, system and the versions that decide a figure."""
    import torch

    cpu = next((line.partition(":")[2].strip() for line in _lines("/proc/cpuinfo") if "model name" in line), "")
    memory = next((line.split()[1] for line in _lines("/proc/meminfo") if line.startswith("MemTotal")), "0")
    return {
        "cpu": cpu,
        "cores": os.cpu_count(),
        "isa": torch.backends.cpu.get_cpu_capability(),
        "memory_gib": round(int(memory) / 2**20, 1),
        "system": f"{platform.system()} {platform.machine()}",
        "python": platform.python_version(),
        "torch": str(torch.__version__),
    }


def write(name: str, summary: dict[str, Any], runs: Sequence[Any]) -> Path:
    """Write `results/NAME.json` in the one form that the docs are generated from."""
    commit = subprocess.run(
        ["git", "rev-parse", "--short", "HEAD"], cwd=ROOT, capture_output=True, text=True, check=False
    ).stdout.strip()
    path = RESULTS / f"{name}.json"
    path.parent.mkdir(exist_ok=True)
    date = datetime.datetime.now(tz=datetime.UTC).date().isoformat()
    body = {"machine": machine(), "commit": commit, "date": date, "summary": summary, "runs": list(runs)}
    path.write_text(json.dumps(body, indent=1) + "\n", encoding="utf-8")
    return path


def merge(name: str, part: str, summary: dict[str, Any], runs: Sequence[Any]) -> Path:
    """Write one part of a result, keeping what other parts measured before."""
    path = RESULTS / f"{name}.json"
    old = json.loads(path.read_text(encoding="utf-8")) if path.exists() else {"summary": {}, "runs": []}
    others = [r for r in old["runs"] if r["part"] != part]
    return write(name, old["summary"] | summary, [*others, *({"part": part, **r} for r in runs)])


def _lines(path: str) -> list[str]:
    return Path(path).read_text(encoding="utf-8").splitlines()
