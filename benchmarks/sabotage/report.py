"""SabotageBench's rows as a table and a picture for the docs (pure)."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from itertools import groupby
from typing import Any

from benchmarks.sabotage.scoring import first, how
from trainwarden.report.svg import drawing, element, label

Row = Mapping[str, Any]

_WIDTH, _ROW, _TOP, _BOTTOM = 760.0, 20.0, 40.0, 10.0
_COLUMNS = {"TrainWarden": 250.0, "curves": 500.0, "TrainCheck": 630.0}
_STYLE = (
    "text{font:12px system-ui,sans-serif;fill:#57606a}.name{fill:#24292f}.none{fill:none;stroke:#8c959f}"
    ".found{fill:#1a7f37}.audit{fill:#9a6700}.missed{fill:#cf222e}"
    "@media(prefers-color-scheme:dark){text{fill:#8b949e}.name{fill:#e6edf3}}"
)
_CLASS = {"live": "found", "found": "found", "audit": "audit", "missed": "missed", "false": "missed"}


def attacks(results: Mapping[str, Any]) -> list[list[Row]]:
    """The rows of attacks that did something, in groups of one variant and workload, in the order of their ids."""
    rows = [r for r in results.get("runs", ()) if r["kind"] == "attack" and how(r) != "not carried out"]
    rows = [r for r in rows if r["worked"] is not False]

    def key(row: Row) -> tuple[str, str, str]:
        return row["technique"], row["variant"], row["workload"]

    return [list(group) for _, group in groupby(sorted(rows, key=key), key=key)]


def told(values: Iterable[str]) -> str:
    """One word for what all say, or each with how many say it."""
    listed = list(values)
    if len(set(listed)) == 1:
        return listed[0]
    return ", ".join(f"{value} {listed.count(value)}×" for value in dict.fromkeys(listed))


def table(results: Mapping[str, Any]) -> str:
    """A line for each variant that was carried out."""
    heads = ["technique", "variant", "found", "first by", "steps", "seconds", "located", "cause proved"]
    lines = ["| " + " | ".join([*heads, "curves", "TrainCheck"]) + " |", "|---" * 10 + "|"]
    for group in attacks(results):
        lines.append("| " + " | ".join(_cells(group)) + " |")
    return "\n".join(lines)


def _cells(group: Sequence[Row]) -> list[str]:
    firsts = [f for r in group if (f := first(r)) is not None]
    live = [f for f in firsts if f["seconds"] is not None]
    name = f"{group[0]['technique']} ({group[0]['workload']})"
    found = told(how(r) for r in group)
    return [
        name,
        group[0]["variant"],
        f"**{found}**" if "missed" in found else found,
        told(f"`{f['by']}`" for f in firsts) if firsts else "",
        f"{max(f['steps'] for f in live)}" if live else "",
        f"{max(f['seconds'] for f in live):.2f}" if live else "",
        told(r["located"] for r in group) if group[0]["marks"] else "no step",
        told({None: "not asked", True: "yes", False: "no"}[r["cause_proved"]] for r in group),
        *(told(r.get(name, {}).get("result", "not run") for r in group) for name in ("curves", "traincheck")),
    ]


def innocent_table(results: Mapping[str, Any]) -> str:
    """A line for each honest run and benign twin."""
    lines = ["| honest run or twin | seed | TrainWarden | curves | TrainCheck |", "|---" * 5 + "|"]
    for row in (r for r in results.get("runs", ()) if r["kind"] != "attack" and r["verdict"] != "not carried out"):
        name = f"twin of {row['technique']}: {row['variant']}" if row["kind"] == "twin" else f"honest {row['workload']}"
        raised = ", ".join(f"{f['severity']} `{f['by']}`" for f in row["found"])
        verdict = row["verdict"] + (f": {raised}" if raised else "")
        others = [row.get(peer, {}).get("result", "not run") for peer in ("curves", "traincheck")]
        lines.append("| " + " | ".join([name, str(row["seed"]), verdict, *others]) + " |")
    return "\n".join(lines)


def block(results: Mapping[str, Any] | None) -> str:
    """What docs/benchmarks.md shows of it."""
    if not results:
        return "not measured yet"
    picture = "![what each of three defences finds of each attack](sabotage.svg)"
    left_out = [
        f"{words}: {', '.join(f'`{case}`' for case in results['summary'][key])}."
        for key, words in (
            ("missed", "Missed"),
            ("not_checked", "Not found live, and not audited yet"),
            ("without_effect", "Carried out without an effect on the job, so not counted"),
            ("not_carried_out", "Not carried out"),
            ("techniques_without_a_case", "Techniques of which no case was run"),
            ("not_exact", "Audited, and not located exactly"),
            ("cause_not_proved", "Audited, and the cause not proved"),
        )
        if results["summary"].get(key)
    ]
    if older := results["summary"].get("rows_of_earlier_code"):
        left_out.append(f"{older} of {len(results['runs'])} rows were looked at by earlier code.")
    return "\n\n".join([picture, table(results), *left_out, innocent_table(results)])


# ------------------------------------------------------------------ the picture


def plot(results: Mapping[str, Any]) -> str:
    """A line for each variant, and a dot in it for what each defence finds: green found, amber by audit, red missed."""
    groups = attacks(results)
    height = _TOP + _ROW * len(groups) + _BOTTOM
    body = [element("style", _STYLE)]
    heads = {"job": 178.0, **_COLUMNS}
    body += [label(x - 8, 18, name, "name") for name, x in heads.items()]
    for i, group in enumerate(groups):
        body += _line(group, _TOP + _ROW * (i + 0.5))
    return str(drawing(_WIDTH, height, "what each of three defences finds of each attack", body, "chart")) + "\n"


def _line(group: Sequence[Row], y: float) -> list[str]:
    variant, workload = f"{group[0]['technique']} {group[0]['variant']}", group[0]["workload"]
    body = [label(10, y + 4, variant[:24], "name"), label(170, y + 4, workload, "job")]
    said = {"TrainWarden": told(how(r) for r in group)}
    said |= {
        head: told(r.get(head.lower(), {}).get("result", "not run") for r in group)
        for head in _COLUMNS
        if head not in said
    }
    for head, x in _COLUMNS.items():
        kind = _CLASS.get(said[head].split(" ")[0], "none")
        body += [
            element("circle", cx=x, cy=y, r=5.0, class_=kind),
            label(x + 12, y + 4, _words(head, said[head], group)),
        ]
    return body


def _words(head: str, said: str, group: Sequence[Row]) -> str:
    finding = first(group[0])
    if head != "TrainWarden" or finding is None:
        return said
    steps = finding["steps"]
    late = "" if steps is None else ", 1 step" if steps == 1 else f", {steps} steps"
    return f"{said}: {finding['by']}{late}"
