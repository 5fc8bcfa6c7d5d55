"""What the stack of a pickle that is followed holds in place of objects.

Numbers, short strings and tuples are themselves; everything else is one of these.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Final, TypeAlias

Value: TypeAlias = object
Call: TypeAlias = Callable[[tuple[Value, ...]], Value]
Build: TypeAlias = Callable[["Made", Value], None]

KEPT_ITEMS: Final = 4096


class Objectionable(Exception):
    """A use of an allowed name that no checkpoint needs."""


@dataclass(frozen=True, slots=True)
class Rule:
    """How an allowed name may be used: called (REDUCE), made (NEWOBJ), its instance given state (BUILD)."""

    call: Call | None = None
    new: Call | None = None
    build: Build | None = None
    grows: bool = False  # an instance takes APPENDS or SETITEMS as a list or dict would


@dataclass(frozen=True, slots=True)
class Name:
    """An allowed global, not looked up."""

    name: str
    rule: Rule


@dataclass(frozen=True, slots=True)
class Unknown:
    """What comes of something that was objected to already."""


@dataclass(frozen=True, slots=True)
class Blob:
    """Long bytes or text that stays in the file, at `offset` of the stream."""

    offset: int
    size: int
    text: bool


@dataclass(slots=True)
class Many:
    """A list or a set; its first items are kept."""

    kind: str
    items: list[Value] = field(default_factory=list)
    count: int = 0

    def add(self, items: list[Value]) -> None:
        self.count += len(items)
        if len(self.items) < KEPT_ITEMS:
            self.items.extend(items[: KEPT_ITEMS - len(self.items)])


@dataclass(slots=True)
class Mapping:
    """A dict; its first items under short text are kept."""

    items: dict[str, Value] = field(default_factory=dict)
    count: int = 0
    others: bool = False  # keys that are not short text

    def put(self, key: Value, value: Value) -> None:
        self.count += 1
        if isinstance(key, str) and len(self.items) < KEPT_ITEMS:
            self.items[key] = value
        else:
            self.others = True


@dataclass(slots=True)
class Made:
    """What calling an allowed name gives; `data` is what its rule wants to know of it later."""

    name: str
    rule: Rule
    data: Value = None


@dataclass(frozen=True, slots=True)
class Storage:
    """A tensor's bytes, named by `key`, `numel` items of `itemsize` bytes (0: not known)."""

    key: str
    numel: int
    itemsize: int
