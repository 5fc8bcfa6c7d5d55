"""What follows from an edition's register alone: the page, the drafts, the exports. Pure: `verify` makes it again.

Whoever checks a dossier with the version that made it finds a page that says other than the register does.
"""

from __future__ import annotations

import re
from collections.abc import Sequence

import msgspec
from markupsafe import Markup

from trainwarden.dossier import exports
from trainwarden.dossier.notices import notice
from trainwarden.dossier.nouns import Manifest, Shown
from trainwarden.dossier.sections import sections
from trainwarden.dossier.view import Hidden, Row, Section, Table, View
from trainwarden.report.html import environment, stylesheet

PAGE = "dossier.html"
REGISTER = "register.json"
PRINTED = "dossier.pdf"
_LONG = 24  # characters without a space that do not fit a narrow column
_TIME = re.compile(r"\d{4}-\d\d-\d\d \d\d:\d\d:\d\d UTC")
_FOLDERS = ("exports/", "notices/")


def derived(path: str) -> bool:
    """Does this member follow from the others?"""
    return path == PAGE or path.startswith(_FOLDERS)


def basis(manifest: Manifest) -> Manifest:
    """The part of a manifest that pages are made from: without themselves and the print."""
    members = tuple(m for m in manifest.members if not derived(m.path) and m.path != PRINTED)
    absent = {path: why for path, why in manifest.absent.items() if path != PRINTED}
    return msgspec.structs.replace(manifest, members=members, absent=absent)


def pages_of(items: Sequence[Shown], manifest: Manifest) -> dict[str, bytes]:
    """Every derived member."""
    view = View(items, basis(manifest))
    found = {PAGE: _page(view).encode(), f"notices/{manifest.audience}.md": notice(view).encode()}
    return found | {f"exports/{name}": data for name, data in exports.all_of(view).items()}


def _page(view: View) -> str:
    incident, conclusion = view.one("incident"), view.one("conclusion")
    template = environment()
    template.tests["hidden"] = lambda cell: isinstance(cell, Hidden)
    template.tests["timed"] = lambda cell: isinstance(cell, str) and _TIME.match(cell) is not None
    template.tests["unbroken"] = lambda cell: isinstance(cell, str) and any(len(w) > _LONG for w in cell.split())
    proven = sum(item.proof is not None for item in view.of("entry"))
    return template.get_template("dossier.html").render(
        style=Markup(stylesheet()),
        manifest=view.manifest,
        incident=incident,
        title=view.text(incident, "title"),
        status=view.text(incident, "status"),
        outcome=view.cell(incident, "outcome"),
        decided=bool(view.value(conclusion, "leading")),
        grade=view.text(conclusion, "grade"),
        level=view.text(conclusion, "level"),
        sentence=view.cell(conclusion, "sentence"),
        sections=_anchored(view),
        hidden=sum(len([n for n in item.hidden if "@" not in n]) for item in view.items),
        shown=sum(len(item.shown) for item in view.items),
        proven=proven,
        entries=len(view.of("entry")),
    )


def _anchored(view: View) -> list[Section]:
    """The sections, every item with one place to link to: its first row, or one at the end of the register."""
    seen: set[str] = set()

    def once(row: Row) -> Row:
        known = row.item in seen
        seen.add(row.item)
        return row._replace(item="") if known else row

    found = []
    for section in sections(view):
        tables = tuple(t._replace(rows=tuple(once(r) for r in t.rows)) for t in section.tables)
        found.append(section._replace(tables=tables, drawings=_marked(section.drawings)))
    rest = [i for i in view.items if i.id not in seen]
    rows = tuple(Row((i.id, ", ".join(n for n in i.names if "@" not in n)), view.refs(i), i.id) for i in rest)
    more = Table("Further items of register.json", ("item", "fields"), rows)
    at = next(n for n, s in enumerate(found) if s.id == "evidence")
    found[at] = found[at]._replace(tables=(*found[at].tables, more))
    return found


def _marked(drawings: tuple[tuple[str, str], ...]) -> tuple[tuple[str, str], ...]:
    """Drawings are made of escaped parts by `report.svg` alone."""
    return tuple((Markup(wide), Markup(narrow)) for wide, narrow in drawings if wide)
