"""The states of the random number generators that a training step can draw from."""

from __future__ import annotations

import array
import random
import sys
from typing import Any

import torch

State = dict[str, Any]


def states() -> State:
    """Copies of the default generators' states: torch (CPU, and CUDA once in use), python, numpy once imported."""
    found: State = {"torch": torch.default_generator.get_state(), "python": random.getstate()}
    if torch.cuda.is_available() and torch.cuda.is_initialized():
        for i in range(torch.cuda.device_count()):
            found[f"cuda{i}"] = torch.cuda.get_rng_state(i)
    numpy_random = sys.modules.get("numpy.random")
    if numpy_random is not None:
        found["numpy"] = numpy_random.get_state()
    return found


def restore(saved: State) -> None:
    """Set the generators to `states()`' result."""
    torch.default_generator.set_state(saved["torch"])
    random.setstate(saved["python"])
    for name, value in saved.items():
        if name.startswith("cuda"):
            torch.cuda.set_rng_state(value, int(name[4:]))
    if "numpy" in saved:
        import numpy

        numpy.random.set_state(saved["numpy"])


def as_bytes(saved: State) -> dict[str, bytes]:
    """Each generator's state as bytes, for digests."""
    result = {}
    for name, value in saved.items():
        if isinstance(value, torch.Tensor):
            result[name] = bytes(memoryview(value.numpy())) if _numpy() else bytes(value.tolist())
        elif name == "python":
            version, words, gauss = value
            result[name] = array.array("L", words).tobytes() + repr((version, gauss)).encode()
        else:
            kind, keys, position, has_gauss, cached = value
            result[name] = keys.tobytes() + repr((kind, position, has_gauss, cached)).encode()
    return result


def _numpy() -> bool:
    return "numpy" in sys.modules
