"""Are two states equal bit for bit: kinds, values, order of keys, and every tensor's storage, view and sharing?"""

from __future__ import annotations

import struct
from typing import TYPE_CHECKING, Any

from trainwarden.gate.convert.encode import SPARSE
from trainwarden.gate.convert.objects import Choice, MappingRecord, Record

if TYPE_CHECKING:
    import torch


class Comparison:
    """Of two states; `tensors` and `bytes` count what was compared."""

    def __init__(self) -> None:
        self.tensors = self.bytes = 0
        self._paired: dict[int, int] = {}  # storages of the first by address, and those of the second
        self._taken: set[int] = set()
        self._kept: list[object] = []  # so that no address is used again meanwhile

    def difference(self, a: Any, b: Any, path: str = "") -> str:
        """Where the two differ first, and "" where they are equal."""
        import numpy as np
        import torch

        if _kind(a) != _kind(b):
            return f"{path}: {_kind(a)} and {_kind(b)}"
        if isinstance(a, torch.Tensor):
            return self._tensors(a, b, path)
        if isinstance(a, np.ndarray | np.generic):
            return self._arrays(np.asarray(a), np.asarray(b), path)
        if isinstance(a, dict):
            return self._dicts(a, b, path)
        if isinstance(a, set | frozenset):
            return "" if a == b else f"{path}: other items"
        if isinstance(a, list | tuple) or type(a).__name__ == "deque":
            return self._items(list(a), list(b), path) or _other(
                getattr(a, "maxlen", None) == getattr(b, "maxlen", None), path
            )
        if isinstance(a, Record):
            return self.difference(getattr(a, "state", None), getattr(b, "state", None), path)
        if isinstance(a, Choice):
            return self._items(list(a.args), list(b.args), path)
        if isinstance(a, float):
            return _other(struct.pack(">d", a) == struct.pack(">d", b), path)
        return _other(a == b, path)

    def _items(self, a: list[Any], b: list[Any], path: str) -> str:
        if len(a) != len(b):
            return f"{path}: {len(a)} and {len(b)} items"
        found = (self.difference(x, y, f"{path}.{n}") for n, (x, y) in enumerate(zip(a, b, strict=True)))
        return next(filter(None, found), "")

    def _dicts(self, a: dict[Any, Any], b: dict[Any, Any], path: str) -> str:
        differs = self._items(list(a), list(b), f"{path} (keys)")
        for key in a if not differs else ():
            differs = differs or self.difference(a[key], b[key], f"{path}.{key}")
        if not differs and hasattr(a, "default_factory"):
            differs = _other(getattr(a, "default_factory", None) is getattr(b, "default_factory", None), path)
        if not differs and isinstance(a, MappingRecord):
            return self.difference(getattr(a, "state", None), getattr(b, "state", None), path)
        return differs or self.difference(getattr(a, "__dict__", None), getattr(b, "__dict__", None), path)

    def _arrays(self, a: Any, b: Any, path: str) -> str:
        if (a.dtype, a.shape) != (b.dtype, b.shape):
            return f"{path}: {a.dtype}{a.shape} and {b.dtype}{b.shape}"
        if a.dtype.hasobject:
            return self._items(a.ravel().tolist(), b.ravel().tolist(), path)
        return _other(a.tobytes() == b.tobytes() and a.flags.f_contiguous == b.flags.f_contiguous, path)

    # Tensors

    def _tensors(self, a: torch.Tensor, b: torch.Tensor, path: str) -> str:
        told = [
            (t.dtype, t.layout, t.shape, t.requires_grad, t.device.type, t.is_coalesced() if t.is_sparse else None)
            for t in (a, b)
        ]
        if told[0] != told[1]:
            return f"{path}: {told[0]} and {told[1]}"
        if parts := SPARSE.get(str(a.layout)):
            found = (self.difference(getattr(a, get)(), getattr(b, get)(), f"{path}.{n}") for n, get in parts.items())
            return next(filter(None, found), "")
        if (a.stride(), a.storage_offset()) != (b.stride(), b.storage_offset()):
            return f"{path}: other strides or another offset"
        self.tensors += 1
        return self._storages(a, b, path) or self.difference(dict(a.__dict__), dict(b.__dict__), path)

    def _storages(self, a: torch.Tensor, b: torch.Tensor, path: str) -> str:
        if a.device.type == "meta":
            return ""
        first, second = a.untyped_storage(), b.untyped_storage()
        known = self._paired.get(first._cdata)
        if known is not None:
            return _other(known == second._cdata, path, "it shares its storage with other tensors")
        if second._cdata in self._taken:
            return f"{path}: it shares its storage with other tensors"
        self._paired[first._cdata] = second._cdata
        self._taken.add(second._cdata)
        self._kept += [first, second]
        self.bytes += first.nbytes()
        return _other(_equal(first, second), path, "other bytes")


def _equal(a: torch.UntypedStorage, b: torch.UntypedStorage) -> bool:
    import torch

    if a.nbytes() != b.nbytes():
        return False
    return a.nbytes() == 0 or bool(torch.equal(*(torch.tensor([], dtype=torch.uint8).set_(s) for s in (a, b))))


def _kind(x: Any) -> str:
    return str(getattr(x, "kind", "")) or f"{type(x).__module__}.{type(x).__qualname__}"


def _other(equal: bool, path: str, what: str = "another value") -> str:
    return "" if equal else f"{path or 'the state'}: {what}"
