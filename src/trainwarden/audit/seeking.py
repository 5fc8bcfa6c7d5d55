"""Looks inside a replaying rank for an edit of the weights that no record tells of: it shows in the loss alone.

Rules
-----
* The step's own forward pass and loss are computed again in this process, with one tensor changed, until the loss has
  the recorded digest. Nothing of it stays: generators and buffers are put back, and nothing is recorded meanwhile.
* Only a cross entropy of what the model puts out is followed, and only once it gives the honest loss again.
"""

from __future__ import annotations

import contextlib
import time
from collections.abc import Callable, Iterator, Mapping
from typing import TYPE_CHECKING, Any

import msgspec
import torch
from torch.nn.parallel import DistributedDataParallel

from trainwarden.audit import perturb
from trainwarden.audit.hypotheses.before import LIMITS, changes
from trainwarden.audit.perturbing import transform
from trainwarden.record import rng, stages
from trainwarden.record.fingerprint import tensor_digest

if TYPE_CHECKING:
    from trainwarden.audit.inrank import Replayer

SECONDS = 20.0  # of this thread's own time: a busy host does not change what is found


class Seeker:
    """One rank's search for the change that gives the loss digest `wanted`; `found` is what the capture tells of it."""

    def __init__(self, replayer: Replayer, wanted: str) -> None:
        self._replayer, self._wanted = replayer, bytes.fromhex(wanted)
        self._forward: tuple[Any, Any, Any, rng.State] | None = None
        self.found: dict[str, Any] = {}

    def forward(self, module: torch.nn.Module, args: Any, kwargs: Any) -> None:
        """The step's first forward pass is about to begin."""
        if self._forward is None:
            self._forward = module, args, kwargs, rng.states()

    def loss(self, given: torch.Tensor, compute: Callable[[torch.Tensor], torch.Tensor]) -> None:
        """The step's first loss: `compute` gives it from what the model put out."""
        if self._forward is None or self.found:
            return
        module, args, kwargs, state = self._forward
        inner = module.module if isinstance(module, DistributedDataParallel) else module
        with torch.no_grad(), _untouched(inner):

            def lost(changed: Mapping[str, torch.Tensor]) -> torch.Tensor | None:
                rng.restore(state)
                out = torch.func.functional_call(inner, dict(changed), args, kwargs)
                fits = [t for _, t in stages.tensors_in(out) if t.numel() == given.numel()]
                return compute(fits[0].reshape(given.shape)) if fits else None

            again = lost({})
            if again is None or not torch.equal(compute(given), again):
                self.found = {"limits": "the model and its loss cannot be computed again by themselves"}
            else:
                self.found = self._search(inner, lost)

    def _search(
        self, inner: torch.nn.Module, lost: Callable[[Mapping[str, torch.Tensor]], torch.Tensor | None]
    ) -> dict[str, Any]:
        tried, end = 0, time.thread_time() + SECONDS
        weights = {n: p.detach() for n, p in inner.named_parameters() if p.is_floating_point()}
        names = {n: self._replayer.names.get(id(p), n) for n, p in inner.named_parameters()}
        for own, said, change in _in_turns(weights, self._replayer.world):
            tried += 1
            value = lost({own: transform(change, weights[own], {}, own)})
            if value is not None and tensor_digest(self._replayer.key, value) == self._wanted:
                told = perturb.encode([msgspec.structs.replace(change, tensors=(names[own],))]).decode()
                return {"tensor": names[own], "said": said, "change": told, "tried": tried}
            if time.thread_time() > end:
                break
        return {"tried": tried, "limits": f"what {SECONDS:.0f} s did not reach, two tensors at once, {LIMITS}"}


def _in_turns(weights: Mapping[str, torch.Tensor], world: int) -> Iterator[tuple[str, str, perturb.TensorPerturbation]]:
    """(tensor, what is said, change): one of each tensor in turns, those of the last layers first."""
    waiting = [(name, changes(t, world)) for name, t in reversed(list(weights.items()))]
    while waiting:
        turn, waiting = waiting, []
        for name, candidates in turn:
            found = next(candidates, None)
            if found is not None:
                waiting.append((name, candidates))
                yield name, *found


@contextlib.contextmanager
def _untouched(module: torch.nn.Module) -> Iterator[None]:
    """Generators and buffers are afterwards what they were."""
    states, buffers = rng.states(), [(b, b.clone()) for b in module.buffers()]
    try:
        yield
    finally:
        rng.restore(states)
        for buffer, was in buffers:
            buffer.copy_(was)
