"""What optimizers must do with a gradient: their update rules in NumPy, element by element, and what may differ.

Rules
-----
* Values are what the rank told, widened to float64; a rule is computed from them and compared with what the rank
  told after the update. Moments are compared with the rule, and the weights with the rule applied to the moments as
  told, so an error in one is not counted in the other.
* An implementation rounds every intermediate value to its own dtype. Allowed is therefore a few units of rounding of
  that dtype, times the sum of the sizes of what is added up (so cancellation is covered), plus a few of the smallest
  normal numbers (underflow). What lies beyond that was not computed by the rule.
* Elements whose inputs are not finite are not judged.

Sources: SGD with momentum and Nesterov as in torch.optim.SGD (Sutskever et al. 2013); Adam (Kingma and Ba 2015),
AMSGrad (Reddi et al. 2018), AdamW (Loshchilov and Hutter 2019); Lion (Chen et al. 2023).
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from typing import Any, TypeAlias

import numpy as np

Array: TypeAlias = "np.ndarray[Any, np.dtype[np.float64]]"
Settings: TypeAlias = Mapping[str, Any]

ROUNDINGS = 8.0  # roundings that the terms of a sum may carry
DIVIDED = 24.0  # the same for a quotient with a square root, on top of what its bias corrections carry
UNIT = {"float64": 2.0**-53, "float32": 2.0**-24, "bfloat16": 2.0**-8, "float16": 2.0**-11}
TINY = {"float64": 2.0**-1022, "float32": 2.0**-126, "bfloat16": 2.0**-126, "float16": 2.0**-24}
HUGE = {"float64": 2.0**1022, "float32": 2.0**126, "bfloat16": 2.0**126, "float16": 2.0**14}
"""Half a unit in the last place of 1; the smallest number above 0 that no kernel flushes to 0 (float16: at all); where
numbers near their overflow begin, which are not judged."""


class Unfit(ValueError):
    """What a rank told is not what this rule needs; the text says what is missing."""


@dataclass(frozen=True)
class Slices:
    """The same elements of one or more tensors: before and after one update, with the gradient that it used."""

    weight: Array
    gradient: Array
    left: Array  # the weights after the update
    before: Mapping[str, Array | float]
    after: Mapping[str, Array | float]
    unit: float
    tiny: float
    huge: float

    def vector(self, key: str) -> Array:
        return self._array(self.before, key, "before")

    def left_vector(self, key: str) -> Array:
        return self._array(self.after, key, "after")

    def _array(self, values: Mapping[str, Array | float], key: str, when: str) -> Array:
        value = values.get(key)
        if value is None and when == "before":
            return np.zeros_like(self.weight)  # state is made by the first update
        if not isinstance(value, np.ndarray) or value.shape != self.weight.shape:
            raise Unfit(f"no {key} {when} the update")
        return value

    def number(self, values: Mapping[str, Array | float], key: str) -> float:
        value = values.get(key, 0.0)
        if isinstance(value, np.ndarray):
            raise Unfit(f"{key} is no number")
        return float(value)


@dataclass(frozen=True)
class Claim:
    """What a rule says that a value is after the update, against what it was; equal within `allowed`."""

    part: str  # "weights", or the name of an entry of the optimizer's state
    expected: Array
    seen: Array
    allowed: Array
    base: Array  # where the expected change starts from: (expected − base) is what the gradient, or the update, adds

    @property
    def wrong(self) -> Any:
        """Where the two differ by more than is allowed. What is expected to be no number is not judged."""
        with np.errstate(invalid="ignore", over="ignore"):
            judged = np.isfinite(self.expected) & np.isfinite(self.allowed)
            return judged & ~(np.abs(self.seen - self.expected) <= self.allowed)


Rule: TypeAlias = Callable[[Slices, Settings], Iterator[Claim]]


def sgd(s: Slices, settings: Settings) -> Iterator[Claim]:
    lr, decay = number_of(settings, "lr"), number_of(settings, "weight_decay")
    momentum = number_of(settings, "momentum")
    gradient = _signed(s, settings) + decay * s.weight
    size = np.abs(s.gradient) + decay * np.abs(s.weight)
    step, step_size = gradient, size
    if momentum:
        share = 1.0 - number_of(settings, "dampening")
        base, left = np.zeros_like(gradient), s.left_vector("momentum_buffer")
        expected = gradient
        if s.before.get("momentum_buffer") is not None:
            old = s.vector("momentum_buffer")
            base, expected = momentum * old, momentum * old + share * gradient
        yield summed(s, "momentum_buffer", expected, left, np.abs(base) + size, base)
        step, step_size = left, np.abs(left)
        if settings.get("nesterov"):
            step, step_size = gradient + momentum * left, size + momentum * np.abs(left)
    yield summed(s, "weights", s.weight - lr * step, s.left, np.abs(s.weight) + lr * step_size, s.weight)


def adam(s: Slices, settings: Settings, decoupled: bool = False) -> Iterator[Claim]:
    lr, decay, eps = number_of(settings, "lr"), number_of(settings, "weight_decay"), number_of(settings, "eps")
    beta1, beta2 = pair_of(settings, "betas")
    decoupled = bool(settings.get("decoupled_weight_decay", decoupled))
    steps = s.number(s.after, "step")
    yield counter("step", s.number(s.before, "step") + 1.0, steps)
    if steps < 1:
        raise Unfit(f"step counter {steps:g}")
    gradient, size = _signed(s, settings), np.abs(s.gradient)
    if not decoupled:
        gradient, size = gradient + decay * s.weight, size + decay * np.abs(s.weight)
    m, v = s.vector("exp_avg"), s.vector("exp_avg_sq")
    m_left, v_left = s.left_vector("exp_avg"), s.left_vector("exp_avg_sq")
    yield summed(s, "exp_avg", beta1 * m + (1 - beta1) * gradient, m_left, np.abs(m) + size, beta1 * m)
    squares = (1 - beta2) * gradient * gradient
    yield summed(s, "exp_avg_sq", beta2 * v + squares, v_left, v + (1 - beta2) * size * size, beta2 * v)
    if settings.get("amsgrad"):
        most, most_left = s.vector("max_exp_avg_sq"), s.left_vector("max_exp_avg_sq")
        v_left = np.maximum(most, v_left)
        yield summed(s, "max_exp_avg_sq", v_left, most_left, v_left, most)
    lost1, lost2 = 1.0 - beta1**steps, 1.0 - beta2**steps
    with np.errstate(divide="ignore", invalid="ignore"):
        root = np.sqrt(np.maximum(v_left, 0.0)) / np.sqrt(lost2) + eps
        change = lr / lost1 * m_left / root
        # Moments so small that their dtype cannot tell them from 0 are another number where an update keeps them wide.
        lost = np.where(v_left > 0, np.abs(change) * s.tiny / v_left, 0.0) + lr / lost1 * s.tiny / root
    # A correction like 1 − 0.999^t loses most of its digits in the first steps where the counter is a float32 tensor.
    slack = DIVIDED * s.unit + 4 * UNIT["float32"] * (1 / lost1 + 1 / lost2)
    kept = s.weight * (1 - lr * decay) if decoupled else s.weight
    allowed = ROUNDINGS * s.unit * np.abs(s.weight) + slack * np.abs(change) + 4 * (lost + s.tiny)
    yield Claim(
        "weights", kept - change, s.left, np.where((root > 8 * s.tiny) & (root < np.inf), allowed, np.inf), kept
    )


def adamw(s: Slices, settings: Settings) -> Iterator[Claim]:
    return adam(s, settings, decoupled=True)


def lion(s: Slices, settings: Settings) -> Iterator[Claim]:
    lr, decay = number_of(settings, "lr"), number_of(settings, "weight_decay")
    beta1, beta2 = pair_of(settings, "betas")
    m, m_left = s.vector("exp_avg"), s.left_vector("exp_avg")
    gradient, size = s.gradient, np.abs(s.gradient)
    yield summed(s, "exp_avg", beta2 * m + (1 - beta2) * gradient, m_left, np.abs(m) + size, beta2 * m)
    mixed = beta1 * m + (1 - beta1) * gradient
    kept = s.weight * (1 - lr * decay)
    allowed = ROUNDINGS * s.unit * (np.abs(s.weight) + lr)
    # Where rounding decides the sign of the mixture, or makes it 0, every sign is the rule's.
    unsure = np.abs(mixed) <= ROUNDINGS * s.unit * (np.abs(m) + size) + 4 * s.tiny
    yield Claim("weights", kept - lr * np.sign(mixed), s.left, np.where(unsure, 2 * lr + allowed, allowed), kept)


ELEMENTWISE: dict[str, Rule] = {"SGD": sgd, "Adam": adam, "AdamW": adamw, "Lion": lion}
"""Rules that hold for each element by itself, by the name of the optimizer's class."""


def summed(s: Slices, part: str, expected: Array, seen: Array, size: Array, base: Array) -> Claim:
    return Claim(part, expected, seen, ROUNDINGS * s.unit * size + 4 * s.tiny, base)


def counter(part: str, expected: float, seen: float) -> Claim:
    zero = np.zeros(1)
    return Claim(part, np.array([expected]), np.array([seen]), zero, zero)


def _signed(s: Slices, settings: Settings) -> Array:
    return -s.gradient if settings.get("maximize") else s.gradient


def number_of(settings: Settings, key: str) -> float:
    value = settings.get(key, 0.0)
    if isinstance(value, bool) or not isinstance(value, int | float):
        raise Unfit(f"the setting {key} is no number")
    return float(value)


def pair_of(settings: Settings, key: str) -> tuple[float, float]:
    value = settings.get(key)
    if not isinstance(value, list | tuple) or len(value) != 2 or not all(isinstance(v, int | float) for v in value):
        raise Unfit(f"the setting {key} is no pair of numbers")
    return float(value[0]), float(value[1])
