"""The supervisor's own interpreter and its own copy of the code.

`trainwarden run` is often installed in the very environment that it guards. So before anything of that environment can
matter, the verbs that check one start again as `BASE_PYTHON -I -S start.py`: no environment variable of Python's, no
working folder, no `.pth`, no `sitecustomize`; imports come from a private copy of this package and of what it
requires (not torch), made once for each version in `~/.local/share/trainwarden/own/` (mode 0700).

Rules
-----
* Only the standard library is used here. `LD_PRELOAD` and `LD_AUDIT` are taken out of the new process and given back
  to the job alone, which must run as it would without us.
* An installed release is copied once for each set of versions, so that a later edit of the installed files changes
  nothing. A development install is copied again whenever a file of it changes.

Trust: the first process up to `execve`, and the installed files when the copy is made. Startup hooks of the guarded
environment run in that first process; the start script in the copy (`start.py`) can be called directly to avoid it.
Programs of the same user can write the copy: the operating system does not keep them apart.
"""

from __future__ import annotations

import fcntl
import hashlib
import json
import os
import re
import shutil
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import TYPE_CHECKING

from trainwarden.errors import UsageError

if TYPE_CHECKING:
    from importlib.metadata import Distribution

KEPT_ENV = "TRAINWARDEN_KEPT_ENV"
_OF_THE_JOB = ("LD_PRELOAD", "LD_AUDIT")
_NOT_COPIED = {"torch"}
_OPTIONAL = ("opentelemetry-exporter-otlp-proto-http", "opentelemetry-sdk", "prometheus-client")  # alert channels
_NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]*")
_UNUSED_SECONDS = 3 * 86_400  # a copy that long unused is removed when a new one is made
_START = """\
import fcntl, os, sys
here = os.path.dirname(os.path.abspath(__file__))
sys.path[:0] = [here, {packages!r}]
held = [os.open(folder, os.O_RDONLY) for folder in sys.path[:2]]
for fd in held:  # as long as this process lives, nobody removes what it runs from
    fcntl.flock(fd, fcntl.LOCK_SH)
sys.argv[0] = "trainwarden"
left = os.statvfs(here)
if left.f_bavail * left.f_frsize < 1 << 26:  # Python would leave bytecode cut off on a full disk, and trip over it
    sys.dont_write_bytecode = True
from trainwarden.cli import main
sys.exit(main())
"""


def is_isolated() -> bool:
    """Was this process started with `-I -S`?"""
    return bool(sys.flags.isolated and sys.flags.no_site)


def restart_isolated(words: list[str]) -> None:
    """Become the isolated process; does not return.

    Raises:
        UsageError: the private copy cannot be made.
    """
    try:
        start = own_copy() / "start.py"
    except OSError as e:
        raise UsageError(
            f"cannot make a private copy of TrainWarden: {e}", hint="set XDG_DATA_HOME to a folder that you can write"
        ) from e
    python = getattr(sys, "_base_executable", "") or sys.executable
    sys.stdout.flush()
    sys.stderr.flush()
    os.execve(python, [python, "-I", "-S", str(start), *words], _own_env(os.environ.copy()))


def same_again() -> list[str]:
    """The words that start `trainwarden` as this process was started: isolated from the own copy, or plainly."""
    if is_isolated():
        return [sys.executable, "-I", "-S", str(_package().parent / "start.py")]
    return [sys.executable, "-m", "trainwarden.cli"]


def _own_env(env: dict[str, str]) -> dict[str, str]:
    kept = {name: env.pop(name) for name in _OF_THE_JOB if name in env}
    return env | {KEPT_ENV: json.dumps(kept)} if kept else env


def job_environ() -> dict[str, str]:
    """The environment variables that `trainwarden` was called with: those of the job."""
    env = dict(os.environ)
    return env | dict(json.loads(env.pop(KEPT_ENV, "{}")))


def own_copy() -> Path:
    """The private copy's folder, made if it is not there.

    Raises:
        OSError: it cannot be made.
    """
    home = Path(os.environ.get("XDG_DATA_HOME") or Path.home() / ".local" / "share") / "trainwarden" / "own"
    home.mkdir(mode=0o700, parents=True, exist_ok=True)
    packages = _made(home / f"packages-{_named(_versions())}", _copy_packages)
    return _made(home / f"code-{_named([packages.name, *_own_state()])}", lambda folder: _copy_code(folder, packages))


def _made(folder: Path, fill: Callable[[Path], None]) -> Path:
    """The folder, filled in one step by whoever comes first; others of its kind that nobody used for long go."""
    if folder.is_dir():
        os.utime(folder)
        return folder
    temp = Path(tempfile.mkdtemp(prefix=".", dir=folder.parent))  # mode 0700
    try:
        fill(temp)
        try:
            temp.rename(folder)
        except OSError:
            if not folder.is_dir():  # else another process was first
                raise
    finally:
        shutil.rmtree(temp, ignore_errors=True)
    for old in folder.parent.glob(f"{folder.name.partition('-')[0]}-*"):
        if time.time() - old.stat().st_mtime > _UNUSED_SECONDS:
            _remove_unused(old)
    return folder


def _remove_unused(folder: Path) -> None:
    """Remove a copy unless a process runs from it: that one holds its lock."""
    fd = os.open(folder, os.O_RDONLY | os.O_DIRECTORY)
    try:
        fcntl.flock(fd, fcntl.LOCK_EX | fcntl.LOCK_NB)
        shutil.rmtree(folder, ignore_errors=True)
    except BlockingIOError:
        pass
    finally:
        os.close(fd)


def _copy_code(folder: Path, packages: Path) -> None:
    shutil.copytree(_package(), folder / "trainwarden", ignore=shutil.ignore_patterns("__pycache__"))
    (folder / "start.py").write_text(_START.format(packages=str(packages)), encoding="utf-8")


def _copy_packages(folder: Path) -> None:
    for found in required():
        for file in found.files or ():
            source = Path(str(found.locate_file(file)))
            if file.parts[0] == ".." or file.suffix in (".pyc", ".pth") or not source.is_file():
                continue
            target = folder / file
            target.parent.mkdir(parents=True, exist_ok=True)
            shutil.copyfile(source, target)


def _package() -> Path:
    return Path(__file__).parent


def _versions() -> list[str]:
    interpreter = [sys.version, getattr(sys, "_base_executable", "") or sys.executable]
    return interpreter + sorted(f"{d.metadata['Name']} {d.version}" for d in required())


def _own_state() -> list[str]:
    """The version of a release; the state of every file of a development install."""
    from importlib.metadata import PackageNotFoundError, distribution

    try:
        own: Distribution | None = distribution("trainwarden")
    except PackageNotFoundError:
        own = None
    if own is not None and Path(str(own.locate_file("trainwarden"))) == _package():
        return [f"trainwarden {own.version}"]
    return sorted(f"{p} {(s := p.stat()).st_size} {s.st_mtime_ns}" for p in _package().rglob("*") if _counts(p))


def _named(words: list[str]) -> str:
    return hashlib.sha256("\n".join(words).encode("utf-8", "surrogateescape")).hexdigest()[:24]


def _counts(path: Path) -> bool:
    return path.is_file() and "__pycache__" not in path.parts


def required() -> Iterator[Distribution]:
    """The installed packages that this one requires, directly or not, those of alert channels too, without torch."""
    from importlib.metadata import PackageNotFoundError, distribution  # here: the isolated process needs none of it

    pending, seen = ["trainwarden", *_OPTIONAL], set(_NOT_COPIED)
    while pending:
        name = pending.pop()
        if name in seen:
            continue
        seen.add(name)
        try:
            found = distribution(name)
        except PackageNotFoundError:
            continue  # for another platform or Python, or an extra that nobody installed
        if name != "trainwarden":
            yield found
        for line in found.requires or ():
            match = _NAME.match(line)
            if match and "extra ==" not in line:
                pending.append(re.sub(r"[-_.]+", "-", match[0]).lower())
