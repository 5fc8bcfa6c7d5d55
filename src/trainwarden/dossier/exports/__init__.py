"""An edition in the forms of others, a form a file, each made of what the edition shows; nothing is fetched."""

from __future__ import annotations

from collections.abc import Callable, Mapping

from trainwarden.dossier.exports import aiid, atlas, case, stix, timesketch
from trainwarden.dossier.view import View

ALL: Mapping[str, Callable[[View], bytes]] = {
    "aiid.json": aiid.export,
    "atlas-case-study.yaml": atlas.export,
    "case.jsonld": case.export,
    "stix.json": stix.export,
    "timesketch.jsonl": timesketch.export,
}
"""Every form by the name of its file."""


def all_of(view: View) -> dict[str, bytes]:
    """The edition in every form."""
    return {name: make(view) for name, make in ALL.items()}
