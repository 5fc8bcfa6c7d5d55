"""An incident as one self-contained HTML page, in the house style and under the rules of `html`."""

from __future__ import annotations

from pathlib import Path

from markupsafe import Markup

from trainwarden.attribute.nouns import Attribution
from trainwarden.durable import hint_for, write_atomically
from trainwarden.errors import UsageError
from trainwarden.model import Incident
from trainwarden.report.html import environment, stylesheet
from trainwarden.report.incident import clock_words, matrix_row, span

_MOST = 200


def render_page(incident: Incident, told: Attribution) -> str:
    """The whole page."""
    return environment().get_template("incident.html").render(
        style=Markup(stylesheet()),
        incident=incident,
        told=told,
        rows=[matrix_row(row) for row in told.matrix[:_MOST]],
        more_rows=max(0, len(told.matrix) - _MOST),
        deeds=[(deed, told.traces[deed.artefact].artefact, span(deed.error_ns)) for deed in told.deeds[:_MOST]],
        more_deeds=max(0, len(told.deeds) - _MOST),
        sources=[(e, "; ".join(clock_words(c) for c in told.clocks if c.source == e.id)) for e in incident.custody],
    )  # fmt: skip


def write_page(incident: Incident, told: Attribution, path: Path) -> None:
    """Write the page to `path`, whole or not at all.

    Raises:
        UsageError: it cannot be written there.
    """
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        write_atomically(path, render_page(incident, told).encode())
    except OSError as e:
        raise UsageError(f"cannot write {path}: {e.strerror}", hint=hint_for(e) or "name another file") from e
