"""What decides the last bits beside the code and its inputs: precision, determinism, threads, communication.

Rules
-----
* Told after a rank's second step, when each of several optimizers has had its turn, and when something has changed.
  Torch's flags are read after one step in `FLAGS_EVERY` by a keyed draw; DDP's settings, environment variables and
  hooks on parameters after one in `EVERY`.
* Autocast is read where a training forward pass begins, so that an evaluation may have its own. A state counts as
  new when no earlier step had it: a generator and its critic may differ.
* What cannot be read is told as "?", and is no difference.
"""

from __future__ import annotations

import os
from collections.abc import Callable
from datetime import timedelta
from typing import TYPE_CHECKING, Any

import torch
import torch.distributed as dist
from blake3 import blake3

from trainwarden import wire
from trainwarden.model import PrecisionSeen
from trainwarden.record import birth, stages
from trainwarden.record.observers.interface import Observer

if TYPE_CHECKING:
    from trainwarden.record.recorder import Recorder

FLAGS_EVERY = 4
EVERY = 8
UNREAD = "?"
_SMALLEST = 2.2250738585072014e-308  # of normal doubles: half of it is denormal


def _flushes(half: float = 0.5) -> bool:
    """Whether this thread's floating point turns denormals into zeros (torch has no getter for it)."""
    return _SMALLEST * half == 0.0


def _precision(*backends: Any) -> Callable[[], str]:
    """The getter of one of torch's precisions of float32 products, which older versions have as a flag."""
    backend = backends[0]
    if hasattr(backend, "fp32_precision"):
        return lambda: str(backend.fp32_precision)
    return lambda: str(backend.allow_tf32)


_cuda, _cudnn, _mkldnn = torch.backends.cuda, torch.backends.cudnn, torch.backends.mkldnn
_FAST: dict[str, Callable[[], Any]] = {
    "matmul precision": torch.get_float32_matmul_precision,
    "cuda matmul": _precision(_cuda.matmul),
    "cuda half sums": lambda: (
        _cuda.matmul.allow_fp16_reduced_precision_reduction,
        _cuda.matmul.allow_bf16_reduced_precision_reduction,
    ),
    "cudnn": lambda: (_cudnn.enabled, _cudnn.benchmark, _cudnn.deterministic),
    "cudnn convolution": _precision(_cudnn),
    "mkldnn": lambda: (_mkldnn.enabled, getattr(_mkldnn, "deterministic", None)),
    "deterministic": lambda: (
        torch.are_deterministic_algorithms_enabled(),
        torch.is_deterministic_algorithms_warn_only_enabled(),
    ),
    "default dtype": torch.get_default_dtype,
    "threads": torch.get_num_threads,
    "interop threads": torch.get_num_interop_threads,
    "denormals flushed": _flushes,
    "attention": lambda: (
        _cuda.flash_sdp_enabled(),
        _cuda.mem_efficient_sdp_enabled(),
        _cuda.math_sdp_enabled(),
        _cuda.cudnn_sdp_enabled(),
    ),
}


class Precision(Observer):
    """Tells the flags of this rank."""

    name = "precision"

    def __init__(self, recorder: Recorder) -> None:
        super().__init__(recorder)
        self._fast: tuple[Any, ...] = ()
        self._slow: tuple[dict[str, str], dict[str, str]] = {}, {}
        self._states: set[tuple[Any, ...]] = set()
        self._known = 0  # states when last told
        self._hooks = UNREAD
        self._steps = 0

    def forward(self, module: torch.nn.Module, args: Any, kwargs: Any) -> None:
        state: tuple[Any, ...] = torch.is_autocast_enabled("cpu"), torch.is_autocast_enabled("cuda")
        if any(state):
            state = *state, torch.get_autocast_dtype("cpu" if state[0] else "cuda")
        self._states.add(state)

    def backward(self, tensors: Any) -> None:
        # Hooks that alter gradients are in their places now; a script may remove its own after the pass.
        if self._draw(self.recorder.done) % EVERY == 0:
            own = [p for o in self.recorder.optimizers for p in stages.parameters(o)]
            lists = (h for p in own for h in (p._backward_hooks, getattr(p, "_post_accumulate_grad_hooks", None)))
            self._hooks = str(sum(len(h) for h in lists if h))

    def boundary(self) -> None:
        self._steps += 1
        draw = self._draw(self.recorder.done - 1)
        if self._steps < 2 or (self._fast and draw % FLAGS_EVERY and len(self._states) == self._known):
            return
        fast = (*(_read(get) for get in _FAST.values()), len(self.recorder.scalers))
        new = fast != self._fast or len(self._states) != self._known
        if new or draw % EVERY == 0:
            slow = {**self._reduction(), "hooks on parameters": self._hooks}, wire.decisive(os.environ)
            if new or slow != self._slow:
                self._fast, self._slow, self._known = fast, slow, len(self._states)
                self._tell()

    def _draw(self, step: int) -> int:
        return blake3(f"precision {step}".encode(), key=self.recorder.key).digest(1)[0] if step else 0

    def _reduction(self) -> dict[str, str]:
        """How each DDP module reduces, and over what."""
        found: dict[str, str] = {}
        kind = torch.nn.parallel.DistributedDataParallel
        for i, ddp in enumerate(m for ref in self.recorder.roots if isinstance(m := ref(), kind)):
            for name in ("bucket_bytes_cap", "static_graph", "gradient_as_bucket_view", "find_unused_parameters"):
                found[f"ddp{i} {name}"] = str(getattr(ddp, name, UNREAD))
        hook = self.recorder.reducing
        if hook is not None:
            found["reduction"] = "ordered" if hook.ordered else "default"
            if hook.user is not None:
                found["reduction"] = getattr(hook.user[1], "__qualname__", UNREAD)
        if dist.is_available() and dist.is_initialized():
            found["backend"] = dist.get_backend()
            found["timeout"] = _read(_timeout)
        return found

    def _tell(self) -> None:
        flags = dict(zip((*_FAST, "gradient scalers"), map(str, self._fast), strict=True))
        flags["autocast"] = ", ".join(sorted(map(_autocast, self._states))) or UNREAD
        self.recorder.note(
            PrecisionSeen(
                step=self.recorder.done - 1,
                flags=flags | self._slow[0],
                variables=self._slow[1],
                began=wire.decisive(birth.environ()),
            )
        )


def _read(get: Callable[[], Any]) -> Any:
    """A flag's value; torch raises where a script mixes its older and newer ways of setting one."""
    try:
        return get()
    except (RuntimeError, AttributeError):
        return UNREAD


def _timeout() -> str:
    group = dist.group.WORLD
    seconds: timedelta = group._get_backend(torch.device("cpu")).options._timeout
    return f"{seconds.total_seconds():g} s"


def _autocast(state: tuple[Any, ...]) -> str:
    return "off" if not any(state[:2]) else f"{'cpu' if state[0] else 'cuda'} {state[2]}".replace("torch.", "")
