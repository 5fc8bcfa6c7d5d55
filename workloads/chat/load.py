"""Sequences and models out of the folder that data.py wrote, and models out of checkpoints."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import checkpoint
import folders
import numpy as np
import torch
from model import IGNORE, Llama, Shape, add_lora
from safetensors.torch import load_file
from torch import Tensor
from torch.utils.data import Dataset

Sample = tuple[Tensor, Tensor]  # tokens and labels of one sequence
HEADER = 4  # tokens of "<|im_start|>assistant\n": the name is two
LORA_ALPHA = 32.0
LORA_DROPOUT = 0.05


def _array(path: Path) -> np.ndarray:
    """The array saved at `path`.

    Raises:
        SystemExit: it cannot be read.
    """
    try:
        return np.load(path)
    except (OSError, ValueError) as e:
        raise SystemExit(f"error: no readable data at {path}: {e}\nhint: python workloads/chat/data.py --out …") from e


class Exchanges(Dataset[Sample]):
    """For post-training: stretches of a conversation that start with the user and fill `block` tokens where they can.

    Only what the assistant says, and that it then stops, is labelled. A turn that the end of a block cuts is
    taken up whole by the next one.
    """

    def __init__(self, data: Path, part: str, block: int) -> None:
        self.block = block
        self.tokens = torch.from_numpy(_array(data / f"posttrain-{part}.tokens.npy").astype(np.int64))
        turns = _array(data / f"posttrain-{part}.turns.npy")
        said = np.zeros(len(self.tokens), dtype=bool)  # by the assistant
        for start, end in turns[turns[:, 3] % 2 == 1, :2].tolist():
            said[start + HEADER : end - 1] = True  # up to <|im_end|>, without the line feed after it
        self.windows: list[tuple[int, int]] = []  # first token, token after the last
        self.said = torch.from_numpy(said)
        firsts = np.flatnonzero(turns[:, 3] == 0).tolist()
        for first, after in zip(firsts, [*firsts[1:], len(turns)], strict=True):
            self._cut(turns[first:after, :2].tolist(), said)

    def _cut(self, turns: list[list[int]], said: np.ndarray) -> None:
        """Add the windows of one conversation, given the first token and the token after the last of its turns."""
        place, end = 0, turns[-1][1]
        while place + 1 < len(turns):
            start = turns[place][0]
            stop = min(start + self.block, end)
            if said[start + 1 : stop].any():
                self.windows.append((start, stop))
            whole = place
            while whole < len(turns) and turns[whole][1] <= stop:
                whole += 1
            place += max(2, (whole - place) // 2 * 2)

    def __len__(self) -> int:
        return len(self.windows)

    def __getitem__(self, index: int) -> Sample:
        start, stop = self.windows[index]
        tokens = torch.zeros(self.block, dtype=torch.int64)
        labels = torch.full((self.block,), IGNORE)
        tokens[: stop - start] = self.tokens[start:stop]
        following = slice(start + 1, stop)
        labels[: stop - start - 1] = self.tokens[following].where(self.said[following], IGNORE)
        return tokens, labels


class Blocks(Dataset[Sample]):
    """For pretraining: one long text in pieces of `block` tokens, every token labelled with the next one."""

    def __init__(self, data: Path, part: str, block: int) -> None:
        self.block = block
        self.tokens = torch.from_numpy(_array(data / f"pretrain-{part}.tokens.npy").astype(np.int64))

    def __len__(self) -> int:
        return (len(self.tokens) - 1) // self.block

    def __getitem__(self, index: int) -> Sample:
        piece = self.tokens[index * self.block : (index + 1) * self.block + 1]
        return piece[:-1], piece[1:]


def base_model(data: Path) -> Llama:
    """SmolLM2-135M-Instruct in fp32, from DATA/base."""
    try:
        shape = Shape(**json.loads((data / "base" / "shape.json").read_bytes()))
        weights = load_file(data / "base" / "model.safetensors")
    except OSError as e:
        raise SystemExit(
            f"error: no base model in {data}: {e}\nhint: python workloads/chat/data.py --out {data}"
        ) from e
    model = Llama(shape)
    # converted into memory of its own: a file changed during the run does not change what is being trained
    model.load_state_dict({name: tensor.float() for name, tensor in weights.items()}, assign=True)
    return model


def lora_model(data: Path, about: dict[str, Any]) -> Llama:
    """The base model with the LoRA that `about` describes, its update still nothing."""
    model = base_model(data)
    add_lora(model, about["rank"], LORA_ALPHA, LORA_DROPOUT, about["layers"])
    return model


def fresh_model(about: dict[str, Any]) -> Llama:
    """A model of the shape in `about` with fresh weights from the default generator."""
    model = Llama(Shape(**about["shape"]))
    model.initialise()
    return model


def model_at(folder: Path, data: Path) -> tuple[Llama, dict[str, Any]]:
    """The model saved in the checkpoint `folder`, ready to use, and its state.json.

    Raises:
        SystemExit: the checkpoint or the data it stands on cannot be read.
    """
    state = folders.read_json(folder, "state")
    model = lora_model(data, state["lora"]) if state["kind"] == "posttrain" else fresh_model(state)
    checkpoint.load_trained(folder, model)
    return model.eval(), state
