"""Writing a state down: tensors for safetensors, everything else as JSON.

Rules
-----
* JSON has the state's own dicts, lists, texts, booleans, and numbers that every reader reads alike. What JSON has no
  form for is an object with one key that begins with `$` (docs/format.md).
* A storage is written once. Under its tensor's own name and shape where that is all of it, else flat; every other
  tensor on it refers to it by shape, strides and offset.
"""

from __future__ import annotations

import base64
import collections
import datetime
import decimal
import fractions
import struct
from collections.abc import Callable
from typing import TYPE_CHECKING, Any, Final

from trainwarden.errors import CannotDecide
from trainwarden.gate.convert.objects import Choice, Record

if TYPE_CHECKING:
    import numpy as np
    import torch

MOST_JSON_INTEGER: Final = 1 << 53
_PLAIN_KINDS: Final[dict[type, Callable[[Any], list[Any]]]] = {  # made again of these arguments
    complex: lambda x: [x.real, x.imag],
    slice: lambda x: [x.start, x.stop, x.step],
    range: lambda x: [x.start, x.stop, x.step],
    datetime.timedelta: lambda x: [x.days, x.seconds, x.microseconds],
    decimal.Decimal: lambda x: [str(x)],
    fractions.Fraction: lambda x: [str(x)],
}
SAFE_DTYPES: Final = frozenset(
    f"torch.{n}"
    for n in (
        *("float64", "float32", "float16", "bfloat16", "int64", "int32", "int16", "int8", "uint64", "uint32", "uint16"),
        *("uint8", "bool", "float8_e4m3fn", "float8_e4m3fnuz", "float8_e5m2", "float8_e5m2fnuz", "complex64"),
    )
)
_ARRAYS: Final = {
    **{"<f8": "float64", "<f4": "float32", "<f2": "float16", "<i8": "int64", "<i4": "int32", "<i2": "int16"},
    **{"|i1": "int8", "|u1": "uint8", "<u2": "uint16", "<u4": "uint32", "<u8": "uint64", "|b1": "bool"},
    **{"<c8": "complex64"},
}
SPARSE: Final = {  # parts of a sparse tensor, each a tensor of its own
    "torch.sparse_coo": {"indices": "_indices", "values": "_values"},
    "torch.sparse_csr": {"crow": "crow_indices", "col": "col_indices", "values": "values"},
}
_MOMENTS: Final = (datetime.datetime, datetime.date, datetime.time)
_PICKLED_CLASSES: Final = ("builtins", "torch", "torch.nn.parameter", "torch.storage", "numpy", "collections")


class Encoder:
    """What was written so far: `tensors` by the names that safetensors gets."""

    def __init__(self) -> None:
        self.tensors: dict[str, torch.Tensor] = {}
        self._storages: dict[int, tuple[str, torch.Tensor]] = {}  # by the storage's address: its name and tensor
        self._inside: set[int] = set()

    def value(self, x: object, path: str = "") -> Any:
        """The JSON of `x`, which `path` leads to.

        Raises:
            CannotDecide: it holds something that has no form here, or itself.
        """
        import numpy as np
        import torch

        if x is None or isinstance(x, bool | str):
            return x
        if isinstance(x, np.generic):
            return {"$scalar": x.dtype.str, "hex": x.tobytes().hex()}
        if type(x) is int:
            return x if abs(x) <= MOST_JSON_INTEGER else {"$int": str(x)}
        if type(x) is float:
            return x if x - x == 0 else {"$float": struct.pack(">d", x).hex()}
        if isinstance(x, bytes | bytearray):
            return {"$bytes" if isinstance(x, bytes) else "$bytearray": base64.b64encode(x).decode()}
        if isinstance(x, torch.Tensor):
            return self._tensor(x, path)
        if isinstance(x, np.ndarray):
            return self._array(x, path)
        return self._kind(x, path) if (named := _simple(x)) is None else named

    def _kind(self, x: object, path: str) -> Any:
        if id(x) in self._inside:
            raise CannotDecide(f"{path or 'the state'} holds itself", hint="save it without the cycle")
        self._inside.add(id(x))
        try:
            return self._container(x, path)
        finally:
            self._inside.discard(id(x))

    def _container(self, x: object, path: str) -> Any:
        match x:
            case Record():
                return {"$kind": x.kind, "state": self.value(getattr(x, "state", None), path)}
            case Choice():
                return {"$kind": x.kind, "args": self._all(x.args, path)}
            case list():
                return self._all(x, path)
            case tuple():
                return {"$tuple": self._all(x, path)}
            case set() | frozenset():
                return {f"${type(x).__name__}": self._all(sorted(x, key=repr), path)}
            case collections.deque():
                return {"$kind": "collections.deque", "args": [self._all(x, path), x.maxlen]}
            case dict():
                return self._dict(x, path)
        raise CannotDecide(f"{path or 'the state'} is a {type(x).__qualname__}, which has no form in JSON")

    def _all(self, items: Any, path: str) -> list[Any]:
        return [self.value(item, f"{path}.{n}" if path else str(n)) for n, item in enumerate(items)]

    def _dict(self, x: dict[Any, Any], path: str) -> Any:
        pairs = [(k, self.value(v, f"{path}.{k}" if path else str(k))) for k, v in x.items()]
        kind = getattr(x, "kind", "") or f"{type(x).__module__}.{type(x).__name__}"
        state = x.__dict__.get("state", x.__dict__) if hasattr(x, "__dict__") else {}
        default = x.default_factory if isinstance(x, collections.defaultdict) else None
        if kind == "builtins.dict" and all(isinstance(k, str) and not k.startswith("$") for k, _ in pairs):
            return dict(pairs)
        told: dict[str, Any] = {"$dict": [[self.value(k), v] for k, v in pairs]}
        if kind != "builtins.dict":
            told["kind"] = kind
        if default is not None:
            told["default"] = f"{default.__module__}.{default.__qualname__}"
        if state:
            told["state"] = self.value(state, f"{path}.$state")
        return told

    # Tensors

    def _tensor(self, t: torch.Tensor, path: str) -> Any:
        import torch

        told = self._data(t, path)
        if isinstance(t, torch.nn.Parameter):
            told["parameter"] = True
        if t.requires_grad:
            told["requires_grad"] = True
        if t.__dict__:
            told["attributes"] = self.value(dict(t.__dict__), f"{path}.$attributes")
        return told

    def _data(self, t: torch.Tensor, path: str) -> dict[str, Any]:
        import torch

        if t.device.type == "meta":
            return {"$meta": str(t.dtype), "shape": list(t.shape), "stride": list(t.stride())}
        if str(t.layout) in SPARSE:
            parts = {n: self.value(getattr(t, get)(), f"{path}.{n}") for n, get in SPARSE[str(t.layout)].items()}
            coalesced = {"coalesced": t.is_coalesced()} if t.layout == torch.sparse_coo else {}
            return {"$sparse": str(t.layout), "shape": list(t.shape), **parts, **coalesced}
        if t.layout != torch.strided or t.is_quantized or t.is_nested or t.is_conj() or t.is_neg():
            raise CannotDecide(f"{path}: a tensor of a kind that safetensors does not have", hint="save it dense")
        return self._strided(t, path)

    def _strided(self, t: torch.Tensor, path: str) -> dict[str, Any]:
        storage = t.untyped_storage()
        if storage._cdata not in self._storages:
            self._storages[storage._cdata] = self._stored(t, path)
        name, stored = self._storages[storage._cdata]
        told: dict[str, Any] = {"$tensor": name}
        if stored.dtype != t.dtype:
            told["dtype"] = str(t.dtype)
        if (stored.shape, stored.stride(), stored.dtype, 0) != (t.shape, t.stride(), t.dtype, t.storage_offset()):
            told |= {"shape": list(t.shape), "stride": list(t.stride()), "offset": t.storage_offset()}
        return told

    def _stored(self, t: torch.Tensor, path: str) -> tuple[str, torch.Tensor]:
        import torch

        size = t.untyped_storage().nbytes()
        whole = t.is_contiguous() and t.numel() * t.element_size() == size and t.storage_offset() == 0
        plain = str(t.dtype) in SAFE_DTYPES and size % t.element_size() == 0
        kind = t.dtype if plain else torch.uint8
        flat = torch.empty(0, dtype=kind).set_(t.untyped_storage(), 0, (size // kind.itemsize,), (1,))
        stored = t.detach() if whole and plain else flat
        return self._named(path, stored), stored

    def _named(self, path: str, tensor: torch.Tensor) -> str:
        name, n = path or "tensor", 1
        while name in self.tensors or name == "__metadata__":
            n += 1
            name = f"{path or 'tensor'}~{n}"
        self.tensors[name] = tensor
        return name

    def _array(self, a: np.ndarray[Any, Any], path: str) -> Any:
        import numpy as np
        import torch

        told = {"dtype": a.dtype.str, "shape": list(a.shape)}
        if a.dtype.hasobject:
            return {"$objects": self._all(a.ravel(order="C").tolist(), path), **told}
        fortran = a.flags.f_contiguous and not a.flags.c_contiguous
        raw = np.frombuffer(bytearray(a.tobytes("F" if fortran else "C")), dtype=np.uint8)
        tensor = torch.from_numpy(raw)
        if a.dtype.str in _ARRAYS:
            tensor = tensor.view(getattr(torch, _ARRAYS[a.dtype.str]))
        return {"$array": self._named(path, tensor), **told, **({"order": "F"} if fortran else {})}


def _simple(x: object) -> Any:
    """Values made of plain arguments, and names; None for anything else."""
    import numpy as np
    import torch

    if type(x) in _PLAIN_KINDS:
        args = [a if a is None or type(a) is str else Encoder().value(a) for a in _PLAIN_KINDS[type(x)](x)]
        return {"$kind": f"{type(x).__module__}.{type(x).__name__}", "args": args}
    if isinstance(x, _MOMENTS):
        return {"$moment": type(x).__name__, "pickle": _moment(x)}
    if isinstance(x, datetime.timezone):
        offset, *name = x.__getinitargs__()  # type: ignore[attr-defined]
        return {"$timezone": [_simple(offset), *name]}
    if isinstance(x, torch.Size):
        return {"$size": list(x)}
    if isinstance(x, torch.dtype | torch.device | torch.layout | torch.memory_format | torch.qscheme):
        return {f"${type(x).__name__}": str(x)}
    if isinstance(x, np.dtype):
        return {"$numpy": x.str}
    if isinstance(x, type) and x.__module__ in _PICKLED_CLASSES:
        return {"$name": f"{x.__module__}.{x.__qualname__}"}
    return None


def _moment(x: datetime.datetime | datetime.date | datetime.time) -> list[Any]:
    raw, *zone = tuple[Any, ...](x.__reduce_ex__(4)[1])
    return [raw.hex(), *(_simple(z) for z in zone)]
