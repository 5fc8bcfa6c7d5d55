"""What the stack of a pickle that is followed holds in place of objects.

Numbers, short strings and tuples are themselves; everything else is one of these: objects that are equal to nothing but
themselves, and no tuples, which would pass for the stream's own.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Final, NamedTuple, TypeAlias

Value: TypeAlias = object
Call: TypeAlias = Callable[[tuple[Value, ...]], Value]
Build: TypeAlias = Callable[["Made", Value], None]

KEPT_ITEMS: Final = 4096


class Objectionable(Exception):
    """A use of an allowed name that no checkpoint needs."""


class Rule(NamedTuple):
    """How an allowed name may be used: called (REDUCE), made (NEWOBJ), its instance given state (BUILD)."""

    call: Call | None = None
    new: Call | None = None
    build: Build | None = None
    grows: bool = False  # an instance takes APPENDS or SETITEMS as a list or dict would


class Name:
    """An allowed global, not looked up."""

    __slots__ = ("name", "rule")

    def __init__(self, name: str, rule: Rule) -> None:
        self.name, self.rule = name, rule


class Unknown:
    """What comes of something that was objected to already."""

    __slots__ = ()


class Blob:
    """Long bytes or text that stays in the file, at `offset` of the stream."""

    __slots__ = ("offset", "size", "text")

    def __init__(self, offset: int, size: int, text: bool) -> None:
        self.offset, self.size, self.text = offset, size, text


class Many:
    """A list or a set; its first items are kept."""

    __slots__ = ("count", "items", "kind")

    def __init__(self, kind: str) -> None:
        self.kind, self.count = kind, 0
        self.items: list[Value] = []

    def add(self, items: list[Value]) -> None:
        self.count += len(items)
        if len(self.items) < KEPT_ITEMS:
            self.items.extend(items[: KEPT_ITEMS - len(self.items)])


class Mapping:
    """A dict; its first items under short text are kept."""

    __slots__ = ("count", "items", "others")

    def __init__(self) -> None:
        self.items: dict[str, Value] = {}
        self.count = 0
        self.others = False  # keys that are not short text

    def put(self, key: Value, value: Value) -> None:
        self.count += 1
        if isinstance(key, str) and len(self.items) < KEPT_ITEMS:
            self.items[key] = value
        else:
            self.others = True


class Made:
    """What calling an allowed name gives; `data` is what its rule wants to know of it later."""

    __slots__ = ("data", "name", "rule")

    def __init__(self, name: str, rule: Rule, data: Value = None) -> None:
        self.name, self.rule, self.data = name, rule, data


class Storage:
    """A tensor's bytes, named by `key`, `numel` items of `itemsize` bytes (0: not known)."""

    __slots__ = ("itemsize", "key", "numel")

    def __init__(self, key: str, numel: int, itemsize: int) -> None:
        self.key, self.numel, self.itemsize = key, numel, itemsize
