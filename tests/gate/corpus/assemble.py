"""A small assembler of pickles, for payloads that `pickle.dumps` would not write."""

from __future__ import annotations

import struct
from dataclasses import dataclass


@dataclass(frozen=True)
class Ref:
    """A global."""

    module: str
    name: str


@dataclass(frozen=True)
class Call:
    """A call of a global."""

    callee: object
    args: tuple[object, ...]


def call(where: str, *args: object) -> Call:
    """A call of `module:name`."""
    module, _, name = where.partition(":")
    return Call(Ref(module, name), args)


def value(x: object, *, stack_global: bool = False) -> bytes:
    """The instructions that push `x`."""
    match x:
        case None:
            return b"N"
        case bool():
            return b"\x88" if x else b"\x89"
        case int():
            return b"J" + struct.pack("<i", x)
        case float():
            return b"G" + struct.pack(">d", x)
        case str():
            raw = x.encode()
            return b"X" + struct.pack("<I", len(raw)) + raw
        case bytes():
            return b"B" + struct.pack("<I", len(x)) + x
        case tuple():
            return b"(" + b"".join(value(i, stack_global=stack_global) for i in x) + b"t"
        case list():
            return b"](" + b"".join(value(i, stack_global=stack_global) for i in x) + b"e"
        case dict():
            pairs = b"".join(value(i, stack_global=stack_global) for pair in x.items() for i in pair)
            return b"}(" + pairs + b"u"
        case Ref() if stack_global:
            return value(x.module) + value(x.name) + b"\x93"
        case Ref():
            return f"c{x.module}\n{x.name}\n".encode()
        case Call():
            return value(x.callee, stack_global=stack_global) + value(x.args, stack_global=stack_global) + b"R"
    raise TypeError(x)


def pickled(x: object, proto: int = 2) -> bytes:
    """A whole stream that leaves `x`."""
    head = b"\x80" + bytes([proto]) if proto >= 2 else b""
    return head + value(x, stack_global=proto >= 4) + b"."
