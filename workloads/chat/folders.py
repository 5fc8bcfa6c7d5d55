"""Checkpoint folders: there whole or not at all, with what every training run keeps in them. Nothing in it is pickled.

    OUT/step-000012/NAME.safetensors        an optimizer's state, as <parameter>/<key>
                    NAME.json               its parameter groups, and its parameters by name
                    rng-rank0.safetensors   each rank's generator state, one file a rank

Every rank writes into a temporary folder, which rank 0 renames once all have written and all is on the disk.
"""

from __future__ import annotations

import json
import os
import re
import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch
import torch.distributed as dist
from safetensors import SafetensorError
from safetensors.torch import load_file, save_file
from torch import Tensor, nn

FOLDER = re.compile(r"step-(\d{6,})")


def newest(out: Path) -> Path | None:
    """The complete checkpoint of the highest step in `out`, if there is one."""
    found = [path for path in out.glob("step-*") if FOLDER.fullmatch(path.name) and (path / "state.json").exists()]
    return max(found, key=lambda path: int(path.name.removeprefix("step-")), default=None)


@contextmanager
def written(out: Path, step: int, rank: int) -> Iterator[Path]:
    """A folder that all ranks write into; at the end it is `OUT/step-<step>`, each rank's generator in it."""
    final = out / f"step-{step:06d}"
    partial = out / f".{final.name}.partial"
    if rank == 0:
        shutil.rmtree(partial, ignore_errors=True)
        partial.mkdir(parents=True)
    _together()
    save_file({"torch": torch.get_rng_state()}, partial / f"rng-rank{rank}.safetensors")
    _flush(partial / f"rng-rank{rank}.safetensors")
    yield partial
    _together()
    if rank == 0:
        _publish(partial, final)
    _together()


def restore_generator(folder: Path, rank: int) -> None:
    """Put the default generator into the state that `rank` saved.

    Raises:
        SystemExit: it cannot be read.
    """
    torch.set_rng_state(read_tensors(folder, f"rng-rank{rank}")["torch"])


def save_optimizer(folder: Path, name: str, optimizer: torch.optim.Optimizer, model: nn.Module) -> None:
    """Write the state of `optimizer`, in which parameters go by their names in `model`."""
    name_of = {id(parameter): name for name, parameter in model.named_parameters()}
    names = [name_of[id(parameter)] for group in optimizer.param_groups for parameter in group["params"]]
    inside = optimizer.state_dict()
    flat = {f"{names[i]}/{key}": value for i, own in inside["state"].items() for key, value in own.items()}
    save_file(flat, folder / f"{name}.safetensors")
    write_json(folder, name, {"groups": inside["param_groups"], "names": names})


def restore_optimizer(folder: Path, name: str, optimizer: torch.optim.Optimizer) -> None:
    """Put `optimizer` into the state that was saved under `name`.

    Raises:
        SystemExit: it cannot be read.
    """
    saved, flat = read_json(folder, name), read_tensors(folder, name)
    state: dict[int, dict[str, Tensor]] = {}
    for key in sorted(flat):
        parameter, _, part = key.rpartition("/")
        state.setdefault(saved["names"].index(parameter), {})[part] = flat[key]
    optimizer.load_state_dict({"state": state, "param_groups": saved["groups"]})


def read_tensors(folder: Path, name: str) -> dict[str, Tensor]:
    """What NAME.safetensors in the checkpoint `folder` holds.

    Raises:
        SystemExit: there is none, or it cannot be read.
    """
    try:
        return load_file(folder / f"{name}.safetensors")
    except (OSError, SafetensorError) as e:
        raise SystemExit(f"error: no readable checkpoint at {folder}: {name}.safetensors: {e}") from e


def read_json(folder: Path, name: str) -> dict[str, Any]:
    """What NAME.json in the checkpoint `folder` says.

    Raises:
        SystemExit: there is none, or it cannot be read.
    """
    try:
        content: dict[str, Any] = json.loads((folder / f"{name}.json").read_bytes())
    except (OSError, ValueError) as e:
        raise SystemExit(f"error: no readable checkpoint at {folder}: {name}.json: {e}") from e
    return content


def write_json(folder: Path, name: str, content: dict[str, Any]) -> None:
    """Write NAME.json into `folder`."""
    (folder / f"{name}.json").write_text(json.dumps(content, indent=1, sort_keys=True) + "\n", encoding="utf-8")


def _together() -> None:
    """Wait for the other ranks, if there are any."""
    if dist.is_initialized():
        dist.barrier()


def _flush(path: Path) -> None:
    """Make what was written at `path` survive a power cut."""
    handle = os.open(path, os.O_RDONLY)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)


def _publish(partial: Path, final: Path) -> None:
    """Give a completely written folder its name; an older one of that name is moved aside first."""
    for path in (*partial.iterdir(), partial):
        _flush(path)
    old = partial.with_suffix(".old")
    shutil.rmtree(old, ignore_errors=True)
    if final.exists():
        final.rename(old)
    partial.rename(final)
    _flush(final.parent)
    shutil.rmtree(old, ignore_errors=True)
