"""A checkpoint's family as a tree on the terminal, and as SVG (pure): what it stands on to the left."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import msgspec
from markupsafe import Markup
from rich.markup import escape
from rich.tree import Tree

from trainwarden.gate.ancestry import Node
from trainwarden.gate.family import Family
from trainwarden.model import Standing
from trainwarden.report.lineage_chart import SIGNS
from trainwarden.report.svg import element, label, number, title
from trainwarden.report.words import clean

_WIDE, _HIGH, _ACROSS, _DOWN, _EDGE = 200.0, 62.0, 252.0, 82.0, 16.0
_COLOURS = {
    Standing.CLEARED: ("green", "#1a7f4b", "#e8f5ee"),
    Standing.TAINTED: ("bold red", "#b3261e", "#fdeceb"),
    Standing.UNDECIDED: ("yellow", "#9a6700", "#fff6dd"),
    Standing.UNAUDITED: ("cyan", "#57606a", "#f2f4f6"),
}


class Drawn(msgspec.Struct, frozen=True):
    """A node that is shown, and how many earlier checkpoints of its run of the same standing it stands for."""

    node: Node
    sources: tuple[str, ...]
    folded: int = 0


def folded(family: Family) -> dict[str, Drawn]:
    """The nodes that say something: of a run's checkpoints in a row that stand alike, the last."""
    nodes = {n.id: n for n in family.nodes}
    users: dict[str, list[Node]] = {}
    for n in family.nodes:
        for source in n.sources:
            users.setdefault(source, []).append(n)
    kept = {family.root, *family.tainted, *(d.node.id for d in family.descendants if d.names or d.earlier)}
    hidden = {n.id for n in family.nodes if n.kind == "run" and n.id not in kept and _is_inner(n, users.get(n.id, ()))}
    return {n.id: _drawn(n, nodes, hidden) for n in family.nodes if n.id not in hidden}


def _is_inner(node: Node, users: Sequence[Node]) -> bool:
    return len(users) == 1 and users[0].run == node.run and users[0].standing is node.standing


def _drawn(node: Node, nodes: Mapping[str, Node], hidden: set[str]) -> Drawn:
    sources, waiting, count = dict[str, None](), list(node.sources), 0
    while waiting:
        name = waiting.pop(0)
        if name in hidden:
            count += 1
            waiting.extend(nodes[name].sources)
        else:
            sources[name] = None
    return Drawn(node, tuple(sources), count)


def family_tree(family: Family) -> Tree:
    """What the checkpoint stands on, as a tree that ends in seals."""
    drawn, names = folded(family), _names(family)
    root = Tree(_line(drawn[family.root], names))
    waiting, shown = [(root, drawn[family.root])], set[str]()
    while waiting:
        branch, parent = waiting.pop()
        for source in parent.sources:
            line = _line(drawn[source], names)
            again = source in shown and bool(drawn[source].sources)
            below = branch.add(f"{line} [dim](as above)[/]" if again else line)
            if not again:
                shown.add(source)
                waiting.append((below, drawn[source]))
    return root


def _line(drawn: Drawn, names: Mapping[str, str]) -> str:
    node = drawn.node
    colour = _COLOURS[node.standing][0]
    more = f" [dim]and {drawn.folded} before it[/]" if drawn.folded else ""
    served = f" [bold]{escape(names[node.id])}[/]" if node.id in names else ""
    why = f"[dim]: {escape(clean(_why(node), 160))}[/]" if node.kind != "seal" else ""
    standing = f"[{colour}]{node.standing}[/]" if node.kind != "seal" else "[dim]the approved inputs[/]"
    return f"{escape(clean(node.label, 80))}{more}{served}  {standing}{why}"


def _why(node: Node) -> str:
    if node.standing is Standing.CLEARED:
        return node.reason
    return "; ".join(d.reason for d in node.doubts) or "for what it stands on"


def _names(family: Family) -> dict[str, str]:
    found = {}
    for d in family.descendants:
        if d.names or d.earlier:
            found[d.node.id] = f"served as {', '.join(d.names)}" if d.names else f"was served as {', '.join(d.earlier)}"
    return found


def family_svg(family: Family) -> Markup:
    """The family as a drawing of its own: seals to the left, what stands on them to the right."""
    drawn, names = folded(family), _names(family)
    columns = _columns(drawn)
    rows = _rows(drawn, columns)
    place = {n: (_EDGE + _ACROSS * columns[n], _EDGE + _DOWN * rows[n]) for n in drawn}
    body = [_style()]
    for name, d in drawn.items():
        body += [_link(place[s], place[name], drawn[s].node.standing) for s in d.sources if s in place]
    body += [_box(*place[name], d, names.get(name, ""), name == family.root) for name, d in drawn.items()]
    width = _EDGE * 2 + _ACROSS * max(columns.values()) + _WIDE
    height = _EDGE * 2 + _DOWN * max(rows.values()) + _HIGH
    return Markup(  # built from escaped parts only
        f'<svg viewBox="0 0 {number(width)} {number(height)}" width="{number(width)}" height="{number(height)}" '
        f'role="img" aria-label="what the checkpoint stands on, and what stands on it" '
        f'xmlns="http://www.w3.org/2000/svg">{"".join(body)}</svg>'
    )


def _columns(drawn: dict[str, Drawn]) -> dict[str, int]:
    """A column for each, directly before the first that stands on it, so that few lines run past others."""
    after: dict[str, int] = {}  # steps to the right end
    for name in reversed(drawn):
        for source in drawn[name].sources:
            after[source] = max(after.get(source, 0), after.setdefault(name, 0) + 1)
    most = max(after.values(), default=0)
    return {name: most - after.get(name, 0) for name in drawn}


def _rows(drawn: Mapping[str, Drawn], columns: Mapping[str, int]) -> dict[str, int]:
    """A row for each: that of what it stands on where that is free in its column, else the next free one."""
    taken: set[tuple[int, int]] = set()
    rows: dict[str, int] = {}
    for name in sorted(drawn, key=lambda n: columns[n]):
        row = min((rows[s] for s in drawn[name].sources if s in rows), default=0)
        while (columns[name], row) in taken:
            row += 1
        taken.add((columns[name], row))
        rows[name] = row
    return rows


def _style() -> str:
    rules = ["text{font:12px system-ui,sans-serif;fill:#1f2328}", ".small{font-size:10.5px;fill:#57606a}"]
    rules.append(".served{font-weight:600;fill:#1f2328}")
    rules += [".box{stroke-width:1.4}", ".root{stroke-width:3}", ".link{fill:none;stroke-width:1.6}"]
    for standing, (_, line, fill) in _COLOURS.items():
        rules += [f".box.{standing}{{stroke:{line};fill:{fill}}}", f".link.{standing}{{stroke:{line}}}"]
    rules.append(".box.seal{stroke:#57606a;fill:#fff;stroke-dasharray:4 3}")
    return f"<style>{''.join(rules)}</style>"


def _link(a: tuple[float, float], b: tuple[float, float], standing: Standing) -> str:
    x1, y1, x2, y2 = a[0] + _WIDE, a[1] + _HIGH / 2, b[0], b[1] + _HIGH / 2
    middle = (x1 + x2) / 2
    bend = f"{number(middle)} {number(y1)} {number(middle)} {number(y2)}"
    d = f"M{number(x1)} {number(y1)}C{bend} {number(x2)} {number(y2)}"
    return element("path", d=d, class_=f"link {standing}")


def _box(x: float, y: float, drawn: Drawn, served: str, is_root: bool) -> str:
    node = drawn.node
    kind = "seal" if node.kind == "seal" else str(node.standing)
    told = title(f"{node.label}: {node.standing}. {node.reason}")
    box = element(
        "rect", told, x=x, y=y, width=_WIDE, height=_HIGH, rx=7, class_=f"box {kind}{' root' if is_root else ''}"
    )
    head, _, rest = node.label.partition(", ") if node.kind == "run" else (node.label, "", "")
    lines = [rest, head] if rest else [head, node.derived.digest[:12] if node.derived else ""]
    what = "approved inputs" if node.kind == "seal" else f"{SIGNS[node.standing]} {node.standing}".strip()
    lines.append(", ".join(filter(None, (what, f"{drawn.folded} more before it" if drawn.folded else ""))))
    if served:
        lines[1] = served
    classes = ("", "small served" if served else "small", "small")
    texts = (
        label(x + 10, y + 19 + 17 * i, clean(line, 30 if i else 26), classes[i]) for i, line in enumerate(lines) if line
    )
    return box + "".join(texts)
