"""What one peer says of every file of a folder, by its own Python interface, as JSON: run in the peers' environment.

    python benchmarks/gate_peer.py TOOL PATH

"flagged": it has something against the file. "undecided": it says that it could not or did not read it. A peer's
default settings; fickling reads no archives by itself, so it is given each pickle of one.
"""

from __future__ import annotations

import contextlib
import io
import json
import logging
import os
import sys
import zipfile
from collections.abc import Callable
from pathlib import Path

UNDECIDED, FLAGGED, CLEAN = "undecided", "flagged", "clean"


def _picklescan() -> Callable[[Path], str]:
    from picklescan.scanner import scan_file_path

    def told(path: Path) -> str:
        result = scan_file_path(str(path))
        if result.issues_count or result.infected_files:
            return FLAGGED
        return UNDECIDED if result.scan_err or not result.scanned_files else CLEAN

    return told


def _modelscan() -> Callable[[Path], str]:
    from modelscan.modelscan import ModelScan

    def told(path: Path) -> str:
        summary = ModelScan().scan(str(path))
        if summary["summary"]["total_issues"]:
            return FLAGGED
        missed = summary["errors"] or summary["summary"]["skipped"]["total_skipped"]
        return UNDECIDED if missed or not summary["summary"]["scanned"]["total_scanned"] else CLEAN

    return told


def _fickling() -> Callable[[Path], str]:
    from fickling.analysis import Severity, check_safety
    from fickling.fickle import StackedPickle

    def streams(path: Path) -> list[bytes]:
        if not zipfile.is_zipfile(path):
            return [path.read_bytes()]
        with zipfile.ZipFile(path) as archive:
            return [archive.read(n) for n in archive.namelist() if n.endswith(".pkl")]

    def told(path: Path) -> str:
        found = [check_safety(p) for stream in streams(path) for p in StackedPickle.load(io.BytesIO(stream))]
        if any(f.severity > Severity.LIKELY_SAFE for f in found):
            return FLAGGED
        return CLEAN if found else UNDECIDED

    return told


def _modelaudit() -> Callable[[Path], str]:
    from modelaudit.core import scan_model_directory_or_file

    def told(path: Path) -> str:
        result = scan_model_directory_or_file(str(path), cache_enabled=False)
        grave = [i for i in result.issues if str(getattr(i.severity, "value", i.severity)) in ("warning", "critical")]
        if grave:
            return FLAGGED
        return CLEAN if result.success and not result.has_errors else UNDECIDED

    return told


PEERS = {"picklescan": _picklescan, "modelscan": _modelscan, "fickling": _fickling, "modelaudit": _modelaudit}


def main(tool: str, path: Path) -> None:
    """Ask the tool about every file, and print what it said."""
    logging.disable(logging.CRITICAL)
    told = {}
    with open(os.devnull, "w") as silent, contextlib.redirect_stdout(silent), contextlib.redirect_stderr(silent):
        ask = PEERS[tool]()
        for file in sorted(path.iterdir()) if path.is_dir() else [path]:
            try:
                told[file.name] = ask(file)
            except Exception:  # noqa: BLE001 - whatever a peer raises, it did not decide
                told[file.name] = UNDECIDED
    print(json.dumps(told))


if __name__ == "__main__":
    main(sys.argv[1], Path(sys.argv[2]))
