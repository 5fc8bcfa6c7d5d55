"""The index of a distributed checkpoint (`.metadata`), read as what it says and not as what it would do.

Rules
-----
* The index is a pickle that a suspect rank wrote. Whatever it names is stood in for by an inert object that keeps what
  it was given: nothing that it names is imported or called.
* Two indexes are equal when all that they say is, but for where and under which name of its own the checkpoint lies
  (`StorageMeta`: a path and a random identifier, in torch/distributed/checkpoint/metadata.py).
"""

from __future__ import annotations

import functools
import pickle
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from blake3 import blake3

_OWN_NAME = "torch.distributed.checkpoint.metadata.StorageMeta"
_DEEPEST = 100
_LARGEST = 1 << 30  # bytes


class _Inert:
    """Stands for an object of any class."""

    kind = ""

    def __new__(cls, *args: Any, **kwargs: Any) -> _Inert:
        made = object.__new__(cls)
        made.__dict__["_said"] = [args, kwargs] if kwargs else [args]
        return made

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        pass

    def __setstate__(self, state: Any) -> None:
        self.__dict__["_said"].append(state)

    def __setitem__(self, key: Any, value: Any) -> None:
        self.__dict__["_said"].append((key, value))

    def append(self, value: Any) -> None:
        self.__dict__["_said"].append(value)

    def extend(self, values: Any) -> None:
        self.__dict__["_said"].extend(values)


class _Reader(pickle.Unpickler):
    def find_class(self, module: str, name: str) -> Any:
        return _kind(f"{module}.{name}")

    def persistent_load(self, pid: Any) -> Any:
        raise pickle.UnpicklingError("an index has no persistent objects")


@functools.cache
def _kind(name: str) -> type[_Inert]:
    return type("Inert", (_Inert,), {"kind": name})


def index_digest(path: Path) -> str:
    """BLAKE3 of what an index says.

    Raises:
        ValueError: it cannot be read as an index.
        OSError: the file cannot be read.
    """
    if path.stat().st_size > _LARGEST:
        raise ValueError(f"{path} is too large for an index")
    try:
        with path.open("rb") as file:
            said = _Reader(file).load()
        return blake3("\n".join(_lines(said, 0)).encode()).hexdigest()
    except (pickle.UnpicklingError, AttributeError, EOFError, IndexError, KeyError, TypeError, ValueError) as e:
        raise ValueError(f"{path} cannot be read as the index of a checkpoint: {e!r}") from e


def _lines(value: Any, depth: int) -> Iterator[str]:
    if depth > _DEEPEST:
        raise ValueError("nested too deeply")
    inner = depth + 1
    if isinstance(value, _Inert):
        yield f"{depth} object {value.kind}"
        if value.kind != _OWN_NAME:
            for part in value.__dict__["_said"]:
                yield from _lines(part, inner)
    elif isinstance(value, type):
        yield f"{depth} name {getattr(value, 'kind', value.__name__)}"
    elif isinstance(value, dict):
        yield f"{depth} dict {len(value)}"
        for key, item in value.items():
            yield from _lines(key, inner)
            yield from _lines(item, inner)
    elif isinstance(value, list | tuple):
        yield f"{depth} {type(value).__name__} {len(value)}"
        for item in value:
            yield from _lines(item, inner)
    else:
        yield f"{depth} {type(value).__name__} {value!r}"
