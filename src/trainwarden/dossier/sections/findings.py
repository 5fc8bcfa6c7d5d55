"""What was found: the finding on one page, its scope, and who is in it (pure)."""

from __future__ import annotations

from trainwarden.dossier.view import (
    UNKNOWN,
    Cell,
    Hidden,
    Row,
    Section,
    Table,
    View,
    as_list,
    as_map,
    joined,
    words_of,
)


def finding(view: View) -> Section:
    """Established, likely, not known."""
    conclusion, account = view.one("conclusion"), view.one("account")
    concluded = [Row((view.cell(conclusion, "sentence"),), view.refs(conclusion))] if conclusion else []
    decided = bool(view.value(conclusion, "leading"))
    likely = [*(concluded if decided else ()), *([Row((lost(view),), (account.id,))] if account is not None else ())]
    unknown = [] if decided else [*concluded]
    of = (conclusion.id,) if conclusion else ()
    unknown += [Row((text,), of) for text in as_list(view.value(conclusion, "unknown"))]
    unknown += [Row((f"{view.text(x, 'line')}: {view.text(x, 'unknown')}",), (x.id,)) for x in view.open_losses()]
    unknown += [Row((f"{view.text(g, 'what')}: {view.text(g, 'why')}",), (), g.id) for g in view.of("gap")]
    return Section(
        "finding",
        "The finding on one page",
        "Established is what replays and digests prove, and it is about files, steps and tensors. "
        "Likely is what records say about accounts. Everything about people is alleged.",
        tables=(
            Table("Established", ("",), tuple(_established(view)), "Nothing is proved by a replay."),
            Table("Likely, and alleged", ("",), tuple(likely), "Nothing."),
            Table("Not known", ("",), tuple(unknown), "Nothing is told to be missing."),
        ),
    )


def _established(view: View) -> list[Row]:
    found = []
    for entry in view.entries("diverged"):
        at = as_map(view.value(entry, "entry.at"))
        where = f"step {at.get('step', '?')}, rank {at.get('rank', '?')}, {at.get('stage', '').replace('_', ' ')}"
        of = f" of {at['tensor']}" if at.get("tensor") else ""
        found.append(Row((f"A replay from sealed inputs differs from the record at {where}{of}.",), (entry.id,)))
    for entry in view.entries("explanation"):
        cause = view.cell(entry, "entry.cause")
        if cause:
            file = view.cell(entry, "entry.file")
            parts: list[Cell] = ["The recorded digest was reproduced bit for bit by:", cause]
            found.append(Row((joined([*parts, "with the file", file] if file else parts),), (entry.id,)))
    return found


def lost(view: View) -> Cell:
    """The sum of the account in a sentence."""
    told = view.value(view.one("account"), "account")
    if not isinstance(told, dict):
        return Hidden("") if isinstance(told, Hidden) else UNKNOWN
    lost, cost = told["lost"], told["cost"]
    return (
        f"{_amounts(lost)} GPU-hours were lost to interference, at a cost of {_amounts(cost)} {told['currency']}."
        if lost["mid"] > 0
        else f"No loss stands out from what happens anyway; at most {words_of(lost['high'])} GPU-hours."
    )


def _amounts(value: dict[str, float]) -> str:
    return f"{value['mid']:,.3g} ({value['low']:,.3g} to {value['high']:,.3g})"


def scope(view: View) -> Section:
    """What was looked at, and what was not."""
    runs = view.rows(
        view.of("run"),
        "run",
        "command",
        "sentence",
        lambda r: f"{view.text(r, 'matched') or 0} of {view.text(r, 'records') or 0} step records",
        lambda r: view.cell(r, "broken") or "verified",
    )
    unseen = [
        Row((view.cell(r, "run"), stage, why), (r.id,))
        for r in view.of("run")
        for stage, why in as_map(view.value(r, "unseen")).items()
    ]
    return Section(
        "scope",
        "Scope and exclusions",
        "What was looked at, and what was not. What was not compared is no evidence either way.",
        tables=(
            Table("Runs", ("run", "command", "what is known", "reproduced", "log"), runs, "No run."),
            Table(
                "Not compared by replays",
                ("run", "stage", "why"),
                tuple(unseen),
                "No replay tells of a stage that it did not compare.",
            ),
            Table("Left out", ("what", "why"), view.rows(view.of("gap"), "what", "why"), "Nothing."),
        ),
    )


def parties(view: View) -> Section:
    """Every account, over all acts."""
    rows = view.rows(
        view.of("access"),
        "account", view.known("kind"), view.known("holder"), "access", "present", "absent", "unknown", "ended",
    )  # fmt: skip
    head = ("account", "kind", "holder", "access to", "present at", "absent or not seen", UNKNOWN, "access ended")
    return Section(
        "parties",
        "Parties",
        "A person is not an account, and an account is not a process or an agent. Persons appear as pseudonyms of the "
        "organisation's own records, where a record binds one at all. Opportunity is access, never guilt. "
        "The numbers count acts.",
        tables=(
            Table(
                "Every account, agent and service that any source names, over all acts",
                head,
                rows,
                "No source names one.",
            ),
        ),
    )
