"""Timesketch JSONL: one event a line with `message`, `datetime`, `timestamp_desc`, and what else is known.

Source: the import format of Timesketch (timesketch.org, "Import from JSONL").
"""

from __future__ import annotations

import msgspec

from trainwarden.dossier.exports.common import stamp, when_of
from trainwarden.dossier.nouns import Shown
from trainwarden.dossier.view import View

_KINDS = {
    "line": "custody event",
    "act": "act on an artefact",
    "entry": "entry of a log",
    "artefact": "artefact found",
    "records": "record taken in",
}


def export(view: View) -> bytes:
    """Every item with a time, oldest first; what has no time is left out."""
    items = [(when_of(view, i), i) for kind in _KINDS for i in view.of(kind)]
    rows = [_row(view, time, item) for time, item in sorted(items, key=lambda pair: pair[0]) if time]
    return b"".join(msgspec.json.encode(row, order="deterministic") + b"\n" for row in rows)


def _row(view: View, time: int, item: Shown) -> dict[str, object]:
    return {
        "message": _message(view, item),
        "datetime": stamp(time, 6),
        "timestamp": time // 1000,
        "timestamp_desc": _KINDS[item.kind],
        "data_type": f"trainwarden:{item.kind}",
        "item": item.id,
        "account": view.text(item, "who") or view.text(item, "login") or view.text(item, "account"),
        "hostname": view.text(item, "host"),
        "clock_error_ns": int(view.number(item, "error_ns")),
        "evidence": list(view.refs(item)),
        "tag": ["alleged"] if item.kind == "act" else [],
    }


def _message(view: View, item: Shown) -> str:
    match item.kind:
        case "entry":
            parts = (view.text(item, "log"), view.text(item, "entry.type"), view.text(item, "entry.seen"))
        case "records":
            parts = ("taken in:", view.text(item, "name"), "")
        case "artefact":
            parts = (view.text(item, "what"), view.text(item, "path"), "")
        case _:
            who = view.text(item, "who") or view.text(item, "login") or view.text(item, "account")
            parts = (who, view.text(item, "act"), view.text(item, "path"))
    return " ".join(p for p in parts if p)
