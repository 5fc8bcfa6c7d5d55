"""Checkpoints of a training run: whole or not there, and enough in them to go on bit for bit.

    OUT/step-000012/model.safetensors       what is trained (for post-training: the LoRA tensors only)
                    optimizer.safetensors   <parameter>/<key> of the optimizer's state
                    optimizer.json          its parameter groups
                    rng-rank0.safetensors   each rank's generator state, one file a rank
                    state.json              step, epoch and place in the data, world size, seed, kind, shape

Every rank writes into a temporary folder, which is renamed once all have written and flushed. The model is the
same on all ranks, so rank 0 writes it. Nothing here is pickled.
"""

from __future__ import annotations

import json
import os
import re
import shutil
from pathlib import Path
from typing import Any

import torch
import torch.distributed as dist
from safetensors import SafetensorError
from safetensors.torch import load_file, save_file
from torch import Tensor, nn

FOLDER = re.compile(r"step-(\d{6,})")


def trained(model: nn.Module) -> dict[str, nn.Parameter]:
    """The parameters of `model` that training changes, by name."""
    return {name: parameter for name, parameter in model.named_parameters() if parameter.requires_grad}


def newest(out: Path) -> Path | None:
    """The complete checkpoint of the highest step in `out`, if there is one."""
    found = [path for path in out.glob("step-*") if FOLDER.fullmatch(path.name) and (path / "state.json").exists()]
    return max(found, key=lambda path: int(path.name.removeprefix("step-")), default=None)


def read_state(folder: Path) -> dict[str, Any]:
    """The `state.json` of a checkpoint.

    Raises:
        SystemExit: there is none, or it cannot be read.
    """
    return _json(folder, "state")


def save(out: Path, state: dict[str, Any], model: nn.Module, optimizer: torch.optim.Optimizer, rank: int) -> Path:
    """Write `OUT/step-<state["step"]>` together with the other ranks; return it once it is complete."""
    name = f"step-{state['step']:06d}"
    final, partial = out / name, out / f".{name}.partial"
    if rank == 0:
        shutil.rmtree(partial, ignore_errors=True)
        partial.mkdir(parents=True)
    _together()
    save_file({"torch": torch.get_rng_state()}, partial / f"rng-rank{rank}.safetensors")
    if rank == 0:
        names, groups = list(trained(model)), optimizer.state_dict()["param_groups"]
        save_file({n: p.detach() for n, p in trained(model).items()}, partial / "model.safetensors")
        save_file(_flat(optimizer, names), partial / "optimizer.safetensors")
        _write_json(partial / "optimizer.json", {"groups": groups, "names": names})
        _write_json(partial / "state.json", state)
    _flush(partial / f"rng-rank{rank}.safetensors")
    _together()
    if rank == 0:
        _publish(partial, final)
    _together()
    return final


def restore(folder: Path, model: nn.Module, optimizer: torch.optim.Optimizer, rank: int, world: int) -> dict[str, Any]:
    """Put `model`, `optimizer` and the default generator into the state saved in `folder`; return its `state.json`.

    Raises:
        SystemExit: it is not a checkpoint of this model and this many ranks.
    """
    state = read_state(folder)
    if state["world"] != world:
        raise SystemExit(f"error: {folder} was saved by {state['world']} ranks, this run has {world}")
    load_trained(folder, model)
    flat = _tensors(folder, "optimizer")
    saved = _json(folder, "optimizer")
    per_parameter: dict[int, dict[str, Tensor]] = {}
    for key, value in flat.items():
        name, _, part = key.rpartition("/")
        per_parameter.setdefault(saved["names"].index(name), {})[part] = value
    optimizer.load_state_dict({"state": per_parameter, "param_groups": saved["groups"]})
    torch.set_rng_state(_tensors(folder, f"rng-rank{rank}")["torch"])
    return state


def load_trained(folder: Path, model: nn.Module) -> None:
    """Copy the saved tensors of `folder` into the parameters of `model` that training changes.

    Raises:
        SystemExit: names or shapes differ, or the file cannot be read.
    """
    target, weights = trained(model), _tensors(folder, "model")
    wanted, found = ({n: tuple(t.shape) for n, t in tensors.items()} for tensors in (target, weights))
    if wanted != found:
        name = sorted(n for n in wanted.keys() | found.keys() if wanted.get(n) != found.get(n))[0]
        raise SystemExit(
            f"error: {folder} is not of this model: {name} has shape {found.get(name)} there, {wanted.get(name)} here\n"
            "hint: resume with the options the checkpoint was made with"
        )
    with torch.no_grad():
        for name, parameter in target.items():
            parameter.copy_(weights[name])


def _tensors(folder: Path, name: str) -> dict[str, Tensor]:
    try:
        return load_file(folder / f"{name}.safetensors")
    except (OSError, SafetensorError) as e:
        raise SystemExit(f"error: no readable checkpoint at {folder}: {name}.safetensors: {e}") from e


def _json(folder: Path, name: str) -> dict[str, Any]:
    try:
        content: dict[str, Any] = json.loads((folder / f"{name}.json").read_bytes())
    except (OSError, ValueError) as e:
        raise SystemExit(f"error: no readable checkpoint at {folder}: {name}.json: {e}") from e
    return content


def _flat(optimizer: torch.optim.Optimizer, names: list[str]) -> dict[str, Tensor]:
    states = optimizer.state_dict()["state"]
    return {f"{names[i]}/{key}": value for i, state in states.items() for key, value in state.items()}


def _write_json(path: Path, content: dict[str, Any]) -> None:
    path.write_text(json.dumps(content, indent=1, sort_keys=True) + "\n", encoding="utf-8")


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
    for path in partial.iterdir():
        _flush(path)
    _flush(partial)
    old = partial.with_suffix(".old")
    shutil.rmtree(old, ignore_errors=True)
    if final.exists():
        final.rename(old)
    partial.rename(final)
    _flush(final.parent)
    shutil.rmtree(old, ignore_errors=True)
