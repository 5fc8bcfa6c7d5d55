"""Fixtures: parts of a supervised run inside this process, and whole `trainwarden run`s in a tiny environment."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
import sysconfig
import tempfile
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import TypeVar

import blake3
import msgspec
import pytest

from trainwarden import wire
from trainwarden.keys import SigningKey
from trainwarden.log.journal import LogWriter
from trainwarden.log.reader import LogReader
from trainwarden.model import Detail, Entry, Finding, Stage, decode_entry
from trainwarden.store import RunDir, Store
from trainwarden.supervise import private
from trainwarden.supervise.files import FileDesk, KnownFiles
from trainwarden.supervise.ledger import Ledger, NoWatcher, Watcher
from trainwarden.supervise.process import Reaper
from trainwarden.supervise.roster import Roster
from trainwarden.supervise.session import Session, Shared
from trainwarden.supervise.weights import WeightCheck

HERE = Path(__file__).parent
SOURCE = HERE.parents[1] / "src"
FAKE_PATH = os.pathsep.join((str(SOURCE), sysconfig.get_paths()["purelib"]))

E = TypeVar("E")


def entries_of(log: Path) -> list[Entry]:
    with LogReader.open(log) as reader:
        return [decode_entry(leaf) for _, leaf in reader.entries()]


def of_kind(entries: Sequence[Entry], kind: type[E]) -> list[E]:
    return [e for e in entries if isinstance(e, kind)]


def until(condition: Callable[[], bool], what: str) -> None:
    """Wait for something that another process does; gives up only when it surely does not happen."""
    deadline = time.monotonic() + 60
    while not condition():
        assert time.monotonic() < deadline, f"never happened: {what}"
        time.sleep(0.02)


class OpenGuard:
    """Lets everybody start, or says why not."""

    reason = ""

    def may_start(self) -> str:
        return self.reason


@dataclass
class Bench:
    """A supervised run without a seal and a launch command: this test process stands for the supervisor."""

    run: RunDir
    store: Store
    key: SigningKey
    ledger: Ledger
    files: FileDesk
    reaper: Reaper
    guard: OpenGuard
    server: wire.Server
    digest_key: bytes
    trouble: list[str]
    findings: list[Finding]
    ranks: list[subprocess.Popen[str]] = field(default_factory=list)
    closed: bool = False

    def rank(self, *words: str) -> subprocess.Popen[str]:
        env = {**os.environ, "FAKE_RANK_PATH": FAKE_PATH, wire.SOCKET_ENV: str(self.server.path)}
        command = [sys.executable, str(HERE / "fake_rank.py"), *words]
        process = subprocess.Popen(command, env=env, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)
        self.ranks.append(process)
        return process

    def finish(self) -> list[Entry]:
        """Wait for the ranks, close everything, and return the log."""
        for process in self.ranks:
            process.wait(60)
        self.close()
        return entries_of(self.run.log)

    def close(self) -> None:
        if not self.closed:
            self.closed = True
            for process in self.ranks:
                if process.poll() is None:
                    process.kill()
                process.communicate()
            self.reaper.settle(10)
            self.server.close(5)
            self.reaper.close()
            self.files.close()
            self.ledger.flush()
            self.ledger.stop()


@pytest.fixture
def make_bench(tmp_path: Path) -> Iterator[Callable[..., Bench]]:
    benches: list[Bench] = []

    def make(watcher: Watcher | None = None, known: KnownFiles | None = None, **kwargs: object) -> Bench:
        store = Store.open(tmp_path / "store", create=True)
        run = store.create_run()
        key = SigningKey.load_or_create(tmp_path / "key")
        digest_key = private.new_digest_key(run.private)
        trouble: list[str] = []
        findings: list[Finding] = []
        log = LogWriter.create(run.log, f"test/{run.id}", key)
        wrap = kwargs.get("wrap", lambda x: x)
        ledger = Ledger(
            wrap(log),  # type: ignore[operator]
            run.details,
            watcher or NoWatcher(),
            lambda index, finding: findings.append(finding),
            lambda sentence, hint: trouble.append(sentence),
            retry_seconds=0.02,
            max_waiting=int(str(kwargs.get("max_waiting", 1 << 26))),
        )
        files = FileDesk(
            store, run, ledger, known or KnownFiles(), WeightCheck(digest_key), lambda path: False, 1 << 30
        )
        reaper, roster, guard = Reaper(), Roster(), OpenGuard()

        def joined(attempt: int, rank: int) -> wire.Joined:
            return wire.Joined(
                attempt=attempt, key=digest_key, run_dir=str(run.path), activations_every=0, snapshot_every=0
            )

        shared = Shared(
            ledger=ledger,
            files=files,
            roster=roster,
            reaper=reaper,
            guard=guard,
            joined=joined,
            keep_env=lambda env: private.write_env(run.private, env),
            stopping=lambda: 0,
            supervisor_pid=os.getpid(),
        )
        folder = Path(tempfile.mkdtemp(prefix="tw-", dir="/tmp"))
        server = wire.Server(folder / "s", lambda connection: Session(connection, shared))
        bench = Bench(run, store, key, ledger, files, reaper, guard, server, digest_key, trouble, findings)
        benches.append(bench)
        return bench

    yield make
    for bench in benches:
        bench.close()
        bench.server.path.parent.rmdir()


@pytest.fixture
def bench(make_bench: Callable[..., Bench]) -> Bench:
    return make_bench()


# -- whole runs


@dataclass
class Place:
    """A tiny virtual environment, a store and a key, shared by all whole runs of a session."""

    python: Path
    site: Path
    store: Path
    key: Path

    def env(self) -> dict[str, str]:
        keep = {k: v for k, v in os.environ.items() if not k.startswith(("TRAINWARDEN_", "PYTHON"))}
        return {
            **keep,
            "TRAINWARDEN_KEY": str(self.key),
            "FAKE_RANK_PATH": f"{SOURCE}{os.pathsep}{self.site}",
            "COLUMNS": "200",
        }

    def argv(self, *words: str, options: Sequence[str] = ()) -> list[str]:
        return [sys.executable, "-m", "trainwarden.cli", "run", "--store", str(self.store), *options, "--", *words]

    def start(self, job: Path, *words: str, options: Sequence[str] = (), **kwargs: object) -> subprocess.Popen[str]:
        return subprocess.Popen(  # type: ignore[call-overload, no-any-return]
            self.argv(*words, options=options),
            cwd=job,
            env=self.env(),
            stdin=kwargs.pop("stdin", subprocess.DEVNULL),
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
            **kwargs,
        )

    def ended(self, process: subprocess.Popen[str]) -> Ended:
        out, err = process.communicate(timeout=120)
        run_id = next((w.rstrip(":") for w in err.split("as run ")[1].split()[:1]), "") if "as run " in err else ""
        entries = entries_of(self.store / "runs" / run_id / "log") if run_id else []
        return Ended(process.returncode, out, err, run_id, entries)

    def run(self, job: Path, *words: str, options: Sequence[str] = (), **kwargs: object) -> Ended:
        return self.ended(self.start(job, *words, options=options, **kwargs))

    def public_key(self) -> str:
        return SigningKey.load_or_create(self.key).public


@dataclass
class Ended:
    """A finished `trainwarden run`."""

    code: int
    out: str
    err: str
    run_id: str
    entries: list[Entry]

    def json(self) -> dict[str, object]:
        return dict(json.loads(self.out.splitlines()[-1]))


@pytest.fixture(scope="session")
def place(tmp_path_factory: pytest.TempPathFactory) -> Place:
    folder = tmp_path_factory.mktemp("place")
    subprocess.run([sys.executable, "-m", "venv", "--without-pip", str(folder / "venv")], check=True)
    site = next((folder / "venv" / "lib").glob("python3*/site-packages"))
    (site / "library.py").write_text("VALUE = 1\n")
    for package in (msgspec, blake3):  # what the fake rank loads natively is sealed with the environment
        shutil.copytree(Path(str(package.__file__)).parent, site / package.__name__)
    return Place(folder / "venv" / "bin" / "python", site, folder / "store", folder / "key")


@pytest.fixture
def job(tmp_path: Path) -> Path:
    """A code folder with the fake rank and its launcher."""
    folder = tmp_path / "job"
    folder.mkdir()
    for name in ("fake_rank.py", "fake_launcher.py"):
        (folder / name).write_bytes((HERE / name).read_bytes())
    return folder


def detail(*digests: bytes) -> dict[Stage, Detail]:
    names = tuple(f"t{i}" for i in range(len(digests)))
    return {Stage.WEIGHTS: Detail(names=names, digests=digests)}
