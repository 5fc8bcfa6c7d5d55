"""What was replayed, rank by step: the state of every recorded unit, and the heat map as SVG (pure).

A cell that stands for several units shows the worst of them, so that nothing disappears by zooming out.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from enum import IntEnum

import msgspec
from markupsafe import Markup

from trainwarden.lineage import History
from trainwarden.model import Diverged, Entry, Gap, Inconclusive, StepRecord
from trainwarden.report.svg import drawing, element, label, number
from trainwarden.standing import matched_steps

MOST_COLUMNS = 400
MOST_ROWS = 64
_LEFT, _TOP, _BOTTOM, _BETWEEN = 58, 26, 24, 10


class Cell(IntEnum):
    """The state of one unit, better ones first."""

    NONE = 0  # outside what this attempt did
    MATCHED = 1
    NOT_AUDITED = 2
    UNDECIDED = 3
    GAP = 4
    DIVERGED = 5


CLASSES: Mapping[Cell, str] = {
    Cell.MATCHED: "matched",
    Cell.NOT_AUDITED: "unaudited",
    Cell.UNDECIDED: "undecided",
    Cell.GAP: "gap",
    Cell.DIVERGED: "diverged",
}


class Block(msgspec.Struct, frozen=True):
    """One attempt: its first step, the steps and ranks that a cell stands for, and rows of cells."""

    attempt: int
    first: int
    last: int
    steps_per_cell: int
    ranks_per_cell: int
    rows: tuple[tuple[Cell, ...], ...]


def grid(entries: Sequence[Entry], history: History) -> tuple[Block, ...]:
    """The heat map's cells, one block an attempt, at most `MOST_COLUMNS` × `MOST_ROWS` in all."""
    alive = [a for a in history.attempts if a.last >= a.base]
    steps = sum(a.last - a.base + 1 for a in alive)
    ranks = max((len(a.ranks) for a in alive), default=0)
    if not steps or not ranks:
        return ()
    per_cell = -(-steps // MOST_COLUMNS)
    per_row = -(-ranks // MOST_ROWS)
    units = _units(entries)
    good = matched_steps(entries)
    blocks = []
    for a in alive[-MOST_COLUMNS:]:
        places = _places(a.ranks, per_row)
        columns = (a.last - a.base) // per_cell + 1
        rows = [[Cell.NONE] * columns for _ in range(max(places.values()) + 1)]
        for (attempt, rank, step), cell in units.items():
            if attempt != a.number or rank not in places or not a.base <= step <= a.last:
                continue
            if cell is Cell.NOT_AUDITED and (attempt, step) in good:
                cell = Cell.MATCHED
            column = (step - a.base) // per_cell
            rows[places[rank]][column] = max(rows[places[rank]][column], cell)
        for row in rows:  # a hole between recorded steps is a gap as well
            filled = [i for i, cell in enumerate(row) if cell]
            for i in range(filled[0] if filled else 0, filled[-1] if filled else 0):
                row[i] = row[i] or Cell.GAP
        blocks.append(Block(a.number, a.base, a.last, per_cell, per_row, tuple(map(tuple, rows))))
    return tuple(blocks)


def _units(entries: Sequence[Entry]) -> dict[tuple[int, int, int], Cell]:
    """(attempt, rank, step) → what its own entries say; whether it was matched is known by step."""
    units: dict[tuple[int, int, int], Cell] = {}
    unsure: set[tuple[int, int]] = set()
    for e in entries:
        if isinstance(e, StepRecord):
            units.setdefault((e.attempt, e.rank, e.step), Cell.NOT_AUDITED)
    spans = [e.segment for e in entries if isinstance(e, Inconclusive)]
    for attempt, _, step in units:
        if any(s.attempt == attempt and s.first <= step <= s.last for s in spans):
            unsure.add((attempt, step))
    good = matched_steps(entries) if unsure else frozenset()
    for unit in units:
        if (unit[0], unit[2]) in unsure - good:
            units[unit] = Cell.UNDECIDED
    for e in entries:
        if isinstance(e, Gap):
            units[e.attempt, e.rank, e.step] = Cell.GAP
    for e in entries:
        if isinstance(e, Diverged):
            units[e.segment.attempt, e.at.rank, e.at.step] = Cell.DIVERGED
    return units


def _places(ranks: Sequence[int], per_row: int) -> dict[int, int]:
    return {rank: i // per_row for i, rank in enumerate(ranks)}


# --------------------------------------------------------------------------- drawing


def heat_map(blocks: Sequence[Block], width: float) -> Markup | None:
    """The grid as SVG, attempts side by side in the order in which they ran."""
    if not blocks:
        return None
    columns = sum(len(b.rows[0]) for b in blocks)
    rows = max(len(b.rows) for b in blocks)
    room = width - _LEFT - 2 - _BETWEEN * (len(blocks) - 1)
    w = max(room / columns, 0.2)
    h = min(max(220 / rows, 4.0), 26.0)
    height = _TOP + rows * h + _BOTTOM
    body = _row_labels(blocks, h)
    x = float(_LEFT)
    for block in blocks:
        body += _block(block, x, w, h)
        x += len(block.rows[0]) * w + _BETWEEN
    return drawing(width, height, "state of every recorded step, rank by rank", body, "chart heat")


def _block(block: Block, x: float, w: float, h: float) -> list[str]:
    wide = len(block.rows[0]) * w
    body = [label(x, 14, f"attempt {block.attempt}" if wide > 60 else str(block.attempt), "label strong")]
    body += _cells(block, x, w, h)
    foot = _TOP + len(block.rows) * h + 16
    body.append(label(x, foot, str(block.first)))
    if wide > 70:
        body.append(label(x + wide, foot, str(block.last), anchor="end"))
    return body


def _cells(block: Block, x: float, w: float, h: float) -> list[str]:
    """One path for each state; neighbours of one state in a row are one rectangle when cells are small."""
    pad = 1.0 if min(w, h) > 5 else 0.0
    paths: dict[Cell, list[str]] = {}
    for r, row in enumerate(block.rows):
        start = 0
        for c in range(1, len(row) + 1):
            if c < len(row) and row[c] is row[start] and not pad:
                continue
            if row[start]:
                size = (c - start) * w - pad
                corner = f"M{number(x + start * w)} {number(_TOP + r * h)}"
                paths.setdefault(row[start], []).append(f"{corner}h{size:.2f}v{number(h - pad)}h{-size:.2f}z")
            start = c
    return [element("path", d="".join(d), class_=f"cell {CLASSES[cell]}") for cell, d in sorted(paths.items())]


def _row_labels(blocks: Sequence[Block], h: float) -> list[str]:
    block = max(blocks, key=lambda b: len(b.rows))
    every = -(-len(block.rows) // max(1, int(len(block.rows) * h / 16)))
    return [
        label(_LEFT - 8, _TOP + (r + 0.5) * h + 4, f"rank {r * block.ranks_per_cell}", anchor="end")
        for r in range(0, len(block.rows), every)
    ]
