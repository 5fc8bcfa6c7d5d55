"""Reads a snapshot's structure without its tensors and without torch (the auditor's side)."""

from __future__ import annotations

import json
import struct
from pathlib import Path
from typing import Any

_LIMIT = 64 << 20


def read_structure(path: Path) -> dict[str, Any]:
    """The nested structure of a snapshot; each tensor in it is None.

    Raises:
        OSError: the file cannot be read.
        ValueError: it is not a snapshot.
    """
    with path.open("rb") as file:
        head = file.read(8)
        if len(head) < 8:
            raise ValueError(f"{path} is not a snapshot: it has {len(head)} bytes")
        (length,) = struct.unpack("<Q", head)
        if length > _LIMIT:
            raise ValueError(f"{path} is not a snapshot: a header of {length} bytes")
        try:
            header = json.loads(file.read(length))
            state = _unpack(json.loads(header["__metadata__"]["state"]))
        except (KeyError, TypeError, UnicodeDecodeError, json.JSONDecodeError) as e:
            raise ValueError(f"{path} is not a snapshot: {e!r}") from e
    if not isinstance(state, dict):
        raise ValueError(f"{path} is not a snapshot")
    return state


def _unpack(value: Any) -> Any:
    if isinstance(value, list):
        return [_unpack(v) for v in value]
    if not isinstance(value, dict):
        return value
    ((kind, body),) = value.items()
    match kind:
        case "$dict":
            return {_unpack(k): _unpack(v) for k, v in body}
        case "$tuple":
            return tuple(_unpack(v) for v in body)
        case _:
            return None
