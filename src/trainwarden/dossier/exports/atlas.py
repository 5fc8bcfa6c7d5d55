"""A case study as MITRE ATLAS keeps them: YAML with summary, dates, and a procedure of tactic, technique, description.

Written as JSON, which is YAML 1.2: there is one way to write it, and no writer of YAML is needed.
Source: the case-study template of mitre-atlas/atlas-data.
"""

from __future__ import annotations

from trainwarden.dossier.exports.common import dumped, span_of, stamp, summary, when_of
from trainwarden.dossier.view import View

_TACTICS = {
    "AML.T0010.001": "AML.TA0004",  # initial access
    "AML.T0018.000": "AML.TA0006",  # persistence
    "AML.T0020": "AML.TA0006",
    "T1489": "AML.TA0011",  # impact
    "T1546.018": "AML.TA0006",
}


def export(view: View) -> bytes:
    """The case study; steps without a technique id are left out."""
    first, _ = span_of(view)
    artefacts = sorted(view.of("artefact"), key=lambda a: when_of(view, a))
    procedure = [
        {
            "tactic": _TACTICS.get(t := view.text(a, "technique"), "AML.TA0011"),
            "technique": t,
            "description": f"{view.text(a, 'what')}: {view.text(a, 'path')} (alleged; {a.id})",
        }
        for a in artefacts
        if view.value(a, "technique")
    ]
    study = {
        "id": f"trainwarden-{view.manifest.register[:12]}",
        "object-type": "case-study",
        "name": view.text(view.one("incident"), "title"),
        "summary": summary(view),
        "incident-date": stamp(first)[:10],
        "incident-date-granularity": "DATE",
        "procedure": procedure,
        "reporter": "the organisation concerned",
        "target": "training of AI models",
        "actor": "not established",
        "case-study-type": "incident",
        "references": [{"title": f"register {view.manifest.register}", "url": None}],
    }
    return dumped(study)
