"""A private copy of a Python environment: of a few distributions and what they need, or of a whole virtual one.

Files that differ by size or time are copied again: a session that was stopped half-way may have left the insider's.
"""

from __future__ import annotations

import importlib.metadata
import shutil
import subprocess
import sys
from collections.abc import Iterator, Sequence
from pathlib import Path

from trainwarden.errors import UsageError

_NO_JOB_LOADS = frozenset({"tests", "test", "include"})  # folders: test suites, headers; a fifth of PyTorch's bytes


def copy_environment(target: Path, packages: Sequence[str]) -> None:
    """A virtual environment of its own with what jobs load of these distributions, copied from the one that runs this.

    Raises:
        UsageError: one of `packages` is not installed.
    """
    base = getattr(sys, "_base_executable", sys.executable)
    fresh = not (target / "complete").exists()
    if fresh:
        shutil.rmtree(target, ignore_errors=True)
        subprocess.run([base, "-m", "venv", "--without-pip", str(target)], check=True)
    site = site_of(target)
    for name in sorted(closure(packages)):
        for file in importlib.metadata.distribution(name).files or ():
            source = Path(str(file.locate()))
            place = site / str(file)
            left_out = file.parts[0] == ".." or not _NO_JOB_LOADS.isdisjoint(file.parts[:-1])
            if not left_out and source.is_file() and not _same(source, place):
                place.parent.mkdir(parents=True, exist_ok=True)
                shutil.copy2(source, place)
    if not fresh:
        return
    launcher = target / "bin" / "torchrun"
    launcher.write_text(
        f"#!{target / 'bin' / 'python'}\nimport sys\n\nfrom torch.distributed.run import main\n\nsys.exit(main())\n"
    )
    launcher.chmod(0o755)
    subprocess.run([str(target / "bin" / "python"), "-c", "import torch.distributed.run"], check=True)
    (target / "complete").touch()


def copy_venv(source: Path, target: Path) -> None:
    """A whole virtual environment, its programs pointed at the copy.

    Raises:
        UsageError: `source` is not a virtual environment.
    """
    if not (source / "pyvenv.cfg").is_file():
        raise UsageError(
            f"{source} is not a virtual environment",
            hint="run the job with the python of a venv, so that it can be copied",
        )
    fresh = not (target / "complete").exists()
    if fresh:
        shutil.rmtree(target, ignore_errors=True)
        shutil.copytree(source, target, symlinks=True)
        for program in (target / "bin").iterdir():
            if program.is_file() and not program.is_symlink():
                program.write_bytes(program.read_bytes().replace(bytes(source), bytes(target)))
        (target / "complete").touch()
    site = site_of(source)
    for file in (f for f in site.rglob("*") if f.is_file() and not f.is_symlink()):
        place = site_of(target) / file.relative_to(site)
        if not _same(file, place):
            place.parent.mkdir(parents=True, exist_ok=True)
            shutil.copy2(file, place)


def site_of(environment: Path) -> Path:
    """The site-packages folder of a virtual environment."""
    (site,) = environment.glob("lib/python3*/site-packages")
    return site


def _same(source: Path, copy: Path) -> bool:
    if not copy.is_file():
        return False
    a, b = source.stat(), copy.stat()
    return (a.st_size, a.st_mtime_ns) == (b.st_size, b.st_mtime_ns)


def closure(names: Sequence[str]) -> set[str]:
    """The distributions that these need, themselves included, of those installed here.

    Raises:
        UsageError: one of `names` is not installed.
    """
    found: set[str] = set()
    for name in names:
        try:
            importlib.metadata.distribution(name)
        except importlib.metadata.PackageNotFoundError:
            raise UsageError(f"the job needs {name}", hint="make setup, or pip install 'trainwarden[chat]'") from None
        found |= set(_needs(name, found))
    return found


def _needs(name: str, seen: set[str]) -> Iterator[str]:
    try:
        distribution = importlib.metadata.distribution(name)
    except importlib.metadata.PackageNotFoundError:
        return
    if name in seen:
        return
    seen.add(name)
    yield name
    for requirement in distribution.requires or ():
        if "extra ==" not in requirement:
            word = requirement.split(";")[0]
            yield from _needs("".join(c if c.isalnum() or c in "-_." else " " for c in word).split()[0], seen)
