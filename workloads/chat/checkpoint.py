"""Checkpoints of a training run: enough in them to go on bit for bit, in folders that are whole or not there.

    OUT/step-000012/model.safetensors       what is trained (for post-training: the LoRA tensors only)
                    optimizer.safetensors, optimizer.json, rng-rank0.safetensors   as folders.py says
                    state.json              step, epoch and place in the data, world size, seed, kind, shape

The model is the same on all ranks, so rank 0 writes it.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import folders
import torch
from safetensors.torch import save_file
from torch import nn


def trained(model: nn.Module) -> dict[str, nn.Parameter]:
    """The parameters of `model` that training changes, by name."""
    return {name: parameter for name, parameter in model.named_parameters() if parameter.requires_grad}


def save(out: Path, state: dict[str, Any], model: nn.Module, optimizer: torch.optim.Optimizer, rank: int) -> None:
    """Write `OUT/step-<state["step"]>` together with the other ranks; return once it is complete."""
    with folders.written(out, state["step"], rank) as folder:
        if rank == 0:
            save_file({n: p.detach() for n, p in trained(model).items()}, folder / "model.safetensors")
            folders.save_optimizer(folder, "optimizer", optimizer, model)
            folders.write_json(folder, "state", state)


def restore(folder: Path, model: nn.Module, optimizer: torch.optim.Optimizer, rank: int, world: int) -> dict[str, Any]:
    """Put `model`, `optimizer` and the default generator into the state saved in `folder`; return its `state.json`.

    Raises:
        SystemExit: it is not a checkpoint of this model and this many ranks.
    """
    state = folders.read_json(folder, "state")
    if state["world"] != world:
        raise SystemExit(f"error: {folder} was saved by {state['world']} ranks, this run has {world}")
    load_trained(folder, model)
    folders.restore_optimizer(folder, "optimizer", optimizer)
    folders.restore_generator(folder, rank)
    return state


def load_trained(folder: Path, model: nn.Module) -> None:
    """Copy the saved tensors of `folder` into the parameters of `model` that training changes.

    Raises:
        SystemExit: names or shapes differ, or the file cannot be read.
    """
    target, weights = trained(model), folders.read_tensors(folder, "model")
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
