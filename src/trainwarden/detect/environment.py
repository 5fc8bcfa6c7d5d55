"""A sealed file changed on disk after the seal: environment, code or data.

An environment file is told once for each content that was found there; of code and data the first change is told, and
then that the file goes on changing: logs and results that lie beside the code do. A change is no proof that the job
ran it: a process keeps what it imported. The next start would load it, unless the run lives in a clean room that covers
the path: then it is a note. So is, once, a log beside the code that the job appends to (`FileChanged.grown`).
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping

from trainwarden.model import CleanRoom, Confidence, Detail, Entry, FileChanged, Finding, Severity, Stage

_SEVERITY = {"environment": Severity.HIGH, "code": Severity.MEDIUM, "data": Severity.MEDIUM}
_LONGEST = 200  # characters of a command line in a sentence
_BENIGN = {
    "environment": "somebody installed, upgraded or edited a package in this environment while the job ran",
    "code": "somebody edited the code while the job ran, and running processes keep what they imported; or the job "
    "writes a log or results beside its code",
    "data": "the job or somebody else writes into a folder that was sealed as data",
}


class Environment:
    """Tells of every `FileChanged`."""

    id = "environment"

    def __init__(self) -> None:
        self._covered: tuple[str, ...] = ()
        self._told: set[str] = set()
        self._logs: set[str] = set()  # those of them that were told as logs

    def observe(self, index: int, entry: Entry, detail: Mapping[Stage, Detail] | None) -> Iterable[Finding]:
        if isinstance(entry, CleanRoom):
            self._covered = entry.covered
        if not isinstance(entry, FileChanged) or (entry.grown and entry.path in self._told):
            return ()
        hidden = entry.kind == "environment" and any(
            entry.path == place or entry.path.startswith(place + "/") for place in self._covered
        )
        seen = f"The {entry.kind} file {entry.path} goes on changing."
        if entry.kind == "environment" or entry.path not in self._told:
            room = "; the job runs in a clean room and does not see it" if hidden else ""
            seen = f"The {entry.kind} file {entry.path} {_how(entry)}{_by(entry)}{room}."
            self._told.add(entry.path)
        elif entry.path in self._logs:
            seen = f"The {entry.kind} file {entry.path} {_how(entry)}{_by(entry)}."
        if entry.grown:
            self._logs.add(entry.path)
        else:
            self._logs.discard(entry.path)
        finding = Finding(
            detector=self.id,
            severity=Severity.INFO if hidden or entry.grown else _SEVERITY.get(entry.kind, Severity.MEDIUM),
            confidence=Confidence.HIGH,
            seen=seen,
            expected="Sealed files stay as they are while the run lasts.",
            evidence=(index,),
            benign=(_BENIGN.get(entry.kind, "an honest change by whoever owns the file"),),
            wall_ns=entry.wall_ns,
        )
        return (finding,)

    def finish(self) -> Iterable[Finding]:
        return ()


def _how(entry: FileChanged) -> str:
    if not entry.found:
        return "was removed after the seal"
    if not entry.sealed:
        return "is new after the seal"
    if entry.grown:
        return "is a log that has grown since the seal"
    return f"was changed after the seal ({entry.sealed[:12]} → {entry.found[:12]})"


def _by(entry: FileChanged) -> str:
    """Who wrote it, as far as the system told."""
    if entry.writer is None:
        return f"; who wrote it is not told by the system ({entry.untold})" if entry.untold else ""
    writer = entry.writer
    if writer.uid < 0:
        return f", by process {writer.pid}, which was gone before it could be looked at"
    login = f", logged in as {writer.login_uid}" if writer.login_uid >= 0 else ""
    command = " ".join(writer.argv) or writer.program
    return f", by process {writer.pid} of user {writer.uid}{login} ({command[:_LONGEST]})"
