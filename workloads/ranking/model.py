"""The ranker: how likely a person likes a film, given who they are and what they rated before.

* An embedding table a field (person, film, age, …), and a bias a value of the same fields.
* Target attention over the history (Deep Interest Network, Zhou et al. 2018, arXiv:1706.06978): how much a film rated
  before counts depends on the film in question. What it gives: the mean of the films with the answers they got, and
  how like the film in question those that were liked are, and those that were not. Beside it the answers alone,
  weighted by their place: how generous somebody is lately matters more than any film; and how generous they were in
  all, however long ago.
* Cross layers of DCN-v2 (Wang et al. 2021, arXiv:2008.13535): x ← x₀ · (W x + b) + x.
* A small feed-forward part beside them; the logit is linear in both, plus the biases.

Shapes: B events, H places of history, F fields, D the width of an embedding.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor, nn

ITEM = "item"  # the field that history and target share
NONE, DISLIKED, LIKED = range(3)  # answers in a history
FAR = -1e4  # the attention's score of an empty place


class Shape(NamedTuple):
    """What a model is built from: part of every checkpoint's state.json."""

    fields: Sequence[tuple[str, int]]  # their order in a batch; how many values each has, 0 (none) included
    genres: int
    width: int
    history: int  # events of it that are looked at
    layers: int
    inner: int
    dropout: float


class Batch(NamedTuple):
    """Events: fields (B, F), genres (B, G), history and answers (B, H), how many films their persons had not liked and
    liked before (B, 2), and whether each was liked (B)."""

    fields: Tensor
    genres: Tensor
    history: Tensor
    answers: Tensor
    past: Tensor
    liked: Tensor


class Ranker(nn.Module):
    """Logits of "liked", (B); or the mean cross-entropy of a batch."""

    def __init__(self, shape: Shape) -> None:
        super().__init__()
        width, names = shape.width, [name for name, _ in shape.fields]
        self.item = names.index(ITEM)
        self.biases = nn.ModuleDict({name: nn.Embedding(size, 1) for name, size in shape.fields})
        self.tables = nn.ModuleDict({name: nn.Embedding(size, width) for name, size in shape.fields})
        self.answers = nn.Embedding(3, width)
        self.places = nn.Linear(shape.history, 1, bias=False)
        self.genres = nn.Linear(shape.genres, width, bias=False)
        self.past = nn.Linear(2, width)
        self.attention = nn.Sequential(nn.Linear(4 * width, 32), nn.SiLU(), nn.Linear(32, 1))
        wide = width * (len(names) + 6)
        self.crosses = nn.ModuleList(nn.Linear(wide, wide) for _ in range(shape.layers))
        self.deep = nn.Sequential(
            nn.Linear(wide, shape.inner), nn.SiLU(), nn.Dropout(shape.dropout),
            nn.Linear(shape.inner, shape.inner // 2), nn.SiLU(), nn.Dropout(shape.dropout),
        )  # fmt: skip
        self.out = nn.Linear(wide + shape.inner // 2, 1)
        self.dropout = nn.Dropout(shape.dropout)
        self.initialise()

    def initialise(self) -> None:
        """Biases begin at nothing, embeddings small, everything else as PyTorch has it."""
        for table in self.biases.values():
            nn.init.zeros_(table.weight)
        for table in (*self.tables.values(), self.answers):
            nn.init.normal_(table.weight, std=0.05)
        nn.init.constant_(self.places.weight, 1 / self.places.in_features)

    def forward(self, batch: Batch) -> Tensor:
        """The mean cross-entropy of `batch`."""
        return F.binary_cross_entropy_with_logits(self.logits(batch), batch.liked)

    def logits(self, batch: Batch) -> Tensor:
        """(B): above 0 means more likely liked than not."""
        columns = batch.fields.unbind(1)
        embedded = [table(column) for table, column in zip(self.tables.values(), columns, strict=True)]
        bias = sum(table(column) for table, column in zip(self.biases.values(), columns, strict=True))
        history = self.attend(embedded[self.item], batch.history, batch.answers)
        first = self.dropout(
            torch.cat([*embedded, self.genres(batch.genres), self.past(generosity(batch.past)), *history], dim=1)
        )
        crossed = first
        for layer in self.crosses:
            crossed = first * layer(crossed) + crossed
        return (self.out(torch.cat([crossed, self.deep(first)], dim=1)) + bias).squeeze(1)

    def attend(self, target: Tensor, history: Tensor, answers: Tensor) -> tuple[Tensor, ...]:
        """Four (B, D): the history as the target sees it, its likeness to what was liked and to what was not, and the
        answers alone, weighted by how far back they are."""
        films = self.tables[ITEM](history)
        wanted = target[:, None].expand_as(films)
        alike = films * wanted
        score = self.attention(torch.cat([films, wanted, alike, films - wanted], dim=2)).squeeze(2)
        there = answers != NONE
        share = score.masked_fill(~there, FAR).softmax(dim=1) * there
        told = self.answers(answers)
        mean = (share[..., None] * (films + told)).sum(dim=1)
        likeness = [((share * (answers == kind))[..., None] * alike).sum(dim=1) for kind in (LIKED, DISLIKED)]
        return mean, *likeness, self.places(told.mT).squeeze(2)


def generosity(past: Tensor) -> Tensor:
    """(B, 2) of how many films were not liked and liked (B, 2): the log-odds of liking, and the log of how many."""
    disliked, liked = past.unbind(1)
    return torch.stack([torch.log((liked + 2) / (disliked + 2)), torch.log1p(liked + disliked) / 4], dim=1)
