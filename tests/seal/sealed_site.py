"""A sealed site in a temporary folder: what the tests of `seal` change and look at."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
import sysconfig
from dataclasses import dataclass, field
from pathlib import Path

from trainwarden.config import Config
from trainwarden.keys import SigningKey
from trainwarden.model import FileChanged, SignedSeal
from trainwarden.seal.check import check_seal
from trainwarden.seal.command import LaunchCommand, parse_command
from trainwarden.seal.seal import seal_command
from trainwarden.store import Store

PYTHON_TAG = sys.implementation.cache_tag
VERSION = f"python{sys.version_info.major}.{sys.version_info.minor}"


@dataclass
class Site:
    """One sealed site in a temporary folder."""

    folder: Path
    store: Store
    key: SigningKey
    python: Path
    packages: Path
    code: Path
    seal: SignedSeal
    base: Path = Path("/")  # the installation that the virtual environment is made from
    env: dict[str, str] = field(default_factory=dict)  # what every command of this site has set besides
    script: str = "train.py"
    first_word: str = ""  # how the command names its Python, if not by its path

    @property
    def stdlib(self) -> Path:
        return self.base / "lib" / VERSION

    @property
    def package(self) -> Path:
        return self.packages / "sums" / "__init__.py"

    @property
    def cache(self) -> Path:
        return self.packages / "sums" / "__pycache__" / f"__init__.{PYTHON_TAG}.pyc"

    def command(self, *words: str, **env: str) -> LaunchCommand:
        words = words or (self.script,)
        return parse_command([self.first_word or str(self.python), *words], str(self.code), base_env() | self.env | env)

    def seal_again(self, *words: str, config: Config | None = None, **env: str) -> SignedSeal:
        self.seal = seal_command(self.store, self.command(*words, **env), config or Config(), self.key)
        return self.seal

    def changes(self, deep: bool = False) -> dict[str, FileChanged]:
        """What changed, by path below the test's folder."""
        found = check_seal(self.store, self.seal, deep=deep)
        return {os.path.relpath(c.path, self.folder): c for c in found}

    def run(self, code: str, **env: str) -> str:
        done = subprocess.run(
            [self.python, "-c", code],
            cwd=self.code,
            env=base_env() | self.env | env,
            capture_output=True,
            text=True,
            check=True,
        )
        return done.stdout


def base_env() -> dict[str, str]:
    return {"PATH": os.environ["PATH"], "LANG": "C.UTF-8"}


def cut_python(base: Path) -> None:
    """A copy of this Python's installation with the few modules that the tests import: whole ones seal slowly."""
    stdlib = Path(sysconfig.get_path("stdlib"))
    listing = "import json, runpy, site, sysconfig, sys\n"
    listing += "for m in list(sys.modules.values()): print(getattr(m, '__file__', ''))"
    asked = subprocess.run([sys.executable, "-I", "-S", "-c", listing], capture_output=True, text=True, check=True)
    data = subprocess.run(
        [sys.executable, "-I", "-S", "-c", "import sysconfig; print(sysconfig._get_sysconfigdata_name())"],
        capture_output=True, text=True, check=True,
    ).stdout.strip()  # fmt: skip
    (base / "lib" / VERSION / "lib-dynload").mkdir(parents=True)
    for line in (*asked.stdout.splitlines(), str(stdlib / f"{data}.py"), str(stdlib / "_sitebuiltins.py")):
        if line.startswith(str(stdlib)) and "site-packages" not in line:
            place = base / "lib" / VERSION / os.path.relpath(line, stdlib)
            place.parent.mkdir(parents=True, exist_ok=True)
            shutil.copy2(line, place)
    for coding in ("utf_8.py", "latin_1.py", "ascii.py", "aliases.py", "__init__.py"):
        shutil.copy2(stdlib / "encodings" / coding, base / "lib" / VERSION / "encodings")
    (base / "bin").mkdir()
    binary = Path(os.path.realpath(sys.executable))
    shutil.copy2(binary, base / "bin" / VERSION)
    (base / "bin" / "python3").symlink_to(VERSION)
    libdir = Path(sysconfig.get_config_var("LIBDIR") or "/nonexistent")
    for library in libdir.glob("libpython*.so.1.0"):
        shutil.copy2(library, base / "lib")


def make_site(folder: Path, base: Path) -> Site:
    """A tiny environment on `base`, a script and its folder, unsealed yet."""
    venv = folder / "venv"
    packages = venv / "lib" / VERSION / "site-packages"
    (packages / "sums").mkdir(parents=True)
    (venv / "bin").mkdir()
    (venv / "bin" / "python").symlink_to(base / "bin" / "python3")
    version = ".".join(map(str, sys.version_info[:3]))
    (venv / "pyvenv.cfg").write_text(f"home = {base}/bin\ninclude-system-site-packages = false\nversion = {version}\n")
    (packages / "sums" / "__init__.py").write_text("def add(a, b):\n    return a + b\n")
    (packages / "sums" / "table.bin").write_bytes(b"\1\2\3")
    (packages / "sums" / "fast.so").write_bytes(b"\x7fELF not really")
    script = venv / "bin" / "addup"
    script.write_text(f"#!{venv}/bin/python\nimport sums\nprint(sums.add(1, 2))\n")
    script.chmod(0o755)
    code = folder / "code"
    code.mkdir()
    (code / "train.py").write_text("import helper, sums\nprint(sums.add(helper.ONE, 1))\n")
    (code / "helper.py").write_text("ONE = 1\n")
    (code / "notes.md").write_text("notes\n")
    store = Store.open(folder / "store", create=True)
    key = SigningKey.load_or_create(folder / "key")
    return Site(folder, store, key, venv / "bin" / "python", packages, code, None, base)  # type: ignore[arg-type]
