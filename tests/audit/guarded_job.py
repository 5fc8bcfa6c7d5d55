"""Runs small jobs guarded and replays them, without sealing this machine's whole environment.

The supervisor, the log, the recorder, the runner and the comparison are the real ones. Only the seal is left out: its
manifests are empty, and the "clean room" is the current interpreter with a folder of its own for every replay.
"""

from __future__ import annotations

import os
import secrets
import shutil
import sys
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Literal

import pytest

from trainwarden.audit import replay as replay_module
from trainwarden.audit import unitrun
from trainwarden.audit.recorded import Recorded
from trainwarden.commands.common import watcher_of
from trainwarden.config import AuditConfig, Config, PolicyConfig, RecordConfig
from trainwarden.keys import SigningKey
from trainwarden.model import ComparisonPolicy, Entry, Seal, SignedSeal, canonical, decode_entry
from trainwarden.respond.answer import response_to
from trainwarden.seal.check import KINDS
from trainwarden.seal.command import LaunchCommand
from trainwarden.seal.manifest import make_manifest, manifest_ref
from trainwarden.store import Store
from trainwarden.supervise import guarded, supervisor

NOTHING = [make_manifest(kind, {}) for kind in KINDS]
LAUNCH = Path(__file__).with_name("launch.py")


@dataclass(frozen=True)
class PlainRoom:
    """Stands for a clean room: the current interpreter, files below the job's folder mapped to a fresh copy."""

    python: Path
    job: Path
    seal: Seal

    @property
    def path(self) -> Path:
        return self.job.parent / "room"  # nothing lies there: the interpreter is the current one


class PlainWorkspace:
    """Stands for a workspace: a copy of the job's sealed files in a folder of its own."""

    def __init__(self, room: PlainRoom) -> None:
        self.room = room
        self.path = self.scratch = room.job.parent / f"replay-{secrets.token_hex(4)}"
        self.cwd = self.code = Path(self.map_path(str(room.job)))
        self.cwd.mkdir(parents=True)
        for file in room.job.iterdir():
            if file.suffix in (".py", ".toml"):
                shutil.copy2(file, self.cwd / file.name)

    def map_path(self, path: str) -> str:
        return f"{self.scratch}/abs{path}" if path.startswith(str(self.room.job.parent)) else path

    def map_argument(self, word: str) -> str:
        return self.map_path(word)

    def environ(self, env: Mapping[str, str]) -> dict[str, str]:
        return {**os.environ, **env}

    def remove(self) -> None:
        shutil.rmtree(self.path, ignore_errors=True)


@dataclass
class Job:
    """A folder with one script, guarded runs of it, and what they recorded."""

    folder: Path
    store: Store
    key: SigningKey
    reduction: Literal["default", "ordered"] = "default"
    audit: AuditConfig = field(default_factory=lambda: AuditConfig(budget="0"))
    policy: PolicyConfig | None = None  # with one, detectors look on and policy answers them, as in `trainwarden run`

    def run(
        self,
        *arguments: str,
        world: int = 1,
        snapshot_every: int = 0,
        activations_every: int = 4,
        script: str = "job.py",
    ) -> Recorded:
        """Run the script guarded under `world` ranks; the run must end well."""
        code, recorded = self.attempt(
            *arguments, world=world, snapshot_every=snapshot_every, activations_every=activations_every, script=script
        )
        assert code == 0, f"the job ended with {code}"
        return recorded

    def attempt(
        self,
        *arguments: str,
        world: int = 1,
        snapshot_every: int = 0,
        activations_every: int = 4,
        script: str = "job.py",
        restarts: int = -1,
    ) -> tuple[int, Recorded]:
        """The same, and what it ended with; with `restarts`, torchrun starts the ranks, and so often again."""
        argv = (sys.executable, str(LAUNCH), str(world), script, *arguments)
        if restarts >= 0:
            torchrun = ("-m", "torch.distributed.run", "--standalone", f"--nproc-per-node={world}")
            argv = (sys.executable, *torchrun, f"--max-restarts={restarts}", script, *arguments)
        elif world == 1:
            argv = (sys.executable, script, *arguments)
        command = LaunchCommand(
            argv=argv,
            cwd=str(self.folder),
            env={**os.environ, "OMP_NUM_THREADS": "1"},
            executable=sys.executable,
            interpreter=sys.executable,
            launcher="python",
        )
        every = RecordConfig(
            activations_every=activations_every,
            snapshot_every=snapshot_every,
            snapshot_share=0.0,
            reduction=self.reduction,
        )
        config = Config(record=every, audit=self.audit, policy=self.policy or PolicyConfig())
        looking_on = {"watcher": watcher_of(config), "response": response_to(config)} if self.policy else {}
        old = os.getcwd()
        os.chdir(self.folder)
        try:
            result = supervisor.supervise(command, self.store, config, self.key, **looking_on)  # type: ignore[arg-type]
        finally:
            os.chdir(old)
        return result.exit_code, self.recorded(result.run_id, activations_every, argv)

    def recorded(self, run: str, activations_every: int = 4, argv: tuple[str, ...] = ()) -> Recorded:
        from trainwarden.log.reader import LogReader

        folder = self.store.run(run)
        with LogReader.open(folder.log) as log:
            entries: list[Entry] = [decode_entry(leaf) for _, leaf in log.entries()]
        seal = plain_seal(self.folder, argv, activations_every, reduction=self.reduction)
        return Recorded(self.store, folder, seal, entries)

    @property
    def room(self) -> PlainRoom:
        argv = (sys.executable, "job.py")
        return PlainRoom(
            Path(sys.executable), self.folder, plain_seal(self.folder, argv, reduction=self.reduction).seal
        )


def plain_seal(
    folder: Path, argv: tuple[str, ...] = (), every: int = 4, created_ns: int = 0, reduction: str = "default"
) -> SignedSeal:
    nothing = {m.kind: manifest_ref(m) for m in NOTHING}
    seal = Seal(
        created_ns=created_ns,
        argv=argv,
        cwd=str(folder),
        interpreter=sys.executable,
        comparison=ComparisonPolicy(activations_every=every, reduction=reduction),
        **nothing,
    )
    return SignedSeal(seal=seal, digest="0" * 64)


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


def make_job(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, script: str) -> Job:
    """A job whose script is `script`, in a store of its own."""
    monkeypatch.setattr(
        supervisor,
        "seal_command",
        lambda store, command, config, *a, **k: plain_seal(
            Path(command.cwd), tuple(command.argv), reduction=config.record.reduction
        ),
    )
    monkeypatch.setattr(guarded, "FileWatch", _NoWatch)
    monkeypatch.setattr(guarded, "check_seal", lambda *a, **k: [])
    monkeypatch.setattr(guarded, "sealed_paths", lambda *a: lambda path: True)
    monkeypatch.setattr(replay_module, "new_workspace", PlainWorkspace)
    monkeypatch.setattr(unitrun, "new_workspace", PlainWorkspace)
    folder = tmp_path / "job"
    folder.mkdir()
    (folder / "job.py").write_text(script)
    store = Store.open(tmp_path / "store", create=True)
    for manifest in NOTHING:
        store.put_bytes(canonical(manifest))
    return Job(folder, store, SigningKey(secrets.token_bytes(32)))
