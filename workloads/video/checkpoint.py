"""Checkpoints of the text-to-video model: enough in them to go on bit for bit, in folders that are whole or not there.

    OUT/step-000400/model.safetensors       the model in training
                    averaged.safetensors    the average of its weights, as averaged/<parameter>: what makes the clips
                    config.json             its shape and words, as diffusers writes them
                    muon.…, adamw.…, rng-rank0.safetensors   as folders.py says, the chat workload's
                    state.json              step, world size, and the options that decide the bits

Model and optimizers are the same on all ranks, so rank 0 writes them.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import folders
import torch
from model import VideoDiT
from safetensors.torch import save_file
from torch import Tensor

Optimizers = dict[str, torch.optim.Optimizer]  # by kind
AVERAGED = "averaged/"  # in front of names, so that nobody takes an average for the weights in training


def save(
    out: Path, state: dict[str, Any], model: VideoDiT, averaged: VideoDiT, optimizers: Optimizers, rank: int
) -> None:
    """Write `OUT/step-<state["step"]>` together with the other ranks; return once it is complete."""
    with folders.written(out, state["step"], rank) as folder:
        if rank == 0:
            save_file({n: p.detach() for n, p in model.named_parameters()}, folder / "model.safetensors")
            for kind, optimizer in optimizers.items():
                folders.save_optimizer(folder, kind, optimizer, model)
            save_file({AVERAGED + n: p for n, p in averaged.named_parameters()}, folder / "averaged.safetensors")
            averaged.save_config(folder)
            folders.write_json(folder, "state", state)


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
    state = folders.read_json(folder, "state")
    for key, here in about.items():
        if state.get(key) != here:
            raise SystemExit(
                f"error: {folder} was made with {key} {state.get(key)}, this run has {here}\n"
                "hint: resume with the options and the number of ranks that the checkpoint was made with"
            )
    model.load_state_dict(folders.read_tensors(folder, "model"))
    averaged.load_state_dict(_averaged(folder))
    for kind, optimizer in optimizers.items():
        folders.restore_optimizer(folder, kind, optimizer)
    folders.restore_generator(folder, rank)
    return int(state["step"])


def load(folder: Path) -> VideoDiT:
    """The averaged model of the checkpoint `folder`, ready to use.

    Raises:
        SystemExit: there is none, or it cannot be read.
    """
    model: VideoDiT = VideoDiT.from_config(folders.read_json(folder, "config"))
    model.load_state_dict(_averaged(folder))
    return model.eval()


def _averaged(folder: Path) -> dict[str, Tensor]:
    return {name.removeprefix(AVERAGED): tensor for name, tensor in folders.read_tensors(folder, "averaged").items()}
