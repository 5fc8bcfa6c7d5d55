"""What a rank saw since its last update: digests, and the little that the stages of a record are made of."""

from __future__ import annotations

from collections.abc import Collection, Mapping

from trainwarden.model import Detail

COMPUTED_BY_OPTIMIZER = "the optimizer computes gradients itself (closure)"


class Gathered:
    """What was seen since the last update."""

    def __init__(self, waiting: Mapping[int, bytes] | None = None) -> None:
        """`waiting`: local gradients of optimizers that have yet to move in this step."""
        self.batch: list[tuple[str, bytes]] = []
        self.rng: list[tuple[str, bytes]] = []
        self.activations: list[tuple[str, bytes]] = []
        self.local: dict[int, bytes] = {}
        self.waiting = dict(waiting or {})
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

    @property
    def local_gradients(self) -> dict[int, bytes]:
        """Digests of this rank's own gradients since the last backward pass, by the parameter's id."""
        return {**self.waiting, **self.local}

    def moved(self, parameters: Collection[int]) -> Gathered:
        """What is gathered from here on: an optimizer with these parameters has moved, others wait with theirs."""
        return Gathered({p: digest for p, digest in self.local_gradients.items() if p not in parameters})
