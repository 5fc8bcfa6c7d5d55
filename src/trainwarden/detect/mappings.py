"""A rank's process is not what was sealed: native libraries, interpreter, environment variables, as /proc shows them.

Libraries that compilers make while training are told as not checked.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping

from trainwarden.model import Confidence, Detail, Deviation, Entry, Finding, ProcessSeen, Severity, Stage

_INJECTS = ("LD_PRELOAD", "LD_AUDIT")
_FINDS = ("LD_LIBRARY_PATH", "PYTHONPATH", "PYTHONHOME", "PYTHONPLATLIBDIR", "PYTHONPYCACHEPREFIX", "PYTHONSTARTUP",
          "PYTHONUSERBASE", "PYTHONBREAKPOINT", "PYTHONEXECUTABLE")  # fmt: skip
_BENIGN = {
    "library": "the job loads a native library from outside of its environment on purpose",
    "deleted": "the library was upgraded or rebuilt while the process ran",
    "system": "a system package was upgraded after the seal",
    "environment": "the launcher or a script sets this variable for its ranks",
    "interpreter": "the launch script chooses its Python itself",
}


class Mappings:
    """Tells of every deviation in a `ProcessSeen`."""

    id = "mappings"

    def observe(self, index: int, entry: Entry, detail: Mapping[Stage, Detail] | None) -> Iterable[Finding]:
        if not isinstance(entry, ProcessSeen):
            return ()
        made = [d for d in entry.deviations if d.kind == "generated"]
        findings = [_finding(index, entry, d) for d in entry.deviations if d.kind != "generated"]
        if made:
            findings.append(_generated(index, entry, made))
        return findings

    def finish(self) -> Iterable[Finding]:
        return ()


def _severity(found: Deviation) -> Severity:
    if found.kind in ("library", "interpreter") or found.name in _INJECTS:
        return Severity.HIGH
    if found.kind in ("deleted", "system") or found.name in _FINDS:
        return Severity.MEDIUM
    return Severity.LOW


def _finding(index: int, entry: ProcessSeen, found: Deviation) -> Finding:
    digest = f" ({found.found[:12]})" if found.found else ""
    who = f"Rank {entry.rank} (process {entry.pid})"
    seen = {
        "library": f"{who} runs native code of {found.name}{digest}, which is not sealed.",
        "deleted": f"{who} runs native code of {found.name}, a file that is gone or was replaced.",
        "system": f"{who} runs {found.name}{digest}, a system library changed after the seal.",
        "interpreter": f"{who} is {found.name}{digest}, not the sealed {found.expected}.",
        "environment": f"{who} began with {found.name}={found.found!r}, sealed: {found.expected!r}.",
    }.get(found.kind, f"{who} differs: {found.name}.")
    return Finding(
        detector=Mappings.id,
        severity=_severity(found),
        confidence=Confidence.MEDIUM,
        seen=seen,
        expected="A rank runs the sealed interpreter and sealed libraries in the sealed environment.",
        attempt=entry.attempt,
        ranks=(entry.rank,),
        evidence=(index,),
        benign=(_BENIGN.get(found.kind, "an honest difference between hosts"),),
        wall_ns=entry.wall_ns,
    )


def _generated(index: int, entry: ProcessSeen, made: list[Deviation]) -> Finding:
    return Finding(
        detector=Mappings.id,
        severity=Severity.INFO,
        confidence=Confidence.MEDIUM,
        seen=f"Rank {entry.rank} runs {len(made)} libraries that a compiler made while it trained: not checked.",
        expected="Native code is sealed, or made while training by a sealed compiler.",
        attempt=entry.attempt,
        ranks=(entry.rank,),
        evidence=(index,),
        benign=("torch.compile, Triton or a C++ extension",),
        wall_ns=entry.wall_ns,
    )
