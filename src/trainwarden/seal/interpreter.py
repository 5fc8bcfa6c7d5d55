"""What a Python interpreter would import from, learned by asking it once.

Trust: the interpreter is asked with `-I -S`: no environment variable, no working directory, no `.pth`, no
`sitecustomize` runs. Only `PYTHONHOME` and `PYTHONPLATLIBDIR`, which move the standard library itself, are obeyed
when the job has them. Its binary, its libpython and its standard library do run, so they are believed about
where they are. A tampered one can leave a folder out; what it then imports is seen by the recorder, not here.
"""

from __future__ import annotations

import ast
import os
import subprocess
from collections.abc import Iterable, Mapping

import msgspec

from trainwarden.errors import UsageError

_PROBE = """
import json, os, sys, sysconfig, site
exe = sys.executable
folder = os.path.dirname(exe)
prefix = next((p for p in (folder, os.path.dirname(folder)) if os.path.isfile(os.path.join(p, "pyvenv.cfg"))), "")
sys.prefix = sys.exec_prefix = prefix or sys.base_prefix
site.PREFIXES = [sys.prefix]
maps = open("/proc/self/maps").read().splitlines() if os.path.exists("/proc/self/maps") else []
libs = sorted({line.split(None, 5)[5] for line in maps if "/libpython" in line})
print(json.dumps({
    "executable": exe, "venv": prefix, "base": sys.base_prefix, "version": "%d.%d.%d" % sys.version_info[:3],
    "stdlib": [sysconfig.get_path("stdlib"), sysconfig.get_path("platstdlib")], "path": sys.path,
    "sites": site.getsitepackages([sys.prefix]), "base_sites": site.getsitepackages([sys.base_prefix]),
    "user_site": site.getusersitepackages(), "libpython": libs,
}))
"""
_MOVING = ("PYTHONHOME", "PYTHONPLATLIBDIR")
_FINDERS = ("__editable__", "_editable_impl", "__editable_")


class Interpreter(msgspec.Struct, frozen=True, kw_only=True):
    """An interpreter and the places it loads from; paths as the interpreter itself names them."""

    executable: str
    version: str
    venv: str  # "" when it is not a virtual environment
    base: str
    stdlib: tuple[str, ...]
    sites: tuple[str, ...]  # site-packages folders that it reads `.pth` files from
    libpython: tuple[str, ...]
    missing: tuple[str, ...] = ()  # entries of its import path that do not exist now


class _Answer(msgspec.Struct):
    executable: str
    venv: str
    base: str
    version: str
    stdlib: list[str]
    path: list[str]
    sites: list[str]
    base_sites: list[str]
    user_site: str
    libpython: list[str]


def ask_interpreter(executable: str, cwd: str, env: Mapping[str, str]) -> Interpreter:
    """Ask the interpreter where it loads from.

    Raises:
        UsageError: it does not start or does not answer.
    """
    moved = {k: env[k] for k in _MOVING if env.get(k)}
    flags = ["-s", "-P", "-S"] if moved else ["-I", "-S"]
    clean = {k: v for k, v in env.items() if not k.startswith("PYTHON") or k == "PYTHONUSERBASE"} | moved
    try:
        run = subprocess.run(
            [executable, *flags, "-c", _PROBE], cwd=cwd, env=clean, capture_output=True, timeout=60, check=False
        )
        answer = msgspec.json.decode(run.stdout, type=_Answer)
    except (OSError, subprocess.TimeoutExpired, msgspec.DecodeError) as e:
        raise UsageError(f"{executable} does not start as a Python: {e}", hint="is it a CPython 3.11 or newer?") from e
    sites = list(answer.sites)
    if not answer.venv or _sees_system_site(answer.venv):
        sites += answer.base_sites
        if not env.get("PYTHONNOUSERSITE"):
            sites.append(answer.user_site)
    return Interpreter(
        executable=answer.executable,
        version=answer.version,
        venv=answer.venv,
        base=answer.base,
        stdlib=_folders([*answer.stdlib, *answer.path]),
        sites=_folders(sites),
        libpython=tuple(answer.libpython),
        missing=tuple(p for p in (*answer.stdlib, *answer.path, *sites) if p and not os.path.exists(p)),
    )


def _folders(paths: Iterable[str]) -> tuple[str, ...]:
    """Existing folders, once each by their real place, and none inside another of them."""
    kept: dict[str, str] = {}
    for path in paths:
        if os.path.isdir(path):
            kept.setdefault(os.path.realpath(path), os.path.normpath(path))
    return tuple(p for real, p in kept.items() if not any(real.startswith(k + "/") and k != real for k in kept))


def _sees_system_site(venv: str) -> bool:
    with open(os.path.join(venv, "pyvenv.cfg"), encoding="utf-8", errors="replace") as f:
        settings = dict(line.lower().partition("=")[::2] for line in f if "=" in line)
    return {k.strip(): v.strip() for k, v in settings.items()}.get("include-system-site-packages") == "true"


def named_by_site(site: str, *, existing: bool = True) -> tuple[str, ...]:
    """Absolute paths that the `.pth` files and editable finders of a site-packages folder name: those that exist, or
    those of `.pth` files that do not.
    """
    found: dict[str, None] = {}
    for name in sorted(os.listdir(site)):
        path = os.path.join(site, name)
        if name.endswith(".pth"):
            found.update(dict.fromkeys(p for p in _pth_paths(site, path) if os.path.exists(p) == existing))
        elif existing and is_finder(path):
            found.update(dict.fromkeys(finder_paths(path)))
    return tuple(found)


def _pth_paths(site: str, path: str) -> list[str]:
    """Lines of a `.pth` file that add to `sys.path` (see the `site` module); `import` lines are code."""
    try:
        with open(path, encoding="utf-8", errors="surrogateescape") as f:
            lines = [line.strip() for line in f]
    except OSError:
        return []  # dangling link or unreadable: hashing it says so
    folders = [
        line for line in lines if line and not line.startswith(("#", "import ", "import\t")) and "\0" not in line
    ]
    return [os.path.normpath(os.path.join(site, line)) for line in folders]


def finder_paths(path: str) -> list[str]:
    """Existing absolute paths written as strings in a generated finder module (setuptools, hatchling)."""
    try:
        with open(path, "rb") as f:
            return [p for p in finder_strings(f.read()) if os.path.exists(p)]
    except OSError:
        return []


def finder_strings(source: bytes) -> list[str]:
    """Absolute paths written as strings in Python source."""
    try:
        tree = ast.parse(source)
    except (SyntaxError, ValueError):
        return []
    strings = (n.value for n in ast.walk(tree) if isinstance(n, ast.Constant) and isinstance(n.value, str))
    return [os.path.normpath(s) for s in strings if s.startswith("/") and "\0" not in s]


def is_finder(path: str) -> bool:
    """Is this the generated module of an editable install?"""
    name = os.path.basename(path)
    return name.endswith(".py") and name.startswith(_FINDERS)
