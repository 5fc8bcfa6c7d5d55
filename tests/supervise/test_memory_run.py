"""Whole guarded runs of torch jobs: patched memory and foreign libraries are findings, honest jobs raise none.

All is real but the scan of the environment: files are sealed when they are asked for (`on_demand.py`).
"""

from __future__ import annotations

import os
import secrets
import shutil
import sys
from collections.abc import Callable
from pathlib import Path

import pytest
from on_demand import SealedOnDemand
from supervised import Place, entries_of, of_kind

from trainwarden.config import Config
from trainwarden.detect import Engine, all_detectors
from trainwarden.keys import SigningKey
from trainwarden.model import CodeSeen, Entry, Finding, Gap, ManifestRef, ProcessSeen, Seal, Severity, SignedSeal
from trainwarden.seal.command import LaunchCommand
from trainwarden.seal.seal import relevant_env
from trainwarden.store import Store
from trainwarden.supervise import guarded as guarding
from trainwarden.supervise import sealed as asked
from trainwarden.supervise import supervisor
from trainwarden.supervise.mappings import parse_maps

PLAIN = """
import ctypes, os, sys
import torch
for path in sys.argv[1:]:
    ctypes.CDLL(path)
torch.manual_seed(0)
model = torch.nn.Sequential(torch.nn.Linear(4, 8), torch.nn.ReLU(), torch.nn.Linear(8, 3))
world = int(os.environ.get("WORLD_SIZE", "1"))
if world > 1:
    torch.distributed.init_process_group("gloo")
    model = torch.nn.parallel.DistributedDataParallel(model)
optimizer = torch.optim.AdamW(model.parameters(), lr=0.01)
schedule = torch.optim.lr_scheduler.StepLR(optimizer, 2)
for _ in range(4):
    loss = torch.nn.functional.cross_entropy(model(torch.randn(5, 4)), torch.zeros(5, dtype=torch.long))
    optimizer.zero_grad()
    loss.backward()
    optimizer.step()
    schedule.step()
if world > 1:
    torch.distributed.destroy_process_group()
"""
LAUNCH = """
import os, socket, subprocess, sys
with socket.socket() as s:
    s.bind(("127.0.0.1", 0))
    port = s.getsockname()[1]
place = {"WORLD_SIZE": "2", "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(port)}
ranks = [subprocess.Popen([sys.executable, "job.py"], env={**os.environ, **place, "RANK": str(r)}) for r in (0, 1)]
sys.exit(max(r.wait() for r in ranks))
"""
PATCH = """
import functools
import torch
original = torch.optim.AdamW.step
@functools.wraps(original)
def step(self, closure=None):
    return original(self, closure)
torch.optim.AdamW.step = step
"""


class _NoWatch:
    errors: tuple[str, ...] = ()
    folders: tuple[str, ...] = ()
    since = float("-inf")

    def __init__(self, *_: object, **__: object) -> None:
        pass

    def start(self) -> None:
        pass

    def settle(self) -> None:
        pass

    def stop(self) -> None:
        pass


class Guarded:
    """Runs a job guarded, with a seal over what its folder and environment hold when it starts."""

    def __init__(self, folder: Path, store: Store, monkeypatch: pytest.MonkeyPatch) -> None:
        self.job = folder / "job"
        self.job.mkdir()
        (self.job / "job.py").write_text(PLAIN)
        (self.job / "launch.py").write_text(LAUNCH)
        self.store = store
        self.is_sealed: Callable[[str], bool] = lambda path: True  # whether a data file is in the seal
        self._monkeypatch = monkeypatch

    def run(self, *words: str, env: dict[str, str] | None = None) -> list[Entry]:
        env = {
            **{k: v for k, v in os.environ.items() if not k.startswith("PYTHON")},
            "OMP_NUM_THREADS": "1",
            **(env or {}),
        }
        command = LaunchCommand(
            argv=(sys.executable, *words),
            cwd=str(self.job),
            env=env,
            executable=sys.executable,
            interpreter=sys.executable,
            launcher="python",
        )
        given = {str(p): p.read_text() for p in self.job.glob("*.py")}
        files = SealedOnDemand(self.store, given)
        nothing = {k: ManifestRef(kind=k, digest="0" * 64, files=1, bytes=0) for k in ("code", "environment", "data")}
        seal = Seal(
            created_ns=1 << 62,
            argv=command.argv,
            cwd=command.cwd,
            interpreter=sys.executable,
            env_vars=relevant_env(env),
            **nothing,
        )
        patch = self._monkeypatch.setattr
        patch(supervisor, "seal_command", lambda *a, **k: SignedSeal(seal=seal, digest="0" * 64))
        patch(supervisor, "require_recorder", lambda *a: None)
        patch(guarding, "FileWatch", _NoWatch)
        patch(guarding, "check_seal", lambda *a, **k: [])
        patch(guarding, "sealed_paths", lambda *a: self.is_sealed)
        for place in (guarding, asked):  # of the processes' mappings, and of the code in their memory
            patch(place, "sealed_files", lambda *a: files)
        self._monkeypatch.chdir(self.job)
        key = SigningKey(secrets.token_bytes(32))
        result = supervisor.supervise(
            command, self.store, Config(), key, watcher=lambda sealed: Engine(all_detectors())
        )
        assert result.exit_code == 0
        return entries_of(self.store.run(result.run_id).log)


@pytest.fixture
def guarded(tmp_path: Path, memory_store: Store, monkeypatch: pytest.MonkeyPatch) -> Guarded:
    return Guarded(tmp_path, memory_store, monkeypatch)


def test_an_honest_job_of_two_ranks_raises_nothing(guarded: Guarded) -> None:
    entries = guarded.run("launch.py")
    assert [f.seen for f in of_kind(entries, Finding)] == []
    looks = of_kind(entries, CodeSeen)
    assert looks[0].names > 3000
    assert {(look.rank, look.step) for look in looks} >= {(0, 0), (1, 0), (0, 4), (1, 4)}
    assert len({look.root for look in looks if look.step == 4}) == 1
    assert [seen.sealed > 10 for seen in of_kind(entries, ProcessSeen)] == [True, True]


def test_a_patch_in_sitecustomize_and_a_foreign_library_are_named(guarded: Guarded, tmp_path: Path) -> None:
    planted = tmp_path / "planted"
    planted.mkdir()
    (planted / "sitecustomize.py").write_text(PATCH)
    maps = parse_maps(Path("/proc/self/maps").read_text())
    libm = next(m.path for m in maps.files if os.path.basename(m.path).startswith("libm"))
    library = shutil.copy(libm, tmp_path / "libhelper.so")
    entries = guarded.run("job.py", str(library), env={"PYTHONPATH": str(planted)})
    told = [f for f in of_kind(entries, Finding) if f.severity is Severity.HIGH]
    assert any(f.detector == "mappings" and str(library) in f.seen for f in told)
    (patched,) = [f.seen for f in told if f.detector == "patched" and "torch.optim.adamw.AdamW.step" in f.seen]
    assert f"{planted}/sitecustomize.py:" in patched
    assert "first difference: instruction" in patched


def test_a_rank_that_does_not_tell_of_its_code_is_a_gap_and_its_recorder_silenced(place: Place, job: Path) -> None:
    words = ("start", "join:0/1", "hide:code", "steps:3", "until_acked", "bye")
    ended = place.run(job, str(place.python), "fake_rank.py", *words)
    (gap,) = of_kind(ended.entries, Gap)
    assert (gap.step, gap.reason) == (0, "the rank did not tell of the code in its memory when it was due")
    gaps, silenced = of_kind(ended.entries, Finding)
    assert (gaps.detector, silenced.detector, silenced.severity) == ("gaps", "recorder", Severity.MEDIUM)
    assert "was switched off after 3 records" in silenced.seen


def test_updates_that_nobody_recorded_are_told_though_the_recorder_was_switched_on_again(
    place: Place, job: Path
) -> None:
    words = ("start", "join:0/1", "steps:3", "until_acked")
    honest = place.run(job, str(place.python), "fake_rank.py", *words, "bye:0")
    assert of_kind(honest.entries, Finding) == []
    ended = place.run(job, str(place.python), "fake_rank.py", *words, "bye:5")
    (found,) = of_kind(ended.entries, Finding)
    assert (found.detector, found.severity, found.step, found.ranks) == ("recorder", Severity.MEDIUM, 3, (0,))
    assert "made 5 updates after its last record" in found.seen
