"""Reduces gradients in the groups of the recorded run instead of those of this process.

DDP rebuilds its buckets after the first backward pass, and with three or more ranks the order of a ring's sums
depends on where an element lies in its bucket. A replay that starts in mid-run therefore sends the recorded buckets.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import torch

from trainwarden.record.buckets import default_reduction, mean


class Regrouper:
    """Collects DDP's own buckets of one backward pass, then reduces in the recorded layout."""

    def __init__(
        self, layout: Callable[[], Sequence[Sequence[str]] | None], name_of: Callable[[torch.Tensor], str]
    ) -> None:
        self._layout = layout
        self._name_of = name_of
        self._held: list[tuple[Any, torch.futures.Future[torch.Tensor]]] = []

    def __call__(self, group: Any, bucket: Any) -> torch.futures.Future[torch.Tensor]:
        layout = self._layout()
        if layout is None:
            return default_reduction(group, bucket)
        future: torch.futures.Future[torch.Tensor] = torch.futures.Future()
        self._held.append((bucket, future))
        if bucket.is_last():
            held, self._held = self._held, []
            self._reduce(group, layout, held)
        return future

    def _reduce(self, group: Any, layout: Sequence[Sequence[str]], held: list[tuple[Any, Any]]) -> None:
        views = {self._name_of(p): g for b, _ in held for p, g in zip(b.parameters(), b.gradients(), strict=True)}
        if {name for names in layout for name in names} != set(views):
            for bucket, future in held:
                future.set_result(mean(group, bucket.buffer()).wait())
            return
        for names in layout:
            flat = torch.cat([views[name].reshape(-1) for name in names])
            reduced = mean(group, flat).wait()
            offset = 0
            for name in names:
                view = views[name]
                view.copy_(reduced[offset : offset + view.numel()].view_as(view))
                offset += view.numel()
        for bucket, future in held:
            future.set_result(bucket.buffer())
