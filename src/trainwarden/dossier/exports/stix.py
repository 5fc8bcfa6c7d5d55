"""STIX 2.1: an incident with its report, techniques, artefacts and accounts, and an extension for what it cost.

Rules
-----
* Accounts are `user-account` observables: no `threat-actor`, no `identity` of a person, and no `attributed-to`. The
  only identity is that of the class of system that made this.
* Ids of what is observed follow from its id-contributing properties (2.9), all others from the register.

Source: OASIS STIX 2.1, sections 2.9, 3, 4.6 (incident), 6 (observables), 7.3 (extensions).
"""

from __future__ import annotations

import uuid

import msgspec

from trainwarden.dossier.exports.common import dumped, id_of, span_of, stamp, summary, when_of
from trainwarden.dossier.nouns import Shown
from trainwarden.dossier.techniques import technique_name
from trainwarden.dossier.view import View

_OBSERVED = uuid.UUID("00abedb4-aa42-466c-9c01-fed23315a9b7")  # the namespace of 2.9
_SCHEMA = "https://trainwarden.invalid/stix/impact/v1.json"


def export(view: View) -> bytes:
    """The bundle."""
    made = stamp(view.manifest.made_ns)
    maker = _object(view, "identity", "maker", made, name="TrainWarden", identity_class="system")
    techniques = _techniques(view, made)
    files, accounts = _files(view, made), _accounts(view)
    extension = _object(
        view,
        "extension-definition",
        "impact",
        made,
        created_by_ref=maker["id"],
        name="impact of an interference with training",
        schema=_SCHEMA,
        version="1.0.0",
        extension_types=["property-extension"],
    )
    incident = _incident(view, made, str(maker["id"]), str(extension["id"]))
    links = [_uses(view, made, incident, t) for t in techniques]
    observed = _observed(view, made, [*files, *accounts])
    named = [incident, *techniques, *files, *accounts, *observed]
    report = _object(
        view,
        "report",
        "dossier",
        made,
        created_by_ref=maker["id"],
        name=f"Dossier of incident {view.manifest.incident}",
        description=summary(view),
        published=made,
        report_types=["observed-data"],
        object_refs=[o["id"] for o in named],
        labels=["alleged"],
        external_references=[{"source_name": "trainwarden register", "external_id": view.manifest.register}],
    )
    objects = [maker, extension, incident, report, *techniques, *links, *files, *accounts, *observed]
    return dumped({"type": "bundle", "id": f"bundle--{id_of(view, 'bundle')}", "objects": objects})


def _object(view: View, type: str, key: str, made: str, /, **fields: object) -> dict[str, object]:
    head = {"type": type, "spec_version": "2.1", "id": f"{type}--{id_of(view, f'{type}/{key}')}"}
    return {**head, "created": made, "modified": made, **fields}


def _incident(view: View, made: str, maker: str, extension: str) -> dict[str, object]:
    lines: list[dict[str, object]] = [
        {
            "line": view.text(x, "line"),
            "unit": view.text(x, "unit"),
            "low": view.number(x, "low"),
            "mid": view.number(x, "mid"),
            "high": view.number(x, "high"),
            "not_known": view.text(x, "unknown"),
        }
        for x in view.of("loss")
    ]
    impact = {
        "extension_type": "property-extension",
        "lines": lines,
        "grade": view.text(view.one("conclusion"), "grade"),
    }
    first, last = span_of(view)
    return _object(
        view,
        "incident",
        "incident",
        made,
        created_by_ref=maker,
        name=view.text(view.one("incident"), "title") or "incident",
        description=f"{summary(view)} First and last act: {stamp(first)}, {stamp(last)}.",
        labels=["alleged"],
        extensions={extension: impact},
    )


def _techniques(view: View, made: str) -> list[dict[str, object]]:
    ids = sorted({view.text(a, "technique") for a in view.of("artefact")} - {"", "(hidden)"})
    return [
        _object(
            view,
            "attack-pattern",
            t,
            made,
            name=technique_name(t) or t,
            external_references=[
                {"source_name": "mitre-atlas" if t.startswith("AML.") else "mitre-attack", "external_id": t}
            ],
        )
        for t in ids
    ]


def _uses(view: View, made: str, incident: dict[str, object], technique: dict[str, object]) -> dict[str, object]:
    return _object(
        view,
        "relationship",
        f"{technique['id']}",
        made,
        relationship_type="related-to",
        source_ref=incident["id"],
        target_ref=technique["id"],
    )


def _cyber(type: str, contributing: dict[str, object], /, **fields: object) -> dict[str, object]:
    """An observable; its id is a UUIDv5 over its id-contributing properties as JSON (2.9)."""
    key = msgspec.json.encode(contributing, order="sorted").decode()
    head = {"type": type, "spec_version": "2.1", "id": f"{type}--{uuid.uuid5(_OBSERVED, key)}"}
    return {**head, **contributing, **fields}


def _files(view: View, made: str) -> list[dict[str, object]]:
    """Files, and a note to each with its BLAKE3, which the vocabulary of hashes does not have."""
    found: dict[str, dict[str, object]] = {}
    for a in view.of("artefact"):
        name = view.text(a, "path").rsplit("/", 1)[-1] or "unnamed"
        hashes = {"hashes": {"SHA-256": view.text(a, "sha256")}} if view.value(a, "sha256") else {}
        file = _cyber("file", {**hashes, "name": name})
        found.setdefault(str(file["id"]), file)
        if digest := view.text(a, "digest"):
            note = _object(
                view, "note", a.id, made, abstract="digest", content=f"BLAKE3 {digest}", object_refs=[file["id"]]
            )
            found[str(note["id"])] = note
    return list(found.values())


def _accounts(view: View) -> list[dict[str, object]]:
    names = sorted({view.text(a, "who") for a in view.of("act")} - {"", "(hidden)"})
    return [_cyber("user-account", {"account_login": name}) for name in names]


def _observed(view: View, made: str, known: list[dict[str, object]]) -> list[dict[str, object]]:
    """One sighting an act, of the file and the account that its record names."""
    by_name = {str(k.get("name") or k.get("account_login")): str(k["id"]) for k in known}
    found = []
    for act in view.of("act"):
        wanted = (view.text(act, "path").rsplit("/", 1)[-1] or "unnamed", view.text(act, "who"))
        refs = [by_name[w] for w in wanted if w in by_name]
        if refs:
            at = stamp(when_of(view, act))
            found.append(_sighting(view, made, act, at, refs))
    return found


def _sighting(view: View, made: str, act: Shown, at: str, refs: list[str]) -> dict[str, object]:
    return _object(
        view,
        "observed-data",
        act.id,
        made,
        first_observed=at,
        last_observed=at,
        number_observed=1,
        object_refs=refs,
        labels=["alleged"],
        external_references=[{"source_name": "trainwarden item", "external_id": act.id}],
    )
