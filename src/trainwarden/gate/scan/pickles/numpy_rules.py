"""Rules of numpy's pickles (numpy/_core/src/multiarray: `array_setstate`, `arraydescr_setstate`).

numpy trusts a pickled dtype's flags: bytes read as objects are pointers of the file's choosing. So a dtype is one of
the plain ones, its flags are those that numpy gives it, and bytes are never taken as objects.
"""

from __future__ import annotations

import math
import re
from typing import Final

from trainwarden.gate.scan.pickles.plain_rules import made
from trainwarden.gate.scan.pickles.values import Blob, Made, Many, Mapping, Name, Objectionable, Rule, Value

_DTYPE: Final = r"[<>|=]?(?:([biufcmM])(\d{1,2})|([SUV])(\d{1,6})|(O)8?)(\[\w+\])?"
_SIZES: Final = {
    "b": (1,),
    "i": (1, 2, 4, 8),
    "u": (1, 2, 4, 8),
    "f": (2, 4, 8, 16),
    "c": (8, 16, 32),
    "m": (8,),
    "M": (8,),
}
_FLAGS: Final = {"S": (0, 8), "U": (0, 8), "V": (0, 8)}


def item(text: str) -> tuple[str, int]:
    """Kind and bytes of an item of a plain dtype's text.

    Raises:
        Objectionable: it is no plain dtype.
    """
    match = re.fullmatch(_DTYPE, text)
    if match is None:
        raise Objectionable(f"dtype {text[:40]!r} is not a plain one")
    if match[5]:
        return "O", 8
    if match[3]:
        return match[3], int(match[4]) * (4 if match[3] == "U" else 1)
    if int(match[2]) not in _SIZES[match[1]]:
        raise Objectionable(f"dtype {text[:40]!r} is not a plain one")
    return match[1], int(match[2])


def _dtype(args: tuple[Value, ...]) -> Value:
    if not 1 <= len(args) <= 3 or not isinstance(args[0], str) or not all(a in (0, 1) for a in args[1:]):
        raise Objectionable("a dtype that is not made of its text")
    return made(item(args[0]))


def _dtype_state(instance: Made, state: Value) -> None:
    if not isinstance(instance.data, tuple):
        raise Objectionable("a dtype that is not made of its text")
    kind, size = instance.data
    if not isinstance(state, tuple) or len(state) not in (8, 9) or state[0] not in (3, 4):
        raise Objectionable("a dtype's state of another form")
    if state[1] not in ("<", ">", "|", "=") or any(v is not None for v in state[2:5]):
        raise Objectionable("a dtype of fields or of parts, which numpy reads as the file's own layout")
    if state[7] not in ((63,) if kind == "O" else _FLAGS.get(kind, (0,))):
        raise Objectionable(f"flags {state[7]!r} are not those of its dtype: bytes could be read as pointers")
    if (kind in "SUV" and state[5] != size) or (kind not in "SUV" and state[5] not in (-1, size)):
        raise Objectionable("an item of another size than its dtype has")


def _empty(args: tuple[Value, ...]) -> Value:
    kind = args[0] if args else None
    if len(args) != 3 or not isinstance(kind, Name) or kind.name != "numpy.ndarray" or args[1] != (0,):
        raise Objectionable("it rebuilds something other than an empty array")
    return made()


def _array_state(instance: Made, state: Value) -> None:
    if not isinstance(state, tuple) or len(state) != 5 or not isinstance(state[1], tuple):
        raise Objectionable("an array's state of another form")
    _, shape, dtype, _, data = state
    kind, size = _of(dtype)
    if not all(type(n) is int and n >= 0 for n in shape):
        raise Objectionable("an array's shape is not made of sizes")
    if kind == "O":
        if not isinstance(data, Many):
            raise Objectionable("bytes that would be read as objects")
    elif _bytes(data) not in (None, math.prod(shape) * size):
        raise Objectionable("its bytes are not as many as its shape says")


def scalar(args: tuple[Value, ...]) -> Value:
    """numpy.core.multiarray.scalar(dtype, bytes)."""
    kind, size = _of(args[0] if args else None)
    if kind == "O" or len(args) != 2 or _bytes(args[1]) not in (None, size):
        raise Objectionable("it is not made of a plain dtype and one item's bytes")
    return made()


def from_buffer(args: tuple[Value, ...]) -> Value:
    """numpy.core.numeric._frombuffer(bytes, dtype, shape, order)."""
    kind, size = _of(args[1] if len(args) == 4 else None)
    shape = args[2]
    if kind == "O" or not isinstance(shape, tuple) or not all(type(n) is int and n >= 0 for n in shape):
        raise Objectionable("it is not made of bytes, a plain dtype and a shape")
    if _bytes(args[0]) not in (None, math.prod(n for n in shape if isinstance(n, int)) * size):
        raise Objectionable("its bytes are not as many as its shape says")
    return made()


def wrapper(instance: Made, state: Value) -> None:
    """joblib's description of an array whose bytes follow in the stream; their number becomes its data."""
    if not isinstance(state, Mapping) or state.others:
        raise Objectionable("a description of another form")
    kind = state.items.get("subclass")
    if not isinstance(kind, Name) or kind.name != "numpy.ndarray":
        raise Objectionable("it is no plain array")
    shape = state.items.get("shape")
    if not isinstance(shape, tuple) or not all(type(n) is int and n >= 0 for n in shape):
        raise Objectionable("an array's shape is not made of sizes")
    letter, size = _of(state.items.get("dtype"))
    if letter != "O" and state.items.get("numpy_array_alignment_bytes") != 16:
        raise Objectionable("an array without joblib's alignment, whose bytes an unpickler would read as instructions")
    instance.data = None if letter == "O" else math.prod(n for n in shape if isinstance(n, int)) * size


def _of(dtype: Value) -> tuple[str, int]:
    if not isinstance(dtype, Made) or dtype.name != "numpy.dtype" or not isinstance(dtype.data, tuple):
        raise Objectionable("its dtype is not a plain one")
    letter, size = dtype.data
    return str(letter), int(size)


def _bytes(data: Value) -> int | None:
    if isinstance(data, Made):
        data = data.data  # of _codecs.encode: Python 2's bytes
    if isinstance(data, bytes | str):
        return len(data)
    if isinstance(data, Blob) and data.text:
        return None  # Latin-1 written as UTF-8: numpy counts it
    return data.size if isinstance(data, Blob) else -1


DTYPE: Final = Rule(call=_dtype, build=_dtype_state)
ARRAY: Final = Rule(call=_empty, build=_array_state)
