"""A submission to the AI Incident Database. Deployer and developer are left to a human; nobody is named as harming.

Source: the fields of a report and an incident in the AI Incident Database's submission form.
"""

from __future__ import annotations

from trainwarden.dossier.exports.common import dumped, span_of, stamp, summary
from trainwarden.dossier.view import View


def export(view: View) -> bytes:
    """The submission, with the fields that only a human can fill left empty."""
    first, _ = span_of(view)
    made = stamp(view.manifest.made_ns)[:10]
    title = view.text(view.one("incident"), "title")
    return dumped(
        {
            "title": f"Alleged: {title}",
            "description": summary(view)[:2000],
            "text": summary(view),
            "date_published": made,
            "date_downloaded": made,
            "date_submitted": made,
            "incident_date": stamp(first)[:10],
            "url": "",
            "authors": [],
            "submitters": [],
            "deployers": [],
            "developers": [],
            "harmed_parties": [],
            "implicated_systems": [view.text(r, "run") for r in view.of("run")],
            "language": "en",
            "tags": ["alleged", "training", "draft: a human has to approve and complete this"],
            "editor_notes": f"register {view.manifest.register}; not sent by anything",
        }
    )
