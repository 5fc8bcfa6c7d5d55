"""The drawings of a dossier: one timeline of all sources, and the account as falls. Pure: items in, SVG out."""

from __future__ import annotations

from collections.abc import Iterator

import msgspec

from trainwarden.dossier.nouns import Shown
from trainwarden.dossier.view import Hidden, View
from trainwarden.report.html import NARROW, WIDE
from trainwarden.report.svg import drawing, element, label, number, title
from trainwarden.report.waterfall import waterfall
from trainwarden.report.words import when
from trainwarden.respond.account.lines import Account

_ROW, _TOP, _FOOT = 26, 8, 30
_MOST_LANES = 16
_EVENTS = {"finding": "finding", "diverged": "replay differs", "contained": "contained", "recovered": "recovered"}


class _Mark(msgspec.Struct, frozen=True):
    lane: str
    time_ns: int
    error_ns: int
    text: str
    kind: str  # "act" | "job" | "run"


def timeline(view: View) -> tuple[str, str]:
    """Acts by account and what the runs' logs say, over time; for a wide and a narrow page."""
    marks = [m for m in _marks(view) if m.time_ns > 0]
    lanes = list(dict.fromkeys(m.lane for m in marks))[:_MOST_LANES]
    if not lanes:
        return "", ""
    return _drawn(marks, lanes, WIDE), _drawn(marks, lanes, NARROW)


def _marks(view: View) -> list[_Mark]:
    found = []
    for act in view.of("act"):
        kind = "job" if view.value(act, "by_job") else "act"
        text = f"{view.text(act, 'who')}: {view.text(act, 'act')} {view.text(act, 'path')}"
        at = (int(view.number(act, "time_ns")), int(view.number(act, "error_ns")))
        found.append(_Mark(view.text(act, "who") or "not told", *at, text, kind))
    for entry in view.entries(*_EVENTS):
        text = _EVENTS[view.text(entry, "entry.type")]
        found.append(_Mark("logs of the runs", int(view.number(entry, "entry.wall_ns")), 0, text, "run"))
    for artefact in view.of("artefact"):
        found.append(_Mark("found changed", int(view.number(artefact, "found_ns")), 0, _what(view, artefact), "run"))
    return sorted(found, key=lambda m: (m.kind == "run", m.lane, m.time_ns))


def _what(view: View, artefact: Shown) -> str:
    return f"{view.text(artefact, 'what')}: {view.text(artefact, 'path')}"


def _drawn(marks: list[_Mark], lanes: list[str], width: float) -> str:
    narrow = width < 500
    left = 8.0 if narrow else 170.0
    row = _ROW + 14 if narrow else _ROW
    times = [m.time_ns for m in marks]
    first, last = min(times), max(times)
    over = max(last - first, 1)
    height = _TOP + row * len(lanes) + _FOOT
    body = []
    for n, lane in enumerate(lanes):
        y = _TOP + row * n + row - 10
        body.append(element("line", x1=left, x2=width - 10, y1=y, y2=y, class_="rule"))
        body.append(
            label(0 if narrow else left - 10, y - (13 if narrow else -4), lane, anchor="start" if narrow else "end")
        )
    for m in marks:
        if m.lane in lanes:
            y = _TOP + row * lanes.index(m.lane) + row - 10
            x = left + 6 + (width - left - 26) * (m.time_ns - first) / over
            wide = (width - left - 26) * m.error_ns / over
            if wide > 1:
                body += _whisker(x - wide, x + wide, y, left, width - 10)
            told = title(f"{when(m.time_ns)} {m.text}")
            body.append(element("circle", told, cx=x, cy=y, r=5, class_=f"tick-mark {m.kind}"))
    body.append(label(left, height - 8, when(first)))
    if last > first:
        body.append(label(width - 10, height - 8, when(last)[:16] if narrow else when(last), anchor="end"))
    return str(drawing(width, height, "acts and findings over time", body, "chart"))


def _whisker(first: float, last: float, y: float, left: float, right: float) -> Iterator[str]:
    """The error of a clock, with an arrow where it reaches further than the drawing."""
    low, high = max(first, left), min(last, right)
    yield element("line", x1=low, x2=high, y1=y, y2=y, class_="whisker")
    for end, beyond, back in ((low, first < left, 6), (high, last > right, -6)):
        if beyond:
            points = (
                f"{number(end + back)},{number(y - 4)} {number(end)},{number(y)} {number(end + back)},{number(y + 4)}"
            )
            yield element("polyline", points=points, class_="whisker")


def falls(view: View) -> tuple[tuple[str, str], ...]:
    """The lines of the account added up; nothing where there is no account or it is hidden."""
    value = view.value(view.one("account"), "account")
    if value is None or isinstance(value, Hidden):
        return ()
    account = msgspec.convert(value, Account)
    return ((str(waterfall(account, WIDE)), str(waterfall(account, NARROW))),)
