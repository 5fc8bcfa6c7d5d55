"""What the forms share: times, ids that follow from the register, JSON written one way."""

from __future__ import annotations

import uuid
from datetime import UTC, datetime

import msgspec

from trainwarden.dossier.nouns import Shown
from trainwarden.dossier.view import View


def stamp(ns: int, digits: int = 3) -> str:
    """A time as RFC 3339 in UTC with this many digits of a second; that of 1970 where it is not known."""
    seconds, rest = divmod(max(ns, 0), 1_000_000_000)
    try:
        whole = datetime.fromtimestamp(seconds, UTC).strftime("%Y-%m-%dT%H:%M:%S")
    except (OverflowError, ValueError, OSError):
        whole, rest = "1970-01-01T00:00:00", 0
    return f"{whole}.{rest:09d}"[: len(whole) + 1 + digits] + "Z"


def id_of(view: View, what: str) -> str:
    """A UUID that follows from the register and a name (RFC 9562, 5.5): the same edition has the same ones."""
    return str(uuid.uuid5(uuid.NAMESPACE_URL, f"trainwarden:{view.manifest.register}:{view.manifest.audience}:{what}"))


def dumped(value: object) -> bytes:
    """JSON, indented, with a line feed at its end."""
    return msgspec.json.format(msgspec.json.encode(value), indent=1) + b"\n"


def when_of(view: View, item: Shown) -> int:
    """When an item is of, in nanoseconds, 0 where nothing tells."""
    names = ("time_ns", "found_ns", "entry.wall_ns", "taken_ns", "begun_ns", "opened_ns")
    return next((int(n) for name in names if (n := view.number(item, name))), 0)


def span_of(view: View) -> tuple[int, int]:
    """The first and last act, or what was found changed where there is none, else when the dossier was made."""
    acts = [t for t in (when_of(view, i) for i in (view.of("act") or view.of("artefact"))) if t]
    return (min(acts), max(acts)) if acts else (view.manifest.made_ns, view.manifest.made_ns)


def summary(view: View) -> str:
    """What happened in some sentences; alleged, and of accounts only."""
    runs = view.of("run")
    told = [f"{view.text(r, 'run')}: {view.text(r, 'sentence')}." for r in runs]
    return " ".join(
        ["Alleged interference with the training of AI models.", *told, view.text(view.one("conclusion"), "sentence")]
    )
