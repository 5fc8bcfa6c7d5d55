"""Is a new or changed `.pyc` what Python itself would have written from the sealed source?

Python writes a cache beside every source that it imports, so new `.pyc` files are ordinary; a forged one is a
favourite hiding place. The two are told apart by compiling the *sealed* bytes here and comparing the code.

Rules
-----
* Never `marshal.loads`: it is not safe on hostile bytes. The body is compared byte for byte with our own
  `marshal.dumps`; where it differs (reference flags depend on what else is interned), both are parsed by a small
  bounded reader in Python and compared as trees. File names are left out: import overwrites them.
* Only the cache of the Python version that runs TrainWarden can be judged. Another magic number, an
  unchecked-hash cache (Python never writes one by itself), or anything that does not parse is not benign.
"""

from __future__ import annotations

import importlib.util
import marshal
import os
import re
from typing import TypeAlias

_NAME = re.compile(r"(?P<stem>.+)\.(?P<tag>(?!opt-)[^.]+)(?:\.opt-(?P<level>[12]))?\.pyc")
_TEMP = re.compile(r".+\.pyc\.\d+")
_MAX_DEPTH = 200
Tree: TypeAlias = "bytes | tuple[Tree, ...]"


def source_of(path: str, prefix: str = "") -> tuple[str, int] | None:
    """The source that a `__pycache__` file is the cache of, and the optimisation level (PEP 3147, PEP 488).

    Below `prefix`, a `PYTHONPYCACHEPREFIX`, caches lie where their sources do below `/`.
    """
    folder, name = os.path.split(path)
    match = _NAME.fullmatch(name)
    if not match:
        return None
    level = int(match["level"] or 0)
    if prefix and folder.startswith(prefix + "/"):
        return os.path.join(folder[len(prefix) :], match["stem"] + ".py"), level
    if os.path.basename(folder) != "__pycache__":
        return None
    return os.path.join(os.path.dirname(folder), match["stem"] + ".py"), level


def is_half_written(path: str) -> bool:
    """The name under which Python writes a cache before it renames it: nothing loads a file called so."""
    return os.path.basename(os.path.dirname(path)) == "__pycache__" and bool(_TEMP.fullmatch(os.path.basename(path)))


def fits_source(head: bytes, mtime_ns: int, size: int) -> bool:
    """Would Python load a cache with this header for a source with that time and size (PEP 552)?"""
    if len(head) < 16:
        return False
    if head[4] & 1:
        return True  # hash-based: unchecked ones always load, checked ones depend on the source's bytes alone
    mtime = (mtime_ns // 1_000_000_000) & 0xFFFFFFFF
    return head[8:12] == mtime.to_bytes(4, "little") and head[12:16] == (size & 0xFFFFFFFF).to_bytes(4, "little")


def is_cache_of(data: bytes, source: bytes, source_path: str, level: int) -> bool:
    """Is `data` the cache that this Python makes of `source`, header times apart?"""
    flags = int.from_bytes(data[4:8], "little")
    if len(data) < 16 or data[:4] != importlib.util.MAGIC_NUMBER or flags not in (0, 3):
        return False
    if flags == 3 and data[8:16] != importlib.util.source_hash(source):
        return False
    ours = compiled(source, source_path, level)
    if ours is None:
        return False
    if ours[16:] == data[16:]:
        return True
    try:
        return _Reader(ours[16:]).whole() == _Reader(data[16:]).whole()
    except _NotMarshal:
        return False


def read_code(data: bytes) -> Tree | None:
    """The code object in a `.pyc` of this Python as a tree of tagged bytes (see `_Reader`); None when it is none."""
    if len(data) < 16 or data[:4] != importlib.util.MAGIC_NUMBER:
        return None
    try:
        return _Reader(data[16:]).whole()
    except _NotMarshal:
        return None


def compiled(source: bytes, source_path: str, level: int) -> bytes | None:
    """The cache that this Python would write of `source`, header left empty; None when it does not compile."""
    try:
        code = compile(source, source_path, "exec", dont_inherit=True, optimize=level)
    except (SyntaxError, ValueError, RecursionError, MemoryError):
        return None
    return importlib.util.MAGIC_NUMBER + bytes(12) + marshal.dumps(code)


class _NotMarshal(Exception):
    pass


class _Reader:
    """Reads marshal version 4 as trees of tagged bytes, with references resolved and file names dropped.

    References point to trees already read, so a small file could unfold into a huge tree; the tree is never
    walked but by `==`, and the nodes that it may hold when unfolded are counted against a bound.
    """

    _SIZED = b"sutAaziZ"

    def __init__(self, data: bytes) -> None:
        self._data = data
        self._at = 0
        self._refs: list[tuple[Tree, int] | None] = []
        self._budget = 40 * len(data) + 1000

    def whole(self) -> Tree:
        tree, _ = self._value(0)
        if self._at != len(self._data):
            raise _NotMarshal
        return tree

    def _take(self, n: int) -> bytes:
        part = self._data[self._at : self._at + n]
        if n < 0 or len(part) != n:
            raise _NotMarshal
        self._at += n
        return part

    def _int(self, n: int = 4) -> int:
        return int.from_bytes(self._take(n), "little", signed=n == 4)

    def _value(self, depth: int) -> tuple[Tree, int]:
        """The next value and the number of nodes below it."""
        if depth > _MAX_DEPTH:
            raise _NotMarshal
        code = self._take(1)[0]
        kind = bytes([code & 0x7F])
        slot = -1
        if code & 0x80:
            slot = len(self._refs)
            self._refs.append(None)
        if kind == b"r":
            at = self._int()
            found = self._refs[at] if 0 <= at < len(self._refs) else None
            if found is None:
                raise _NotMarshal
            self._spend(found[1])
            return found
        found = self._plain(kind, depth)
        self._spend(1)
        if slot >= 0:
            self._refs[slot] = found
        return found

    def _spend(self, nodes: int) -> None:
        self._budget -= nodes
        if self._budget < 0:
            raise _NotMarshal

    def _plain(self, kind: bytes, depth: int) -> tuple[Tree, int]:
        if kind in (b"N", b"T", b"F", b"S", b"."):
            return kind, 1
        if kind == b"i":
            return (kind, self._take(4)), 1
        if kind == b"g":
            return (kind, self._take(8)), 1
        if kind == b"y":
            return (kind, self._take(16)), 1
        if kind == b"l":
            digits = self._int()
            return (kind, b"-" if digits < 0 else b"+", self._take(2 * abs(digits))), 1
        if kind in (b"s", b"u", b"t", b"a", b"A"):
            text = kind if kind == b"s" else b"u"  # interned or ASCII or not is no difference of value
            return (text, self._take(self._int())), 1
        if kind in (b"z", b"Z"):
            return (b"u", self._take(self._int(1))), 1
        if kind in (b"(", b")", b"<", b">"):
            return self._sequence(kind, depth)
        if kind == b"c":
            return self._code(depth)
        raise _NotMarshal

    def _sequence(self, kind: bytes, depth: int) -> tuple[Tree, int]:
        count = self._int(1) if kind == b")" else self._int()
        if not 0 <= count <= len(self._data):
            raise _NotMarshal
        items = [self._value(depth + 1) for _ in range(count)]
        nodes = 1 + sum(n for _, n in items)
        trees = [tree for tree, _ in items]
        if kind in (b"<", b">"):
            return (b"<", *sorted(trees, key=repr)), nodes
        return (b"(", *trees), nodes

    def _code(self, depth: int) -> tuple[Tree, int]:
        """A code object as CPython 3.11 to 3.14 writes it; the sixth object is its file name."""
        numbers = self._take(20)
        parts: list[Tree] = [b"c", numbers]
        nodes = 1
        for i in range(10):
            if i == 8:
                parts.append(self._take(4))  # first line
            tree, n = self._value(depth + 1)
            nodes += n
            if i != 5:  # file name
                parts.append(tree)
        return tuple(parts), nodes
