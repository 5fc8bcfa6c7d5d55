"""Events out of the folder that data.py wrote, and models out of checkpoints."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import checkpoint
import folders
import torch
from model import Batch, Ranker, Shape
from safetensors import SafetensorError
from safetensors.torch import load_file
from torch import Tensor
from torch.utils.data import Dataset


class Events(Dataset[Batch]):
    """One part of the data. It gives whole batches: a row at a time would take longer than the model."""

    def __init__(self, data: Path, part: str, history: int) -> None:
        columns = _columns(data / f"{part}.safetensors")
        self.fields, self.genres = columns["fields"].long(), columns["genres"].float()
        self.history, self.answers = (columns[name][:, :history].long() for name in ("history", "answers"))
        self.past = columns["past"].float()
        self.liked, self.person = columns["liked"].float(), self.fields[:, 0]

    def __len__(self) -> int:
        return len(self.liked)

    def __getitems__(self, indexes: list[int]) -> Batch:
        rows = torch.tensor(indexes)
        columns = (self.fields, self.genres, self.history, self.answers, self.past, self.liked)
        return Batch(*(column[rows] for column in columns))


def as_it_is(batch: Batch) -> Batch:
    """What a DataLoader does with the batches of `Events`: nothing."""
    return batch


def read_shape(data: Path) -> dict[str, Any]:
    """The `shape.json` that data.py wrote.

    Raises:
        SystemExit: there is none.
    """
    try:
        shape: dict[str, Any] = json.loads((data / "shape.json").read_bytes())
    except (OSError, ValueError) as e:
        raise _no_data(data, e) from e
    return shape


def model_at(folder: Path) -> tuple[Ranker, dict[str, Any]]:
    """The model saved in the checkpoint `folder`, ready to use, and its state.json.

    Raises:
        SystemExit: the checkpoint cannot be read.
    """
    state = folders.read_json(folder, "state")
    model = Ranker(Shape(**state["shape"]))
    checkpoint.load_trained(folder, model)
    return model.eval(), state


@torch.no_grad()
def all_logits(model: Ranker, events: Events) -> Tensor:
    """The logits of all of `events`, (N)."""
    was_training = model.training
    model.eval()
    batches = torch.arange(len(events)).split(1024)
    logits = torch.cat([model.logits(events.__getitems__(rows.tolist())) for rows in batches])
    model.train(was_training)
    return logits


def _columns(path: Path) -> dict[str, Tensor]:
    try:
        return load_file(path)
    except (OSError, SafetensorError) as e:
        raise _no_data(path, e) from e


def _no_data(path: Path, why: Exception) -> SystemExit:
    return SystemExit(f"error: no readable data at {path}: {why}\nhint: python workloads/ranking/data.py --out …")
