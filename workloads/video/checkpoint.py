"""Checkpoints: all that a run needs to go on bit for bit, in folders that are there whole or not at all.

    OUT/step-000400/model.safetensors       the model in training
                    averaged.safetensors    the average of its weights, as averaged/<parameter>: what makes the clips
                    config.json             its shape and words, as diffusers writes them
                    muon.safetensors, adamw.safetensors   <parameter>/<key> of each optimizer's state
                    muon.json, adamw.json   its parameter groups, and its parameters by name
                    rng-rank0.safetensors   each rank's generator state, one file a rank
                    state.json              step, world size, and the options that decide the bits

Every rank writes into a temporary folder, which rank 0 renames once all have written and all is on the disk. Model and
optimizer are the same on all ranks, so rank 0 writes them. Nothing here is pickled.
"""

from __future__ import annotations

import json
import os
import shutil
from pathlib import Path
from typing import Any

import torch
import torch.distributed as dist
from model import VideoDiT
from safetensors import SafetensorError
from safetensors.torch import load_file, save_file
from torch import Tensor

Optimizers = dict[str, torch.optim.Optimizer]  # by kind
AVERAGED = "averaged/"  # in front of names, so that nobody takes an average for the weights in training


def newest(out: Path) -> Path | None:
    """The complete checkpoint of the highest step in `out`, if there is one."""
    found = [path.parent for path in out.glob("step-*/state.json")]
    return max(found, key=lambda path: int(path.name.removeprefix("step-")), default=None)


def save(
    out: Path, state: dict[str, Any], model: VideoDiT, averaged: VideoDiT, optimizers: Optimizers, rank: int
) -> None:
    """Write `OUT/step-<state["step"]>` together with the other ranks; return once it is complete."""
    final = out / f"step-{state['step']:06d}"
    partial = out / f".{final.name}.partial"
    if rank == 0:
        shutil.rmtree(partial, ignore_errors=True)
        partial.mkdir(parents=True)
    _together()
    save_file({"torch": torch.get_rng_state()}, partial / f"rng-rank{rank}.safetensors")
    if rank == 0:
        save_file(
            {name: parameter.detach() for name, parameter in model.named_parameters()}, partial / "model.safetensors"
        )
        for kind, optimizer in optimizers.items():
            _save_optimizer(partial, kind, optimizer, model)
        save_file(
            {AVERAGED + name: parameter for name, parameter in averaged.named_parameters()},
            partial / "averaged.safetensors",
        )
        averaged.save_config(partial)
        _write(partial / "state.json", state)
    _flush(partial / f"rng-rank{rank}.safetensors")
    _together()
    if rank == 0:
        _publish(partial, final)
    _together()


def restore(
    folder: Path,
    about: dict[str, Any],
    model: VideoDiT,
    averaged: VideoDiT,
    optimizers: Optimizers,
    rank: int,
) -> int:
    """Put everything, the default generator too, into the state saved in `folder`; return the step it was saved at.

    Raises:
        SystemExit: it cannot be read, or a run that `about` describes cannot go on from it.
    """
    state = read_json(folder, "state")
    for key, here in about.items():
        if state.get(key) != here:
            raise SystemExit(
                f"error: {folder} was made with {key} {state.get(key)}, this run has {here}\n"
                "hint: resume with the options and the number of ranks that the checkpoint was made with"
            )
    model.load_state_dict(_tensors(folder, "model"))
    averaged.load_state_dict(_averaged(folder))
    for kind, optimizer in optimizers.items():
        saved, moments = read_json(folder, kind), _tensors(folder, kind)
        own: dict[int, dict[str, Tensor]] = {}
        for key in sorted(moments):
            name, _, part = key.rpartition("/")
            own.setdefault(saved["names"].index(name), {})[part] = moments[key]
        optimizer.load_state_dict({"state": own, "param_groups": saved["groups"]})
    torch.set_rng_state(_tensors(folder, f"rng-rank{rank}")["torch"])
    return int(state["step"])


def load(folder: Path) -> VideoDiT:
    """The averaged model of the checkpoint `folder`, ready to use.

    Raises:
        SystemExit: there is none, or it cannot be read.
    """
    config = read_json(folder, "config")
    model: VideoDiT = VideoDiT.from_config(config)
    model.load_state_dict(_averaged(folder))
    return model.eval()


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


def _tensors(folder: Path, name: str) -> dict[str, Tensor]:
    try:
        return load_file(folder / f"{name}.safetensors")
    except (OSError, SafetensorError) as e:
        raise SystemExit(f"error: no readable checkpoint at {folder}: {name}.safetensors: {e}") from e


def _save_optimizer(folder: Path, kind: str, optimizer: torch.optim.Optimizer, model: VideoDiT) -> None:
    """Write KIND.safetensors and KIND.json; parameters go by their names in `model`."""
    name_of = {id(parameter): name for name, parameter in model.named_parameters()}
    names = [name_of[id(parameter)] for group in optimizer.param_groups for parameter in group["params"]]
    inside = optimizer.state_dict()
    flat = {f"{names[i]}/{key}": value for i, own in inside["state"].items() for key, value in own.items()}
    save_file(flat, folder / f"{kind}.safetensors")
    _write(folder / f"{kind}.json", {"groups": inside["param_groups"], "names": names})


def _averaged(folder: Path) -> dict[str, Tensor]:
    return {name.removeprefix(AVERAGED): tensor for name, tensor in _tensors(folder, "averaged").items()}


def _write(path: Path, content: dict[str, Any]) -> None:
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
    """Give a completely written folder its name, in place of an older one of that name."""
    for path in (*partial.iterdir(), partial):
        _flush(path)
    old = partial.with_suffix(".old")
    shutil.rmtree(old, ignore_errors=True)
    if final.exists():
        final.rename(old)
    partial.rename(final)
    _flush(final.parent)
    shutil.rmtree(old, ignore_errors=True)
