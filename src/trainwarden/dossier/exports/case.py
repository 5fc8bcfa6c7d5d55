"""CASE/UCO as JSON-LD: the investigation, its records with provenance, files with digests, accounts, and actions.

Source: CASE 1.3 and UCO 1.3 (caseontology.org). Digests are BLAKE3, which UCO's vocabulary of hashes does not list, and
are typed as text.
"""

from __future__ import annotations

from trainwarden.dossier.exports.common import dumped, id_of, stamp, when_of
from trainwarden.dossier.nouns import Shown
from trainwarden.dossier.view import View

_CONTEXT = {
    "case-investigation": "https://ontology.caseontology.org/case/investigation/",
    "kb": "urn:trainwarden:",
    "uco-action": "https://ontology.unifiedcyberontology.org/uco/action/",
    "uco-core": "https://ontology.unifiedcyberontology.org/uco/core/",
    "uco-observable": "https://ontology.unifiedcyberontology.org/uco/observable/",
    "uco-types": "https://ontology.unifiedcyberontology.org/uco/types/",
    "xsd": "http://www.w3.org/2001/XMLSchema#",
}


def export(view: View) -> bytes:
    """The graph."""
    records = [_record(view, r) for r in view.of("records")]
    files = [_file(view, a) for a in view.of("artefact")]
    accounts = sorted({view.text(a, "who") for a in view.of("act")} - {"", "(hidden)"})
    people = [_account(view, name) for name in accounts]
    acts = [_action(view, a, accounts) for a in view.of("act")]
    parts = [*records, *files, *people, *acts]
    case = {
        "@id": _iri(view, "investigation"),
        "@type": "case-investigation:Investigation",
        "uco-core:name": view.text(view.one("incident"), "title"),
        "uco-core:description": "Alleged. " + view.text(view.one("conclusion"), "sentence"),
        "case-investigation:investigationStatus": view.text(view.one("incident"), "status"),
        "uco-core:object": [{"@id": p["@id"]} for p in parts],
    }
    return dumped({"@context": _CONTEXT, "@graph": [case, *parts]})


def _iri(view: View, what: str) -> str:
    return f"kb:{id_of(view, what)}"


def _facet(digest: str, name: str) -> list[dict[str, object]]:
    hashed: list[dict[str, object]] = (
        [{"@type": "uco-types:Hash", "uco-types:hashMethod": "BLAKE3", "uco-types:hashValue": digest}] if digest else []
    )
    return [
        {"@type": "uco-observable:FileFacet", "uco-observable:filePath": name},
        {"@type": "uco-observable:ContentDataFacet", "uco-observable:hash": hashed},
    ]


def _record(view: View, record: Shown) -> dict[str, object]:
    return {
        "@id": _iri(view, record.id),
        "@type": "case-investigation:ProvenanceRecord",
        "uco-core:name": view.text(record, "name"),
        "case-investigation:exhibitNumber": record.id,
        "uco-core:objectCreatedTime": {"@type": "xsd:dateTime", "@value": stamp(int(view.number(record, "taken_ns")))},
        "uco-core:hasFacet": _facet(view.text(record, "digest"), view.text(record, "name")),
    }


def _file(view: View, artefact: Shown) -> dict[str, object]:
    return {
        "@id": _iri(view, artefact.id),
        "@type": "uco-observable:File",
        "uco-core:description": view.text(artefact, "what"),
        "uco-core:hasFacet": _facet(view.text(artefact, "digest"), view.text(artefact, "path")),
    }


def _account(view: View, name: str) -> dict[str, object]:
    facet = {"@type": "uco-observable:AccountFacet", "uco-observable:accountIdentifier": name}
    return {"@id": _iri(view, f"account/{name}"), "@type": "uco-observable:UserAccount", "uco-core:hasFacet": [facet]}


def _action(view: View, act: Shown, accounts: list[str]) -> dict[str, object]:
    who = view.text(act, "who")
    by = {"uco-action:instrument": {"@id": _iri(view, f"account/{who}")}} if who in accounts else {}
    of = next((r for r in view.refs(act) if r.startswith("artefact-")), "")
    on = {"uco-action:object": [{"@id": _iri(view, of)}]} if of else {}
    at = stamp(when_of(view, act))
    return {
        "@id": _iri(view, act.id),
        "@type": "uco-action:Action",
        "uco-core:name": f"alleged: {view.text(act, 'act')}",
        "uco-action:startTime": {"@type": "xsd:dateTime", "@value": at},
        "uco-action:actionStatus": "Unknown",
        **by,
        **on,
    }
