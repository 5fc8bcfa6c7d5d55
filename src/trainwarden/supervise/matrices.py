"""Update rules that need whole tensors: Muon's Newton–Schulz iteration and Adafactor's factored second moments.

Muon iterates in bfloat16, and its iteration makes small singular values large: two correct implementations differ by
a few per cent of the update. So its direction and length are judged for the matrix as a whole, and of single elements
the momentum alone. Adafactor divides by means over rows and columns, so its rule holds within the rounding of sums.

Sources: Jordan et al. 2024 (https://kellerjordan.github.io/posts/muon/) as in torch.optim.Muon; Shazeer and Stern 2018
(https://arxiv.org/abs/1804.04235), Zhai et al. 2022, as in torch.optim.Adafactor.
"""

from __future__ import annotations

import math
from collections.abc import Generator, Iterator
from typing import Any

import numpy as np

from trainwarden.supervise.rules import (
    ROUNDINGS,
    UNIT,
    Array,
    Claim,
    Settings,
    Slices,
    Unfit,
    counter,
    number_of,
    summed,
)

MUON_LENGTH = 0.03  # how far the update may be longer or shorter than the rule's, as a share
MUON_REST = 0.15  # how much of it may point elsewhere
_SUMMED = 256.0  # roundings that a sum over a row, column or tensor may carry
_BFLOAT16_SHIFT = np.uint32(16)


def momentum_alone(s: Slices, settings: Settings) -> Iterator[Claim]:
    """Muon on a slice: its momentum."""
    if _iterates_in_place(s, settings):
        raise Unfit("without nesterov torch divides a bfloat16 momentum by its norm, which a slice does not know")
    yield _momentum(s, settings, 1.0)


def _momentum(s: Slices, settings: Settings, times: float) -> Claim:
    old, left = s.vector("momentum_buffer"), s.left_vector("momentum_buffer")
    base = times * number_of(settings, "momentum") * old
    added = times * (1 - number_of(settings, "momentum")) * s.gradient
    return summed(s, "momentum_buffer", base + added, left, times * (np.abs(old) + np.abs(s.gradient)), base)


def _iterates_in_place(s: Slices, settings: Settings) -> bool:
    """Whether torch 2.13 normalises the momentum itself: `bfloat16()` of a bfloat16 tensor is no copy."""
    return not settings.get("nesterov") and s.unit == UNIT["bfloat16"]


def _whole_momentum(s: Slices, settings: Settings) -> Claim:
    """The momentum of a whole matrix; where torch may have divided it by its norm, the nearer of both is the rule."""
    plain = _momentum(s, settings, 1.0)
    if not _iterates_in_place(s, settings):
        return plain
    norm = max(float(np.linalg.norm(plain.expected)), number_of(settings, "eps"))
    divided = _momentum(s, settings, 1 / norm)
    off = [float(np.linalg.norm(claim.seen - claim.expected)) for claim in (plain, divided)]
    return plain if off[0] <= off[1] else divided


def muon(s: Slices, settings: Settings) -> Iterator[Claim]:
    """Muon on a whole matrix."""
    yield _whole_momentum(s, settings)
    lr, decay = number_of(settings, "lr"), number_of(settings, "weight_decay")
    momentum = number_of(settings, "momentum")
    left = s.left_vector("momentum_buffer")
    mixed = s.gradient + momentum * (left - s.gradient) if settings.get("nesterov") else left
    change = _adjusted(lr, settings.get("adjust_lr_fn"), s.weight.shape) * _orthogonal(mixed, settings)
    kept = s.weight * (1 - lr * decay)
    seen = kept - s.left
    length = float(np.vdot(change, change))
    if not math.isfinite(length) or length == 0:
        return
    times = float(np.vdot(seen, change)) / length
    rest = float(np.linalg.norm(seen - times * change)) / math.sqrt(length)
    rounding = ROUNDINGS * s.unit * float(np.linalg.norm(s.weight)) / math.sqrt(length)
    agrees = abs(times - 1) <= MUON_LENGTH + rounding and rest <= MUON_REST + rounding
    allowed = np.full_like(s.weight, np.inf) if agrees else np.zeros_like(s.weight)
    yield Claim("weights", kept - change, s.left, allowed, kept)


def adafactor(s: Slices, settings: Settings) -> Iterator[Claim]:
    """Adafactor on a whole tensor."""
    lr, decay = number_of(settings, "lr"), number_of(settings, "weight_decay")
    eps = settings.get("eps") or (None, 1e-3)
    eps1 = 2 * s.unit if eps[0] is None else float(eps[0])
    steps = s.number(s.after, "step")
    yield counter("step", s.number(s.before, "step") + 1.0, steps)
    if steps < 1:
        raise Unfit(f"step counter {steps:g}")
    gradient = -s.gradient if settings.get("maximize") else s.gradient
    fresh = steps ** number_of(settings, "beta2_decay")
    squares = gradient * gradient
    if gradient.ndim > 1:
        row = yield from _factor(s, "row_var", squares.mean(axis=-1, keepdims=True), fresh)
        col = yield from _factor(s, "col_var", squares.mean(axis=-2, keepdims=True), fresh)
        variance = row @ col / np.maximum(row.mean(axis=-2, keepdims=True), eps1)
    else:
        variance = yield from _factor(s, "variance", squares, fresh)
    update = gradient / np.sqrt(np.maximum(variance, eps1 * eps1))
    root = math.sqrt(update.size)
    shorter = max(1.0, float(np.linalg.norm(update)) / (root * number_of(settings, "d")))
    alpha = max(float(eps[1]), float(np.linalg.norm(s.weight)) / root) * min(lr, 1 / math.sqrt(steps))
    change = alpha / shorter * update
    kept = s.weight * (1 - lr * decay)
    allowed = ROUNDINGS * s.unit * np.abs(s.weight) + _SUMMED * s.unit * np.abs(change) + 4 * s.tiny
    yield Claim("weights", kept - change, s.left, allowed, kept)


def _factor(s: Slices, key: str, mean: Array, fresh: float) -> Generator[Claim, None, Array]:
    left = s.after.get(key)
    if not isinstance(left, np.ndarray) or left.shape != mean.shape:
        raise Unfit(f"no {key} after the update")
    old = s.before.get(key)
    old = old if isinstance(old, np.ndarray) and old.shape == mean.shape else np.zeros_like(mean)
    kept = (1 - fresh) * old
    yield Claim(key, kept + fresh * mean, left, _SUMMED * s.unit * (np.abs(old) + mean) + 4 * s.tiny, kept)
    return left


def _adjusted(lr: float, how: object, shape: tuple[int, ...]) -> float:
    rows, columns = shape
    if how in (None, "original"):
        return lr * math.sqrt(max(1.0, rows / columns))
    return lr * 0.2 * math.sqrt(max(rows, columns)) if how == "match_rms_adamw" else lr


def _orthogonal(matrix: Array, settings: Settings) -> Array:
    """The Newton–Schulz iteration, every result rounded to bfloat16 as torch does."""
    a, b, c = (float(x) for x in settings.get("ns_coefficients") or (3.4445, -4.7750, 2.0315))
    x = _bfloat16(matrix.T if matrix.shape[0] > matrix.shape[1] else matrix)
    x = _bfloat16(x / max(_bfloat16(np.linalg.norm(x)), number_of(settings, "eps")))
    for _ in range(min(int(settings.get("ns_steps") or 5), 100)):
        gram = _bfloat16(x @ x.T)
        x = _bfloat16(a * x + _bfloat16(b * gram + c * (gram @ gram)) @ x)
    wide: Array = x.astype(np.float64)
    return wide.T if matrix.shape[0] > matrix.shape[1] else wide


def _bfloat16(values: Any) -> Any:
    """Rounded to the nearest bfloat16, ties to even, as float32."""
    bits = np.asarray(values, np.float32).view(np.uint32)
    odd = (bits >> _BFLOAT16_SHIFT) & np.uint32(1)
    return ((bits + np.uint32(0x7FFF) + odd) & np.uint32(0xFFFF0000)).view(np.float32)
