"""Starting the chat workload's scripts, as a user does."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

CHAT = Path(__file__).resolve().parents[2] / "workloads" / "chat"


def launch(script: str, *arguments: str | Path, ranks: int = 0, restarts: int = 0) -> subprocess.Popen[str]:
    """Start a script of the workload: under torchrun with `ranks` ranks, or plainly with 0."""
    command = [sys.executable]
    if ranks:
        command += ["-m", "torch.distributed.run", "--nproc-per-node", str(ranks), "--max-restarts", str(restarts)]
        command += ["--rdzv-backend", "c10d", "--rdzv-endpoint", "127.0.0.1:0", "--monitor-interval", "0.1"]
    command += [str(CHAT / script), *map(str, arguments)]
    quiet = {name: value for name, value in os.environ.items() if not name.startswith("TRAINWARDEN")}
    return subprocess.Popen(
        command, env=quiet | {"OMP_NUM_THREADS": "1"}, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True
    )


def run(script: str, *arguments: str | Path, ranks: int = 0) -> str:
    """Run a script of the workload to its end and return what it printed."""
    process = launch(script, *arguments, ranks=ranks)
    out, err = process.communicate(timeout=200)
    assert process.returncode == 0, err
    return out
