"""An edition as its pages read it: fields by name as the audience has them, or the mark that they are hidden."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from typing import NamedTuple, TypeAlias

from trainwarden.dossier.nouns import Manifest, Shown
from trainwarden.report.words import when

UNKNOWN = "not known"
_LINE = 1500  # characters
_A_TIME = 10**17  # nanoseconds: what is more is a time since 1970, what is less a span


class Hidden(NamedTuple):
    """A field that this edition does not show; its commitment does not change when another edition shows it."""

    commitment: str


Cell: TypeAlias = str | Hidden
Column: TypeAlias = str | Callable[[Shown], Cell]
"""A column of a table: the name of a field, or what to say of an item."""


class Row(NamedTuple):
    """A row of a table: its own item ("" = none) and the items that it stands on."""

    cells: tuple[Cell, ...]
    evidence: tuple[str, ...] = ()
    item: str = ""


class Table(NamedTuple):
    """A table with its title."""

    title: str
    head: tuple[str, ...]
    rows: tuple[Row, ...]
    empty: str = ""


class Section(NamedTuple):
    """One section: paragraphs, drawings (each for a wide and a narrow page), tables."""

    id: str
    title: str
    lead: str = ""
    told: tuple[Row, ...] = ()  # sentences with their evidence
    drawings: tuple[tuple[str, str], ...] = ()
    tables: tuple[Table, ...] = ()
    quotes: tuple[tuple[Cell, tuple[Cell, ...]], ...] = ()  # who, and what they say, line by line


class View:
    """The items of an edition."""

    def __init__(self, items: Sequence[Shown], manifest: Manifest) -> None:
        self.manifest = manifest
        self.items = tuple(items)
        self._form = f"@{manifest.audience}"
        self._by_kind: dict[str, list[Shown]] = {}
        self._by_id = {item.id: item for item in items}
        for item in items:
            self._by_kind.setdefault(item.kind, []).append(item)

    def of(self, kind: str) -> list[Shown]:
        """The items of one kind, in order."""
        return self._by_kind.get(kind, [])

    def one(self, kind: str) -> Shown | None:
        """The only item of a kind."""
        return next(iter(self.of(kind)), None)

    def item(self, id: str) -> Shown | None:
        """The item of that id."""
        return self._by_id.get(id)

    def value(self, item: Shown | None, name: str) -> object:
        """A field's value, `Hidden`, or None where the item has no such field."""
        if item is None:
            return None
        told = item.shown.get(name + self._form) or item.shown.get(name)
        if told is not None:
            return told.value
        return Hidden(item.hidden[name]) if name in item.hidden else None

    def cell(self, item: Shown | None, name: str) -> Cell:
        """A field as text."""
        value = self.value(item, name)
        return value if isinstance(value, Hidden) else words_of(value)

    def text(self, item: Shown | None, name: str) -> str:
        """A field as text, "(hidden)" where it is."""
        value = self.value(item, name)
        return "(hidden)" if isinstance(value, Hidden) else words_of(value)

    def number(self, item: Shown | None, name: str) -> float:
        """A number, 0 where there is none."""
        value = self.value(item, name)
        return float(value) if isinstance(value, int | float) else 0.0

    def time(self, item: Shown | None, name: str) -> str:
        """A field in nanoseconds as a time."""
        return when(int(self.number(item, name)))

    def refs(self, item: Shown | None, name: str = "evidence") -> tuple[str, ...]:
        """The items that a field names."""
        value = self.value(item, name)
        return tuple(str(v) for v in value if v) if isinstance(value, list) else ()

    def entries(self, *types: str) -> list[Shown]:
        """The log entries of these types."""
        return [i for i in self.of("entry") if self.value(i, "entry.type") in types]

    def open_losses(self) -> list[Shown]:
        """The lines of the account of which something is not known."""
        return [x for x in self.of("loss") if self.value(x, "unknown")]

    def rows(self, items: Iterable[Shown], *columns: Column) -> tuple[Row, ...]:
        """A row for each item, with the items that it stands on."""
        return tuple(
            Row(tuple(self.cell(i, c) if isinstance(c, str) else c(i) for c in columns), self.refs(i), i.id)
            for i in items
        )

    def known(self, name: str) -> Column:
        """A field that says so where it is not known."""
        return lambda item: self.cell(item, name) or UNKNOWN

    def at(self, name: str) -> Column:
        """A field in nanoseconds as a time."""
        return lambda item: self.time(item, name)


def words_of(value: object) -> str:
    """A value in words."""
    match value:
        case None:
            return ""
        case bool():
            return "yes" if value else "no"
        case float():
            return f"{value:,.6g}"
        case int():
            return f"{value:,}"
        case list():
            return ", ".join(words_of(v) for v in value)
        case dict():
            return ", ".join(" ".join(named(k, v)) for k, v in value.items())
        case _:
            return str(value)


def named(name: str, value: object) -> tuple[str, str]:
    """A field's name and value in words; a time, which is told in nanoseconds, as one."""
    if name.endswith("_ns") and isinstance(value, int) and value > _A_TIME:
        return name.removesuffix("_ns").replace("_", " "), when(value)
    return name.replace("_", " "), words_of(value)


def lines_of(cell: Cell) -> tuple[Cell, ...]:
    """A long text in lines that a page shows whole."""
    if isinstance(cell, Hidden):
        return (cell,)
    return tuple(
        line[at : at + _LINE] for line in cell.splitlines() if line.strip() for at in range(0, len(line), _LINE)
    )


def as_list(value: object) -> list[str]:
    """A field that is a list, as texts."""
    return [words_of(v) for v in value] if isinstance(value, list) else []


def as_map(value: object) -> dict[str, str]:
    """A field that is a map, as texts."""
    return {str(k): words_of(v) for k, v in value.items()} if isinstance(value, dict) else {}


def joined(cells: Iterable[Cell]) -> Cell:
    """Cells in one, hidden where one is."""
    found = list(cells)
    return next((c for c in found if isinstance(c, Hidden)), None) or " ".join(str(c) for c in found if c)
