"""What each instruction of a pickle does, and following a stream of them without running any.

Source: CPython, Lib/pickletools.py and Modules/_pickle.c (protocols 0 to 5).
"""

from __future__ import annotations

import struct
from collections.abc import Callable
from typing import Final

from trainwarden.gate.scan.pickles.machine import MOST_STACK, SHORT, Machine, utf8
from trainwarden.gate.scan.pickles.stream import Broken
from trainwarden.gate.scan.pickles.values import Many, Mapping, Value

MOST_INSTRUCTIONS: Final = 1 << 24
_STOP: Final = 0x2E
_JOBLIB_OBJECTS: Final = "!objects"
_LINE: Final = 4400  # CPython reads decimal numbers of up to 4,300 digits


def follow(m: Machine) -> Value:
    """Follow the stream to its STOP and give what is on top of the stack.

    Raises:
        Broken: it cannot be followed to a STOP.
    """
    while True:
        m.at = m.base + m.pos
        m.spent += 1
        if m.spent > MOST_INSTRUCTIONS:
            raise Broken(f"it has more than {MOST_INSTRUCTIONS:,} instructions")
        if m.pos < len(m.buffer):
            op = m.op = m.buffer[m.pos]
            m.pos += 1
        else:
            op = m.op = m.number(1)
        if op == _STOP:
            m.in_frame()
            return m.pop()
        act = _ACTS.get(op)
        if act is None:
            raise Broken(f"byte {op:#04x} at {m.at} is no pickle instruction")
        act(m)
        if m.base + m.pos >= m.frame_end >= 0:
            m.in_frame()


def _number(line: bytes) -> Value:
    if line in (b"00", b"01"):
        return line == b"01"
    return _decimal(line)


def _decimal(line: bytes) -> int:
    if len(line) > _LINE:
        raise Broken("a number of thousands of digits")
    try:
        return int(line.rstrip(b"L"))
    except ValueError:
        raise Broken("a number that is none") from None


def _float(line: bytes) -> float:
    try:
        return float(line)
    except ValueError:
        raise Broken("a number that is none") from None


def _quoted(m: Machine) -> None:
    line = m.line().strip()
    if len(line) < 2 or line[:1] != line[-1:] or line[:1] not in (b"'", b'"'):
        raise Broken("text without its quotes")
    inner = line[1:-1]
    if b"\\" in inner:
        inner = (
            inner.decode("latin-1")
            .encode("ascii", "backslashreplace")
            .decode("unicode_escape")
            .encode("latin-1", "replace")
        )
    m.keep(len(inner))
    m.push(inner.decode("latin-1"))


def _escaped(m: Machine) -> None:
    line = m.line()
    m.keep(len(line))
    try:
        m.push(line.decode("raw-unicode-escape"))
    except UnicodeDecodeError:
        raise Broken("text with a broken escape") from None


def _long(m: Machine, width: int) -> None:
    size = int.from_bytes(m.take(width), "little", signed=width == 4)
    if not 0 <= size <= SHORT:
        raise Broken("a number of thousands of digits")
    m.push(int.from_bytes(m.take(size), "little", signed=True))


def _tuple(count: int) -> Callable[[Machine], None]:
    def act(m: Machine) -> None:
        items = [m.pop() for _ in range(count)]
        m.push(tuple(reversed(items)))

    return act


def _old_bytes(width: int) -> Callable[[Machine], None]:
    """Python 2's str: text or bytes, as the loader chooses; taken as text."""

    def act(m: Machine) -> None:
        got = m.sized(width, text=False)
        m.push(got.decode("latin-1") if isinstance(got, bytes) else got)

    return act


def _pop_mark(m: Machine) -> None:
    m.to_mark()


def _pop(m: Machine) -> None:
    if m.marks and m.marks[-1] == len(m.stack):
        m.marks.pop()
    else:
        m.pop()


def _new_dict(m: Machine) -> None:
    made = Mapping()
    items = m.to_mark()
    m.put(items, made)
    m.push(made)


def _new_many(kind: str) -> Callable[[Machine], None]:
    def act(m: Machine) -> None:
        made = Many(kind)
        m.grow(m.to_mark(), made)
        m.push(made)

    return act


def _append(m: Machine) -> None:
    item = m.pop()
    m.grow([item], m.top())


def _set_item(m: Machine) -> None:
    value, key = m.pop(), m.pop()
    m.put([key, value], m.top())


def _appends(m: Machine) -> None:
    items = m.to_mark()
    m.grow(items, m.top())


def _set_items(m: Machine) -> None:
    items = m.to_mark()
    m.put(items, m.top())


def _bytearray(m: Machine) -> None:
    got = m.sized(8, text=False)
    m.push(got)


def _global(m: Machine) -> None:
    module = utf8(m.line())
    m.push(m.find(module, utf8(m.line())))


def _memoized(m: Machine) -> None:
    m.memoize(len(m.memo))


def _build(m: Machine) -> None:
    m.build()
    if not m.pickle_follows:
        return
    m.pickle_follows = False
    if m.part.endswith(_JOBLIB_OBJECTS):
        raise Broken("joblib's arrays inside of an array of objects, which joblib does not write")
    inner = Machine(m.window, m.offset(), m.part + _JOBLIB_OBJECTS, m.spent)
    follow(inner)
    m.spent, m.named = inner.spent, True
    m.objections += inner.objections
    m.storages += inner.storages
    m.nested += inner.nested
    m.skip(inner.offset() - m.offset())


def _text_id(m: Machine) -> None:
    raise Broken("a persistent id of text, at which every loader that we know stops")


def _out_of_band(m: Machine) -> None:
    raise Broken("buffers that are not in the stream")


_ACTS: Final[dict[int, Callable[[Machine], None]]] = {
    0x80: Machine.proto,
    0x95: Machine.frame,
    0x28: lambda m: m.marks.append(len(m.stack)) if len(m.marks) < MOST_STACK else _out_of_band(m),
    0x30: _pop,
    0x31: _pop_mark,
    0x32: lambda m: m.push(m.top()),
    0x4E: lambda m: m.push(None),
    0x88: lambda m: m.push(True),
    0x89: lambda m: m.push(False),
    0x49: lambda m: m.push(_number(m.line())),
    0x4C: lambda m: m.push(_decimal(m.line())),
    0x46: lambda m: m.push(_float(m.line())),
    0x4A: lambda m: m.push(int.from_bytes(m.take(4), "little", signed=True)),
    0x4B: lambda m: m.push(m.number(1)),
    0x4D: lambda m: m.push(m.number(2)),
    0x8A: lambda m: _long(m, 1),
    0x8B: lambda m: _long(m, 4),
    0x47: lambda m: m.push(struct.unpack(">d", m.take(8))[0]),
    0x53: _quoted,
    0x56: _escaped,
    0x54: _old_bytes(4),
    0x55: _old_bytes(1),
    0x42: lambda m: m.push(m.sized(4, text=False)),
    0x43: lambda m: m.push(m.sized(1, text=False)),
    0x8E: lambda m: m.push(m.sized(8, text=False)),
    0x96: _bytearray,
    0x58: lambda m: m.push(m.sized(4, text=True)),
    0x8C: lambda m: m.push(m.sized(1, text=True)),
    0x8D: lambda m: m.push(m.sized(8, text=True)),
    0x5D: lambda m: m.push(Many("list")),
    0x7D: lambda m: m.push(Mapping()),
    0x8F: lambda m: m.push(Many("set")),
    0x29: lambda m: m.push(()),
    0x85: _tuple(1),
    0x86: _tuple(2),
    0x87: _tuple(3),
    0x74: lambda m: m.push(tuple(m.to_mark())),
    0x6C: _new_many("list"),
    0x91: _new_many("set"),
    0x64: _new_dict,
    0x61: _append,
    0x65: _appends,
    0x90: _appends,
    0x73: _set_item,
    0x75: _set_items,
    0x70: lambda m: m.memoize(_decimal(m.line())),
    0x71: lambda m: m.memoize(m.number(1)),
    0x72: lambda m: m.memoize(m.number(4)),
    0x94: _memoized,
    0x67: lambda m: m.recall(_decimal(m.line())),
    0x68: lambda m: m.recall(m.number(1)),
    0x6A: lambda m: m.recall(m.number(4)),
    0x63: _global,
    0x93: Machine.named_on_stack,
    0x52: Machine.call,
    0x81: Machine.make,
    0x92: Machine.make_with_keywords,
    0x6F: Machine.make_from_mark,
    0x69: Machine.instance,
    0x62: _build,
    0x50: _text_id,
    0x51: lambda m: m.persistent_id(m.pop()),
    0x82: lambda m: m.extension(1),
    0x83: lambda m: m.extension(2),
    0x84: lambda m: m.extension(4),
    0x97: _out_of_band,
    0x98: _out_of_band,
}
