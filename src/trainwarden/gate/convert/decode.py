"""Reading a state that `encode` wrote: nothing is made but values, tensors and the stand-ins of `objects`."""

from __future__ import annotations

import base64
import binascii
import collections
import datetime
import decimal
import fractions
import struct
from collections.abc import Callable, Mapping
from typing import TYPE_CHECKING, Any, Final

from trainwarden.errors import CannotDecide
from trainwarden.gate.convert.objects import meaning

if TYPE_CHECKING:
    import numpy as np
    import torch

_PLAIN_KINDS: Final[dict[str, Callable[..., object]]] = {
    **{"builtins.complex": complex, "builtins.slice": slice, "builtins.range": range},
    **{"decimal.Decimal": decimal.Decimal, "fractions.Fraction": fractions.Fraction},
    **{"datetime.timedelta": datetime.timedelta, "collections.deque": collections.deque},
}
_MOMENTS: Final[dict[str, Callable[..., object]]] = {
    **{"datetime": datetime.datetime, "date": datetime.date, "time": datetime.time},
}
_TORCH_NAMES: Final = ("$dtype", "$layout", "$memory_format", "$qscheme")


class Decoder:
    """Makes values again; `tensors` are those of the safetensors file."""

    def __init__(self, tensors: Mapping[str, torch.Tensor]) -> None:
        self._tensors = tensors

    def state(self, tree: Any) -> Any:
        """The state that this JSON describes.

        Raises:
            CannotDecide: it has another form than `encode` gives it.
        """
        try:
            return self._value(tree)
        except (KeyError, ValueError, TypeError, AttributeError, RuntimeError, RecursionError, binascii.Error) as e:
            raise CannotDecide(f"the state has a form that is not known ({type(e).__name__}: {e})") from e

    def _value(self, x: Any) -> Any:
        if isinstance(x, list):
            return [self._value(item) for item in x]
        if not isinstance(x, dict):
            return x
        mark = next(iter(x), "")
        if not mark.startswith("$"):
            return {k: self._value(v) for k, v in x.items()}
        if mark in _TORCH_NAMES:
            return _named(x[mark])
        return getattr(self, f"_{mark[1:]}")(x[mark], x)

    def _int(self, text: str, _: Any) -> int:
        return int(text)

    def _float(self, bits: str, _: Any) -> float:
        (got,) = struct.unpack(">d", bytes.fromhex(bits))
        return float(got)

    def _bytes(self, text: str, _: Any) -> bytes:
        return base64.b64decode(text, validate=True)

    def _bytearray(self, text: str, _: Any) -> bytearray:
        return bytearray(base64.b64decode(text, validate=True))

    def _tuple(self, items: list[Any], _: Any) -> tuple[Any, ...]:
        return tuple(self._value(items))

    def _set(self, items: list[Any], _: Any) -> set[Any]:
        return set(self._value(items))

    def _frozenset(self, items: list[Any], _: Any) -> frozenset[Any]:
        return frozenset(self._value(items))

    def _scalar(self, dtype: str, x: Any) -> Any:
        import numpy as np

        return np.frombuffer(bytes.fromhex(x["hex"]), dtype=_plain(dtype))[0]

    def _moment(self, name: str, x: Any) -> Any:
        raw, *zone = x["pickle"]
        return _MOMENTS[name](bytes.fromhex(raw), *self._value(zone))

    def _timezone(self, args: list[Any], _: Any) -> datetime.timezone:
        return datetime.timezone(*self._value(args))

    def _size(self, sizes: list[int], _: Any) -> Any:
        import torch

        return torch.Size(sizes)

    def _device(self, text: str, _: Any) -> Any:
        import torch

        return torch.device(text)

    def _numpy(self, text: str, _: Any) -> Any:
        return _plain(text)

    def _name(self, name: str, _: Any) -> Any:
        module, _, last = name.rpartition(".")
        return meaning(module, last)

    def _kind(self, kind: str, x: Any) -> Any:
        if kind in _PLAIN_KINDS:
            return _PLAIN_KINDS[kind](*self._value(x["args"]))
        module, _, name = kind.rpartition(".")
        if "args" in x:
            return meaning(module, name)(*self._value(x["args"]))
        record = meaning(module, name)()
        record.state = self._value(x["state"])
        return record

    def _dict(self, pairs: list[list[Any]], x: Any) -> Any:
        module, _, name = x.get("kind", "builtins.dict").rpartition(".")
        default = (self._name(x["default"], x),) if "default" in x else ()
        made = meaning(module, name)(*default)
        for key, value in pairs:
            made[self._value(key)] = self._value(value)
        if "state" in x:
            state = self._value(x["state"])
            made.__setstate__(state) if hasattr(type(made), "kind") else made.__dict__.update(state)
        return made

    # Tensors

    def _tensor(self, name: str, x: Any) -> Any:
        import torch

        tensor = self._tensors[name]
        if "shape" in x:
            kind = _named(x["dtype"]) if "dtype" in x else tensor.dtype
            tensor = torch.empty(0, dtype=kind).set_(
                tensor.untyped_storage(), x["offset"], tuple(x["shape"]), tuple(x["stride"])
            )
        return self._finished(tensor.detach(), x)

    def _meta(self, kind: str, x: Any) -> Any:
        import torch

        made = torch.empty_strided(tuple(x["shape"]), tuple(x["stride"]), dtype=_named(kind), device="meta")
        return self._finished(made, x)

    def _sparse(self, layout: str, x: Any) -> Any:
        import torch

        size = tuple(x["shape"])
        if layout == "torch.sparse_coo":
            parts = self._value(x["indices"]), self._value(x["values"])
            made = torch.sparse_coo_tensor(*parts, size, is_coalesced=x["coalesced"], check_invariants=True)
        else:
            parts3 = self._value(x["crow"]), self._value(x["col"]), self._value(x["values"])
            made = torch.sparse_csr_tensor(*parts3, size, check_invariants=True)
        return self._finished(made, x)

    def _finished(self, tensor: Any, x: Any) -> Any:
        import torch

        if x.get("parameter"):
            tensor = torch.nn.Parameter(tensor, requires_grad=bool(x.get("requires_grad")))
        elif x.get("requires_grad"):
            tensor.requires_grad_(True)
        for name, value in self._value(x.get("attributes", {})).items():
            setattr(tensor, name, value)
        return tensor

    def _array(self, name: str, x: Any) -> np.ndarray[Any, Any]:
        import torch

        raw = self._tensors[name].reshape(-1).view(torch.uint8).numpy().copy()
        made: np.ndarray[Any, Any] = raw.view(_plain(x["dtype"])).reshape(tuple(x["shape"]), order=x.get("order", "C"))
        return made

    def _objects(self, items: list[Any], x: Any) -> np.ndarray[Any, Any]:
        import numpy as np

        made: np.ndarray[Any, Any] = np.empty(len(items), dtype=object)
        for n, item in enumerate(items):
            made[n] = self._value(item)
        return made.reshape(tuple(x["shape"]))


def _named(name: str) -> Any:
    module, _, last = name.rpartition(".")
    if module != "torch":
        raise ValueError(f"{name} is no constant of torch")
    return meaning(module, last)


def _plain(dtype: str) -> Any:
    import numpy as np

    made = np.dtype(dtype)
    if made.hasobject:
        raise ValueError(f"dtype {dtype} is not a plain one")
    return made
