"""Bytecode as text, read from a `.pyc` without running or unmarshalling it.

Rules
-----
* The bytes are hostile: they go through the bounded reader of `pyc.py` and no code object is ever made of them.
* Instructions and their names are those of the Python that runs TrainWarden; a cache of another Python is not
  disassembled. Offsets and file names are left out of the text, so that a diff shows what a function does; the source
  line of each instruction, as the bytecode itself claims it, is told beside it.
"""

from __future__ import annotations

import struct
from collections.abc import Iterator
from typing import NamedTuple

from trainwarden import codeform
from trainwarden.seal.pyc import Tree, read_code

_LONGEST = 200  # characters of one constant
_MOST_LINES = 200_000
_FLAGS = {1: "OPTIMIZED", 2: "NEWLOCALS", 4: "*args", 8: "**kwargs", 32: "GENERATOR", 128: "COROUTINE"}
_SINGLES = {b"N": "None", b"T": "True", b"F": "False", b".": "Ellipsis", b"S": "StopIteration"}


class Line(NamedTuple):
    """One line of a disassembly, and the source line that it was compiled from, 0 for none."""

    text: str
    source: int


def disassemble(data: bytes) -> list[Line] | None:
    """The code objects of a `.pyc` as lines, outermost first; None when it cannot be read by this Python."""
    tree = read_code(data)
    if tree is None or not isinstance(tree, tuple) or tree[0] != b"c":
        return None
    lines: list[Line] = []
    pending = [tree]
    while pending and len(lines) < _MOST_LINES:
        code = pending.pop(0)
        nested: list[tuple[Tree, ...]] = []
        lines += _code(code, nested)
        pending[:0] = nested
    return lines[:_MOST_LINES]


def _code(code: tuple[Tree, ...], nested: list[tuple[Tree, ...]]) -> Iterator[Line]:
    _, numbers, body, consts, names, locals_, _, _, qualname, first, table, exceptions = code
    flags = struct.unpack("<5i", numbers if isinstance(numbers, bytes) and len(numbers) == 20 else bytes(20))
    shown = ", ".join(_text(name) for name in _items(locals_)[: max(0, flags[0] + flags[2])])
    said = " ".join(word for bit, word in _FLAGS.items() if flags[4] & bit and bit > 2)
    start = int.from_bytes(first, "little", signed=True) if isinstance(first, bytes) else 0
    yield Line(f"code {_text(qualname)}({shown}) {said}".rstrip(), start)
    nested += [part for part in _items(consts) if isinstance(part, tuple) and part[0] == b"c"]
    constants = [_constant(part) for part in _items(consts)]
    words, variables = ([_text(part) for part in _items(of)] for of in (names, locals_))
    places = _lines(_bytes(table), start, len(_bytes(body)) // 2)
    for at, name, argument in codeform.instructions(_bytes(body)):
        text = f"    {name:<24} {codeform.operand(name, argument, constants, words, variables)}".rstrip()
        yield Line(text, places[at] if at < len(places) else 0)
    if caught := _bytes(exceptions):
        yield Line(f"    exception table of {len(caught)} bytes: {caught[:32].hex()}", 0)


def _lines(table: bytes, line: int, most: int) -> list[int]:
    """The source line of each code unit, 0 for none (CPython's `Objects/locations.md`, 3.11 and later)."""
    found: list[int] = []
    at = 0

    def varint() -> int:
        nonlocal at
        value = shift = 0
        while at < len(table) and shift < 36:
            byte = table[at]
            at += 1
            value |= (byte & 63) << shift
            shift += 6
            if not byte & 64:
                break
        return value

    while at < len(table) and len(found) < most:
        head = table[at]
        at += 1
        kind, length = head >> 3 & 15, (head & 7) + 1
        if kind in (13, 14):
            delta = varint()
            line += -(delta >> 1) if delta & 1 else delta >> 1
            for _ in range(3 if kind == 14 else 0):
                varint()
        elif kind < 13:
            line += kind - 10 if kind >= 10 else 0
            at += 2 if kind >= 10 else 1
        found += [0 if kind == 15 else line] * length
    return found


def _constant(tree: Tree) -> str:
    text = _constant_text(tree)
    return text if len(text) <= _LONGEST else text[:_LONGEST] + "…"


def _constant_text(tree: Tree) -> str:
    if isinstance(tree, bytes):
        return _SINGLES.get(tree, "?")
    kind, *rest = tree
    if kind == b"c":
        return f"<code {_text(tree[-4])}>"
    if kind in (b"(", b"<"):
        inside = ", ".join(_constant_text(part) for part in rest[:50])
        return f"({inside})" if kind == b"(" else f"frozenset({inside})"
    value = _bytes(tree)
    if kind == b"u":
        return repr(value.decode("utf-8", "replace"))
    if kind == b"s":
        return repr(value[:_LONGEST])
    if kind == b"i" and len(value) == 4:
        return str(int.from_bytes(value, "little", signed=True))
    if kind == b"g" and len(value) == 8:
        return repr(struct.unpack("<d", value)[0])
    if kind == b"y" and len(value) == 16:
        return repr(complex(*struct.unpack("<2d", value)))
    return f"{rest!r}"[:_LONGEST]


def _items(tree: Tree) -> list[Tree]:
    return list(tree[1:]) if isinstance(tree, tuple) and tree[0] == b"(" else []


def _bytes(tree: Tree) -> bytes:
    last = tree[-1] if isinstance(tree, tuple) else tree
    return last if isinstance(last, bytes) else b""


def _text(tree: Tree) -> str:
    return _bytes(tree).decode("utf-8", "replace") if isinstance(tree, tuple) else "?"
