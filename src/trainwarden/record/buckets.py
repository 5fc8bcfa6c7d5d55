"""Gradient reduction under DDP: sees what each rank sends, and sends exactly what DDP itself would.

DDP's own reduction multiplies by 1/N while it copies gradients into a bucket, then sums (reducer.cpp,
`mark_variable_ready_dense`). With a communication hook the bucket holds the raw gradients, so the same
multiplication is done here: the result is the same bit for bit.
"""

from __future__ import annotations

import contextlib
from collections.abc import Callable
from typing import Any

import torch
import torch.distributed as dist

Hook = Callable[[Any, Any], torch.futures.Future[torch.Tensor]]


class BucketHook:
    """The one communication hook of a DDP module: observes, then calls the user's hook or the default reduction."""

    def __init__(self, ddp: Any, observe: Callable[[Any], None], reduced: Callable[[], None] = lambda: None) -> None:
        self.group = ddp.process_group
        self.ranks = tuple(dist.get_process_group_ranks(ddp.process_group))
        self._observe = observe
        self._reduced = reduced
        self.ordered = False
        self.user: tuple[Any, Hook] | None = None
        self.reduce: Callable[[Any, Any], torch.futures.Future[torch.Tensor]] = default_reduction

    def __call__(self, state: Any, bucket: Any) -> torch.futures.Future[torch.Tensor]:
        self._observe(bucket)
        if bucket.is_last():
            _after_reduction(self._reduced)
        if self.user is not None:
            return self.user[1](self.user[0], bucket)
        return self.reduce(self.group, bucket)


def _after_reduction(act: Callable[[], None]) -> None:
    """Have `act` called at the end of this backward pass, when DDP's own final callback has waited for all buckets.

    DDP queues that callback after this hook returns; one that is queued by a callback runs after it (engine.cpp,
    `GraphTask::exec_post_processing`). A rank without inputs of its own (`DDP.join`) reduces outside of any backward
    pass: there is no end to act at, and nothing that it could tell.
    """
    queue = torch.autograd.Variable._execution_engine.queue_callback
    with contextlib.suppress(RuntimeError):
        queue(lambda: queue(act))


def default_reduction(group: Any, bucket: Any) -> torch.futures.Future[torch.Tensor]:
    """What DDP does without a hook: mean over ranks by scaling, then one asynchronous sum."""
    buffer = bucket.buffer()
    return mean(group, buffer)


def mean(group: Any, buffer: torch.Tensor) -> torch.futures.Future[torch.Tensor]:
    """Multiply by 1/N in place and sum over the group, asynchronously."""
    buffer.mul_(1.0 / dist.get_world_size(group))
    work = dist.all_reduce(buffer, group=group, async_op=True)
    return work.get_future().then(lambda future: future.value()[0])
