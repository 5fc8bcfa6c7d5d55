"""How good a ranking is: what train.py, eval.py and baseline.py all measure, in double precision."""

from __future__ import annotations

import numpy as np
import torch.nn.functional as F
from torch import Tensor


def scores(logits: Tensor, liked: Tensor, person: Tensor) -> dict[str, float]:
    """AUC, the same within persons, and log loss of `logits` (N) against `liked` (N), rounded to 4 digits."""
    loss = F.binary_cross_entropy_with_logits(logits.double(), liked.double())
    guessed, truth, whose = logits.double().numpy(), liked.numpy() > 0, person.numpy()
    figures = {"auc": auc(guessed, truth), "auc_within": auc_within(guessed, truth, whose), "logloss": loss.item()}
    return {name: round(float(figure), 4) for name, figure in figures.items()}


def auc(guessed: np.ndarray, truth: np.ndarray) -> float:
    """The chance that something liked is ranked above something not liked; ties count half (Mann and Whitney, 1947)."""
    _, which, counts = np.unique(guessed, return_inverse=True, return_counts=True)
    rank = (np.cumsum(counts) - (counts - 1) / 2)[which]  # the mean rank of equals
    liked, others = int(truth.sum()), int((~truth).sum())
    return float((rank[truth].sum() - liked * (liked + 1) / 2) / (liked * others))


def auc_within(guessed: np.ndarray, truth: np.ndarray, whose: np.ndarray) -> float:
    """The AUC of each person's own events, weighted by their number; people who like all or nothing have none."""
    own = [whose == one for one in np.unique(whose)]
    own = [events for events in own if 0 < truth[events].sum() < events.sum()]
    return float(np.average([auc(guessed[e], truth[e]) for e in own], weights=[e.sum() for e in own]))
