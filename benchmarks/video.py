"""How often the video workload's clips show what was asked: `python -m benchmarks.video --checkpoint FOLDER`.

Runs `workloads/video/eval.py` on a checkpoint that was trained before and writes `results/video.json`. Nothing here
depends on how busy the machine is.
"""

from __future__ import annotations

import argparse
import json
import math
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

from safetensors import safe_open

from benchmarks.machine import ROOT, write

ROLES = ("object", "motion", "background", "all")


def main(argv: list[str] | None = None) -> None:
    options = argparse.ArgumentParser(description="Measure a checkpoint of the video workload.")
    options.add_argument("--checkpoint", type=Path, required=True)
    given = options.parse_args(argv)
    command = [sys.executable, str(ROOT / "workloads" / "video" / "eval.py"), "--checkpoint", str(given.checkpoint)]
    ended = subprocess.run(
        command, env=os.environ | {"OMP_NUM_THREADS": "1"}, stdout=subprocess.PIPE, text=True, check=True
    )
    measured = json.loads(ended.stdout)
    state = json.loads((given.checkpoint / "state.json").read_bytes())
    write("video", summary(measured, state, parameters(given.checkpoint)), [measured | {"state": state}])


def summary(measured: dict[str, Any], state: dict[str, Any], parameters: int) -> dict[str, Any]:
    """The figures that the docs show, of what eval.py printed."""
    shares = {
        f"{kind}_{role}_pct": round(100 * measured[kind][role], 1) for kind in ("seen", "unseen") for role in ROLES
    }
    about = {f"{kind}_clips": measured[f"{kind} clips"] for kind in ("seen", "unseen")}
    size = {"steps": measured["step"], "clips_a_step": state["batch_size"] * state["world"], "parameters": parameters}
    return shares | about | {"reader_pct": round(100 * measured["reader"]["all"], 1)} | size


def parameters(checkpoint: Path) -> int:
    """How many numbers the model of `checkpoint` has."""
    with safe_open(checkpoint / "model.safetensors", "pt") as file:
        return sum(math.prod(file.get_slice(name).get_shape()) for name in file.keys())  # noqa: SIM118


if __name__ == "__main__":
    main()
