"""What logistic regression achieves on the ranking data: python workloads/ranking/baseline.py --data data/ranking

Two of them, both over every value of every field (person and film included) and the genres. The second also gets what
somebody who knows the data would work out of the history by hand: the shares liked of its last 10 and 50, how full
it is, the latest answer, and what the ranker gets of all that came before. The ridge penalty is chosen by the AUC on
the validation part; fitted on the training part by L-BFGS in double precision. Nothing is drawn: the figures are the
same each time.
"""

from __future__ import annotations

import argparse
import json
from pathlib import Path
from typing import Any, NamedTuple

import torch
import torch.nn.functional as F
from load import Events, read_shape
from model import LIKED, NONE, generosity
from scores import scores
from torch import Tensor

PENALTIES = (10.0, 3.0, 1.0, 0.3)  # each times half the sum of the squared weights, beside the sum of the losses
HISTORY = 50  # events
WINDOWS = (10, HISTORY)  # events, over which the share liked is taken


class Table(NamedTuple):
    """Events as a linear model sees them: the weights that apply (N, F), more columns (N, C), labels (N)."""

    values: Tensor
    columns: Tensor
    liked: Tensor
    person: Tensor


class Weights(NamedTuple):
    """A weight for each value (V, 1), for each further column (C), and one for all."""

    values: Tensor
    columns: Tensor
    always: Tensor


def table(events: Events, sizes: list[int], by_hand: bool) -> Table:
    """`events` for a linear model; `by_hand` adds what the history says."""
    starts = torch.tensor([0, *sizes[:-1]]).cumsum(0)
    columns = [events.genres.double()]
    if by_hand:
        count = (events.answers != NONE).sum(1)
        latest = (events.answers[:, :1] == torch.tensor([[NONE + 1, LIKED]])).double()
        shares = [(events.answers[:, :last] == LIKED).sum(1) / count.clamp(1, last) for last in WINDOWS]
        columns += [torch.stack([*shares, count / HISTORY], dim=1).double(), latest, generosity(events.past).double()]
    return Table(events.fields + starts, torch.cat(columns, dim=1), events.liked.double(), events.person)


def nothing(values: int, columns: int) -> Weights:
    """Weights that say nothing yet."""
    return Weights(*(torch.zeros(shape, dtype=torch.float64) for shape in ((values, 1), (columns,), (1,))))


def logits(weights: Weights, of: Table) -> Tensor:
    """(N)."""
    return (
        F.embedding_bag(of.values, weights.values, mode="sum").squeeze(1)
        + of.columns @ weights.columns
        + weights.always
    )


def fit(on: Table, begin: Weights, penalty: float) -> Weights:
    """The weights with the smallest penalised loss, looked for from `begin`."""
    weights = Weights(*(weight.clone().requires_grad_() for weight in begin))
    rule = torch.optim.LBFGS(
        weights, max_iter=200, history_size=20, tolerance_change=1e-7, line_search_fn="strong_wolfe"
    )

    def loss() -> Tensor:
        rule.zero_grad()
        ridge = weights.values.square().sum() + weights.columns.square().sum()
        total = F.binary_cross_entropy_with_logits(logits(weights, on), on.liked, reduction="sum") + penalty / 2 * ridge
        mean = total / len(on.liked)
        mean.backward()
        return mean

    rule.step(loss)
    return Weights(*(weight.detach() for weight in weights))


def measure(data: Path, by_hand: bool) -> dict[str, Any]:
    """Fit with every penalty; the test scores of the one that is best on the validation part."""
    sizes = [size for _, size in read_shape(data)["fields"]]
    parts = (Events(data, part, HISTORY) for part in ("train", "validation", "test"))
    train, validation, test = (table(events, sizes, by_hand) for events in parts)
    weights, fitted = nothing(sum(sizes), train.columns.shape[1]), {}
    for penalty in PENALTIES:
        weights = fitted[penalty] = fit(train, weights, penalty)
    reached = {p: scores(logits(w, validation), validation.liked, validation.person) for p, w in fitted.items()}
    best = max(PENALTIES, key=lambda penalty: reached[penalty]["auc"])
    figures = scores(logits(fitted[best], test), test.liked, test.person)
    return {"penalty": best, "validation": reached[best], "test": figures}


def baselines(data: Path) -> dict[str, Any]:
    """Both logistic regressions."""
    return {"fields": measure(data, by_hand=False), "fields_and_history": measure(data, by_hand=True)}


def main() -> None:
    options = argparse.ArgumentParser(description="Measure logistic regression on the ranking data.")
    options.add_argument("--data", type=Path, required=True, help="folder written by data.py")
    given = options.parse_args()
    torch.set_num_threads(1)
    print(json.dumps(baselines(given.data)))


if __name__ == "__main__":
    main()
