"""Patched code in memory: a rank holds a function that sealed source does not account for.

The supervisor compares what a rank says of its functions with what sealed source compiles to; each difference
becomes a finding that names the function, its file, and the first instruction or default that differs.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping

from trainwarden.model import CodeDifference, CodeSeen, Confidence, Detail, Entry, Finding, Severity, Stage

_BENIGN = {
    "unsealed": "the job imports or generates modules outside of what was sealed (downloaded model code, plugins)",
    "planted": "the script or a plugin puts code of its own there on purpose",
    "altered": "the code was edited after the seal, before this process started",
    "generated": "a library compiles a replacement at run time",
    "defaults": "the script itself changes a default on purpose",
    "globals": "a library rebuilds functions on purpose",
    "replaced": "the script or a library puts an object of its own in this place on purpose",
    "moved": "a sealed library or the script replaces this function on purpose",
}


class Patched:
    """Tells of every difference in a `CodeSeen`."""

    id = "patched"

    def observe(self, index: int, entry: Entry, detail: Mapping[Stage, Detail] | None) -> Iterable[Finding]:
        if not isinstance(entry, CodeSeen):
            return ()
        findings = [_finding(index, entry, difference) for difference in entry.differences]
        if entry.more:
            seen = f"{entry.more} further functions in memory differ from sealed source."
            findings.append(_base(index, entry, seen, Severity.HIGH, Confidence.HIGH, ()))
        return findings

    def finish(self) -> Iterable[Finding]:
        return ()


def _finding(index: int, entry: CodeSeen, found: CodeDifference) -> Finding:
    stands_in = bool(found.sealed_file) or not any(":" in s for s in found.slots)
    severity = Severity.HIGH
    if found.kind == "moved":
        severity = Severity.LOW
    elif found.kind == "unsealed" and not stands_in:
        severity = Severity.MEDIUM
    benign = (_BENIGN.get(found.kind, "an honest change by whoever wrote the script"),)
    confidence = Confidence.HIGH if found.kind in ("altered", "defaults", "generated") else Confidence.MEDIUM
    return _base(index, entry, _sentence(found), severity, confidence, benign)


def _base(
    index: int, entry: CodeSeen, seen: str, severity: Severity, confidence: Confidence, benign: tuple[str, ...]
) -> Finding:
    return Finding(
        detector=Patched.id,
        severity=severity,
        confidence=confidence,
        seen=seen,
        expected="Every function that decides training is in memory what its sealed source compiles to.",
        step=entry.step,
        attempt=entry.attempt,
        ranks=(entry.rank,),
        evidence=(index,),
        benign=benign,
        wall_ns=entry.wall_ns,
    )


def _sentence(found: CodeDifference) -> str:
    place = found.slots[0].replace(":", ".") if found.slots else "a name"
    if found.places > 1:
        place += f" and {found.places - 1} more"
    function = f"{found.function} ({found.file}:{found.line})"
    owner = f" in place of the function of {found.sealed_file}:{found.sealed_line}" if found.sealed_file else ""
    what = {
        "unsealed": f"{place} holds {function}, from a file that is not sealed{owner}",
        "planted": f"{place} holds {function}, from a file that is not sealed and that its module does not import",
        "altered": f"{place} holds {function}, which is not what this sealed file compiles to",
        "generated": f"{place} holds {found.function} ({found.file}), code of no file{owner}",
        "defaults": f"{place} holds {function} with changed defaults",
        "globals": f"{place} holds {function}, which uses the globals of another module",
        "replaced": f"{place} holds {'something else' if found.at and not owner else 'no function any more'}{owner}",
        "moved": f"{place} holds {function}{owner}",
    }.get(found.kind, f"{place} differs")
    how = f"; first difference: {found.at}: {found.sealed} → {found.live}" if found.at else ""
    return f"{what}{how}."
