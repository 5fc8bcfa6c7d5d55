"""A store with runs in it, made entry by entry: what training, audits and actors leave, without training anything."""

from __future__ import annotations

import json
import time
import zlib
from collections.abc import Sequence
from contextlib import closing
from dataclasses import dataclass
from pathlib import Path

import pytest
import torch
from blake3 import blake3
from safetensors.torch import save_file

from trainwarden import model as m
from trainwarden.actors import registry as reg
from trainwarden.config import GateConfig
from trainwarden.gate import statements
from trainwarden.gate.clear import Request, clear
from trainwarden.gate.decision import Decision
from trainwarden.gate.derive import make, take_in
from trainwarden.keys import SigningKey
from trainwarden.log.journal import LogWriter
from trainwarden.seal.seal import sign_seal, write_seal
from trainwarden.store import Store

KEEPER, MALLORY = SigningKey(b"\x41" * 32), SigningKey(b"\x66" * 32)
ACTORS = {name: SigningKey(bytes([n]) * 32) for n, name in enumerate(("ada", "grace", "agent"), 1)}
EVERY = 4  # steps between checkpoints
NO_POLICY = GateConfig()


def matched(first: int, last: int, *files: Path, attempt: int = 0) -> m.Matched:
    return m.Matched(
        segment=m.Segment(attempt=attempt, first=first, last=last),
        coverage=m.Coverage(records=last - first + 1, digests=9),
        files=tuple(digest_of(f) for f in files),
    )


def diverged(first: int, last: int, at: int) -> m.Diverged:
    where = m.Location(step=at, rank=0, stage=m.Stage.WEIGHTS, tensor="w", recorded="a", replayed="b")
    return m.Diverged(segment=m.Segment(attempt=0, first=first, last=last), coverage=m.Coverage(), at=where)


def finding(step: int = -1, severity: m.Severity = m.Severity.HIGH, attempt: int = 0) -> m.Finding:
    return m.Finding(
        detector="sleep",
        severity=severity,
        confidence=m.Confidence.LOW,
        seen="rank 0 slept",
        expected="no sleep",
        step=step,
        attempt=attempt,
    )


def digest_of(path: Path) -> str:
    return blake3(path.read_bytes()).hexdigest()


@dataclass
class Yard:
    """The store, and the folder that checkpoints are written to."""

    store: Store
    out: Path

    def run(
        self,
        name: str = "r",
        steps: int = 8,
        *,
        start: Path | None = None,
        listed: bool = True,
        audited: bool = True,
        key: SigningKey = KEEPER,
        also: Sequence[m.Entry] = (),
        weights: str = "matches",
        sealed: Sequence[Path] = (),
    ) -> str:
        """A run of so many steps that saved each fourth; its id. `start` is loaded, and sealed if `listed`."""
        folder = self.store.create_run()
        seal = self.seal(key, *([start] if start and listed else []), *sealed)
        write_seal(folder.seal_file, seal)
        entries: list[m.Entry] = [m.Sealed(run=folder.id, seal=seal.digest, key=key.public)]
        if start:
            entries.append(
                m.CheckpointLoaded(attempt=0, rank=0, path=str(start), digest=digest_of(start), sealed=listed)
            )
        for step in range(steps):
            entries.append(self.record(step))
            if (step + 1) % EVERY == 0:
                entries += [self.save(p, step + 1, weights) for p in self.write(name, step + 1)]
        if audited:
            entries += [matched(first, first + EVERY - 1) for first in range(0, steps, EVERY)]
        with closing(LogWriter.create(folder.log, f"trainwarden/{folder.id}", key)) as log:
            log.append([m.canonical(e) for e in (*entries, *also)])
        return folder.id

    def seal(self, key: SigningKey, *data: Path) -> m.SignedSeal:
        files = tuple(m.FileEntry(path=str(p), digest=digest_of(p), size=p.stat().st_size) for p in data)
        refs = {}
        for kind in ("code", "environment", "data"):
            trees = (files,) if kind == "data" else ((),)
            manifest = m.Manifest(kind=kind, roots=("/",), trees=trees)
            refs[kind] = m.ManifestRef(kind=kind, digest=self.store.put_bytes(m.canonical(manifest)), files=1, bytes=1)
        seal = m.Seal(created_ns=time.time_ns(), argv=("python", "t.py"), cwd="/w", interpreter="/p", **refs)
        return sign_seal(seal, key)

    def record(self, step: int) -> m.StepRecord:
        stages = {m.Stage.WEIGHTS: m.StageDigest(root="a" * 64, tensors=1)}
        return m.StepRecord(attempt=0, rank=0, world=1, step=step, optimizer=0, seq=step, stages=stages)

    def write(self, name: str, step: int) -> list[Path]:
        folder = self.out / name / f"step-{step}"
        folder.mkdir(parents=True, exist_ok=True)
        seed = zlib.crc32(f"{name} {step}".encode())
        tensors = {"w": torch.randn(4, 4, generator=torch.Generator().manual_seed(seed)), "n": torch.tensor([3])}
        save_file(tensors, folder / "model.safetensors")
        (folder / "state.json").write_text(json.dumps({"step": step, "name": name}))
        return [folder / "model.safetensors", folder / "state.json"]

    def save(self, path: Path, step: int, weights: str) -> m.CheckpointSaved:
        self.store.put_file(path)
        tensors = path.suffix == ".safetensors"
        return m.CheckpointSaved(
            attempt=0,
            rank=0,
            step=step,
            path=str(path),
            digest=digest_of(path),
            size=path.stat().st_size,
            format="safetensors" if tensors else "other",
            weights=weights if tensors else "",
        )

    def says(self, run: str, *entries: m.Entry, key: SigningKey = KEEPER) -> None:
        with closing(LogWriter.open(self.store.run(run).log, key)) as log:
            log.append([m.canonical(e) for e in entries])

    def checkpoint(self, step: int = 8, name: str = "r") -> Path:
        return self.out / name / f"step-{step}"

    def clear(self, path: Path, policy: GateConfig = NO_POLICY, claims: str = "") -> Decision:
        return clear(self.store, Request(path=path, policy=policy, claims=claims), KEEPER)

    def approve(self, path: Path, *names: str) -> None:
        for name in names:
            bare = m.CheckpointApproval(digest=take_in(self.store, path), actor="", key="")
            statements.keep(self.store, statements.sign(bare, name, ACTORS[name]))

    def derive(self, out: Path, how: m.How, *sources: Path, actor: str = "ada", **settings: str) -> m.Derived:
        """Made if it is not there, and said by an actor whether it is so or not."""
        digests = tuple(take_in(self.store, s) for s in sources)
        if not out.exists():
            make(self.store, out, digests, how, settings)
        bare = m.Derived(digest=take_in(self.store, out), how=how, sources=digests, settings=settings)
        said = statements.sign(bare, actor, ACTORS[actor])
        statements.keep(self.store, said)
        return said

    def close(self, run: str, index: int, entry: m.Finding, actor: str = "ada") -> None:
        from trainwarden.gate.findings import finding_digest

        bare = m.FindingClosed(run=run, index=index, finding=finding_digest(entry), reason="known", actor="", key="")
        statements.keep(self.store, statements.sign(bare, actor, ACTORS[actor]))

    def enrol(self) -> None:
        for name, key in ACTORS.items():
            kind = m.ActorKind.AGENT if name == "agent" else m.ActorKind.PERSON
            reg.enrol(self.store, KEEPER, name, kind, key.public)


@pytest.fixture
def yard(tmp_path: Path) -> Yard:
    return Yard(Store.open(tmp_path / "store", create=True), tmp_path / "out")
