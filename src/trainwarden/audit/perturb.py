"""Perturbations: the changes that a re-execution of one step can be given, as data.

Rules
-----
* A perturbation is data (JSON both ways, `encode` / `decode`), so that anybody can check an explanation.
* What each does to values is decided in one place (`perturbing`), for the pure search of `explain` and for the
  replayer inside a rank alike: a digest is reproduced bit for bit or not at all.
* `ranks` empty means every rank; `tensors` empty means every tensor of the stage.

Where a replayer applies them: tensor perturbations at the stage that they name (`before=True`: to weights and
optimizer state as the step's first forward finds them; gradients: as they enter the reduction, or as the optimizer
gets them), `SetHyper` before the optimizer step, the others as their docstrings say. What it cannot bring about
(`cannot_execute`) is refused, so that a clean step is never taken for a changed one.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import Literal, TypeAlias

import msgspec

from trainwarden.model import Stage

Rounding: TypeAlias = Literal["scalar", "tensor", "double", "divide"]
UnaryOp: TypeAlias = Literal["abs", "sign", "bfloat16", "float16", "flip", "nan_to_num", "reciprocal", "relu"]
Division: TypeAlias = Literal["scale", "before", "after"]
Pattern: TypeAlias = Literal["alternating", "ones", "signs"]
Measure: TypeAlias = Literal["std", "spread", "mean", "abs_mean", "abs_max", "norm", "one"]
HyperValue: TypeAlias = bool | int | float | str | tuple[float, ...] | None


class _Change(msgspec.Struct, frozen=True, kw_only=True, omit_defaults=True, tag_field="kind"):
    ranks: tuple[int, ...] = ()


class TensorChange(_Change, frozen=True, kw_only=True, omit_defaults=True, tag_field="kind"):
    """What all changes of tensors have in common."""

    stage: Stage
    tensors: tuple[str, ...] = ()
    before: bool = False


class Scale(TensorChange, frozen=True, kw_only=True, tag="scale"):
    """Multiply by `factor` as a scalar, as a tensor of the same dtype, in float64, or divide by 1/factor."""

    factor: float
    rounding: Rounding = "scalar"


class Zero(TensorChange, frozen=True, kw_only=True, tag="zero"):
    """Zero `start … stop` (stop excluded) along `dim`; `dim` −1 counts elements of the flattened tensor.

    `every`: only one in so many of these elements, from the first on (flattened tensors alone).
    """

    start: int
    stop: int
    dim: int = -1
    every: int = 1


class ScaleRows(TensorChange, frozen=True, kw_only=True, tag="scale_rows"):
    """Multiply rows `start … stop` (stop excluded) of dimension `dim` by `factor`."""

    factor: float
    start: int
    stop: int
    dim: int = 0


class Noise(TensorChange, frozen=True, kw_only=True, tag="noise"):
    """Add noise from a generator seeded with `seed`, as `t + std * n` or as `t.add(n, alpha=std)`."""

    seed: int
    std: float
    distribution: Literal["normal", "uniform"] = "normal"
    form: Literal["sum", "alpha"] = "sum"


class Unary(TensorChange, frozen=True, kw_only=True, tag="unary"):
    """Apply one fixed function: `bfloat16`, `float16` round to that type and back, `flip` reverses dim 0."""

    op: UnaryOp


class TakeFrom(TensorChange, frozen=True, kw_only=True, tag="take_from"):
    """Replace by another tensor of the same stage and rank (`other`), of the same shape."""

    other: str


class Assign(TensorChange, frozen=True, kw_only=True, tag="assign"):
    """Replace by the tensor `name` of a safetensors file; `name` empty means the tensor's own name."""

    path: str
    name: str = ""


class Rows(TensorChange, frozen=True, kw_only=True, tag="rows"):
    """Take rows of dimension 0 in this order: a permutation, a duplicate, or both."""

    order: tuple[int, ...]


class Element(TensorChange, frozen=True, kw_only=True, tag="element"):
    """Set the flat element `index` to `value`."""

    index: int
    value: float


class Ulp(TensorChange, frozen=True, kw_only=True, tag="ulp"):
    """Move the flat element `index` by `ulps` units in the last place."""

    index: int
    ulps: int


class Shift(TensorChange, frozen=True, kw_only=True, tag="shift"):
    """Add a pattern of signs, as large as a measure of the tensor itself times `factor`.

    `pattern`: +1, −1, +1 … over the flattened tensor, all +1, or the tensor's own signs. `measure`: the standard
    deviation ("spread": without Bessel's correction), a mean, the largest, the norm, or 1. `rounding` as of `Scale`.
    """

    factor: float
    pattern: Pattern = "ones"
    measure: Measure = "std"
    rounding: Rounding = "scalar"


class Loss(_Change, frozen=True, kw_only=True, tag="loss"):
    """Have cross entropies leave out targets `start … stop` (stop excluded; `every`: one in so many of these) or those
    of class `ignored`, smooth labels, or add up instead of averaging (`total`)."""

    start: int = 0
    stop: int = 0
    every: int = 1
    ignored: int | None = None
    smoothing: float | None = None
    total: bool = False


class SetHyper(_Change, frozen=True, kw_only=True, tag="set_hyper"):
    """Set `key` of parameter group `group` (−1: of every group) before the optimizer step.

    `hidden`: behind the recorder's back, set when the step itself begins and put back when it ends.
    """

    key: str
    value: HyperValue
    group: int = -1
    hidden: bool = False


class Clip(_Change, frozen=True, kw_only=True, tag="clip"):
    """Make `torch.nn.utils.clip_grad_norm_` use `max_norm`, or do nothing when it is None."""

    max_norm: float | None = None


class Reseed(_Change, frozen=True, kw_only=True, tag="reseed"):
    """Seed these generators just before the first forward pass."""

    seed: int
    generators: tuple[Literal["torch", "python", "numpy"], ...] = ("torch",)


class BatchFrom(_Change, frozen=True, kw_only=True, tag="batch_from"):
    """Feed the batch that the honest run had at another step or rank."""

    step: int
    rank: int


class Dropout(_Change, frozen=True, kw_only=True, tag="dropout"):
    """Set `p` of every dropout module and of every call to `torch.nn.functional.dropout`."""

    p: float


class EvalMode(_Change, frozen=True, kw_only=True, tag="eval_mode"):
    """Run the forward pass with the model in eval mode."""


class Autocast(_Change, frozen=True, kw_only=True, tag="autocast"):
    """Run the forward pass under (or, `dtype` empty, without) `torch.autocast` of this dtype ("bfloat16")."""

    dtype: str = ""


class SkipStep(_Change, frozen=True, kw_only=True, tag="skip_step"):
    """Do nothing when the optimizer's step is called."""


class ClearState(_Change, frozen=True, kw_only=True, tag="clear_state"):
    """Before the optimizer step: zero these keys of every state; none named: drop the whole state."""

    keys: tuple[str, ...] = ()


TensorPerturbation: TypeAlias = (
    Scale | Zero | ScaleRows | Noise | Unary | TakeFrom | Assign | Rows | Element | Ulp | Shift
)
Perturbation: TypeAlias = (
    TensorPerturbation
    | SetHyper | Loss | Clip | Reseed | BatchFrom | Dropout | EvalMode | Autocast | SkipStep | ClearState
)  # fmt: skip

_encoder = msgspec.json.Encoder(order="deterministic")
_decoder = msgspec.json.Decoder(tuple[Perturbation, ...])


def encode(perturbations: Sequence[Perturbation]) -> bytes:
    """The JSON form of a list of perturbations."""
    return _encoder.encode(tuple(perturbations))


def decode(data: bytes) -> tuple[Perturbation, ...]:
    """Parse `encode`'s bytes.

    Raises:
        msgspec.DecodeError, msgspec.ValidationError: the bytes are not a list of perturbations.
    """
    return _decoder.decode(data)


def applies(p: Perturbation, rank: int) -> bool:
    """Whether `p` is meant for this rank."""
    return not p.ranks or rank in p.ranks


_EXECUTED = (Stage.BATCH, Stage.LOCAL_GRADIENTS, Stage.REDUCED_GRADIENTS, Stage.OPTIMIZER_STATE, Stage.WEIGHTS)


def cannot_execute(perturbations: Iterable[Perturbation]) -> str:
    """Why a re-execution cannot bring these changes about, "" when it can."""
    for p in perturbations:
        if isinstance(p, BatchFrom):
            return f"a replay of one step does not have the batch of step {p.step}, rank {p.rank}, to feed"
        if isinstance(p, TensorChange) and p.stage not in _EXECUTED:
            return f"a replay does not put values in place at stage {p.stage}"
    return ""
