"""The report as one self-contained HTML file.

Rules
-----
* Nothing is fetched and nothing is run: style and drawings are inside, there is no script, and a content security
  policy says so to the browser.
* Every value is cleaned, bounded and escaped: a case may hold text chosen by an attacker.
* Drawings are made twice, for a wide page and for a phone, so that their text keeps its size.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path

import jinja2
from markupsafe import Markup

from trainwarden.casefile import (
    Answer,
    Broken,
    CaseFile,
    KeySource,
    earliest_divergence,
    explanation_of,
    indexed,
)
from trainwarden.descent import Frozen
from trainwarden.durable import hint_for, write_atomically
from trainwarden.errors import UsageError
from trainwarden.model import Outcome, Recovered
from trainwarden.report import summary, tables, words
from trainwarden.report.curve import loss_curve
from trainwarden.report.events import bounded, markers, timeline
from trainwarden.report.grid import CLASSES, Block, Cell, grid, heat_map
from trainwarden.report.lineage_chart import SIGNS, chosen, lineage_chart
from trainwarden.report.sampled import sampled_facts
from trainwarden.store import Store

WIDE, NARROW = 960, 342
_MOST_CHECKPOINTS = 40
TEMPLATES = Path(__file__).parent / "templates"
_TONES: Mapping[Answer, str] = {
    Answer.BROKEN: "bad",
    Answer.DIVERGED: "bad",
    Answer.UNDECIDED: "open",
    Answer.MATCHED: "good",
    Answer.NOT_AUDITED: "none",
}
_CELLS: Mapping[Cell, str] = {
    Cell.MATCHED: "reproduced bit for bit",
    Cell.DIVERGED: "diverged",
    Cell.UNDECIDED: "undecided",
    Cell.NOT_AUDITED: "not audited",
    Cell.GAP: "gap in the record",
}
_ORDER = (Outcome.REPRODUCED, Outcome.EXCLUDED, Outcome.NOT_TRIED)


def render_html(case: CaseFile, store: Store | None = None, frozen: Sequence[Frozen] = ()) -> str:
    """The whole page; with `store` the changed files are shown against the sealed ones; `frozen`: what holds for it."""
    return environment().get_template("report.html").render(_context(case, store, frozen))


def write_html(case: CaseFile, path: Path, store: Store | None = None, frozen: Sequence[Frozen] = ()) -> None:
    """Write the page to `path`, whole or not at all.

    Raises:
        UsageError: it cannot be written there.
    """
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        write_atomically(path, render_html(case, store, frozen).encode())
    except OSError as e:
        raise UsageError(f"cannot write {path}: {e.strerror}", hint=hint_for(e) or "name another file with -o") from e


def environment() -> jinja2.Environment:
    """Templates whose values are cleaned and escaped, with the words of this package as filters."""
    environment = jinja2.Environment(
        loader=jinja2.FileSystemLoader(TEMPLATES),
        autoescape=True,
        undefined=jinja2.StrictUndefined,
        finalize=_clean,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    environment.filters.update(
        short=words.short, tail=words.tail, when=words.when, clock=words.clock, stage=words.stage_name
    )
    return environment


def stylesheet() -> str:
    """The style of all pages."""
    return (TEMPLATES / "report.css").read_text(encoding="utf-8")


def _clean(value: object) -> object:
    return words.clean(value, 2000) if isinstance(value, str) and not isinstance(value, Markup) else value


def _context(case: CaseFile, store: Store | None, frozen: Sequence[Frozen]) -> dict[str, object]:
    events = timeline(case.entries)
    marks = markers(events)
    shown_events, more_events = bounded(events)
    found = earliest_divergence(case.entries)
    told = explanation_of(case.entries, found[1]) if found else None
    blocks = grid(case.entries, case.history)
    shown_findings, more_findings = tables.findings(case)
    shown_alerts, more_alerts = tables.alerts(case)
    return {
        "style": Markup(stylesheet()),
        "case": case,
        "tone": _TONES[case.answer],
        "broken": isinstance(case.state, Broken),
        "own_key": case.key_source is KeySource.LOG,
        "headline": summary.headline(case),
        "subline": summary.subline(case),
        "facts": summary.facts(case),
        "story": summary.story(case),
        "curves": [loss_curve(case.entries, marks, WIDE, 300), loss_curve(case.entries, marks, NARROW, 240)],
        "marks": marks,
        "maps": [heat_map(blocks, WIDE), heat_map(blocks, NARROW)],
        "cells": _legend(blocks),
        "cell_steps": max((b.steps_per_cell for b in blocks), default=1),
        "cell_ranks": max((b.ranks_per_cell for b in blocks), default=1),
        "divergence": found,
        "stages": tables.stage_rows(case),
        "explanation": told,
        "hypotheses": sorted(told[1].hypotheses, key=lambda h: _ORDER.index(h.outcome)) if told else [],
        "diffs": tables.diffs(case, store, told[1].file if told else ""),
        "compared": tables.compared(case),
        "changes": tables.changes(case),
        "lineage": [lineage_chart(case.history.checkpoints, w) for w in (WIDE, NARROW)],
        "standings": [
            (standing.value, sign)
            for standing, sign in SIGNS.items()
            if any(c.standing is standing for c in case.history.checkpoints)
        ],
        "checkpoints": chosen(case.history.checkpoints, _MOST_CHECKPOINTS),
        "more_checkpoints": max(0, len(case.history.checkpoints) - _MOST_CHECKPOINTS),
        "freezes": summary.freezes(case, frozen),
        "alerts": shown_alerts,
        "more_alerts": more_alerts,
        "findings": shown_findings,
        "more_findings": more_findings,
        "events": shown_events,
        "more_events": more_events,
        "sampled": sampled_facts(case),
        "missing": summary.not_checked(case),
        "recovered": indexed(case.entries, Recovered),
        "next_steps": summary.next_steps(case),
    }


def _legend(blocks: Sequence[Block]) -> list[tuple[str, str]]:
    """The states that the heat map shows, and their names."""
    seen = {cell for block in blocks for row in block.rows for cell in row}
    return [(CLASSES[cell], text) for cell, text in _CELLS.items() if cell in seen]
