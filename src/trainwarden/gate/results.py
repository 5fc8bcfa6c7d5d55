"""What a scan comes to: frozen, consumed with `match` and `assert_never`.

Named tuples: a scan of one file takes about as long as importing msgspec does (docs/adr/0026).
"""

from __future__ import annotations

from collections.abc import Iterable
from typing import TYPE_CHECKING, NamedTuple, TypeAlias

if TYPE_CHECKING:
    from trainwarden.model import FileAllowed


class Objection(NamedTuple):
    """One thing in a file that a checkpoint does not need: where, by which instruction, what, and why it is refused.

    `part` is the path inside of containers ("" for the file itself), `offset` counts bytes in that part (lines in a
    template), and `opcode` is the pickle instruction or the field of another format.
    """

    part: str
    offset: int
    opcode: str
    name: str
    why: str


class Clean(NamedTuple):
    """Loading it as a `kind` runs nothing: every part was understood and needs no more than the allow-list.

    `beside` are files in its folder that it takes data from, and how many bytes of each at least.
    """

    kind: str
    beside: tuple[tuple[str, int], ...] = ()


class Refused(NamedTuple):
    """Loading it could run something, or parsers read it in different ways."""

    kind: str
    objections: tuple[Objection, ...]


class Undecided(NamedTuple):
    """It was not understood, not read, or too large to decide; never a pass."""

    kind: str
    why: str


Decision: TypeAlias = Clean | Refused | Undecided


class Scanned(NamedTuple):
    """The decision on one file, an actor's allowance in spite of it, and what another tool says ("": not asked)."""

    path: str
    size: int
    decision: Decision
    allowed: FileAllowed | None = None
    second: str = ""


def joined(kind: str, parts: Iterable[Decision]) -> Decision:
    """The decision on a container from those on its parts: one objection refuses it, one doubt leaves it undecided."""
    objections: list[Objection] = []
    doubts: list[str] = []
    for part in parts:
        match part:
            case Refused():
                objections.extend(part.objections)
            case Undecided():
                doubts.append(part.why)
            case Clean():
                pass
    if objections:
        return Refused(kind=kind, objections=tuple(objections[:MOST_OBJECTIONS]))
    if doubts:
        return Undecided(kind=kind, why="; ".join(dict.fromkeys(doubts[:3])))
    return Clean(kind=kind)


MOST_OBJECTIONS = 50


def refused(kind: str, part: str, why: str, *, offset: int = 0, field: str = "", name: str = "") -> Refused:
    """A refusal for one reason."""
    objection = Objection(part=part, offset=offset, opcode=field, name=name, why=why)
    return Refused(kind=kind, objections=(objection,))


def in_unicode(decision: Decision) -> Decision:
    """The decision, what is no Unicode in a file's names as escapes, so that logs and reports take them."""
    match decision:
        case Refused(kind=kind, objections=objections):
            return Refused(
                kind=kind,
                objections=tuple(
                    o._replace(
                        part=_escaped(o.part), opcode=_escaped(o.opcode), name=_escaped(o.name), why=_escaped(o.why)
                    )
                    for o in objections
                ),
            )
        case Undecided(kind=kind, why=why):
            return Undecided(kind=kind, why=_escaped(why))
        case Clean():
            return decision


def _escaped(text: str) -> str:
    return text.encode("utf-8", "backslashreplace").decode()


def in_json(scanned: Scanned) -> dict[str, object]:
    """What `trainwarden scan --json` says of a file: its fields, the decision's `type` among the decision's own."""
    decision: dict[str, object] = {"type": type(scanned.decision).__name__.lower(), **scanned.decision._asdict()}
    match scanned.decision:
        case Refused(objections=objections):
            decision["objections"] = [o._asdict() for o in objections]
        case Clean(beside=()):
            del decision["beside"]
    return {**scanned._asdict(), "decision": decision}
