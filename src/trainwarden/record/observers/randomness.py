"""Seeds: on which one a rank begins, and who seeds a generator again once training has begun.

The public functions that seed are wrapped to learn who called. What was seeded counts only if the generator still
stands on that seed's stream when the next training forward pass begins: a state that was put back is nobody's business.
"""

from __future__ import annotations

import functools
import random
import struct
import sys
from collections.abc import Callable
from typing import TYPE_CHECKING, Any

import msgspec
import torch

from trainwarden.model import RandomSeen, Reseeded
from trainwarden.record import rng
from trainwarden.record.observers.interface import Observer

if TYPE_CHECKING:
    from trainwarden.record.recorder import Recorder

MOST_TOLD = 64
_BLOCKS = 64  # of 624 words that a generator may have drawn since it was seeded
_TORCH = struct.Struct("<QiiQ624Q")  # at::mt19937
_HELPERS = ("torch/random.py", "torch/_compile.py", "torch/_dynamo/eval_frame.py", "/random.py")

_Words = tuple[int, ...]


class RandomObserver(Observer):
    """Tells of the first seed and of seeding after the first step."""

    name = "randomness"

    def __init__(self, recorder: Recorder) -> None:
        super().__init__(recorder)
        self._seed: int | None = None
        self._pending: dict[str, tuple[Reseeded, _Words]] = {}
        self._told = 0
        self._wrap("torch", torch.random, "manual_seed")
        torch.manual_seed = torch.random.manual_seed
        self._wrap("python", random, "seed")

    def step_begins(self) -> None:
        seed = torch.default_generator.initial_seed()
        if self._seed is None:
            self._seed = seed
            self.recorder.note(RandomSeen(step=self.recorder.done, world=self.recorder.world, torch=_signed(seed)))
            numpy_random = sys.modules.get("numpy.random")
            if numpy_random is not None:
                self._wrap("numpy", numpy_random, "seed")
        elif seed != self._seed and "torch" not in self._pending:
            self._tell(Reseeded(generator="torch", seed=str(seed)))
        self._seed = seed
        if self._pending:
            self._judge()

    def _wrap(self, generator: str, module: Any, name: str) -> None:
        original: Callable[..., Any] = getattr(module, name)

        @functools.wraps(original)
        def seed(*args: Any, **kwargs: Any) -> Any:
            result = original(*args, **kwargs)
            if self.recorder.seq:
                frame = sys._getframe(1)
                self.aside(lambda: self._seeded(generator, frame, args, kwargs))
            return result

        setattr(module, name, seed)

    def _seeded(self, generator: str, frame: Any, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
        """A generator was just seeded; whether that counts is seen at the next forward pass."""
        if self._told >= MOST_TOLD:
            return
        while frame.f_back is not None and frame.f_code.co_filename.endswith(_HELPERS):
            frame = frame.f_back
        value = next(iter((*args, *kwargs.values())), None)
        note = Reseeded(
            generator=generator,
            seed=str(int(value)) if isinstance(value, int) else "",
            file=frame.f_code.co_filename[:4096],
            line=frame.f_lineno,
            function=frame.f_code.co_qualname[:300],
        )
        self._pending[generator] = note, _words(generator)

    def _judge(self) -> None:
        pending, self._pending = self._pending, {}
        for generator, (note, seeded) in pending.items():
            if _on_stream(seeded, _words(generator)):
                self._tell(note)

    def _tell(self, note: Reseeded) -> None:
        self._told += 1
        if self._told <= MOST_TOLD:
            self.recorder.note(msgspec.structs.replace(note, step=self.recorder.done))


def _signed(seed: int) -> int:
    """A seed as the log can hold it: 64 bits with a sign."""
    return seed - (1 << 64) if seed >= 1 << 63 else seed


def _words(generator: str) -> _Words:
    """The 624 words of a generator's Mersenne Twister; empty where it is another kind."""
    if generator == "python":
        return tuple(random.getstate()[1][:624])
    if generator == "torch":
        state = torch.default_generator.get_state()
        return _TORCH.unpack_from(bytes(state.tolist()))[4:]
    state = rng.states().get("numpy")
    return tuple(state[1].tolist()) if state is not None and state[0] == "MT19937" else ()


def _on_stream(seeded: _Words, now: _Words) -> bool:
    """Whether a generator that stood on `seeded` comes to `now` within the next blocks of words."""
    if not seeded:
        return False
    if seeded == now:
        return True
    clone = random.Random()
    clone.setstate((3, (*seeded, 624), None))
    for _ in range(_BLOCKS):
        clone.getrandbits(32 * 624)
        if clone.getstate()[1][:624] == now:
            return True
    return False
