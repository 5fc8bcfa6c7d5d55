"""The account as drawings: where held time went, and the lines added up to the total, each with its range."""

from __future__ import annotations

import math
from typing import NamedTuple

from markupsafe import Markup

from trainwarden.report.curve import ticks
from trainwarden.report.svg import drawing, element, label, number, title
from trainwarden.respond.account.lines import COMPUTE, Account, Range, percent_of

_BAR, _TOP, _BOTTOM = 18, 8, 30
_TOTAL = "total"


class _Bar(NamedTuple):
    name: str
    begins: float
    hours: Range
    unknown: str


class _Frame(NamedTuple):
    width: float
    most: float  # hours at the right end

    @property
    def narrow(self) -> bool:
        return self.width < 500

    @property
    def row(self) -> float:
        return 64 if self.narrow else 42

    def x(self, hours: float) -> float:
        left, right = (2.0, 10.0) if self.narrow else (176.0, 258.0)
        return left + (self.width - left - right) * hours / self.most

    def y(self, row: int) -> float:
        """The upper edge of a bar."""
        return _TOP + self.row * row + (24 if self.narrow else 0)


def held_bar(account: Account, width: float) -> Markup:
    """One bar: progress, lost to failures that happen anyway, lost to interference."""
    ours = max(0.0, account.held - account.useful - account.natural.mid)
    parts = (("progress", account.useful), ("natural", account.natural.mid), ("lost", ours))
    body, x = [], 0.0
    for name, hours in parts:
        wide = width * max(0.0, hours) / account.held if account.held else 0.0
        told = title(f"{name}: {amount(hours)} GPU-hours, {percent_of(hours, account.held):.2g} %")
        if wide > 0:
            body.append(element("rect", told, x=x, y=0, width=max(wide, 1.5), height=22, class_=f"share {name}"))
        x += wide
    return drawing(width, 22, "where the held GPU-hours went", body, "chart")


def waterfall(account: Account, width: float) -> Markup:
    """Each line begins where the one before it ends; the thin line is its range, the last bar the total."""
    bars = _bars(account)
    f = _Frame(width, max([b.begins + b.hours.high for b in bars]) or 1.0)
    height = _TOP + f.row * len(bars) + _BOTTOM
    body = _axis(f, height)
    for i, bar in enumerate(bars):
        body += _drawn(f, bar, i) + _named(f, bar, i)
        if i < len(bars) - 2:  # from where this line ends to where the next one begins
            end = f.x(bar.begins + bar.hours.mid)
            body.append(element("line", x1=end, x2=end, y1=f.y(i) + _BAR, y2=f.y(i + 1), class_="step"))
    return drawing(width, height, "lines of the account, in GPU-hours", body, "chart")


def amount(value: float) -> str:
    """A number of hours or money with three digits that count."""
    if abs(value) < 100:
        return f"{value:,.3g}"
    return f"{round(value, 2 - math.floor(math.log10(abs(value)))):,.0f}"


def spread(r: Range) -> str:
    """A range in words."""
    return amount(r.mid) if r.low == r.mid == r.high else f"{amount(r.mid)} ({amount(r.low)} to {amount(r.high)})"


def _bars(account: Account) -> list[_Bar]:
    found, at = list[_Bar](), 0.0
    for a in account.amounts:
        if a.line in COMPUTE:
            found.append(_Bar(a.line.value, at, a.hours, a.unknown))
            at += a.hours.mid
    unknown = "; ".join(b.unknown for b in found if b.unknown)
    return [*found, _Bar(_TOTAL, 0.0, account.lost, unknown)]


def _axis(f: _Frame, height: float) -> list[str]:
    body = []
    for hours in ticks(0.0, f.most, 3 if f.narrow else 6):
        x = f.x(hours)
        body.append(element("line", x1=x, x2=x, y1=_TOP, y2=height - _BOTTOM + 4, class_="rule"))
        body.append(label(x, height - 8, amount(hours), anchor="start" if hours == 0 and f.narrow else "middle"))
    return body


def _drawn(f: _Frame, bar: _Bar, row: int) -> list[str]:
    y = f.y(row)
    begin, end = f.x(bar.begins), f.x(bar.begins + bar.hours.mid)
    low, high = f.x(bar.begins + bar.hours.low), f.x(bar.begins + bar.hours.high)
    told = title(f"{bar.name}: {spread(bar.hours)} GPU-hours")
    kind = "total" if bar.name == _TOTAL else "loss"
    if bar.unknown and not bar.hours.high:
        return [element("rect", told, x=begin, y=y, width=14, height=_BAR, class_="fall unknown")]
    body = [element("rect", told, x=begin, y=y, width=max(end - begin, 1.5), height=_BAR, class_=f"fall {kind}")]
    if high > low + 0.5:
        ends = "".join(f"M{number(x)} {number(y + _BAR + 2)}v8" for x in (low, high))
        middle = f"M{number(low)} {number(y + _BAR + 6)}H{number(high)}"
        body.append(element("path", d=middle + ends, class_="whisker"))
    return body


def _named(f: _Frame, bar: _Bar, row: int) -> list[str]:
    """The line's name and its value; at the sides, or above on a narrow page."""
    y = f.y(row) - 7 if f.narrow else f.y(row) + _BAR / 2 + 4
    told = "not known" if bar.unknown and not bar.hours.high else spread(bar.hours)
    told += " + not known" if bar.unknown and bar.hours.high else ""
    strong = "label strong" if bar.name == _TOTAL else "label"
    name = label(2 if f.narrow else 164, y, bar.name, strong, "start" if f.narrow else "end")
    return [name, label(f.width - (2 if f.narrow else 0), y, told, strong, "end")]
