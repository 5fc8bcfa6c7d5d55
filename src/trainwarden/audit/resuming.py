"""Has a framework resume from the checkpoint of a replay, where a script says nothing of how it resumes.

Rules
-----
* It runs in replaying ranks only. What a script passes itself is replaced: it names the checkpoint of another start.
* Hugging Face's `Trainer` resumes where its output folder holds the checkpoint; an `Accelerator` once, when the first
  batch is asked for, from a folder that `save_state` wrote; Lightning's `Trainer` in `fit`.
"""

from __future__ import annotations

import functools
import inspect
import weakref
from collections.abc import Callable
from pathlib import Path
from types import ModuleType
from typing import Any

RESUME_ENV = "TRAINWARDEN_REPLAY_RESUME"
"""Names the file or folder that a replaying rank resumes from; absent where the script is told by its arguments."""


class Resumer:
    """Has the frameworks of one process resume from `place`."""

    def __init__(self, place: Path) -> None:
        self._folder = place if place.is_dir() else place.parent
        self._files = sorted(place.glob("*.ckpt")) if place.is_dir() else [place]
        self._accelerators: weakref.WeakSet[Any] = weakref.WeakSet()  # that have prepared, and not loaded a state
        self._saved_state = any(self._folder.glob("random_states_*.pkl"))

    def framework_loaded(self, module: ModuleType) -> None:
        """A module of a framework was imported."""
        match module.__name__:
            case "transformers.trainer":
                _given(module.Trainer, "train", "resume_from_checkpoint", self._of_trainer)
            case "lightning.pytorch.trainer.trainer" | "pytorch_lightning.trainer.trainer":
                _given(module.Trainer, "fit", "ckpt_path", lambda _: str(self._files[0]) if self._files else None)
            case "accelerate.accelerator":
                _given(module.Accelerator, "load_state", "input_dir", self._of_accelerator)
                self._remember(module.Accelerator)
            case _:
                pass

    def begins(self) -> None:
        """The first step is about to begin: whoever has not loaded its state does so now."""
        for accelerator in list(self._accelerators):
            if self._saved_state and accelerator._optimizers:
                accelerator.load_state(str(self._folder))

    def _of_trainer(self, trainer: Any) -> str | None:
        inside = self._folder.is_relative_to(Path(trainer.args.output_dir).absolute())
        return str(self._folder) if inside else None

    def _of_accelerator(self, accelerator: Any) -> str | None:
        self._accelerators.discard(accelerator)
        return str(self._folder) if self._saved_state else None

    def _remember(self, kind: Any) -> None:
        original = kind.prepare

        @functools.wraps(original)
        def prepare(accelerator: Any, *args: Any, **kwargs: Any) -> Any:
            self._accelerators.add(accelerator)
            return original(accelerator, *args, **kwargs)

        kind.prepare = prepare


def _given(kind: Any, method: str, argument: str, value_for: Callable[[Any], str | None]) -> None:
    """Calls of `kind.method` get `argument` as `value_for(self)` says, or as they were where it says None."""
    original = getattr(kind, method)
    signature = inspect.signature(original)

    @functools.wraps(original)
    def call(self: Any, *args: Any, **kwargs: Any) -> Any:
        value = value_for(self)
        if value is None:
            return original(self, *args, **kwargs)
        bound = signature.bind(self, *args, **kwargs)
        bound.arguments[argument] = value
        return original(*bound.args, **bound.kwargs)

    setattr(kind, method, call)
