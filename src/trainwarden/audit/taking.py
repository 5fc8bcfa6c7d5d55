"""Takes a capture (docs/architecture.md, "Captures"): the clean values of one step of this rank."""

from __future__ import annotations

import json
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from safetensors.torch import save_file

from trainwarden.audit.seeking import Seeker
from trainwarden.record import rng, stages
from trainwarden.record.fingerprint import own_part

if TYPE_CHECKING:
    from trainwarden.audit.inrank import Replayer

Tensors = dict[str, torch.Tensor]
MOST_LOSSES = 8
MOST_SAMPLES = 1 << 16
SAMPLE_BYTES = 64 << 20
SAMPLE_SECONDS = 10.0


class Taker:
    """Copies values as the step passes, and writes them when the optimizer asked for has moved.

    A record holds what was seen since the update before it, so what another optimizer's update used is dropped. Own
    gradients are recorded with the optimizer that they are of (`record.gathered`).
    """

    def __init__(
        self, replayer: Replayer, folder: str, optimizer: int = 0, *, samples: bool = False, seek: str = ""
    ) -> None:
        self._replayer = replayer
        self._folder = Path(folder)
        self._index = optimizer
        self._sections: dict[str, Tensors] = {}
        self._done = False
        self._wants_samples = samples
        self._seeker = Seeker(replayer, seek) if seek else None
        self._losses: list[list[Any]] = []  # reduction, index that is ignored, smoothing of each cross entropy
        self._put_back: Callable[[], None] = lambda: None
        self._loader: Any = None  # the first one that handed out a batch

    def before(self) -> None:
        """Weights and state as the update's first forward pass finds them."""
        for optimizer, index in self._replayer.optimizers.items():
            if index == self._index:
                self._sections["before"] = self._state(optimizer)
        if self._seeker is not None:
            self._watch_losses(self._seeker)

    def _watch_losses(self, seeker: Seeker) -> None:
        """What cross entropies are given, until the update: seen where every way to call one ends."""
        self._put_back()
        inner = torch._C._nn
        self._losses.clear()
        original = inner.cross_entropy_loss

        def cross_entropy_loss(input: Any, target: Any, weight: Any = None, *settings: Any) -> Any:
            if torch.compiler.is_compiling():
                return original(input, target, weight, *settings)
            seeker.loss(input, lambda given: original(given, target, weight, *settings))
            if weight is None and len(self._losses) < MOST_LOSSES:
                number = len(self._losses)
                self._losses.append(list(settings))
                self._keep("loss", {f"{number}.input": input, f"{number}.target": target})
            return original(input, target, weight, *settings)

        inner.cross_entropy_loss = cross_entropy_loss
        self._put_back = lambda: setattr(inner, "cross_entropy_loss", original)

    def batch(self, number: int, batch: Any, loader: Any) -> None:
        """What a data loader handed out."""
        self._loader = self._loader or loader
        self._keep("batch", {f"loader/{number}.{n}": t for n, t in stages.tensors_in(batch)})

    def forward(self, module: torch.nn.Module, number: int, args: Any, kwargs: Any) -> None:
        """A forward pass: its inputs, and the generators as they were when it began."""
        if self._seeker is not None:
            self._seeker.forward(module, args, kwargs)
        self._keep("batch", {f"input/{number}.{n}": t for n, t in stages.tensors_in([args, kwargs])})
        states = rng.as_bytes(rng.states()).items()
        self._keep(
            "rng",
            {f"forward{number}/{n}": torch.frombuffer(bytearray(b), dtype=torch.uint8) for n, b in states},
        )

    def own_gradients(self, parameters: Sequence[torch.Tensor], gradients: Sequence[torch.Tensor]) -> None:
        """This rank's own gradients as they enter the reduction."""
        names = self._replayer.names
        pairs = zip(parameters, gradients, strict=True)
        self._keep("local_gradients", {names.get(id(p), "?"): g for p, g in pairs})

    def before_update(self, optimizer: torch.optim.Optimizer, index: int) -> None:
        """Gradients as the optimizer gets them."""
        if index != self._index:
            return
        named = stages.gradients(optimizer, self._replayer.names)
        self._keep("reduced_gradients", {n: g for n, g in named if g is not None})

    def after_update(self, optimizer: torch.optim.Optimizer, index: int) -> None:
        """Weights and state as the step leaves them; everything is written."""
        if self._done:
            return
        if index != self._index:
            for section in ("batch", "rng", "loss"):
                self._sections.pop(section, None)
            self._losses.clear()
            return
        self._done = True
        self._put_back()
        self._sections["after"] = self._state(optimizer)
        recorded = {self._replayer.names.get(p, "?") for p in self._replayer.gathered.local_gradients}
        own = self._sections.get("local_gradients", {})
        self._sections["local_gradients"] = {n: t for n, t in own.items() if n in recorded}
        if self._wants_samples:
            self._sections["samples"] = samples_of(self._loader)
        self._folder.mkdir(parents=True, exist_ok=True)
        for name, tensors in self._sections.items():
            if tensors:
                save_file(tensors, self._folder / f"{name}.safetensors")
        (self._folder / "meta.json").write_text(json.dumps(self._meta(optimizer, index)))

    def _meta(self, optimizer: torch.optim.Optimizer, index: int) -> dict[str, Any]:
        names = self._replayer.names
        groups = stages.settings(optimizer)
        for settings, group in zip(groups, optimizer.param_groups, strict=True):
            settings["params"] = [names[id(p)] for p in group["params"]]
        kind = type(optimizer)
        return {
            "step": self._replayer.plan.capture_step,
            "rank": self._replayer.rank,
            "world": self._replayer.world,
            "optimizer": index,
            "optimizer_class": f"{kind.__module__}.{kind.__qualname__}",
            "names": [names[id(p)] for p in stages.parameters(optimizer)],
            "groups": groups,
            "loss": self._replayer.gathered.loss,
            "losses": self._losses,
            "sought": self._seeker.found if self._seeker is not None else None,
        }

    def _state(self, optimizer: torch.optim.Optimizer) -> Tensors:
        names = self._replayer.names
        found = {f"weights/{n}": t for n, t in stages.weights(optimizer, names) if t is not None}
        found |= {f"state/{n}": t for n, t in stages.optimizer_state(optimizer, names) if isinstance(t, torch.Tensor)}
        return {n: _copy(t) for n, t in found.items()}

    def _keep(self, section: str, tensors: Tensors) -> None:
        self._sections.setdefault(section, {}).update({n: _copy(t) for n, t in tensors.items()})


def samples_of(loader: Any) -> Tensors:
    """A map-style data set's samples, as rows of the tensors of a batch; those that it gives within the limits."""
    data: Any = getattr(loader, "dataset", None)
    if not hasattr(data, "__len__") or not hasattr(data, "__getitem__"):
        return {}
    kept, end = rng.states(), time.thread_time() + SAMPLE_SECONDS
    rows: dict[str, list[torch.Tensor]] = {}
    size = 0
    try:
        for index in range(min(len(data), MOST_SAMPLES)):
            for name, t in stages.tensors_in(loader.collate_fn([data[index]])):
                rows.setdefault(name, []).append(_copy(t[0]))
                size += t.nbytes
            if size > SAMPLE_BYTES or time.thread_time() > end:
                break
    except (LookupError, TypeError, ValueError, RuntimeError):
        return {}  # a data set that is not asked like this: there are no samples to compare with
    finally:
        rng.restore(kept)
    alike = {name: ts for name, ts in rows.items() if len({(t.shape, t.dtype) for t in ts}) == 1}
    return {name: torch.stack(ts) for name, ts in alike.items()}


def _copy(tensor: torch.Tensor) -> torch.Tensor:
    return own_part(tensor.detach()).cpu().clone(memory_format=torch.contiguous_format)
