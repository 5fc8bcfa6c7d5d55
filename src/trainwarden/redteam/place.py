"""The copy in which an attack is carried out: job, environment, home, data, store and keys of its own.

    FOLDER/env/      copy of the environment, kept between attacks and put back after each
           data/     what the workload prepared, kept likewise
           store/    the store, and keys/ beside it: of this range alone
           watcher/  TrainWarden's own copy of itself
           undo/     what was in kept places before an attack changed them
           here/     job/, home/, tmp/, marks/, strike.json: made anew for every attack

Rules
-----
* Acts change files through `write`, `edit`, `remove`, `copy` and `move` alone. What they change in a kept place is
  saved first and put back by `undo`: at the end of the attack, or, after a crash, when the range is opened again.
* A file is never changed in place when it has another name (a hard link may lead outside).
* One process holds a range at a time.
"""

from __future__ import annotations

import contextlib
import fcntl
import hashlib
import json
import os
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from types import TracebackType
from typing import Any

from trainwarden.errors import CannotDecide, UsageError
from trainwarden.redteam import guards
from trainwarden.redteam.environment import copy_environment, copy_venv, site_of
from trainwarden.redteam.workloads import Workload
from trainwarden.supervise.process import STOP_SECONDS

_NOT_COPIED = ("__pycache__", ".trainwarden", ".venv", "venv", ".git")


class Range:
    """A folder in which one workload is attacked. Use it as a context manager; `open` prepares it."""

    def __init__(self, folder: Path, workload: Workload, *, seed: int = 0) -> None:
        self.folder, self.workload, self.seed = folder.absolute(), workload, seed
        self.env, self.data, self.store = self.folder / "env", self.folder / "data", self.folder / "store"
        self.here = self.folder / "here"
        self.job, self.home, self.tmp = self.here / "job", self.here / "home", self.here / "tmp"
        self.marks, self.strike = self.here / "marks", self.here / "strike.json"
        self.roots: list[subprocess.Popen[Any]] = []
        self.added: dict[str, str] = {}  # variables of the job that an act at PREPARE adds
        self.runs: list[str] = []  # of this attack, as they get known
        self.source = ""  # digest of the job as it was copied
        self._lock: int | None = None

    # ------------------------------------------------------------------ the copy

    def __enter__(self) -> Range:
        self.folder.mkdir(parents=True, exist_ok=True)
        self._lock = os.open(self.folder / "lock", os.O_CREAT | os.O_RDWR, 0o600)
        try:
            fcntl.flock(self._lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            os.close(self._lock)
            raise UsageError(
                f"{self.folder} is in use by another red team", hint="wait for it, or give another --folder"
            ) from None
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, at: TracebackType | None) -> None:
        self.clean_up()
        if self._lock is not None:
            os.close(self._lock)

    def open(self, say: Callable[[str], None] = lambda text: None) -> None:
        """Make what is kept between attacks, or put it right.

        Raises:
            UsageError: the environment cannot be copied, or links of the job lead out of its folder.
            CannotDecide: the workload cannot be set up.
        """
        self.undo()
        astray = guards.linked_elsewhere(self.workload.source, *self.workload.also)
        if astray:
            raise guards.OutsideRange(
                f"{astray[0]} is a link that leads out of {self.workload.source}",
                hint="a copy of the job would act on what is behind it; replace the link by a copy",
            )
        if not (self.env / "complete").exists():
            say("copying the environment")
        if self.workload.packages:
            copy_environment(self.env, self.workload.packages)
        else:
            copy_venv(self.workload.venv or Path(sys.prefix), self.env)
        self.fresh()
        if self.workload.set_up and not (self.data / "complete").exists():
            say("preparing the workload's data")
            self.data.mkdir(exist_ok=True)
            done = subprocess.run(self.words(self.workload.set_up), cwd=self.job, capture_output=True, text=True)
            if done.returncode != 0:
                raise CannotDecide(f"{self.workload.name} cannot be set up: {done.stderr[-300:]}", hint="make setup")
            (self.data / "complete").touch()

    def fresh(self) -> None:
        """A job folder as if nobody had ever trained or struck there."""
        self.clean_up()
        shutil.rmtree(self.here, ignore_errors=True)
        for folder in (self.home, self.tmp, self.marks):
            folder.mkdir(parents=True)
        left_out = shutil.ignore_patterns(*_NOT_COPIED, self.workload.out)
        # A link to what lies beside becomes a file: of a job that is no git repository its own folder is sealed.
        keep = not self.workload.also
        shutil.copytree(self.workload.source, self.job / self.workload.below, symlinks=keep, ignore=left_out)
        for folder in self.workload.also:
            shutil.copytree(folder, self.job / folder.name, symlinks=True, ignore=left_out)
        for name, text in self.workload.adds:
            (self.job / name).write_text(text)
        for name, old, new in self.workload.edits:
            before = (self.job / name).read_text()
            if before.count(old) < 1:
                raise CannotDecide(f"{name} no longer holds {old.strip()!r}", hint="adapt redteam/workloads.py to it")
            (self.job / name).write_text(before.replace(old, new, 1))
        self.added, self.runs, self.source = {}, [], _digest(self.job)

    def clean_up(self) -> None:
        """End what still runs below the range, and put back what is kept."""
        for process in self.roots:
            self.end(process, seconds=0)
        self.roots.clear()
        self.undo()

    def end(self, process: subprocess.Popen[Any], seconds: float = STOP_SECONDS + 5) -> None:
        """Ask a process of the range to end; kill it and all that descends from it when it has not by then."""
        if process.poll() is None and seconds:
            process.terminate()
            with contextlib.suppress(subprocess.TimeoutExpired):
                process.wait(seconds)
        if process.poll() is None:
            for pid in [int(e.name) for e in Path("/proc").iterdir() if e.name.isdigit()]:
                if guards.descends(pid, [process.pid]):
                    self.signal(pid)
        process.wait()

    # ------------------------------------------------------------------ what runs in it

    @property
    def variables(self) -> dict[str, str]:
        """The environment variables of everything that runs in the range."""
        kept = {k: v for k, v in os.environ.items() if not k.startswith(("TRAINWARDEN_", "PYTHON", "XDG_", "GIT_"))}
        return {
            **kept,
            "PATH": f"{self.env / 'bin'}{os.pathsep}{os.environ.get('PATH', '')}",
            "HOME": str(self.home),
            "TMPDIR": str(self.tmp),
            "XDG_DATA_HOME": str(self.folder / "watcher"),
            "TRAINWARDEN_STORE": str(self.store),
            "TRAINWARDEN_KEY": str(self.folder / "keys" / "key"),
            "OMP_NUM_THREADS": "1",
            "PYTHONWARNINGS": "ignore",
            **self.added,
        }

    def words(self, command: Sequence[str], **more: str) -> list[str]:
        """A command with the workload's settings put in."""
        given = {
            "data": str(self.data), "seed": str(self.seed), "python": sys.executable,
            "steps": str(self.workload.steps), "every": str(self.workload.every), **more,
        }  # fmt: skip
        filled = list(command)
        for name, value in given.items():
            filled = [word.replace("{" + name + "}", value) for word in filled]
        return filled

    def warden(self, *words: str) -> subprocess.CompletedProcess[str]:
        """A verb of TrainWarden, run to its end in the job's folder."""
        argv = [sys.executable, "-m", "trainwarden.cli", *words]
        return subprocess.run(argv, cwd=self.job, env=self.variables, capture_output=True, text=True, check=False)

    def start(self, words: Sequence[str], **options: Any) -> subprocess.Popen[Any]:
        """Start a process of the job or of the insider in the job's folder; it ends with the range."""
        process = subprocess.Popen(list(words), **{"cwd": self.job, "env": self.variables, **options})
        self.roots.append(process)
        return process

    def workers(self) -> dict[int, int]:
        """The ranks' processes below the range: rank → pid."""
        pids = [e.name for e in Path("/proc").iterdir() if e.name.isdigit()]
        below = [pid for pid in pids if guards.descends(int(pid), [p.pid for p in self.roots])]
        ranked = {pid: rank for pid in below if (rank := _variable(pid, b"RANK")).isdigit()}
        found = {int(rank): int(pid) for pid, rank in ranked.items() if _parent(pid) not in ranked}
        if found:
            return found
        alone = [pid for pid in below if _variable(pid, b"TRAINWARDEN_SOCKET")]
        return {0: int(min(alone, key=int))} if alone else {}

    # ------------------------------------------------------------------ guarded acts

    def signal(self, pid: int, number: signal.Signals = signal.SIGKILL) -> None:
        """Signal a process that was started below the range. Raises OutsideRange for any other."""
        guards.send(pid, number, [p.pid for p in self.roots])

    def kill_rank(self, rank: int) -> int:
        """SIGKILL for one rank; its pid, 0 when it is not there."""
        pid = self.workers().get(rank, 0)
        if pid:
            self.signal(pid)
        return pid

    def inside(self, path: Path) -> Path:
        """A path of the range, its links followed. Raises OutsideRange for any other."""
        return guards.inside(self.folder, path)

    def write(self, path: Path, content: bytes | str, *, mode: int | None = None, keep_times: bool = False) -> Path:
        """Give a file this content: a new file takes its name, as editors do."""
        target = self.inside(path)
        before = target.stat() if target.exists() else None
        self._save(target)
        target.parent.mkdir(parents=True, exist_ok=True)
        handle, fresh = tempfile.mkstemp(dir=target.parent, prefix=".")
        with open(handle, "wb") as file:
            file.write(content.encode() if isinstance(content, str) else content)
        os.chmod(fresh, mode if mode is not None else before.st_mode & 0o777 if before else 0o644)
        if before and keep_times:
            os.utime(fresh, ns=(before.st_atime_ns, before.st_mtime_ns))
        os.replace(fresh, target)
        return target

    def edit(self, path: Path, change: Callable[[bytes], bytes], *, keep_times: bool = False) -> Path:
        """Replace a file by what `change` makes of it. Raises CannotDecide when that is the same."""
        old = self.inside(path).read_bytes()
        new = change(old)
        if new == old:
            raise CannotDecide(
                f"the edit of {path} changes nothing", hint="adapt the attack to this version of the file"
            )
        return self.write(path, new, keep_times=keep_times)

    def remove(self, path: Path) -> None:
        """Delete a file, a link or a folder."""
        target = self.inside(path.parent) / path.name if path.is_symlink() else self.inside(path)
        self._save(target)
        _gone(target)

    def copy(self, source: Path, target: Path) -> Path:
        """Copy a file or folder of the range within it."""
        source, target = self.inside(source), self.inside(target)
        self._save(target)
        _gone(target)
        _copied(source, target)
        return target

    def move(self, source: Path, target: Path) -> Path:
        """Rename within the range."""
        source, target = self.inside(source), self.inside(target)
        self._save(source)
        self._save(target)
        os.replace(source, target)
        return target

    def note(self, what: str) -> None:
        """Say that something was done outside of any step, so that its effect counts as measured."""
        with open(self.marks / "acts", "a", encoding="utf-8") as file:
            file.write(f"{time.time_ns()} {what}\n")

    @property
    def site(self) -> Path:
        """The copied environment's site-packages."""
        return site_of(self.env)

    @property
    def tracked(self) -> Path:
        """What the job reported to its tracker."""
        return self.home / "tracked.jsonl"

    @property
    def checkpoints(self) -> list[Path]:
        """The complete checkpoints, oldest first."""
        found = (self.job / self.workload.out).glob(self.workload.checkpoints)
        return sorted(found, key=lambda p: (p.stat().st_mtime_ns, p.name))

    @property
    def newest(self) -> Path:
        """The newest complete checkpoint. Raises CannotDecide when the job has saved none yet."""
        found = self.checkpoints
        if not found:
            raise CannotDecide(f"no checkpoint in {self.workload.out} yet", hint="strike at a later step: --strike-at")
        return found[-1]

    def weights(self, checkpoint: Path) -> Path:
        """The file of a checkpoint that holds the weights."""
        return checkpoint / self.workload.weights if self.workload.weights else checkpoint

    # ------------------------------------------------------------------ putting back

    def _save(self, target: Path) -> None:
        """Remember how a kept place was, before it is changed; `here` is thrown away anyhow."""
        if target.is_relative_to(os.path.realpath(self.here)):
            return
        undo = self.folder / "undo"
        undo.mkdir(exist_ok=True)
        done = [json.loads(p.read_text())["path"] for p in undo.glob("*.json")]
        if any(target == Path(p) or target.is_relative_to(p) for p in done):
            return
        name = f"{len(done):04d}"
        there = os.path.lexists(target)
        if there:
            _copied(target, undo / name)
        (undo / f"{name}.json.new").write_text(json.dumps({"path": str(target), "there": there}))
        os.replace(undo / f"{name}.json.new", undo / f"{name}.json")

    def undo(self) -> None:
        """Put back what attacks changed in kept places, the newest change first."""
        undo = self.folder / "undo"
        for note in sorted(undo.glob("*.json"), reverse=True):
            told = json.loads(note.read_text())
            target = self.inside(Path(told["path"]))
            _gone(target)
            for cache in target.parent.glob(f"__pycache__/{target.stem}.*.pyc") if target.suffix == ".py" else ():
                cache.unlink()
            if told["there"]:
                _copied(undo / note.stem, target)
            note.unlink()
        shutil.rmtree(undo, ignore_errors=True)


def _digest(folder: Path) -> str:
    """Over the names and bytes of all files below a folder."""
    told = hashlib.sha256()
    for file in sorted(p for p in folder.rglob("*") if p.is_file()):
        told.update(f"{file.relative_to(folder)}\0{file.stat().st_size}\0".encode() + file.read_bytes())
    return told.hexdigest()


def _gone(path: Path) -> None:
    if path.is_dir() and not path.is_symlink():
        shutil.rmtree(path)
    else:
        path.unlink(missing_ok=True)


def _copied(source: Path, target: Path) -> None:
    target.parent.mkdir(parents=True, exist_ok=True)
    if source.is_dir() and not source.is_symlink():
        shutil.copytree(source, target, symlinks=True)
    else:
        shutil.copy2(source, target, follow_symlinks=False)


def _variable(pid: str, name: bytes) -> bytes:
    """A variable of a process, empty when it has none or is gone."""
    try:
        environ = Path(f"/proc/{pid}/environ").read_bytes().split(b"\0")
    except OSError:
        return b""
    return next((v.partition(b"=")[2] for v in environ if v.startswith(name + b"=")), b"")


def _parent(pid: str) -> str:
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[1]
    except (OSError, IndexError):
        return "0"
