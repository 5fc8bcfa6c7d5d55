"""A store with a gate, a run, and checkpoints whose one weight says which version answered."""

from __future__ import annotations

import json
import shutil
import struct
import threading
from collections.abc import Callable, Iterator
from contextlib import closing, contextmanager
from pathlib import Path

from trainwarden.config import Config, GateConfig, ServingConfig
from trainwarden.gate import ledger
from trainwarden.gate.manifest import keep_files, manifest_digest, manifest_of
from trainwarden.keys import SigningKey
from trainwarden.log.journal import LogWriter
from trainwarden.log.reader import LogReader
from trainwarden.model import (
    CheckpointCleared,
    CheckpointFile,
    CheckpointManifest,
    ClearanceRefused,
    Confidence,
    Entry,
    Finding,
    GateEntry,
    Promoted,
    RolledBack,
    RunSeen,
    Severity,
    TreeHead,
    canonical,
)
from trainwarden.serving import Files
from trainwarden.store import Store

NAME = "chat"


def safetensors(value: float, extra: int = 0) -> bytes:
    """A file with one weight, and `extra` more bytes of another tensor."""
    told = {"weight": {"dtype": "F32", "shape": [1], "data_offsets": [0, 4]}}
    if extra:
        told["more"] = {"dtype": "U8", "shape": [extra], "data_offsets": [4, 4 + extra]}
    header = json.dumps(told).encode()
    header += b" " * (-len(header) % 8)
    return struct.pack("<Q", len(header)) + header + struct.pack("<f", value) + bytes(extra)


def weight(files: Files) -> float:
    """The weight of a version, read from verified bytes: the shortest `build` there is."""
    data = bytes(files.read("model.safetensors"))
    begin = 8 + int.from_bytes(data[:8], "little")
    return float(struct.unpack("<f", data[begin : begin + 4])[0])


class Gated:
    """A store whose gate clears and promotes what it is told to; `run` is the id of the run that all comes from."""

    def __init__(self, folder: Path) -> None:
        folder.mkdir(exist_ok=True)
        self.folder, self.key = folder, SigningKey.load_or_create(folder / "key")
        self.store = Store.open(folder / ".trainwarden", create=True)
        self._guard = threading.Lock()
        self.begin_run()
        self.config = self.configured()

    def begin_run(self) -> None:
        """A new run; what is cleared from now on stands on it."""
        run = self.store.create_run()
        self.run = run.id
        with closing(LogWriter.create(run.log, f"trainwarden/{run.id}", self.key)) as log:
            log.append([canonical(finding("before", step=0))])
            head = log.head()
        self.seen = RunSeen(run=run.id, key=self.key.public, size=head.size, root=head.root, until={"0": 100})

    def configured(self, keeper: str = "", **settings: float | str) -> Config:
        """A configuration with these settings for serving."""
        chosen = {"state": str(self.folder / "state"), "poll_seconds": 0.02} | settings
        return Config(gate=GateConfig(keeper=keeper), serving=ServingConfig(**chosen))

    def write_config(self) -> None:
        """The same for what is started in the folder."""
        (self.folder / "trainwarden.toml").write_text(f'[serving]\nstate = "{self.folder / "state"}"\n')

    def checkpoint(self, value: float, extra: int = 0) -> Path:
        """A folder with one version of the model."""
        place = self.folder / f"step-{value:06.0f}"
        place.mkdir()
        (place / "model.safetensors").write_bytes(safetensors(value, extra))
        (place / "state.json").write_text(json.dumps({"step": value}))
        return place

    def promote(self, place: Path, *, keep: bool = False, name: str = NAME) -> str:
        """Clear and promote the checkpoint at `place`; with `keep` the store has copies of its files."""
        digest = self.manifest(place)
        if keep:
            self.keep(place)
        self.promote_digest(digest, place, name)
        return digest

    def manifest(self, place: Path) -> str:
        """Put the manifest of what lies at `place` into the store; its digest."""
        manifest = manifest_of(place)
        digest = self.store.put_bytes(canonical(manifest))
        assert digest == manifest_digest(manifest)
        return digest

    def keep(self, place: Path) -> None:
        """Put the files at `place` into the store."""
        keep_files(self.store, place, manifest_of(place))

    def promote_lost(self, count: int, name: str = NAME) -> None:
        """Clear and promote that many versions at once whose files are nowhere: none of them can be served."""
        entries: list[GateEntry] = [*ledger.read_gate(self.store)]
        before = len(entries)
        for number in range(count):
            lost = CheckpointFile(path="model.safetensors", size=number, digest=f"{number:064x}", sha256="")
            digest = self.store.put_bytes(canonical(CheckpointManifest(files=(lost,))))
            stack = ledger.fold(entries).names.get(name, ())
            entries.append(
                CheckpointCleared(
                    digest=digest,
                    place=str(self.folder / "lost"),
                    policy="",
                    findings=Severity.HIGH,
                    runs=(self.seen,),
                    wall_ns=len(entries),
                )
            )
            was = stack[-1].digest if stack else ""
            entries.append(Promoted(name=name, digest=digest, cleared=len(entries) - 1, previous=was))
        with self._guard, closing(LogWriter.open(self.store.path / "gate" / "log", self.key)) as log:
            log.append([canonical(entry) for entry in entries[before:]])

    def promote_digest(self, digest: str, place: Path, name: str) -> None:
        """Clear and promote what has the manifest `digest`, whatever lies at `place` now."""

        def cleared(before: tuple[GateEntry, ...]) -> GateEntry:
            return CheckpointCleared(
                digest=digest,
                place=str(place),
                policy="",
                findings=Severity.HIGH,
                runs=(self.seen,),
                wall_ns=len(before),
            )

        def promoted(before: tuple[GateEntry, ...]) -> GateEntry:
            newest = ledger.fold(before)
            stack = newest.names.get(name, ())
            found = newest.clearance(digest)
            assert found
            return Promoted(name=name, digest=digest, cleared=found[0], previous=stack[-1].digest if stack else "")

        self.append(cleared)
        self.append(promoted)

    def refuse(self, digest: str) -> None:
        """What was cleared is not any more."""
        self.append(lambda _: ClearanceRefused(digest=digest, place="", reasons=("found out",)))

    def roll_back(self, digest: str, left: str, name: str = NAME) -> None:
        """The name is `digest` again."""
        self.append(lambda _: RolledBack(name=name, digest=digest, left=left))

    def append(self, makes: Callable[[tuple[GateEntry, ...]], GateEntry]) -> None:
        with self._guard:
            ledger.append(self.store, self.key, makes)

    def log(self, *entries: Entry, run: str = "") -> int:
        """Append to the log of the run (or another one); the index of the last."""
        with closing(LogWriter.open(self.store.run(run or self.run).log, self.key)) as log:
            return log.append([canonical(entry) for entry in entries])[-1]

    @contextmanager
    def store_log(self) -> Iterator[TreeHead]:
        """The head of the run's log as it is now."""
        with LogReader.open(self.store.run(self.run).log) as log:
            yield log.head

    def copy(self, to: Path) -> None:
        """Keep the whole gate's log as it is now, to be put back later."""
        shutil.copytree(self.store.path / "gate" / "log", to)

    def put_back(self, kept: Path) -> None:
        """Put an older state of the gate's log in its place."""
        log = self.store.path / "gate" / "log"
        shutil.rmtree(log)
        shutil.copytree(kept, log)


def finding(seen: str, step: int, severity: Severity = Severity.HIGH) -> Finding:
    return Finding(
        detector="replay",
        severity=severity,
        confidence=Confidence.HIGH,
        seen=seen,
        expected="another",
        step=step,
        attempt=0,
    )
