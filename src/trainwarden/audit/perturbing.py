"""What each perturbation does to values: the one implementation for the search of `explain` and for a replaying rank.

Rules
-----
* What a factor is rounded to, and in which order, is decided here and nowhere else.
* Functions return new tensors and never write into their arguments. Randomness comes from a generator of
  their own, never from the process' default one.
* Torch is imported inside the functions, so that naming a perturbation costs nothing.
"""

from __future__ import annotations

import functools
from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import TYPE_CHECKING, Any

from trainwarden.audit.perturb import (
    Assign,
    Division,
    Element,
    HyperValue,
    Loss,
    Noise,
    Perturbation,
    Rows,
    Scale,
    ScaleRows,
    SetHyper,
    Shift,
    TakeFrom,
    TensorChange,
    TensorPerturbation,
    Ulp,
    Unary,
    Zero,
    applies,
)
from trainwarden.model import Stage

if TYPE_CHECKING:
    from torch import Tensor


# --------------------------------------------------------------------------- tensors


def transform(p: TensorPerturbation, tensor: Tensor, stage: Mapping[str, Tensor], name: str = "") -> Tensor:
    """What `tensor` becomes under `p`; `stage` holds the clean tensors of the same stage and rank.

    Raises:
        ValueError: `p` does not fit the tensor (range, shape, dtype, missing source).
    """
    if tensor.numel() == 0:
        raise ValueError("an empty tensor cannot be changed")
    return _TRANSFORMS[type(p)](p, tensor.detach(), stage, name)


def apply_tensors(
    perturbations: Iterable[Perturbation],
    stage: Stage,
    rank: int,
    tensors: Mapping[str, Tensor],
    *,
    before: bool = False,
) -> dict[str, Tensor]:
    """The tensors of one stage of one rank that these perturbations change, with their new values.

    Perturbations of one tensor follow one another; what is taken from another tensor is its unchanged value.

    Raises:
        ValueError: a perturbation does not fit a tensor that it names.
    """
    now = dict(tensors)
    changed: dict[str, Tensor] = {}
    for p in perturbations:
        if not isinstance(p, TensorChange) or not applies(p, rank):
            continue
        if p.stage is not stage or p.before is not before:
            continue
        new = {name: transform(p, now[name], tensors, name) for name in (p.tensors or tuple(now)) if name in now}
        now.update(new)
        changed.update(new)
    return changed


def _scale(p: Scale, t: Tensor, stage: Mapping[str, Tensor], name: str) -> Tensor:
    import torch

    _need_float(t)
    match p.rounding:
        case "scalar":
            return t * p.factor
        case "tensor":
            return t * torch.tensor(p.factor, dtype=t.dtype)
        case "double":
            return (t.double() * p.factor).to(t.dtype)
        case "divide":
            if p.factor == 0:
                raise ValueError("cannot divide by 1/0")
            return t / (1 / p.factor)


def _zero(p: Zero, t: Tensor, stage: Mapping[str, Tensor], name: str) -> Tensor:
    out = t.clone(memory_format=_contiguous())
    if p.dim < 0:
        out.view(-1)[p.start : p.stop : p.every] = 0
        return out
    _need_dim(t, p.dim)
    out.narrow(p.dim, p.start, p.stop - p.start).zero_()
    return out


def _scale_rows(p: ScaleRows, t: Tensor, stage: Mapping[str, Tensor], name: str) -> Tensor:
    _need_float(t)
    _need_dim(t, p.dim)
    out = t.clone(memory_format=_contiguous())
    out.narrow(p.dim, p.start, p.stop - p.start).mul_(p.factor)
    return out


@functools.lru_cache(maxsize=1)
def _drawn(seed: int, distribution: str, shape: tuple[int, ...], dtype: Any) -> Tensor:
    import torch

    generator = torch.Generator().manual_seed(seed)
    draw = torch.randn if distribution == "normal" else torch.rand
    return draw(shape, generator=generator, dtype=dtype)


def _noise(p: Noise, t: Tensor, stage: Mapping[str, Tensor], name: str) -> Tensor:
    _need_float(t)
    n = _drawn(p.seed, p.distribution, tuple(t.shape), t.dtype)
    return t.add(n, alpha=p.std) if p.form == "alpha" else t + p.std * n


def _shift(p: Shift, t: Tensor, stage: Mapping[str, Tensor], name: str) -> Tensor:
    import torch

    _need_float(t)
    measure = _MEASURES[p.measure](t)
    match p.rounding:
        case "scalar" | "tensor":
            size = measure * p.factor
        case "double":
            size = torch.tensor(measure.item() * p.factor, dtype=t.dtype)
        case "divide":
            if p.factor == 0:
                raise ValueError("cannot divide by 1/0")
            size = measure / (1 / p.factor)
    if p.pattern == "signs":
        return t + t.sign() * size
    signs = torch.ones_like(t, memory_format=torch.contiguous_format)
    if p.pattern == "alternating":
        signs.view(-1)[1::2] = -1
    return t + signs * size


_MEASURES: dict[str, Callable[[Tensor], Tensor]] = {
    "std": lambda t: t.std(),
    "spread": lambda t: t.std(correction=0),
    "mean": lambda t: t.mean(),
    "abs_mean": lambda t: t.abs().mean(),
    "abs_max": lambda t: t.abs().max(),
    "norm": lambda t: t.norm(),
    "one": lambda t: t.new_ones(()),
}


def _unary(p: Unary, t: Tensor, stage: Mapping[str, Tensor], name: str) -> Tensor:
    import torch

    _need_float(t)
    match p.op:
        case "bfloat16" | "float16":
            return t.to(getattr(torch, p.op)).to(t.dtype)
        case "flip":
            _need_dim(t, 0)
            return t.flip(0)
        case "abs" | "sign" | "nan_to_num" | "reciprocal" | "relu":
            out: Tensor = getattr(torch, p.op)(t)
            return out


def _take_from(p: TakeFrom, t: Tensor, stage: Mapping[str, Tensor], name: str) -> Tensor:
    other = stage.get(p.other)
    if other is None:
        raise ValueError(f"no tensor {p.other!r} in this stage")
    return _same_kind(t, other)


def _assign(p: Assign, t: Tensor, stage: Mapping[str, Tensor], name: str) -> Tensor:
    from safetensors import SafetensorError, safe_open

    try:
        with safe_open(p.path, framework="pt") as file:
            value: Tensor = file.get_tensor(p.name or name)
    except (OSError, SafetensorError) as e:
        raise ValueError(f"cannot read {p.name or name!r} of {p.path}: {e}") from e
    return _same_kind(t, value)


def _rows(p: Rows, t: Tensor, stage: Mapping[str, Tensor], name: str) -> Tensor:
    import torch

    _need_dim(t, 0)
    if p.order and not 0 <= min(p.order) <= max(p.order) < t.shape[0]:
        raise ValueError(f"rows {p.order} of a tensor with {t.shape[0]}")
    return t.index_select(0, torch.tensor(p.order))


def _element(p: Element, t: Tensor, stage: Mapping[str, Tensor], name: str) -> Tensor:
    _need_index(t, p.index)
    out = t.clone(memory_format=_contiguous())
    out.view(-1)[p.index] = p.value if t.is_floating_point() else int(p.value)
    return out


def _ulp(p: Ulp, t: Tensor, stage: Mapping[str, Tensor], name: str) -> Tensor:
    _need_float(t)
    _need_index(t, p.index)
    out = t.clone(memory_format=_contiguous())
    moved = step_ulps(out.view(-1)[p.index : p.index + 1], p.ulps)
    out.view(-1)[p.index] = moved[0]
    return out


def step_ulps(values: Tensor, ulps: int) -> Tensor:
    """Each floating-point value moved by `ulps` places along the order of representable numbers."""
    import torch

    words = {2: torch.int16, 4: torch.int32, 8: torch.int64}[values.element_size()]
    bits = values.contiguous().view(words).to(torch.int64)
    lowest = -(1 << (8 * values.element_size() - 1))
    ordered = torch.where(bits < 0, lowest - bits, bits) + ulps
    return torch.where(ordered < 0, lowest - ordered, ordered).to(words).view(values.dtype)


def _contiguous() -> Any:
    import torch

    return torch.contiguous_format


def _need_float(t: Tensor) -> None:
    if not t.is_floating_point():
        raise ValueError(f"not a floating-point tensor: {t.dtype}")


def _need_dim(t: Tensor, dim: int) -> None:
    if t.dim() <= dim:
        raise ValueError(f"no dimension {dim} in a tensor of shape {tuple(t.shape)}")


def _need_index(t: Tensor, index: int) -> None:
    if not 0 <= index < t.numel():
        raise ValueError(f"no element {index} in a tensor of {t.numel()}")


def _same_kind(t: Tensor, other: Tensor) -> Tensor:
    if other.shape != t.shape or other.dtype != t.dtype:
        raise ValueError(f"{other.dtype}{tuple(other.shape)} cannot take the place of {t.dtype}{tuple(t.shape)}")
    return other.clone()


_TRANSFORMS: dict[type[Any], Callable[[Any, Tensor, Mapping[str, Tensor], str], Tensor]] = {
    Scale: _scale,
    Zero: _zero,
    ScaleRows: _scale_rows,
    Noise: _noise,
    Unary: _unary,
    TakeFrom: _take_from,
    Assign: _assign,
    Rows: _rows,
    Element: _element,
    Ulp: _ulp,
    Shift: _shift,
}


# --------------------------------------------------------------------------- the rest of a step


def edited_groups(
    perturbations: Iterable[Perturbation], rank: int, groups: Sequence[Mapping[str, Any]]
) -> dict[tuple[int, str], HyperValue]:
    """The settings of parameter groups that `SetHyper` changes: (group index, key) → new value."""
    edits: dict[tuple[int, str], HyperValue] = {}
    for p in perturbations:
        if isinstance(p, SetHyper) and applies(p, rank):
            for index in range(len(groups)) if p.group < 0 else (p.group,):
                edits[index, p.key] = p.value
    return edits


def torch_rng_state(seed: int) -> Tensor:
    """The state of torch's CPU generator just after `torch.manual_seed(seed)`: 5,056 bytes."""
    import torch

    return torch.Generator().manual_seed(seed).get_state()


def other_loss(p: Loss, original: Callable[..., Any]) -> Callable[..., Any]:
    """`torch._C._nn.cross_entropy_loss`, which every way to call a cross entropy ends in, as `p` makes it."""

    def cross_entropy_loss(
        input: Any, target: Any, weight: Any = None, reduction: int = 1, ignore: int = -100, smoothing: float = 0.0
    ) -> Any:
        if p.stop > p.start:
            input, target = _without(p, input), _without(p, target)
        if p.ignored is not None:
            target = target.masked_fill(target == p.ignored, ignore)
        smoothing = smoothing if p.smoothing is None else p.smoothing
        return original(input, target, weight, _SUM if p.total else reduction, ignore, smoothing)

    return cross_entropy_loss


_SUM = 2  # of torch.nn._reduction


def _without(p: Loss, t: Tensor) -> Tensor:
    import torch

    if p.every == 1 and p.stop >= t.shape[0]:
        return t[: p.start]
    if p.every == 1 and p.start == 0:
        return t[p.stop :]
    kept = torch.ones(t.shape[0], dtype=torch.bool)
    kept[p.start : p.stop : p.every] = False
    return t[kept]


def clip_by_norm(gradients: Mapping[str, Tensor], max_norm: float | None) -> dict[str, Tensor]:
    """The gradients after `torch.nn.utils.clip_grad_norm_(…, max_norm)`, or as they are when None."""
    import torch

    if max_norm is None:
        return dict(gradients)
    holders = {name: torch.nn.Parameter(torch.empty_like(g)) for name, g in gradients.items()}
    for name, g in gradients.items():
        holders[name].grad = g.clone()
    torch.nn.utils.clip_grad_norm_(list(holders.values()), max_norm)
    return {name: p.grad for name, p in holders.items() if p.grad is not None}


def mean_of_ranks(gradients: Sequence[Tensor], divisor: float, division: Division) -> Tensor:
    """The reduction of one tensor over ranks in the given order, by addition from the left.

    `division`: "scale" multiplies each part by 1/divisor before the sum, as DistributedDataParallel does
    (torch/csrc/distributed/c10d/reducer.cpp); "before" divides each part; "after" divides the sum.
    """
    parts = list(gradients)
    if division == "scale":
        parts = [g * (1.0 / divisor) for g in parts]
    elif division == "before":
        parts = [g / divisor for g in parts]
    total = functools.reduce(lambda a, b: a + b, parts)
    return total / divisor if division == "after" else total
