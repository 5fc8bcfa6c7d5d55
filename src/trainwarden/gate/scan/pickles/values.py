"""What the stack of a pickle that is followed holds in place of objects.

Numbers, short strings and tuples are themselves; everything else is one of these.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Final, TypeAlias

import msgspec

Value: TypeAlias = object
Call: TypeAlias = Callable[[tuple[Value, ...]], Value]
Build: TypeAlias = Callable[["Made", Value], None]

KEPT_ITEMS: Final = 4096


class Objectionable(Exception):
    """A use of an allowed name that no checkpoint needs."""


class Rule(msgspec.Struct, frozen=True):
    """How an allowed name may be used: called (REDUCE), made (NEWOBJ), its instance given state (BUILD)."""

    call: Call | None = None
    new: Call | None = None
    build: Build | None = None
    grows: bool = False  # an instance takes APPENDS or SETITEMS as a list or dict would


class Name(msgspec.Struct, frozen=True):
    """An allowed global, not looked up."""

    name: str
    rule: Rule


class Unknown(msgspec.Struct, frozen=True):
    """What comes of something that was objected to already."""


class Blob(msgspec.Struct, frozen=True):
    """Long bytes or text that stays in the file, at `offset` of the stream."""

    offset: int
    size: int
    text: bool


class Many(msgspec.Struct):
    """A list or a set; its first items are kept."""

    kind: str
    items: list[Value] = msgspec.field(default_factory=list)
    count: int = 0

    def add(self, items: list[Value]) -> None:
        self.count += len(items)
        if len(self.items) < KEPT_ITEMS:
            self.items.extend(items[: KEPT_ITEMS - len(self.items)])


class Mapping(msgspec.Struct):
    """A dict; its first items under short text are kept."""

    items: dict[str, Value] = msgspec.field(default_factory=dict)
    count: int = 0
    others: bool = False  # keys that are not short text

    def put(self, key: Value, value: Value) -> None:
        self.count += 1
        if isinstance(key, str) and len(self.items) < KEPT_ITEMS:
            self.items[key] = value
        else:
            self.others = True


class Made(msgspec.Struct):
    """What calling an allowed name gives; `data` is what its rule wants to know of it later."""

    name: str
    rule: Rule
    data: Value = None


class Storage(msgspec.Struct, frozen=True):
    """A tensor's bytes, named by `key`, `numel` items of `itemsize` bytes (0: not known)."""

    key: str
    numel: int
    itemsize: int
