"""What a script's own checkpoint may lack: generator states, loader positions, scaler; and, in full, all state.

Rules
-----
* A snapshot is one safetensors file whose metadata holds the structure as JSON: reading one runs no code, since a
  suspect rank wrote it.
* It is written to a temporary name and renamed: a reader sees all of it or nothing.
"""

from __future__ import annotations

import json
import os
import threading
from pathlib import Path
from typing import Any

import torch
from safetensors import safe_open
from safetensors.torch import save_file

from trainwarden.record.fingerprint import own_part


def write(path: Path, state: dict[str, Any]) -> None:
    """Write a nested structure of dicts, lists, tuples, numbers, strings, bytes-like arrays and tensors."""
    tensors: dict[str, torch.Tensor] = {}
    text = json.dumps(_pack(state, tensors))
    tensors.setdefault("_", torch.zeros(0, dtype=torch.uint8))
    path.parent.mkdir(parents=True, exist_ok=True)
    part = path.with_name(f".{path.name}.{os.getpid()}-{threading.get_ident()}")
    save_file(tensors, part, metadata={"state": text})
    os.replace(part, path)


def read(path: Path) -> dict[str, Any]:
    """Read what `write` wrote.

    Raises:
        OSError, ValueError, safetensors.SafetensorError: the file is missing or not a snapshot.
    """
    with safe_open(path, framework="pt") as file:
        metadata = file.metadata() or {}
        if "state" not in metadata:
            raise ValueError(f"{path} is not a snapshot")
        tensors = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118  not a dict
    state = _unpack(json.loads(metadata["state"]), tensors)
    if not isinstance(state, dict):
        raise ValueError(f"{path} is not a snapshot")
    return state


def _pack(value: Any, tensors: dict[str, torch.Tensor]) -> Any:
    if isinstance(value, torch.Tensor):
        name = f"t{len(tensors)}"
        # Clones: tensors that share memory, or views of one, are refused by the format.
        tensors[name] = own_part(value.detach()).cpu().clone(memory_format=torch.contiguous_format)
        return {"$tensor": name}
    if isinstance(value, dict):
        return {"$dict": [[_pack(k, tensors), _pack(v, tensors)] for k, v in value.items()]}
    if isinstance(value, tuple):
        return {"$tuple": [_pack(v, tensors) for v in value]}
    if isinstance(value, list):
        return [_pack(v, tensors) for v in value]
    if value is None or isinstance(value, bool | int | float | str):
        return value
    if type(value).__module__ == "numpy":
        return {"$numpy": [str(value.dtype), value.tolist()]}
    raise ValueError(f"a snapshot cannot hold a {type(value).__name__}")


def _unpack(value: Any, tensors: dict[str, torch.Tensor]) -> Any:
    if isinstance(value, list):
        return [_unpack(v, tensors) for v in value]
    if not isinstance(value, dict):
        return value
    ((kind, body),) = value.items()
    if kind == "$tensor":
        return tensors[body]
    if kind == "$dict":
        return {_unpack(k, tensors): _unpack(v, tensors) for k, v in body}
    if kind == "$tuple":
        return tuple(_unpack(v, tensors) for v in body)
    if kind == "$numpy":
        import numpy

        return numpy.array(body[1], dtype=body[0])
    raise ValueError(f"unknown mark {kind!r} in a snapshot")
