"""The loss curve with event markers, as SVG (pure). Curves are no evidence; they show where things happened."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import TypeAlias

import msgspec
from markupsafe import Markup

from trainwarden.model import CheckpointSaved, Entry, StepRecord
from trainwarden.report.events import Event
from trainwarden.report.svg import drawing, element, label, number, title

MOST_POINTS = 500
_TOP, _BOTTOM, _LEFT, _RIGHT = 34, 30, 40, 12

Points: TypeAlias = list[tuple[float, list[float]]]


class _Frame(msgspec.Struct, frozen=True):
    """The plot's place on the page and the ranges that it shows."""

    width: float
    height: float
    first: float
    last: float
    low: float
    high: float

    def x(self, step: float) -> float:
        share = (min(max(step, self.first), self.last) - self.first) / (self.last - self.first)
        return _LEFT + share * (self.width - _LEFT - _RIGHT)

    def y(self, loss: float) -> float:
        share = (self.high - min(max(loss, self.low), self.high)) / (self.high - self.low)
        return _TOP + share * (self.height - _TOP - _BOTTOM)


def loss_curve(entries: Sequence[Entry], marks: Sequence[Event], width: float, height: float) -> Markup | None:
    """The curve of every attempt's mean loss over the spread of its ranks; None when no loss was recorded."""
    losses = _losses(entries)
    values = sorted(v for steps in losses.values() for ranks in steps.values() for v in ranks)
    if not values:
        return None
    steps = [s for by_step in losses.values() for s in by_step]
    low, high = _range(values)
    frame = _Frame(width, height, min(steps), max(max(steps), min(steps) + 1), low, high)
    body = _axes(frame) + _checkpoints(entries, frame)
    newest = max(losses)
    for attempt, by_step in sorted(losses.items()):
        points = _thinned(sorted(by_step.items()))
        body += _attempt(attempt, points, "new" if attempt == newest else "old", frame)
    body += _markers(marks, frame)
    return drawing(width, height, "training loss by step, with events", body, "chart")


def _attempt(attempt: int, points: Points, age: str, frame: _Frame) -> list[str]:
    upper = [(frame.x(s), frame.y(max(v))) for s, v in points]
    lower = [(frame.x(s), frame.y(min(v))) for s, v in reversed(points)]
    mean = [(frame.x(s), frame.y(sum(v) / len(v))) for s, v in points]
    return [
        element("path", d=_path(upper + lower) + "z", class_=f"band {age}"),
        element("path", title(f"attempt {attempt}"), d=_path(mean), class_=f"line {age}"),
    ]


def _losses(entries: Sequence[Entry]) -> dict[int, dict[int, list[float]]]:
    found: dict[int, dict[int, list[float]]] = {}
    for e in entries:
        if isinstance(e, StepRecord) and e.loss is not None and math.isfinite(e.loss) and abs(e.loss) < 1e30:
            found.setdefault(e.attempt, {}).setdefault(e.step, []).append(e.loss)
    return found


def _range(values: Sequence[float]) -> tuple[float, float]:
    """The range to draw: outliers above the 99th percentile are cut when they would flatten all else."""
    low, high = values[0], values[-1]
    usual = values[min(len(values) - 1, int(len(values) * 0.99))]
    if high - low > 4 * (usual - low) > 0:
        high = usual
    pad = (high - low) * 0.08 or max(abs(high) * 0.05, 1e-6)
    return low - pad, high + pad


def _thinned(points: list[tuple[int, list[float]]]) -> Points:
    size = -(-len(points) // MOST_POINTS)
    if size <= 1:
        return [(float(s), v) for s, v in points]
    groups = (points[i : i + size] for i in range(0, len(points), size))
    return [(sum(s for s, _ in g) / len(g), [v for _, vs in g for v in vs]) for g in groups]


def _path(points: Sequence[tuple[float, float]]) -> str:
    return "M" + "L".join(f"{number(px)} {number(py)}" for px, py in points)


def ticks(first: float, last: float, most: int) -> list[float]:
    """At most about `most` round values between two ends."""
    raw = (last - first) / max(most, 1)
    if raw <= 0:
        return [first]
    power = 10.0 ** math.floor(math.log10(raw))
    step = next(power * k for k in (1, 2, 5, 10) if power * k >= raw)
    start = math.ceil(first / step - 1e-9)
    return [i * step for i in range(start, math.floor(last / step + 1e-9) + 1)]


def _axes(f: _Frame) -> list[str]:
    body = []
    for value in ticks(f.low, f.high, 5):
        y = f.y(value)
        body.append(element("line", x1=_LEFT, x2=f.width - _RIGHT, y1=y, y2=y, class_="rule"))
        body.append(label(_LEFT - 8, y + 4, f"{value:.4g}", anchor="end"))
    for step in ticks(f.first, f.last, int(f.width / 70)):
        if step == int(step):
            body.append(label(f.x(step), f.height - 8, f"{step:.0f}", anchor="middle"))
    return body


def _checkpoints(entries: Sequence[Entry], f: _Frame) -> list[str]:
    steps = sorted({e.step for e in entries if isinstance(e, CheckpointSaved) and f.first <= e.step <= f.last + 1})
    thin = steps[:: -(-len(steps) // 100) or 1]
    base = f.height - _BOTTOM
    return [
        element(
            "path", title(f"checkpoint of step {s}"), d=f"M{number(f.x(s) - 4)} {number(base)}h8l-4-6z", class_="saved"
        )
        for s in thin
    ]


def _markers(marks: Sequence[Event], f: _Frame) -> list[str]:
    """Numbered flags over lines; flags that would touch stand side by side."""
    body, free = [], -1e9
    for n, mark in enumerate(marks, 1):
        x = f.x(mark.step)
        at = min(max(x, free), f.width - 10)
        free = at + 21
        class_ = f"mark {mark.kind}"
        line = f"M{number(at)} 20L{number(x)} {number(_TOP)}V{number(f.height - _BOTTOM)}"
        body.append(element("path", d=line, class_=class_))
        flag = element("circle", title(mark.text), cx=at, cy=11, r=9.5)
        body.append(element("g", flag + label(at, 15, str(n), "flag", "middle"), class_=class_))
    return body
