"""Follows the instructions of a pickle without running any.

Rules
-----
* A name is looked up in the allow-list and nowhere else; what is called, made or given state is checked by its rule.
* Instructions are read as CPython's unpickler reads them. What its two implementations, torch's, or older versions
  read in different ways is objected to: frames that instructions straddle, extension codes, names with dots.
* Stack, memo, kept text and instructions are bounded; beyond a bound the stream is not decided.

Source: CPython, Lib/pickletools.py and Modules/_pickle.c (protocols 0 to 5).
"""

from __future__ import annotations

import pickletools
import struct
from collections.abc import Callable
from typing import Final

from trainwarden.gate.results import Objection
from trainwarden.gate.scan.pickles.allowed import ALLOWED, PYTHON_2, why_not
from trainwarden.gate.scan.pickles.persistent import persistent
from trainwarden.gate.scan.pickles.values import (
    Blob,
    Made,
    Many,
    Mapping,
    Name,
    Objectionable,
    Storage,
    Unknown,
    Value,
)
from trainwarden.gate.scan.window import Window

MOST_STACK: Final = 1 << 18
MOST_MEMO: Final = 1 << 18
MOST_KEPT: Final = 1 << 23
MOST_INSTRUCTIONS: Final = 1 << 24
SHORT: Final = 1024
SHORT_BYTES: Final = 64  # longer ones stay in the file: they may be a pickle themselves
_LINE: Final = 4400  # CPython reads decimal numbers of up to 4,300 digits
_CHUNK: Final = 1 << 16
_NAMES: Final = {ord(op.code): op.name for op in pickletools.opcodes}


class Broken(Exception):
    """The stream ends, or cannot be followed, before its STOP."""


class Machine:
    """One stream of instructions in `window` from `at`; `run` follows it to its STOP."""

    def __init__(self, window: Window, at: int, part: str, spent: int = 0) -> None:
        self.window, self.part = window, part
        self.objections: list[Objection] = []
        self.storages: list[Storage] = []
        self.nested: list[Blob] = []  # bytes that loading unpickles in turn
        self.named = False
        self.spent = spent  # instructions, over all streams of a file
        self._buffer, self._base, self._pos = window.read(at, _CHUNK), at, 0
        self._stack: list[Value] = []
        self._marks: list[int] = []
        self._memo: dict[int, Value] = {}
        self._kept = 0
        self._proto = 0
        self._frame_end = -1
        self._op, self._at = 0, at

    # Reading

    def offset(self) -> int:
        """Where the next instruction is."""
        return self._base + self._pos

    def take(self, count: int) -> bytes:
        """The next `count` bytes of the stream, which must be there."""
        if self._pos + count > len(self._buffer):
            here = self.offset()
            self._buffer = self.window.read(here, max(count, _CHUNK))
            self._base, self._pos = here, 0
            if len(self._buffer) < count:
                raise Broken("the stream is cut off")
        self._pos += count
        return self._buffer[self._pos - count : self._pos]

    def skip(self, count: int) -> None:
        """Pass over `count` bytes, which must be there."""
        if self.offset() + count > self.window.size:
            raise Broken("the stream is cut off")
        if self._pos + count <= len(self._buffer):
            self._pos += count
        else:
            self._base, self._pos, self._buffer = self.offset() + count, 0, b""

    def line(self) -> bytes:
        """The bytes up to the next newline, without it."""
        end = self._buffer.find(b"\n", self._pos)
        if end < 0:
            here = self.offset()
            self._buffer, self._base, self._pos = self.window.read(here, _CHUNK), here, 0
            end = self._buffer.find(b"\n")
            if end < 0:
                raise Broken("a line has no end")
        got = self._buffer[self._pos : end]
        self._pos = end + 1
        return got

    def _sized(self, width: int, *, text: bool) -> Value:
        size = int.from_bytes(self.take(width), "little")
        if size > (SHORT if text else SHORT_BYTES):
            blob = Blob(self.offset(), size, text)
            self.skip(size)
            return blob
        self._keep(size)
        got = self.take(size)
        return _utf8(got) if text else got

    def _keep(self, size: int) -> None:
        self._kept += size
        if self._kept > MOST_KEPT:
            raise Broken("it holds more names than a scan keeps")

    # Stack

    def push(self, value: Value) -> None:
        if len(self._stack) >= MOST_STACK:
            raise Broken(f"its stack grows past {MOST_STACK:,} values")
        self._stack.append(value)

    def pop(self) -> Value:
        if not self._stack or (self._marks and self._marks[-1] >= len(self._stack)):
            raise Broken("it takes a value from an empty stack")
        return self._stack.pop()

    def top(self) -> Value:
        if not self._stack or (self._marks and self._marks[-1] >= len(self._stack)):
            raise Broken("it takes a value from an empty stack")
        return self._stack[-1]

    def to_mark(self) -> list[Value]:
        if not self._marks:
            raise Broken("it looks for a mark that is not there")
        begin = self._marks.pop()
        items = self._stack[begin:]
        del self._stack[begin:]
        return items

    def object_to(self, name: str, why: str) -> None:
        """Record an objection to the present instruction."""
        if len(self.objections) < 50:
            op = _NAMES.get(self._op, f"byte {self._op:#04x}")
            self.objections.append(Objection(part=self.part, offset=self._at, opcode=op, name=name, why=why))

    # Following

    def run(self) -> Value:
        """Follow the stream to its STOP and give what is on top of the stack.

        Raises:
            Broken: it cannot be followed to a STOP.
        """
        while True:
            self._at = self.offset()
            op = self._op = self.take(1)[0]
            self.spent += 1
            if self.spent > MOST_INSTRUCTIONS:
                raise Broken(f"it has more than {MOST_INSTRUCTIONS:,} instructions")
            if op == 0x2E:
                self._in_frame()
                return self.pop()
            follow = _FOLLOW.get(op)
            if follow is None:
                raise Broken(f"byte {op:#04x} at {self._at} is no pickle instruction")
            follow(self)
            if self._frame_end >= 0:
                self._in_frame()

    def _in_frame(self) -> None:
        here = self.offset()
        if here > self._frame_end >= 0 and self._at < self._frame_end:
            self.object_to("", "the instruction straddles the end of a frame: unpicklers read on at different places")
            self._frame_end = -1
        elif here >= self._frame_end:
            self._frame_end = -1

    def frame(self) -> None:
        size = int.from_bytes(self.take(8), "little")
        if self.offset() < self._frame_end:
            self.object_to("", "a frame inside of a frame: unpicklers read on at different places")
        if self.offset() + size > self.window.size:
            raise Broken("a frame is longer than the stream")
        self._frame_end = self.offset() + size

    def proto(self) -> None:
        self._proto = self.take(1)[0]
        if self._proto > 5:
            raise Broken(f"protocol {self._proto} is not known")

    def memoize(self, index: int) -> None:
        if index < 0 or index > MOST_MEMO or len(self._memo) >= MOST_MEMO:
            raise Broken(f"its memo grows past {MOST_MEMO:,} places")
        self._memo[index] = self.top()

    def recall(self, index: int) -> None:
        if index not in self._memo:
            raise Broken(f"it recalls place {index} of its memo, where nothing is")
        self.push(self._memo[index])

    def find(self, module: str, name: str) -> Value:
        """What the allow-list has under this name; an objection when it has nothing."""
        self.named = True
        if self._proto < 3 and (module, name) in PYTHON_2:
            module, name = PYTHON_2[module, name]
        rule = ALLOWED.get((module, name))
        if rule is not None:
            return Name(f"{module}.{name}", rule)
        self.object_to(f"{module}.{name}"[:200], why_not(module, name))
        return Unknown()

    def named_on_stack(self) -> None:
        name, module = self.pop(), self.pop()
        if not isinstance(name, str) or not isinstance(module, str):
            self.object_to("", "the name is not short text")
            self.push(Unknown())
        else:
            self.push(self.find(module, name))

    def extension(self, width: int) -> None:
        code = int.from_bytes(self.take(width), "little")
        self.object_to(f"code {code}", "extension codes name whatever a registry of the loading process holds")
        self.push(Unknown())

    def call(self) -> None:
        args, callee = self.pop(), self.pop()
        self.push(self._result(callee, args, "call"))

    def make(self) -> None:
        args, callee = self.pop(), self.pop()
        self.push(self._result(callee, args, "new"))

    def make_with_keywords(self) -> None:
        keywords, args, callee = self.pop(), self.pop(), self.pop()
        if not (isinstance(keywords, Mapping) and keywords.count == 0):
            self.object_to(getattr(callee, "name", ""), "made with keyword arguments")
        self.push(self._result(callee, args, "new"))

    def make_from_mark(self) -> None:
        items = self.to_mark()
        if not items:
            raise Broken("it makes an object of nothing")
        self.push(self._result(items[0], tuple(items[1:]), "call"))

    def instance(self) -> None:
        module, name = _utf8(self.line()), _utf8(self.line())
        self.push(self._result(self.find(module, name), tuple(self.to_mark()), "call"))

    def _result(self, callee: Value, args: Value, way: str) -> Value:
        if isinstance(callee, Unknown):
            return callee
        if not isinstance(callee, Name):
            self.object_to(type(callee).__name__, "something is called that is not a name of the allow-list")
            return Unknown()
        rule = callee.rule.call if way == "call" else callee.rule.new
        if rule is None:
            self.object_to(callee.name, "no checkpoint calls it" if way == "call" else "no checkpoint makes one so")
            return Unknown()
        if not isinstance(args, tuple):
            self.object_to(callee.name, "its arguments are not a tuple")
            return Unknown()
        try:
            made = rule(args)
        except Objectionable as e:
            self.object_to(callee.name, str(e))
            return Unknown()
        if isinstance(made, Made):
            if not made.name:
                made.name, made.rule = callee.name, callee.rule
            if made.name == "torch.storage._load_from_bytes" and isinstance(made.data, Blob):
                self.nested.append(made.data)
        return made

    def build(self) -> None:
        state, instance = self.pop(), self.top()
        if isinstance(instance, Unknown):
            return
        if not isinstance(instance, Made) or instance.rule.build is None:
            name = instance.name if isinstance(instance, Made | Name) else type(instance).__name__
            self.object_to(name, "it is given state, which no checkpoint gives it")
            return
        try:
            instance.rule.build(instance, state)
        except Objectionable as e:
            self.object_to(instance.name, str(e))
        if instance.name == "joblib.numpy_pickle.NumpyArrayWrapper" and not self.objections:
            self._array_follows(instance)

    def _array_follows(self, wrapper: Made) -> None:
        """joblib writes an array's bytes into the stream, behind what describes it."""
        size = wrapper.data
        if not isinstance(size, int):
            raise Broken("an array of objects inside of a joblib stream")
        self._frame_end = -1
        padding = self.take(1)[0]
        self.skip((0 if padding == 255 else padding) + size)

    def grow(self, items: list[Value], target: Value) -> None:
        if isinstance(target, Many):
            if target.kind == "set" and not all(map(_plain_key, items)):
                self.object_to("set", "an item is not a plain value: its hash is its own code or takes for ever")
            self._keep(8 * len(items))
            target.add(items)
        elif not (isinstance(target, Unknown) or (isinstance(target, Made) and target.rule.grows)):
            self.object_to(getattr(target, "name", type(target).__name__), "items are added to what is no list or set")

    def put(self, items: list[Value], target: Value) -> None:
        if len(items) % 2:
            raise Broken("a key has no value")
        keys = items[::2]
        if isinstance(target, Mapping) or (isinstance(target, Made) and target.rule.grows):
            if not all(map(_plain_key, keys)):
                self.object_to("", "a key is not a plain value: its hash is its own code or takes for ever")
            if isinstance(target, Mapping):
                self._keep(16 * len(keys))
                for key, value in zip(keys, items[1::2], strict=True):
                    target.put(key, value)
        elif not isinstance(target, Unknown):
            self.object_to(getattr(target, "name", type(target).__name__), "keys are set on what is no dict")

    def persistent_id(self, given: Value) -> None:
        try:
            storage = persistent(given)
        except Objectionable as e:
            self.object_to("persistent id", str(e))
            self.push(Unknown())
            return
        self._keep(64)
        self.storages.append(storage)
        self.push(storage)


def _plain_key(value: Value, depth: int = 0) -> bool:
    if isinstance(value, tuple):
        return depth < 2 and len(value) < 64 and all(_plain_key(v, depth + 1) for v in value)
    return not isinstance(value, Many | Mapping | Unknown | Name) or (
        isinstance(value, Name) and value.rule.call is None
    )


def _utf8(raw: bytes) -> str:
    try:
        return raw.decode("utf-8", "surrogatepass")
    except UnicodeDecodeError:
        raise Broken("text that is not UTF-8") from None


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
    m._keep(len(inner))
    m.push(inner.decode("latin-1"))


def _escaped(m: Machine) -> None:
    line = m.line()
    m._keep(len(line))
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
    def follow(m: Machine) -> None:
        items = [m.pop() for _ in range(count)]
        m.push(tuple(reversed(items)))

    return follow


def _old_bytes(width: int) -> Callable[[Machine], None]:
    """Python 2's str: text or bytes, as the loader chooses; taken as text."""

    def follow(m: Machine) -> None:
        got = m._sized(width, text=False)
        m.push(got.decode("latin-1") if isinstance(got, bytes) else got)

    return follow


def _pop_mark(m: Machine) -> None:
    m.to_mark()


def _pop(m: Machine) -> None:
    if m._marks and m._marks[-1] == len(m._stack):
        m._marks.pop()
    else:
        m.pop()


def _new_dict(m: Machine) -> None:
    made = Mapping()
    items = m.to_mark()
    m.put(items, made)
    m.push(made)


def _new_many(kind: str) -> Callable[[Machine], None]:
    def follow(m: Machine) -> None:
        made = Many(kind)
        m.grow(m.to_mark(), made)
        m.push(made)

    return follow


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
    got = m._sized(8, text=False)
    m.push(got)


def _global(m: Machine) -> None:
    module = _utf8(m.line())
    m.push(m.find(module, _utf8(m.line())))


def _memoized(m: Machine) -> None:
    m.memoize(len(m._memo))


def _text_id(m: Machine) -> None:
    raise Broken("a persistent id of text, at which every loader that we know stops")


def _out_of_band(m: Machine) -> None:
    raise Broken("buffers that are not in the stream")


_FOLLOW: Final[dict[int, Callable[[Machine], None]]] = {
    0x80: Machine.proto,
    0x95: Machine.frame,
    0x28: lambda m: m._marks.append(len(m._stack)) if len(m._marks) < MOST_STACK else _out_of_band(m),
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
    0x4B: lambda m: m.push(m.take(1)[0]),
    0x4D: lambda m: m.push(int.from_bytes(m.take(2), "little")),
    0x8A: lambda m: _long(m, 1),
    0x8B: lambda m: _long(m, 4),
    0x47: lambda m: m.push(struct.unpack(">d", m.take(8))[0]),
    0x53: _quoted,
    0x56: _escaped,
    0x54: _old_bytes(4),
    0x55: _old_bytes(1),
    0x42: lambda m: m.push(m._sized(4, text=False)),
    0x43: lambda m: m.push(m._sized(1, text=False)),
    0x8E: lambda m: m.push(m._sized(8, text=False)),
    0x96: _bytearray,
    0x58: lambda m: m.push(m._sized(4, text=True)),
    0x8C: lambda m: m.push(m._sized(1, text=True)),
    0x8D: lambda m: m.push(m._sized(8, text=True)),
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
    0x71: lambda m: m.memoize(m.take(1)[0]),
    0x72: lambda m: m.memoize(int.from_bytes(m.take(4), "little")),
    0x94: _memoized,
    0x67: lambda m: m.recall(_decimal(m.line())),
    0x68: lambda m: m.recall(m.take(1)[0]),
    0x6A: lambda m: m.recall(int.from_bytes(m.take(4), "little")),
    0x63: _global,
    0x93: Machine.named_on_stack,
    0x52: Machine.call,
    0x81: Machine.make,
    0x92: Machine.make_with_keywords,
    0x6F: Machine.make_from_mark,
    0x69: Machine.instance,
    0x62: Machine.build,
    0x50: _text_id,
    0x51: lambda m: m.persistent_id(m.pop()),
    0x82: lambda m: m.extension(1),
    0x83: lambda m: m.extension(2),
    0x84: lambda m: m.extension(4),
    0x97: _out_of_band,
    0x98: _out_of_band,
}
