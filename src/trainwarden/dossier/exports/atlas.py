"""A case study as MITRE ATLAS keeps them: YAML with summary, dates, and a procedure of tactic, technique, description.

Written as JSON, which is YAML 1.2: there is one way to write it, and no writer of YAML is needed. MITRE gives a study
its id; a procedure takes ids of ATLAS alone, so that those of ATT&CK stand in the summary.
Source: the schema of case studies in mitre-atlas/atlas-data (dist/schemas).
"""

from __future__ import annotations

from trainwarden.dossier.exports.common import dumped, span_of, stamp, summary, when_of
from trainwarden.dossier.techniques import technique_name
from trainwarden.dossier.view import View

_TACTICS = {
    "AML.T0010.001": "AML.TA0004",  # initial access
    "AML.T0018.000": "AML.TA0006",  # persistence
    "AML.T0020": "AML.TA0006",
}


def export(view: View) -> bytes:
    """The case study; what has no id of ATLAS is no step of it."""
    first, _ = span_of(view)
    artefacts = sorted(view.of("artefact"), key=lambda a: when_of(view, a))
    procedure = [
        {
            "tactic": _TACTICS[technique],
            "technique": technique,
            "description": f"{view.text(a, 'what')}: {view.text(a, 'path')} (alleged; {a.id})",
        }
        for a in artefacts
        if (technique := view.text(a, "technique")) in _TACTICS
    ]
    others = sorted({t for a in artefacts if (t := view.text(a, "technique")) and t not in _TACTICS})
    named = [f"{t} {technique_name(t)}".strip() for t in others]
    study = {
        "object-type": "case-study",
        "name": view.text(view.one("incident"), "title"),
        "summary": summary(view) + (f" Also, of ATT&CK: {', '.join(named)}." if named else ""),
        "incident-date": stamp(first)[:10],
        "incident-date-granularity": "DATE",
        "procedure": procedure,
        "reported-by": "the organisation concerned",
        "reporter": "the organisation concerned",
        "target": "training of AI models",
        "actor": "not established",
        "case-study-type": "incident",
        "references": [{"title": f"register {view.manifest.register}", "url": None}],
    }
    return dumped(study)
