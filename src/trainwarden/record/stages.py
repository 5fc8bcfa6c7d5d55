"""Turns what a step holds (gradients, settings, state, weights) into the ordered (name, tensor) lists of its stages."""

from __future__ import annotations

import json
from collections.abc import Iterable, Iterator, Mapping
from typing import Any

import torch

from trainwarden.model import Detail, Stage, StageDigest
from trainwarden.record.fingerprint import stage_root, tensor_digests, value_digest

ABSENT = b"absent"

Named = list[tuple[str, "torch.Tensor | None"]]


def tensors_in(value: Any, prefix: str = "") -> Iterator[tuple[str, torch.Tensor]]:
    """(path, tensor) of every tensor in nested dicts, lists, tuples and objects that behave like mappings."""
    if isinstance(value, torch.Tensor):
        yield prefix or "value", value
    elif isinstance(value, Mapping):
        for k, v in value.items():
            yield from tensors_in(v, f"{prefix}.{k}" if prefix else str(k))
    elif isinstance(value, list | tuple):
        for i, v in enumerate(value):
            yield from tensors_in(v, f"{prefix}.{i}" if prefix else str(i))


def parameters(optimizer: torch.optim.Optimizer) -> Iterator[torch.Tensor]:
    """The optimizer's parameters in the order of its groups."""
    for group in optimizer.param_groups:
        yield from group["params"]


def gradients(optimizer: torch.optim.Optimizer, names: Mapping[int, str]) -> Named:
    """The gradients that the optimizer is about to use."""
    return [(names[id(p)], p.grad) for p in parameters(optimizer)]


def weights(optimizer: torch.optim.Optimizer, names: Mapping[int, str]) -> list[tuple[str, torch.Tensor]]:
    """The optimizer's parameters."""
    return [(names[id(p)], p) for p in parameters(optimizer)]


def optimizer_state(optimizer: torch.optim.Optimizer, names: Mapping[int, str]) -> list[tuple[str, Any]]:
    """`<parameter>/<key>` of every entry of the optimizer's state, tensors and plain values alike, keys sorted.

    The order of the keys means nothing, and is another one in a state that was loaded from a file.
    """
    found: list[tuple[str, Any]] = []
    for p in parameters(optimizer):
        state = optimizer.state.get(p)
        if state:
            found += [(f"{names[id(p)]}/{key}", state[key]) for key in sorted(state, key=str)]
    return found


def settings(optimizer: torch.optim.Optimizer) -> list[dict[str, Any]]:
    """Each parameter group's settings as plain JSON values, tensors as numbers."""
    return [{k: _plain(v) for k, v in g.items() if k != "params"} for g in optimizer.param_groups]


def settings_digest(key: bytes, group: Mapping[str, Any]) -> bytes:
    """The digest of one parameter group's settings: JSON with sorted keys, floats as their exact hexadecimal form."""
    return value_digest(key, json.dumps(_exact(group), sort_keys=True).encode())


def digest_all(key: bytes, named: Iterable[tuple[str, Any]]) -> Detail:
    """Digest (name, tensor or plain value or None) pairs in order."""
    named = list(named)
    names = [name for name, _ in named]
    tensors = iter(tensor_digests(key, [value for _, value in named if isinstance(value, torch.Tensor)]))
    digests = []
    for _, value in named:
        if isinstance(value, torch.Tensor):
            digests.append(next(tensors))
        elif value is None:
            digests.append(value_digest(key, ABSENT))
        else:
            digests.append(value_digest(key, json.dumps(_exact(_plain(value)), sort_keys=True).encode()))
    return Detail(names=tuple(names), digests=tuple(digests))


def commit(key: bytes, details: Mapping[Stage, Detail | str]) -> dict[Stage, StageDigest]:
    """The roots of a step's stages; a stage given as text was not seen, for that reason."""
    return {
        stage: StageDigest(unseen=d)
        if isinstance(d, str)
        else StageDigest(root=stage_root(key, d.names, d.digests), tensors=len(d.names))
        for stage, d in details.items()
    }


def count(details: Mapping[Stage, Detail | str], stage: Stage) -> int:
    """How many tensors a stage holds, 0 where it was not seen."""
    detail = details.get(stage)
    return len(detail.names) if isinstance(detail, Detail) else 0


def _plain(value: Any) -> Any:
    if isinstance(value, torch.Tensor):
        return value.tolist()
    if isinstance(value, Mapping):
        return {str(k): _plain(v) for k, v in value.items()}
    if isinstance(value, list | tuple):
        return [_plain(v) for v in value]
    if value is None or isinstance(value, bool | int | float | str):
        return value
    return f"<{type(value).__module__}.{type(value).__qualname__}>"


def _exact(value: Any) -> Any:
    if isinstance(value, float):
        return value.hex()
    if isinstance(value, Mapping):
        return {k: _exact(v) for k, v in value.items()}
    if isinstance(value, list | tuple):
        return [_exact(v) for v in value]
    return value
