"""Which checkpoint stands on which, and how each stands, as SVG (pure). One lane an attempt, time to the right."""

from __future__ import annotations

from collections.abc import Sequence

from markupsafe import Markup

from trainwarden.model import Checkpoint, Standing
from trainwarden.report.svg import drawing, element, label, number, title

_LANE, _TOP, _LEFT, _RIGHT = 66, 34, 46, 30
SIGNS = {Standing.CLEARED: "✓", Standing.TAINTED: "✕", Standing.UNDECIDED: "?", Standing.UNAUDITED: ""}


def chosen(checkpoints: Sequence[Checkpoint], most: int) -> list[Checkpoint]:
    """At most `most` checkpoints: the ends, the neighbours of every change of standing, and others evenly."""
    if len(checkpoints) <= most:
        return list(checkpoints)
    turns = [i for i in range(1, len(checkpoints)) if checkpoints[i].standing is not checkpoints[i - 1].standing]
    wanted = [0, len(checkpoints) - 1, *(i for t in turns for i in (t - 1, t))][:most]
    every = len(checkpoints) / most
    wanted += [int(i * every) for i in range(most)]
    return [checkpoints[i] for i in sorted(list(dict.fromkeys(wanted))[:most])]


def lineage_chart(checkpoints: Sequence[Checkpoint], width: float) -> Markup | None:
    """Seal and checkpoints with the lines along which one stands on another; None without checkpoints."""
    shown = chosen(checkpoints, max(3, int((width - _LEFT - _RIGHT) / 58)))
    if not shown:
        return None
    lanes = {attempt: n for n, attempt in enumerate(sorted({c.attempt for c in shown}))}
    steps = sorted({c.step for c in shown})
    gap = (width - _LEFT - _RIGHT) / max(len(steps), 1)
    place = {
        (c.attempt, c.step): (_LEFT + gap * (steps.index(c.step) + 1) - gap * 0.35, _TOP + _LANE * lanes[c.attempt])
        for c in shown
    }
    root = (_LEFT - 18.0, float(_TOP))
    body = []
    for c in shown:
        start = _stands_on(c, shown)
        body.append(_line(root if start is None else place[start.attempt, start.step], place[c.attempt, c.step], c))
    body += [_seal(*root)] + [_node(*place[c.attempt, c.step], c) for c in shown]
    height = _TOP + _LANE * (len(lanes) - 1) + 44
    return drawing(width, height, "checkpoints and what they stand on", body, "chart lineage")


def _stands_on(c: Checkpoint, shown: Sequence[Checkpoint]) -> Checkpoint | None:
    """The shown checkpoint with the longest lineage that is a part of this one's."""
    own = set(c.lineage)
    older = [o for o in shown if o is not c and len(o.lineage) < len(own) and own.issuperset(o.lineage)]
    return max(older, key=lambda o: len(o.lineage), default=None)


def _line(a: tuple[float, float], b: tuple[float, float], c: Checkpoint) -> str:
    if a[1] == b[1]:
        d = f"M{number(a[0])} {number(a[1])}H{number(b[0])}"
    else:
        middle = number((a[0] + b[0]) / 2)
        start, end = f"{number(a[0])} {number(a[1])}", f"{number(b[0])} {number(b[1])}"
        d = f"M{start}C{middle} {number(a[1])} {middle} {number(b[1])} {end}"
    return element("path", d=d, class_=f"link {c.standing}")


def _seal(x: float, y: float) -> str:
    box = element("rect", x=x - 11, y=y - 11, width=22, height=22, rx=5, class_="seal")
    return box + label(x, y + 28, "seal", "label", "middle")


def _node(x: float, y: float, c: Checkpoint) -> str:
    told = title(f"step {c.step}, attempt {c.attempt}: {c.standing}. {c.reason}")
    if c.standing is Standing.TAINTED:
        shape = element(
            "rect", told, x=x - 10, y=y - 10, width=20, height=20, rx=3, transform=f"rotate(45 {number(x)} {number(y)})"
        )
    else:
        shape = element("circle", told, cx=x, cy=y, r=12)
    sign = SIGNS[c.standing]
    body = shape + (label(x, y + 4.5, sign, "sign", "middle") if sign else "")
    return element("g", body, class_=f"node {c.standing}") + label(x, y + 30, str(c.step), "label strong", "middle")
