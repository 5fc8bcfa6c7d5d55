"""Places that are empty now and would be loaded from if somebody put something there.

An insider need not change a sealed file: Python, the dynamic loader and the shell look at many places first that
ordinarily do not exist. Each is sealed as a root without files, so that anything found there later is a new file
of the environment.

Rules
-----
* Python: entries of `sys.path` that do not exist (`lib/python311.zip` comes before the standard library), of
  `PYTHONPATH` and of `.pth` files, the user's own `site-packages`; `pyvenv.cfg` and `pybuilddir.txt` beside the
  interpreter, which move its whole import path. (The folders of a `PYTHONPYCACHEPREFIX` are roots in any case.)
* The dynamic loader (ld.so(8)): `/etc/ld.so.preload`, what `LD_PRELOAD`, `LD_AUDIT` and `LD_LIBRARY_PATH` name, and
  `glibc-hwcaps` beside libpython, where a library comes before the one it is named after. Libraries that other
  variables have loaded: `OMP_TOOL_LIBRARIES` (OpenMP 5, section 6.19), `CUDA_INJECTION64_PATH`.
* The shell's `PATH`: the folders before the one that the command was found in.

Of an existing `LD_LIBRARY_PATH` folder the files directly in it (and in `glibc-hwcaps`) are sealed, as ld.so
looks nowhere deeper. System folders (`/lib`, `/usr/lib`) are not covered, see `scan.py`.
"""

from __future__ import annotations

import os
from collections.abc import Iterator, Mapping, Sequence

from trainwarden.seal.cache import Item
from trainwarden.seal.command import LaunchCommand
from trainwarden.seal.interpreter import Interpreter, named_by_site

LD_PRELOAD_FILE = "/etc/ld.so.preload"
_SYSTEM_LIBRARIES = ("/lib", "/lib64", "/lib32", "/usr/lib", "/usr/lib64", "/usr/lib32")
_HWCAPS = "glibc-hwcaps"
_LOADING = ("LD_PRELOAD", "LD_AUDIT", "OMP_TOOL_LIBRARIES", "CUDA_INJECTION64_PATH")


def latent_places(interpreter: Interpreter, command: LaunchCommand) -> tuple[str, ...]:
    """The places of this command that do not exist now, or did not when the interpreter was asked; absolute and
    normalised, once each.
    """
    found = (os.path.normpath(os.path.join(command.cwd, p)) for p in _candidates(interpreter, command))
    missing = (os.path.normpath(os.path.join(command.cwd, p)) for p in interpreter.missing)
    return tuple(dict.fromkeys((*missing, *(p for p in found if not os.path.lexists(p)))))


def _candidates(interpreter: Interpreter, command: LaunchCommand) -> Iterator[str]:
    yield from (p for p in command.env.get("PYTHONPATH", "").split(":") if p)
    for site in interpreter.sites:
        yield from named_by_site(site, existing=False)
    for start in dict.fromkeys((interpreter.executable, os.path.realpath(interpreter.executable))):
        folder = os.path.dirname(start)
        yield from (f"{folder}/pyvenv.cfg", f"{os.path.dirname(folder)}/pyvenv.cfg", f"{folder}/pybuilddir.txt")
    yield from preloaded(command.env)
    for library in interpreter.libpython:
        yield os.path.join(os.path.dirname(library), _HWCAPS)
    yield from library_folders(command.env, command.cwd)
    yield from _earlier_on_path(command)


def _earlier_on_path(command: LaunchCommand) -> Iterator[str]:
    """Where a program of the command's name would be found first."""
    for name in dict.fromkeys((command.argv[0], *_shebang_names(command.executable))):
        if "/" in name:
            continue
        for folder in command.env.get("PATH", os.defpath).split(":"):
            place = os.path.normpath(os.path.join(command.cwd, folder, name))
            if os.path.isfile(place) and os.access(place, os.X_OK):
                break
            yield place


def _shebang_names(path: str) -> tuple[str, ...]:
    """The program that a script's `#!/usr/bin/env NAME` has looked up on `PATH`."""
    try:
        with open(path, "rb") as f:
            first = os.fsdecode(f.read(256)).partition("\n")[0]
    except OSError:
        return ()
    words = first[2:].split() if first.startswith("#!") else []
    if not words or os.path.basename(words[0]) != "env":
        return ()
    return tuple(w for w in words[1:] if not w.startswith("-") and "=" not in w)[:1]


def preloaded(env: Mapping[str, str]) -> tuple[str, ...]:
    """`/etc/ld.so.preload`, and the absolute paths of the libraries that every process is made to load."""
    words = ":".join(env.get(name, "") for name in _LOADING).replace(" ", ":").split(":")
    try:
        with open(LD_PRELOAD_FILE, encoding="utf-8", errors="surrogateescape") as f:
            lines = [line.partition("#")[0] for line in f]
    except OSError:
        lines = []
    words += " ".join(lines).replace(":", " ").split()
    return (LD_PRELOAD_FILE, *(w for w in words if w.startswith("/")))


def library_folders(env: Mapping[str, str], cwd: str) -> tuple[str, ...]:
    """The folders of `LD_LIBRARY_PATH`, but for those of the system and the working folder itself."""
    named = env.get("LD_LIBRARY_PATH", "").replace(";", ":").split(":")
    folders = dict.fromkeys(os.path.normpath(os.path.join(cwd, f)) for f in named if f)
    own = {os.path.normpath(cwd), "/"}
    return tuple(
        f for f in folders if f not in own and not any(f == s or f.startswith(s + "/") for s in _SYSTEM_LIBRARIES)
    )


def pycache_prefix(argv: Sequence[str], env: Mapping[str, str], cwd: str) -> str:
    """Where Python keeps its caches instead of in `__pycache__` (`-X pycache_prefix`, `PYTHONPYCACHEPREFIX`), or ""."""
    value = env.get("PYTHONPYCACHEPREFIX", "")
    for i, word in enumerate(argv):
        if word.startswith("-Xpycache_prefix="):
            value = word.partition("=")[2]
        elif word == "-X" and argv[i + 1 : i + 2] and argv[i + 1].startswith("pycache_prefix="):
            value = argv[i + 1].partition("=")[2]
    return os.path.normpath(os.path.join(cwd, value)) if value else ""


def in_library_folder(root: str, item: Item) -> bool:
    """Does ld.so look at this file of an `LD_LIBRARY_PATH` folder?"""
    folder = os.path.dirname(item.path)
    return folder == root or folder.startswith(f"{root.rstrip('/')}/{_HWCAPS}/")


def not_searched(root: str, folder: str) -> bool:
    """Is this a folder below `root` that ld.so does not look into?"""
    hwcaps = f"{root.rstrip('/')}/{_HWCAPS}"
    return folder != hwcaps and not folder.startswith(hwcaps + "/")
