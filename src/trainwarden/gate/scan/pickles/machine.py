"""What a pickle's instructions do to stand-ins for objects: stack, memo, names and calls.

Rules
-----
* A name is looked up in the allow-list and nowhere else; what is called, made or given state is checked by its rule.
* Instructions are read as CPython's unpickler reads them. What its two implementations, torch's, or older versions
  read in different ways is objected to: frames that instructions straddle, extension codes, names with dots.
* Stack, memo, kept text and instructions are bounded; beyond a bound the stream is not decided.
"""

from __future__ import annotations

from functools import cache
from typing import Final

from trainwarden.gate.results import Objection
from trainwarden.gate.scan.pickles.allowed import ALLOWED, PYTHON_2, why_not
from trainwarden.gate.scan.pickles.persistent import persistent
from trainwarden.gate.scan.pickles.stream import Broken, Stream
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
_JOBLIB_ALIGNMENT: Final = 16
SHORT: Final = 1024
SHORT_BYTES: Final = 64  # longer ones stay in the file: they may be a pickle themselves


@cache
def opcode_name(op: int) -> str:
    """An instruction's name, as pickletools has it."""
    import pickletools

    return next((o.name for o in pickletools.opcodes if ord(o.code) == op), f"byte {op:#04x}")


def utf8(raw: bytes) -> str:
    """A text of the stream."""
    try:
        return raw.decode("utf-8", "surrogatepass")
    except UnicodeDecodeError:
        raise Broken("text that is not UTF-8") from None


class Machine(Stream):
    """The state of one stream in `window` from `at`; `instructions.follow` drives it."""

    def __init__(self, window: Window, at: int, part: str, spent: int = 0) -> None:
        super().__init__(window, at)
        self.part = part
        self.objections: list[Objection] = []
        self.storages: list[Storage] = []
        self.nested: list[Blob] = []  # bytes that loading unpickles in turn
        self.named = False
        self.spent = spent  # instructions, over all streams of a file
        self.op, self.at = 0, at
        self.stack: list[Value] = []
        self.marks: list[int] = []
        self.memo: dict[int, Value] = {}
        self.frame_end = -1
        self.pickle_follows = False  # of joblib's array of objects, a stream of its own
        self._proto = 0

    def sized(self, width: int, *, text: bool) -> Value:
        """The bytes or text whose length is the next number; long ones stay in the file."""
        size = self.number(width)
        if size > (SHORT if text else SHORT_BYTES):
            blob = Blob(self.offset(), size, text)
            self.skip(size)
            return blob
        self.keep(size)
        got = self.take(size)
        return utf8(got) if text else got

    # Stack

    def push(self, value: Value) -> None:
        if len(self.stack) >= MOST_STACK:
            raise Broken(f"its stack grows past {MOST_STACK:,} values")
        self.stack.append(value)

    def pop(self) -> Value:
        if not self.stack or (self.marks and self.marks[-1] >= len(self.stack)):
            raise Broken("it takes a value from an empty stack")
        return self.stack.pop()

    def top(self) -> Value:
        if not self.stack or (self.marks and self.marks[-1] >= len(self.stack)):
            raise Broken("it takes a value from an empty stack")
        return self.stack[-1]

    def to_mark(self) -> list[Value]:
        if not self.marks:
            raise Broken("it looks for a mark that is not there")
        begin = self.marks.pop()
        items = self.stack[begin:]
        del self.stack[begin:]
        return items

    def object_to(self, name: str, why: str) -> None:
        """Record an objection to the present instruction."""
        if len(self.objections) < 50:
            op = opcode_name(self.op)
            self.objections.append(Objection(part=self.part, offset=self.at, opcode=op, name=name, why=why))

    # Frames, protocol, memo

    def in_frame(self) -> None:
        """Object to an instruction that reaches over the end of its frame."""
        here = self.offset()
        if here > self.frame_end >= 0 and self.at < self.frame_end:
            self.object_to("", "the instruction straddles the end of a frame: unpicklers read on at different places")
            self.frame_end = -1
        elif here >= self.frame_end:
            self.frame_end = -1

    def frame(self) -> None:
        size = self.number(8)
        if self.offset() < self.frame_end:
            self.object_to("", "a frame inside of a frame: unpicklers read on at different places")
        if self.offset() + size > self.window.size:
            raise Broken("a frame is longer than the stream")
        self.frame_end = self.offset() + size

    def proto(self) -> None:
        self._proto = self.take(1)[0]
        if self._proto > 5:
            raise Broken(f"protocol {self._proto} is not known")

    def memoize(self, index: int) -> None:
        if index < 0 or index > MOST_MEMO or len(self.memo) >= MOST_MEMO:
            raise Broken(f"its memo grows past {MOST_MEMO:,} places")
        self.memo[index] = self.top()

    def recall(self, index: int) -> None:
        if index not in self.memo:
            raise Broken(f"it recalls place {index} of its memo, where nothing is")
        self.push(self.memo[index])

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
        code = self.number(width)
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
        module, name = utf8(self.line()), utf8(self.line())
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
        """joblib writes an array's bytes into the stream, behind what describes it; an array of objects as a pickle.

        The bytes begin with a length of padding that is no instruction, so that a plain unpickler stops there: it reads
        none of them as instructions.
        """
        self.frame_end = -1
        if not isinstance(wrapper.data, int):
            self.pickle_follows = True
            return
        padding = self.number(1)
        if not 1 <= padding <= _JOBLIB_ALIGNMENT:
            self.object_to(wrapper.name, "an array whose bytes an unpickler would read as instructions")
        self.skip(padding + wrapper.data)

    def grow(self, items: list[Value], target: Value) -> None:
        if isinstance(target, Many):
            if target.kind == "set" and not all(map(_plain_key, items)):
                self.object_to("set", "an item is not a plain value: its hash is its own code or takes for ever")
            self.keep(8 * len(items))
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
                self.keep(16 * len(keys))
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
        self.keep(64)
        self.storages.append(storage)
        self.push(storage)


def _plain_key(value: Value, depth: int = 0) -> bool:
    if isinstance(value, tuple):
        return depth < 2 and len(value) < 64 and all(_plain_key(v, depth + 1) for v in value)
    return not isinstance(value, Many | Mapping | Unknown | Name) or (
        isinstance(value, Name) and value.rule.call is None
    )
