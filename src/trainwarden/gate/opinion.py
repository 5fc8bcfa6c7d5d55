"""A second opinion on files that a scan found clean: fickling's, by Trail of Bits. It never makes one pass.

Rules
-----
* It is asked in a process of its own, with bounds on memory and time, about the pickles that a loader would run.
* What it calls malicious is no longer clean but undecided; what it only suspects is noted beside the decision.
* Not installed, too long or not understood by it: "not checked", which says nothing for the file.
"""

from __future__ import annotations

import importlib.util
import json
import subprocess
import sys
import zipfile
from pathlib import Path
from typing import Final

from trainwarden.gate.results import Clean, Scanned, Undecided

MOST_BYTES: Final = 16 << 20
_SECONDS: Final = 60.0
_MEMORY: Final = 1 << 31
_MALICIOUS: Final = ("LIKELY_OVERTLY_MALICIOUS", "OVERTLY_MALICIOUS")
_ASKS: Final = f"""
import io, json, resource, sys
resource.setrlimit(resource.RLIMIT_AS, ({_MEMORY}, {_MEMORY}))
from fickling.analysis import check_safety
from fickling.fickle import StackedPickle
found = [check_safety(p) for p in StackedPickle.load(io.BytesIO(sys.stdin.buffer.read()))]
worst = max(found, key=lambda f: f.severity)
print(json.dumps([worst.severity.name, worst.to_string()[:300]]))
"""


def with_opinion(scanned: Scanned) -> Scanned:
    """What was scanned, with what fickling says of it; files that hold no pickle are left as they are."""
    if not isinstance(scanned.decision, Clean) or scanned.decision.kind not in ("pickle", "torch zip", "torch legacy"):
        return scanned
    said, why = _asked(Path(scanned.path), scanned.decision.kind)
    if said not in _MALICIOUS:
        return scanned._replace(second=f"fickling: {said}{': ' + why if why else ''}")
    doubt = Undecided(kind=scanned.decision.kind, why=f"fickling calls it {said}: {why}")
    return scanned._replace(decision=doubt, second=f"fickling: {said}")


def _asked(path: Path, kind: str) -> tuple[str, str]:
    if importlib.util.find_spec("fickling") is None:
        return "not checked", "it is not installed (pip install 'trainwarden[second-opinion]')"
    try:
        stream = _stream(path, kind)
        if len(stream) > MOST_BYTES:
            return "not checked", "its pickle is too long"
        asked = [sys.executable, "-I", "-c", _ASKS]
        done = subprocess.run(asked, input=stream, capture_output=True, timeout=_SECONDS, check=False)
        severity, why = json.loads(done.stdout)
    except (OSError, KeyError, ValueError, zipfile.BadZipFile, subprocess.TimeoutExpired):
        return "not checked", "it does not follow this file"
    return str(severity), " ".join(str(why).split())


def _stream(path: Path, kind: str) -> bytes:
    if kind != "torch zip":
        with path.open("rb") as file:
            return file.read(MOST_BYTES + 1)
    with zipfile.ZipFile(path) as archive:
        (name,) = [n for n in archive.namelist() if n.endswith("/data.pkl")]
        with archive.open(name) as member:
            return member.read(MOST_BYTES + 1)
