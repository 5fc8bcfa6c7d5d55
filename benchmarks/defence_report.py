"""The defence benchmark's rows as a table and a picture for the docs (pure)."""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any

from trainwarden.report.svg import drawing, element, label

Row = Mapping[str, Any]

_WIDTH, _ROW, _LEFT, _RIGHT, _TOP, _BOTTOM = 760.0, 20.0, 170.0, 150.0, 34.0, 30.0
_FIRST, _LAST = 0.01, 100.0  # seconds at the ends of the axis
_STYLE = (
    "text{font:12px system-ui,sans-serif;fill:#57606a}.name{fill:#24292f}.line{stroke:#d0d7de}"
    ".live{fill:#1a7f37}.audit{fill:#9a6700}.missed{fill:#cf222e}"
    "@media(prefers-color-scheme:dark){text{fill:#8b949e}.name{fill:#e6edf3}.line{stroke:#30363d}}"
)


def rows_of(results: Mapping[str, Any]) -> list[Row]:
    """The rows of attacks that were carried out, those found first on top, missed ones last."""
    rows = [r for r in results.get("runs", ()) if r.get("part") == "attacks" and r.get("struck")]
    return sorted(rows, key=_order)


def _order(row: Row) -> tuple[int, float, str]:
    kind = ("live", "audit", "missed").index(found(row))
    return kind, row["live"][0]["seconds"] if row["live"] else 0.0, row["attack"]


def found(row: Row) -> str:
    """How an attack was found: "live", "audit" or "missed"."""
    if row["live"]:
        return "live"
    return "audit" if row.get("audit", {}).get("verdict") == "diverged" else "missed"


def table(results: Mapping[str, Any]) -> str:
    """A line for each attack: how it was found, by what, after how long."""
    lines = ["| attack | technique | found | by | steps | seconds | also told by | silent |", "|---" * 8 + "|"]
    for row in rows_of(results):
        silent = ", ".join(row.get("silent", ()))
        lines.append("| " + " | ".join([row["attack"], row["technique"], *_cells(row), silent]) + " |")
    return "\n".join(lines)


def _cells(row: Row) -> list[str]:
    kind = found(row)
    if kind == "live":
        first, *others = row["live"]
        also = ", ".join(f"{f['detector']} ({f['steps']})" for f in others)
        return ["live", f"`{first['detector']}`", str(first["steps"]), f"{first['seconds']:.2f}", also]
    if kind == "audit":
        at = row["audit"]
        return ["audit", f"`{at['stage']}` of step {at['step']}, rank {at['rank']}", "", "", ""]
    return ["**missed**", f"audit: {row.get('audit', {}).get('verdict', 'not run')}", "", "", ""]


def honest_table(results: Mapping[str, Any]) -> str:
    """A line for each honest run and benign twin: its steps, and what was raised."""
    lines = ["| honest run | steps | findings |", "|---|---|---|"]
    for row in (r for r in results.get("runs", ()) if r.get("part") == "honest"):
        told = ", ".join(f"{f['severity']} `{f['detector']}`" for f in row["findings"])
        lines.append(f"| {row['twin']} | {row['steps']:,} | {told or 'none'} |")
    return "\n".join(lines)


def block(results: Mapping[str, Any] | None) -> str:
    """What docs/benchmarks.md shows of it."""
    if not results:
        return "not measured yet"
    parts = ["![seconds from the first tampered step to the first finding](defence.svg)", table(results)]
    return "\n\n".join([*parts, honest_table(results), shares_table(results)])


def shares_table(results: Mapping[str, Any]) -> str:
    """What each observer takes in a rank and each detector in the watcher."""
    lines = ["| of a step record | CPU, µs |", "|---|---|"]
    for row in (r for r in results.get("runs", ()) if r.get("kind") == "shares"):
        for kind in ("observers", "detectors"):
            lines += [f"| {kind[:-1]} `{name}` | {us:g} |" for name, us in sorted(row[kind].items())]
    return "\n".join(lines)


def plot(results: Mapping[str, Any]) -> str:
    """Seconds from the first tampered step to the first finding, on a logarithmic axis."""
    rows = rows_of(results)
    height = _TOP + _ROW * len(rows) + _BOTTOM
    body = [element("style", _STYLE), *_axis(height)]
    for i, row in enumerate(rows):
        body += _line(row, _TOP + _ROW * (i + 0.5))
    name = "seconds from the first tampered step of each attack to the first finding"
    return str(drawing(_WIDTH, height, name, body, "chart")) + "\n"


def _axis(height: float) -> list[str]:
    body = [label(_LEFT, 14, "seconds from the first tampered step to the first finding")]
    for power in range(round(math.log10(_FIRST)), round(math.log10(_LAST)) + 1):
        x = _x(10.0**power)
        body.append(element("line", x1=x, x2=x, y1=_TOP - 8, y2=height - _BOTTOM + 4, class_="line"))
        body.append(label(x, height - 10, f"{10.0**power:g} s", anchor="middle"))
    return body


def _line(row: Row, y: float) -> list[str]:
    kind = found(row)
    body = [label(_LEFT - 10, y + 4, row["attack"], "name", "end")]
    if kind == "live":
        first = row["live"][0]
        x = _x(first["seconds"])
        steps = "1 step" if first["steps"] == 1 else f"{first['steps']} steps"
        return [
            *body,
            element("circle", cx=x, cy=y, r=5.0, class_="live"),
            label(_WIDTH - _RIGHT + 14, y + 4, f"{first['detector']}, {steps}"),
        ]
    text = f"audit: {row['audit']['stage']}" if kind == "audit" else "missed"
    return [*body, label(_WIDTH - _RIGHT + 14, y + 4, text, kind)]


def _x(seconds: float) -> float:
    held = min(max(seconds, _FIRST), _LAST)
    share = math.log10(held / _FIRST) / math.log10(_LAST / _FIRST)
    return _LEFT + share * (_WIDTH - _LEFT - _RIGHT)
