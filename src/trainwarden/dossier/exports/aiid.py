"""A submission to the AI Incident Database. Deployer and developer are left to a human; nobody is named as harming.

Its form wants a URL, authors, deployers, developers and harmed parties: a human fills these in, or it is not taken.
Source: responsible-ai-collaborative/aiid, `server/types/submission.ts` (which fields must not be null) and
`components/submissions/schemas.js` (the lengths that its form allows), as of 2026.
"""

from __future__ import annotations

from trainwarden.dossier.exports.common import dumped, span_of, stamp, summary
from trainwarden.dossier.view import View

_TITLE, _DESCRIPTION, _TEXT = 500, 500, 50_000  # characters


def export(view: View) -> bytes:
    """The submission, with the fields that only a human can fill left empty."""
    first, _ = span_of(view)
    made = stamp(view.manifest.made_ns)[:10]
    title = view.text(view.one("incident"), "title")
    return dumped(
        {
            "title": _cut(f"Alleged: {title}", _TITLE),
            "incident_title": _cut(f"Alleged: {title}", _TITLE),
            "description": _cut(summary(view), _DESCRIPTION),
            "text": _cut(summary(view), _TEXT),
            "date_published": made,
            "date_downloaded": made,
            "date_modified": made,
            "date_submitted": made,
            "incident_ids": [],
            "incident_date": stamp(first)[:10],
            "url": "",
            "source_domain": "",
            "image_url": "",
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


def _cut(text: str, most: int) -> str:
    return text if len(text) <= most else text[: most - 1] + "…"
