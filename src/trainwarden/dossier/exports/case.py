"""CASE/UCO as JSON-LD: the investigation, its records with provenance, files with digests, accounts, and actions.

Source: CASE 1.5 and UCO 1.5 (caseontology.org); our tests check every edition with the shapes of `case-utils`. Digests
are BLAKE3, which UCO's vocabulary of hashes does not list (a remark there, no fault), with SHA-256 beside it where the
bytes are kept. Every node has a name that ends with a UUID, as UCO wants it.
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
    artefacts = [_artefact(view, a) for a in view.of("artefact")]
    accounts = sorted({view.text(a, "who") for a in view.of("act")} - {"", "(hidden)"})
    people = [_account(view, name) for name in accounts]
    acts = [_action(view, a, accounts) for a in view.of("act")]
    parts = [*records, *artefacts, *people, *acts]
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


def _facets(view: View, item: Shown, path: str) -> list[dict[str, object]]:
    """Where a file lies, and the digests of what is in it."""
    hashes = [
        {
            "@id": _iri(view, f"{item.id}/{method}"),
            "@type": "uco-types:Hash",
            "uco-types:hashMethod": method,
            "uco-types:hashValue": {"@type": "xsd:hexBinary", "@value": digest},
        }
        for method, name in (("BLAKE3", "digest"), ("SHA256", "sha256"))
        if (digest := view.text(item, name))
    ]
    content: dict[str, object] = {"@id": _iri(view, f"{item.id}/content"), "@type": "uco-observable:ContentDataFacet"}
    return [
        {
            "@id": _iri(view, f"{item.id}/file"),
            "@type": "uco-observable:FileFacet",
            "uco-observable:filePath": view.text(item, path),
        },
        *([{**content, "uco-observable:hash": hashes}] if hashes else []),
    ]


def _record(view: View, record: Shown) -> dict[str, object]:
    return {
        "@id": _iri(view, record.id),
        "@type": "case-investigation:ProvenanceRecord",
        "uco-core:name": view.text(record, "name"),
        "case-investigation:exhibitNumber": record.id,
        "uco-core:objectCreatedTime": {"@type": "xsd:dateTime", "@value": stamp(int(view.number(record, "taken_ns")))},
        "uco-core:hasFacet": _facets(view, record, "name"),
    }


def _artefact(view: View, artefact: Shown) -> dict[str, object]:
    """A file, or a process that was ended."""
    pid = view.text(artefact, "path").removeprefix("pid ")
    process = pid.isdecimal()
    facet = {
        "@id": _iri(view, f"{artefact.id}/process"),
        "@type": "uco-observable:ProcessFacet",
        "uco-observable:pid": {"@type": "xsd:integer", "@value": pid},
    }
    return {
        "@id": _iri(view, artefact.id),
        "@type": "uco-observable:Process" if process else "uco-observable:File",
        "uco-core:description": view.text(artefact, "what"),
        "uco-core:hasFacet": [facet] if process else _facets(view, artefact, "path"),
    }


def _account(view: View, name: str) -> dict[str, object]:
    facet = {
        "@id": _iri(view, f"account/{name}/facet"),
        "@type": "uco-observable:AccountFacet",
        "uco-observable:accountIdentifier": name,
    }
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
