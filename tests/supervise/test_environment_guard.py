"""The guard of a run's files: what it logs of changes, and how often."""

from __future__ import annotations

from pathlib import Path

from supervised import Bench, of_kind

from trainwarden.model import FileChanged
from trainwarden.supervise.environment import FREELY, EnvironmentGuard


def test_a_log_beside_the_code_is_sampled_and_an_environment_file_is_not(bench: Bench, tmp_path: Path) -> None:
    guard = EnvironmentGuard(bench.store, bench.ledger, lambda: (), refuse=False)
    file = tmp_path / "changing"
    for kind in ("code", "environment"):
        for i in range(FREELY + 5):
            file.write_text(f"{kind} {i}")
            guard.changed(FileChanged(path=f"{file}", kind=kind, sealed="s", found=f"{kind}{i}"))
    logged = [e.kind for e in of_kind(bench.finish(), FileChanged)]
    assert (logged.count("code"), logged.count("environment")) == (FREELY, FREELY + 5)
