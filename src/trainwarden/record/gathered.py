"""What a rank saw since its last update: digests, and the little that the stages of a record are made of."""

from __future__ import annotations

from trainwarden.model import Detail

COMPUTED_BY_OPTIMIZER = "the optimizer computes gradients itself (closure)"


class Gathered:
    """What was seen since the last update."""

    def __init__(self) -> None:
        self.batch: list[tuple[str, bytes]] = []
        self.rng: list[tuple[str, bytes]] = []
        self.activations: list[tuple[str, bytes]] = []
        self.local: dict[int, bytes] = {}
        self.before: dict[int, str] = {}
        self.found: dict[int, dict[str, str]] = {}
        self.began: dict[int, str] = {}
        self.loss: float | None = None
        self.loaders = self.forwards = self.losses = 0
        self.reduced: Detail | str = COMPUTED_BY_OPTIMIZER
        self.closures = 0  # how often the optimizer has called its closure
        self.by_closure = False
        self.buckets: dict[int, list[int]] = {}
        self.started_ns = 0
