"""How far step times wander by chance, from means over blocks of time (pure).

Rules
-----
* Blocks that follow each other tell less than independent ones: n of them as much as n (1 − ρ) / (1 + ρ), ρ corrected
  for what a short series hides of it (Marriott and Pope, Biometrika 1954).
* The time that is judged counts with its own spread where that is larger: a slow node for a day is a rare thing that a
  month may lack and the next two have, and a loss that lies in a few blocks alone does not stand out by its mean.
* Student's t, 95 % over all comparisons (Bonferroni): several jobs are several chances.
"""

from __future__ import annotations

import math
from statistics import NormalDist

from trainwarden.respond.account.columns import Column

FEWEST = 3  # blocks, below which a spread is not known
_WIDE = 0.25  # what is taken for it then


def reach(usual: Column, now: Column, comparisons: int) -> float:
    """How far the mean of `now` may be from that of `usual` by chance, as a share; both are shares of their mean."""
    if len(usual) < FEWEST:
        return _WIDE
    variance, kept = _wandering(usual)
    before = max(len(usual) * kept, 2.0)
    after = max(len(now) * kept, 1.0)
    error = variance / before + variance / after
    if len(now) >= FEWEST:
        own, kept_now = _wandering(now)
        error = variance / before + max(variance / after, own / max(len(now) * kept_now, 2.0))
    return math.sqrt(error) * student_t(1 - 0.025 / max(comparisons, 1), before - 1)


def _wandering(spread: Column) -> tuple[float, float]:
    """The variance of one block, and how many independent ones each of them is worth."""
    n = len(spread)
    off = spread - spread.mean()
    power = float((off * off).sum())
    follow = float((off[1:] * off[:-1]).sum()) / power if power > 0 else 0.0
    follow = min(max(follow + (1 + 3 * follow) / n, 0.0), 0.95)
    kept = (1 - follow) / (1 + follow)
    return power / n / (1 - 1 / max(n * kept, 2.0)), kept


def student_t(share: float, freedom: float) -> float:
    """A quantile of Student's t, from that of the normal distribution (Abramowitz and Stegun 26.7.5)."""
    z, v = NormalDist().inv_cdf(share), max(freedom, 1.0)
    first = (z**3 + z) / (4 * v)
    second = (5 * z**5 + 16 * z**3 + 3 * z) / (96 * v**2)
    third = (3 * z**7 + 19 * z**5 + 17 * z**3 - 15 * z) / (384 * v**3)
    return z + first + second + third
