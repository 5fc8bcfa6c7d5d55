"""From the slices that a rank told to the elements that its optimizer's rule does not explain (NumPy, pure)."""

from __future__ import annotations

import itertools
import math
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, replace

import numpy as np

from trainwarden import wire
from trainwarden.model import Misfit
from trainwarden.supervise.matrices import adafactor, momentum_alone, muon
from trainwarden.supervise.rules import ELEMENTWISE, HUGE, TINY, UNIT, Array, Claim, Rule, Settings, Slices, Unfit, sgd

WHOLE: dict[str, tuple[Rule | None, Rule]] = {"Muon": (momentum_alone, muon), "Adafactor": (None, adafactor)}
"""Rules that need whole tensors, by class name: what can be said of slices, and of a whole tensor."""
MOST_ELEMENTS = 1 << 20  # in one message
HALF_FUSED = (
    "torch's fused SGD leaves most half-precision weights on a CPU as they are (pytorch issue 191763): what did not "
    "move is not judged"
)
_SAME = 0.02  # factors closer than this to −1, 0 are told as these


@dataclass(frozen=True)
class Outcome:
    """What came of one update's slices."""

    misfits: tuple[Misfit, ...] = ()
    tensors: tuple[str, ...] = ()
    elements: int = 0
    unchecked: str = ""


def judge(message: wire.Updated, rule: str) -> Outcome:
    """Compare an update's slices with the rule of that name.

    Raises:
        ValueError: the message does not hold together.
    """
    misfits: list[Misfit] = []
    tensors: list[str] = []
    elements, unchecked, partly = 0, "", ""
    for batch in message.batches:
        if not 0 <= batch.group < len(message.settings):
            raise ValueError(f"group {batch.group} of {len(message.settings)}")
        settings = message.settings[batch.group]
        for names, starts, counts, slices, other in _slices(batch, message.scale):
            apply = _rule(rule, batch.whole) if slices.gradient.size else still
            if apply is None:
                continue
            try:
                wrong = _misfits(apply, names, starts, counts, slices, settings)
                if wrong and _half_fused(apply, slices, settings):
                    judged = _misfits(apply, names, starts, counts, slices, settings, moved_only=True)
                    partly = partly if judged == wrong else HALF_FUSED
                    wrong = judged
                if wrong and other is not None and not _misfits(apply, names, starts, counts, other, settings):
                    wrong = _in_the_update(names, starts, counts, slices, other)
            except Unfit as e:
                unchecked = unchecked or str(e)
                continue
            misfits += wrong
            tensors += names
            elements += slices.weight.size
    return Outcome(tuple(misfits), tuple(tensors), elements, partly if elements else unchecked)


def still(s: Slices, settings: Settings) -> Iterator[Claim]:
    """A tensor without a gradient stays as it is, and so does its state."""
    zero = np.zeros_like(s.weight)
    yield Claim("weights", s.weight, s.left, zero, s.weight)
    for key, value in s.before.items():
        left = s.after.get(key)
        if isinstance(value, np.ndarray) and isinstance(left, np.ndarray) and left.shape == s.weight.shape:
            yield Claim(key, value, left, zero, value)


def _half_fused(rule: Rule, s: Slices, settings: Settings) -> bool:
    """Whether this is the kernel of torch 2.13 that leaves most of its weights alone."""
    return rule is sgd and bool(settings.get("fused")) and s.unit >= UNIT["float16"]


def _rule(name: str, whole: bool) -> Rule | None:
    return ELEMENTWISE[name] if name in ELEMENTWISE else WHOLE[name][whole]


_Part = tuple[tuple[str, ...], tuple[int, ...], tuple[int, ...], Slices, Slices | None]


def _slices(batch: wire.Batch, scale: float) -> Iterator[_Part]:
    """A batch as arrays, cut into its tensors where their counters differ; with them, the other gradient if any."""
    if not batch.names or not len(batch.names) == len(batch.starts) == len(batch.counts):
        raise ValueError("a batch of slices does not hold together")
    if not (math.isfinite(scale) and scale > 0):
        raise ValueError(f"gradients scaled by {scale}")
    size = sum(batch.counts)
    if min(batch.counts) < 1 or size > MOST_ELEMENTS or (batch.whole and len(batch.names) > 1):
        raise ValueError(f"slices of {size} elements")
    values = {key: _array(cut, None if batch.whole else size) for key, cut in batch.values.items()}
    numbers = {key: _array(cut, len(batch.names)) for key, cut in batch.numbers.items()}
    dtypes = {cut.dtype for cut in batch.values.values()}
    unit, tiny = max(UNIT[d] for d in dtypes), max(TINY[d] for d in dtypes)
    ends = tuple(itertools.accumulate(batch.counts))
    same = all((column == column[0]).all() for column in numbers.values())
    cuts = [(0, len(ends))] if same or batch.whole else [(i, i + 1) for i in range(len(ends))]
    for first, last in cuts:
        a, b = (ends[first - 1] if first else 0), ends[last - 1]
        some = {key: value if batch.whole else value[a:b] for key, value in values.items()}
        fixed = {key: float(column[first]) for key, column in numbers.items()}
        weight, gradient = some.get("weight"), some.get("gradient")
        left = some.get("left")
        if weight is None or left is None or left.shape != weight.shape or weight.size != b - a:
            raise ValueError("slices without weights")
        if gradient is not None and gradient.shape != weight.shape:
            raise ValueError("a gradient of another shape")
        slices = Slices(
            weight,
            np.empty(0) if gradient is None else gradient / scale if scale != 1.0 else gradient,
            left,
            _under("before/", some, fixed),
            _under("after/", some, fixed),
            unit,
            tiny,
            min(HUGE[d] for d in dtypes),
        )
        other = some.get("gradient_left")
        changed = replace(slices, gradient=other) if other is not None and other.shape == weight.shape else None
        yield batch.names[first:last], batch.starts[first:last], batch.counts[first:last], slices, changed


def _under(prefix: str, values: Mapping[str, Array], numbers: Mapping[str, float]) -> dict[str, Array | float]:
    found: dict[str, Array | float] = {k[len(prefix) :]: v for k, v in values.items() if k.startswith(prefix)}
    return found | {k[len(prefix) :]: v for k, v in numbers.items() if k.startswith(prefix)}


def _array(cut: wire.Cut, size: int | None) -> Array:
    """The elements of a cut as float64; `size` of them, or as many as its shape says."""
    if cut.dtype not in UNIT:
        raise ValueError(f"slices of {cut.dtype[:32]}")
    kind = {"bfloat16": "<u2", "float16": "<f2", "float32": "<f4", "float64": "<f8"}[cut.dtype]
    if len(cut.data) > 8 * MOST_ELEMENTS:
        raise ValueError(f"a slice of {len(cut.data)} bytes")
    raw = np.frombuffer(cut.data, kind)
    if cut.dtype == "bfloat16":
        raw = (raw.astype(np.uint32) << np.uint32(16)).view(np.float32)
    with np.errstate(invalid="ignore"):
        wide: Array = raw.astype(np.float64)
    if size is None:
        return wide.reshape(cut.shape)
    if wide.size != size:
        raise ValueError(f"{wide.size} elements where {size} belong")
    return wide


# -- what does not fit, and what would explain it


def _misfits(
    rule: Rule,
    names: tuple[str, ...],
    starts: tuple[int, ...],
    counts: tuple[int, ...],
    s: Slices,
    settings: Settings,
    *,
    moved_only: bool = False,
) -> list[Misfit]:
    found: list[Misfit] = []
    with np.errstate(all="ignore"):
        for claim in rule(s, settings):
            wrong = claim.wrong & (np.abs(claim.expected) < s.huge)
            if moved_only and claim.part == "weights":
                wrong = wrong & (s.left != s.weight)
            if not wrong.any():
                continue
            if claim.seen.size != s.weight.size:
                found.append(_misfit(claim, wrong, names[0], 0, s, slice(0, 1), rule, settings))
                continue
            at = 0
            for name, start, count in zip(names, starts, counts, strict=True):
                part = slice(at, at + count) if claim.seen.ndim == 1 else slice(None)
                if wrong[part].any():
                    found.append(_misfit(claim, wrong[part], name, start, s, part, rule, settings))
                at += count
    return found


def _misfit(
    claim: Claim, wrong: Array, name: str, start: int, s: Slices, part: slice, rule: Rule, settings: Settings
) -> Misfit:
    expected, seen = claim.expected[part], claim.seen[part]
    off = np.where(wrong, np.abs(seen - expected) / (claim.allowed[part] + 1e-300), -1.0)
    worst = int(np.where(np.isnan(off), np.inf, off).argmax())
    before = s.weight if claim.part == "weights" else s.before.get(claim.part, 0.0)
    if isinstance(before, np.ndarray):
        before = float(before[part].flat[worst]) if before.shape == claim.seen.shape else 0.0
    return Misfit(
        tensor=name,
        part=claim.part,
        wrong=int(wrong.sum()),
        looked=int(wrong.size),
        element=start + worst,
        before=_plain(before),
        expected=_plain(expected.flat[worst]),
        seen=_plain(seen.flat[worst]),
        fits=_fits(claim, s, part, rule, settings),
    )


def _plain(value: float) -> float:
    """JSON has no NaN and no infinity."""
    return float(np.nan_to_num(value))


def _in_the_update(
    names: tuple[str, ...], starts: tuple[int, ...], counts: tuple[int, ...], s: Slices, other: Slices
) -> list[Misfit]:
    """The update holds its rule with the gradient that it left, not with the one that it was given."""
    found: list[Misfit] = []
    given, used, at = s.gradient.ravel(), other.gradient.ravel(), 0
    for name, start, count in zip(names, starts, counts, strict=True):
        a, b = given[at : at + count], used[at : at + count]
        at += count
        differs = a != b
        if differs.any():
            first = int(np.abs(b - a).argmax())
            times = _slope((b, a))
            fits = _gradient(times) if np.allclose(b, times * a, rtol=1e-2, atol=1e-30) else ""
            found.append(
                Misfit(
                    tensor=name,
                    part="gradient",
                    wrong=int(differs.sum()),
                    looked=count,
                    element=start + first,
                    before=_plain(float(a[first])),
                    expected=_plain(float(a[first])),
                    seen=_plain(float(b[first])),
                    fits=fits,
                )
            )
    return found


def _fits(claim: Claim, s: Slices, part: slice, rule: Rule, settings: Settings) -> str:
    """The first simple change of rule or gradient that makes the deviation go away, in plain words."""
    if claim.seen.size != s.weight.size:
        return "it stood still" if claim.seen.flat[0] == claim.expected.flat[0] - 1 else ""
    bases = [(s.weight, "")] if claim.part == "weights" else []
    bases.append((claim.base, ", decay apart" if claim.part == "weights" and bases else ""))
    for base, apart in bases:
        times = _times(claim, base, part)
        if times is not None:
            return (_moved if claim.part == "weights" else _gradient)(times) + apart
    for words, found, changed in _alternatives(claim, s, part, settings):
        try:
            again = next((c for c in rule(found, changed) if c.part == claim.part), None)
        except Unfit:
            continue
        if again is not None and not again.wrong[part].any():
            return words
    return ""


def _times(claim: Claim, base: Array, part: slice) -> float | None:
    """k, when the seen change is k times the expected one; None when it is not a multiple of it."""
    expected, seen = (claim.expected - base)[part].ravel(), (claim.seen - base)[part].ravel()
    length = float(expected @ expected)
    if not 0 < length < np.inf or not np.isfinite(seen).all():
        return None
    times = float(seen @ expected) / length
    allowed = np.where(np.isfinite(claim.allowed), claim.allowed, 0.0)[part].ravel()
    rest = np.abs(seen - times * expected)
    if (rest <= 2 * max(1.0, abs(times)) * allowed + 1e-3 * np.abs(seen)).all():
        return times
    share = float(np.linalg.norm(rest)) / max(float(np.linalg.norm(seen)), 1e-300)
    return times if not allowed.any() and share <= 0.3 else None


def _moved(times: float) -> str:
    if abs(times + 1) <= _SAME:
        return "it moved the opposite way"
    if abs(times) <= _SAME:
        return "it did not move"
    return f"it moved {times:.3g} times as far" + (", the opposite way" if times < 0 else "")


def _gradient(times: float) -> str:
    if abs(times + 1) <= _SAME:
        return "as with the opposite gradient"
    return "as without a gradient" if abs(times) <= _SAME else f"as with {times:.3g} times the gradient"


def _alternatives(claim: Claim, s: Slices, part: slice, settings: Settings) -> Iterator[tuple[str, Slices, Settings]]:
    """Other state before, or other settings, under which the update might hold its rule."""
    for key, value in s.before.items():
        if isinstance(value, np.ndarray) and value[part].any():
            yield f"as if {key} had been emptied", replace(s, before={**s.before, key: np.zeros_like(value)}), settings
    if settings.get("weight_decay"):
        yield "as without weight decay", s, {**settings, "weight_decay": 0.0}
    for flag in ("nesterov", "maximize", "amsgrad", "decoupled_weight_decay"):
        if flag in settings:
            yield f"as with {flag} = {not settings[flag]}", s, {**settings, flag: not settings[flag]}
    square = claim.part == "exp_avg_sq"
    old = s.before.get(claim.part)
    if claim.part not in ("exp_avg", "exp_avg_sq", "momentum_buffer") or not isinstance(old, np.ndarray):
        return
    gradient = (s.gradient * s.gradient if square else s.gradient)[part]
    if claim.part == "momentum_buffer":
        share = _slope((claim.seen[part] - gradient, old[part]))
        yield f"as with momentum = {share:.4g}", s, {**settings, "momentum": share}
        return
    beta = _slope((claim.seen[part] - gradient, old[part] - gradient))
    betas = list(settings.get("betas") or (0.0, 0.0))
    # Lion's moment follows its second beta.
    at = 1 if square or "eps" not in settings else 0
    betas[at] = beta
    yield f"as with beta{at + 1} = {beta:.4g}", s, {**settings, "betas": betas}


def _slope(pair: tuple[Array, Array]) -> float:
    y, x = (a.ravel() for a in pair)
    length = float(x @ x)
    return float(y @ x) / length if length > 0 else 0.0
