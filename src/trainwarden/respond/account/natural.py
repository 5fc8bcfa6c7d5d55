"""What hardware and software cost anyway, so that it is not put down to a person (pure).

Sources: Kokolis et al., "Revisiting Reliability in Large-Scale Machine Learning Research Clusters" (arXiv 2410.21680)
for failures per node-day (two clusters: 6.5 and 2.3 in a thousand) and the expected effective training time; Llama
Team, "The Llama 3 Herd of Models" (arXiv 2407.21783): 466 interruptions in 54 days on 16,384 GPUs, 4.2 in a thousand.
"""

from __future__ import annotations

import math

from trainwarden.respond.account.lines import Range

DAY = 86_400.0
_Z = 1.96
_ENOUGH = 0.2  # honest time, as a share of the time that it is held against


def expected_ettr(nodes: float, failures: float, restart: float, interval: float, write: float = 0.0) -> float:
    """E[ETTR] ≈ (1 − N·r·(u + Δt/2)) / (1 + w/Δt), at least 0 (arXiv 2410.21680).

    `failures` a node-day, `restart` u, checkpoint `interval` Δt and `write` time w in seconds.
    """
    lost = nodes * failures / DAY * (restart + interval / 2)
    return max(0.0, (1 - lost) / (1 + write / interval if interval > 0 else 1))


def best_interval(nodes: float, failures: float, write: float) -> float:
    """The checkpoint interval in seconds that loses least: √(2w / (N·r)) (Young 1974; arXiv 2410.21680)."""
    return math.sqrt(2 * write / (nodes * failures / DAY))


def count_bounds(count: int) -> Range:
    """95 % bounds of the mean of a Poisson count (Byar's approximation)."""
    low = 0.0
    if count:
        low = count * (1 - 1 / (9 * count) - _Z / (3 * math.sqrt(count))) ** 3
    n = count + 1
    return Range(max(0.0, low), float(count), n * (1 - 1 / (9 * n) + _Z / (3 * math.sqrt(n))) ** 3)


def poisson_quantile(mean: float, share: float) -> int:
    """The smallest count with at least `share` of a Poisson distribution at or below it."""
    if mean > 500:
        z = _Z if share > 0.5 else -_Z
        return max(0, math.ceil(mean + z * math.sqrt(mean) + (z * z - 1) / 6 - 0.5))
    term = reached = math.exp(-mean)
    n = 0
    while reached < share and n < 2_000:
        n += 1
        term *= mean / n
        reached += term
    return n


def is_enough(node_days: float, honest_node_days: float) -> bool:
    """Is there enough honest time to say what is natural in `node_days`?"""
    return honest_node_days > 0 and honest_node_days >= _ENOUGH * node_days


def expected(node_days: float, seen: int, honest_node_days: float, published: tuple[float, float]) -> Range:
    """How many failures of a kind are expected in `node_days`, when `seen` of them happened in honest time.

    Without enough honest time: what `published` rates, lowest and highest in a thousand node-days, make of it.
    """
    if is_enough(node_days, honest_node_days):
        return count_bounds(seen) * (node_days / honest_node_days)
    low, high = (rate / 1000 * node_days for rate in published)
    return Range(low, math.sqrt(low * high), high)


def excess(count: int, natural: Range) -> Range:
    """Of `count` failures those beyond `natural` and chance; the most likely value is 0 where none is certain."""
    low = max(0.0, count - poisson_quantile(natural.high, 0.975))
    high = max(0.0, float(count - poisson_quantile(natural.low, 0.025)))
    mid = max(0.0, count - natural.mid) if low > 0 else 0.0
    return Range(min(low, mid) if mid else 0.0, mid, max(high, mid))
