"""Rules of torch's pickles (torch/_utils.py, torch/_tensor.py): tensors within their storages, and no hooks."""

from __future__ import annotations

import re
from typing import Final

from trainwarden.gate.scan.pickles.plain_rules import made
from trainwarden.gate.scan.pickles.values import Blob, Made, Many, Mapping, Name, Objectionable, Storage, Value

_DEVICE: Final = r"[a-z]{2,16}(:\d{1,4})?"
_TENSORS: Final = ("torch.Tensor", "torch.nn.parameter.Parameter", "torch.nn.parameter.Buffer")
_REBUILDS: Final = (
    "torch._utils._rebuild_tensor",
    "torch._utils._rebuild_tensor_v2",
    "torch._utils._rebuild_tensor_v3",
)
_SET_BY_TORCH: Final = frozenset(
    {"data", "grad", "names", "requires_grad", "real", "imag", "is_leaf", "shape", "T", "H", "mT", "mH"}
)
_MARKS: Final = frozenset({"_is_buffer", "_is_param"})  # by which torch.nn tells its kinds of tensors apart


def _sizes(value: Value) -> tuple[int, ...]:
    if isinstance(value, Made) and value.name == "torch.Size" and isinstance(value.data, tuple):
        value = value.data
    if not isinstance(value, tuple) or len(value) > 64 or not all(type(n) is int and n >= 0 for n in value):
        raise Objectionable("its sizes are not a tuple of numbers")
    return tuple(n for n in value if isinstance(n, int))


def tensor(args: tuple[Value, ...]) -> Value:
    """A view of a storage: it must lie within, or torch would make room for whatever it claims."""
    if not 4 <= len(args) <= 9:
        raise Objectionable("it is not made of a storage and a view")
    storage, offset, size, stride = _storage(args[0]), args[1], _sizes(args[2]), _sizes(args[3])
    if type(offset) is not int or offset < 0 or len(size) != len(stride):
        raise Objectionable("its view is not made of numbers")
    last = offset + sum((n - 1) * by for n, by in zip(size, stride, strict=True)) + 1 if all(size) else 0
    typed = len(args) < 7  # v3 counts in bytes of another dtype
    if last > (storage.numel if typed else storage.numel * max(storage.itemsize, 1)):
        raise Objectionable("its view reaches past its storage")
    for extra in args[4:]:
        _no_hooks(extra)
    return made()


def _storage(value: Value) -> Storage:
    if isinstance(value, Made) and isinstance(value.data, Blob):  # of _load_from_bytes: no larger than its bytes
        return Storage("", value.data.size, 1)
    if not isinstance(value, Storage):
        raise Objectionable("it is not made of a storage and a view")
    return value


def _no_hooks(value: Value) -> None:
    if not (value is None or isinstance(value, bool | int | tuple | Name) or _is_empty(value)):
        raise Objectionable("it brings hooks or metadata, which no checkpoint needs")


def _is_empty(value: Value) -> bool:
    return (isinstance(value, Mapping) and value.count == 0) or (
        isinstance(value, Made) and value.name == "collections.OrderedDict"
    )


def _is_tensor(value: Value) -> bool:
    return isinstance(value, Made) and value.name.startswith(("torch._utils._rebuild", "torch._tensor._rebuild"))


def parameter(args: tuple[Value, ...]) -> Value:
    """_rebuild_parameter(data, requires_grad, hooks[, state])."""
    if len(args) not in (3, 4) or not _is_tensor(args[0]) or not isinstance(args[1], bool) or not _is_empty(args[2]):
        raise Objectionable("it is not made of a tensor without hooks")
    if len(args) == 4:
        _attributes(args[3])
    return made()


def _attributes(state: Value) -> None:
    """What torch sets on a tensor, one setattr each."""
    if isinstance(state, tuple) and len(state) == 2 and (state[1] is None or _is_empty(state[1])):
        state = state[0]
    if state is None or (isinstance(state, tuple) and not state):
        return
    if not isinstance(state, Mapping) or state.others or state.count > len(state.items):
        raise Objectionable("its state is not a dict of attributes")
    if any(not isinstance(state.items[k], bool) for k in _MARKS & state.items.keys()):
        raise Objectionable("its state marks a tensor with something other than yes or no")
    if any(k.startswith("_") or k in _SET_BY_TORCH for k in state.items.keys() - _MARKS):
        raise Objectionable("its state sets what torch keeps in a tensor")


def sparse(args: tuple[Value, ...]) -> Value:
    """_rebuild_sparse_tensor(layout, data)."""
    if len(args) != 2 or not isinstance(args[1], tuple):
        raise Objectionable("it is not made of a layout and its parts")
    if not all(_is_tensor(p) or isinstance(p, Made | tuple | bool) for p in args[1]):
        raise Objectionable("its parts are not tensors")
    return made()


def meta(args: tuple[Value, ...]) -> Value:
    """_rebuild_meta_tensor_no_storage(dtype, size, stride, requires_grad)."""
    if len(args) != 4 or not isinstance(args[0], Name) or not isinstance(args[3], bool):
        raise Objectionable("it is not made of a dtype and sizes")
    _sizes(args[1])
    _sizes(args[2])
    return made()


def nested(args: tuple[Value, ...]) -> Value:
    """_rebuild_nested_tensor(buffer, sizes, strides, offsets)."""
    if len(args) != 4 or not all(map(_is_tensor, args)):
        raise Objectionable("it is not made of tensors")
    return made()


def from_numpy(args: tuple[Value, ...]) -> Value:
    """_rebuild_device_tensor_from_numpy(array, dtype, device, requires_grad)."""
    if (
        len(args) != 4
        or not isinstance(args[0], Made)
        or not args[0].name.startswith("numpy.")
        or not isinstance(args[1], Name)
    ):
        raise Objectionable("it is not made of an array and a dtype")
    return made()


def from_type(args: tuple[Value, ...]) -> Value:
    """_rebuild_from_type_v2(rebuild, type, arguments, state)."""
    if (
        len(args) != 4
        or not isinstance(args[0], Name)
        or not isinstance(args[1], Name)
        or not isinstance(args[2], tuple)
    ):
        raise Objectionable("it is not made of a way to rebuild and a type")
    if args[0].name not in _REBUILDS or args[1].name not in _TENSORS:
        raise Objectionable("it rebuilds something other than a tensor")
    tensor(args[2])
    _attributes(args[3])
    return made()


def size(args: tuple[Value, ...]) -> Value:
    """torch.Size(numbers)."""
    given = args[0] if len(args) == 1 else None
    if isinstance(given, Many):
        given = tuple(given.items)
    return made(_sizes(given))


def device(args: tuple[Value, ...]) -> Value:
    """torch.device(kind[, index])."""
    if not 1 <= len(args) <= 2 or not isinstance(args[0], str) or not re.fullmatch(_DEVICE, args[0]):
        raise Objectionable("it is no device")
    if len(args) == 2 and type(args[1]) is not int:
        raise Objectionable("its index is no number")
    return made()


def from_bytes(args: tuple[Value, ...]) -> Value:
    """torch.storage._load_from_bytes: a whole checkpoint as bytes, which the scan follows in turn."""
    if len(args) != 1 or not isinstance(args[0], Blob) or args[0].text:
        raise Objectionable("it is not made of the bytes of a tensor that lie in the file")
    return made(args[0])


def properties(instance: Made, state: Value) -> None:
    """TensorProperties.__setstate__: dtype, layout, requires_grad, memory format, pin_memory."""
    if not isinstance(state, tuple) or len(state) != 5 or not isinstance(state[0], Name):
        raise Objectionable("its state has another form")
