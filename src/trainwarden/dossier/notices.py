"""Drafts of what the organisation may tell others, one an audience, for a human to approve. Nothing is ever sent.

Every draft calls what it says alleged, names no person, and says what is not known and that the respondent is to be
heard. It is made of what that audience's edition shows, and of nothing else.
"""

from __future__ import annotations

from collections.abc import Mapping

from trainwarden.dossier.nouns import Audience
from trainwarden.dossier.view import Hidden, View, as_list

ROUTES: Mapping[Audience, tuple[str, str]] = {
    Audience.ORGANISATION: (
        "the organisation's own management, counsel and staff office",
        "before anybody outside is told; the respondent is heard before anything is decided about them",
    ),
    Audience.UNIVERSITY: (
        "a university",
        "only if the person who holds the account studies or works there, and only about that account; "
        "else not applicable, because nobody of theirs is concerned",
    ),
    Audience.INDUSTRY: (
        "an industry body",
        "techniques and digests that let others look for the same; not applicable to persons, because none is named",
    ),
    Audience.REGULATOR: (
        "a regulator",
        "where the law asks for it: counsel decides; else not applicable, because no duty to tell is known here",
    ),
    Audience.PUBLIC: (
        "the public",
        "only after those concerned were heard; not applicable while a proceeding is open, unless counsel says so",
    ),
}
_HEAD = """DRAFT, NOT SENT. For a human to read, change and approve. Approved by: ____________  on: ____________
To: {to}
When to send: {why}

"""


def notice(view: View) -> str:
    """The draft for the audience of this edition, as Markdown."""
    audience = view.manifest.audience
    to, why = ROUTES[audience]
    incident, conclusion = view.one("incident"), view.one("conclusion")
    runs = len(view.of("run"))
    parts = [
        _HEAD.format(to=to, why=why),
        f"# Notice of an alleged interference with the training of AI models ({view.manifest.incident})\n",
        f'We looked into "{view.text(incident, "title")}", over {runs} training run{"" if runs == 1 else "s"}. '
        'What follows is alleged unless it says "established".\n',
        "## Established by replay\n" + _listed(_established(view), "Nothing has been established by a replay."),
        "## What records say (alleged)\n" + _listed([view.text(conclusion, "sentence")], "Nothing."),
        "No record that we have is a finding about a person. An account is not a person.\n" if conclusion else "",
    ]
    if audience in (Audience.INDUSTRY, Audience.REGULATOR):
        parts.append("## To look for elsewhere\n" + _listed(_indicators(view), "No artefact."))
    if audience is not Audience.INDUSTRY:
        parts.append("## Damage\n" + _listed(_damage(view), "No account was made."))
    unknown = as_list(view.value(conclusion, "unknown"))
    unknown += [f"what would decide: {text}" for text in as_list(view.value(conclusion, "missing"))]
    if audience is not Audience.INDUSTRY:
        unknown += [f"damage, {view.text(x, 'line')}: {view.text(x, 'unknown')} ({x.id})" for x in view.open_losses()]
    parts += [
        "## Not known\n" + _listed(unknown, "Nothing is told to be missing."),
        "## The respondent\n" + _heard(view),
        "## To check this\n"
        "The dossier that goes with this notice can be checked without us: `trainwarden verify dossier.zip --key "
        f"{view.manifest.key}`; its register has the root `{view.manifest.register}`.\n",
    ]
    return "\n".join(p for p in parts if p)


def _listed(texts: list[str], empty: str) -> str:
    return "".join(f"- {t}\n" for t in texts if t) or empty + "\n"


def _established(view: View) -> list[str]:
    found = [f"{view.text(r, 'run')}: {view.text(r, 'sentence')} (run-level summary, {r.id})" for r in view.of("run")]
    return found if view.entries("diverged") else []


def _indicators(view: View) -> list[str]:
    return [
        f"{view.text(a, 'technique') or 'no technique id'}: {view.text(a, 'what')}, BLAKE3 "
        f"{view.text(a, 'digest')} ({a.id})"
        for a in view.of("artefact")
        if view.value(a, "digest")
    ]


def _damage(view: View) -> list[str]:
    return [
        f"{view.text(x, 'line')}: {view.number(x, 'mid'):,.3g} {view.text(x, 'unit')} "
        f"(from {view.number(x, 'low'):,.3g} to {view.number(x, 'high'):,.3g}) ({x.id})"
        for x in view.of("loss")
        if not isinstance(view.value(x, "mid"), Hidden) and view.number(x, "high")
    ]


def _heard(view: View) -> str:
    if any(view.text(s, "role") == "respondent" for s in view.of("statement")):
        return "The respondent's statement is in the dossier, in their own words.\n"
    return "The respondent has not been heard yet, or handed in no statement.\n"
