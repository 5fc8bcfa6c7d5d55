"""Traps in startup hooks, programs and interpreters."""

from __future__ import annotations

import os
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING

from attacks.environment.trap import EVIL, HOOK

if TYPE_CHECKING:
    from sealed_site import Site


def new(name: str, text: str = HOOK) -> Callable[[Site], list[Path]]:
    def act(site: Site) -> list[Path]:
        path = site.packages / name
        path.parent.mkdir(exist_ok=True)
        path.write_text(text)
        return [path]

    return act


def user_site(site: Site) -> None:
    config = site.folder / "venv" / "pyvenv.cfg"
    config.write_text(config.read_text().replace("packages = false", "packages = true"))
    site.env["PYTHONUSERBASE"] = str(site.folder / "user")


def usercustomize(site: Site) -> list[Path]:
    path = site.folder / "user" / "lib" / site.stdlib.name / "site-packages" / "usercustomize.py"
    path.parent.mkdir(parents=True)
    path.write_text(HOOK)
    return [path]


def python_path(site: Site) -> None:
    (site.folder / "shared").mkdir()
    site.env["PYTHONPATH"] = f"{site.folder}/shared"


def python_path_missing(site: Site) -> None:
    site.env["PYTHONPATH"] = f"{site.folder}/shared"


def shadow_on_path(site: Site) -> list[Path]:
    path = site.folder / "shared" / "sums.py"
    path.parent.mkdir(exist_ok=True)
    path.write_text(EVIL)
    return [path]


def python_home(site: Site) -> None:
    shutil.copytree(site.base, site.folder / "home", symlinks=True)
    site.env["PYTHONHOME"] = str(site.folder / "home")
    site.env["PYTHONPATH"] = str(site.packages)


def edit_home(site: Site) -> list[Path]:
    path = site.folder / "home" / "lib" / site.stdlib.name / "json" / "__init__.py"
    path.write_text(path.read_text() + "\n" + HOOK)
    return [path]


def edit_console_script(site: Site) -> list[Path]:
    script = site.python.parent / "addup"
    script.write_text(script.read_text() + "print('evil')\n")
    return [script]


def new_program(site: Site) -> list[Path]:
    program = site.python.parent / "git"
    program.write_text("#!/bin/sh\necho evil\n")
    program.chmod(0o755)
    return [program]


def with_entry_points(site: Site) -> None:
    info = site.packages / "sums-1.0.dist-info"
    info.mkdir()
    (info / "METADATA").write_text("Metadata-Version: 2.1\nName: sums\nVersion: 1.0\n")
    (info / "entry_points.txt").write_text("[torch.backends]\nfast = sums:add\n")


def edit_entry_points(site: Site) -> list[Path]:
    path = site.packages / "sums-1.0.dist-info" / "entry_points.txt"
    path.write_text("[torch.backends]\nfast = evil:add\n")
    return [path]


def wrap_interpreter(site: Site) -> list[Path]:
    real = os.readlink(site.python)
    site.python.unlink()
    site.python.write_text(f'#!/bin/sh\necho wrapped\nPYTHONPATH={site.packages} exec {real} "$@"\n')
    site.python.chmod(0o755)
    return [site.python]


def named_by_path(site: Site) -> None:
    (site.folder / "earlier").mkdir()
    site.env["PATH"] = f"{site.folder}/earlier:{site.python.parent}:{os.environ['PATH']}"
    site.first_word = "python"


def python_earlier_on_path(site: Site) -> list[Path]:
    program = site.folder / "earlier" / "python"
    program.write_text(f'#!/bin/sh\necho wrapped\nexec {site.python} "$@"\n')
    program.chmod(0o755)
    return [program]


def move_home(site: Site) -> list[Path]:
    config = site.folder / "venv" / "pyvenv.cfg"
    config.write_text(config.read_text().replace("packages = false", "packages = true"))
    hook = site.stdlib / "site-packages" / "sitecustomize.py"
    hook.parent.mkdir(exist_ok=True)
    hook.write_text(HOOK)
    return [config]


def bare_python(site: Site) -> None:
    site.python = site.base / "bin" / "python3"
    site.env["PYTHONPATH"] = str(site.packages)
    site.env["PYTHONNOUSERSITE"] = "1"


def pyvenv_beside_python(site: Site) -> list[Path]:
    """Makes a plain installation a virtual environment of another one's packages."""
    packages = site.base / "lib" / site.stdlib.name / "site-packages"
    packages.mkdir(exist_ok=True)
    (packages / "evil.pth").write_text(HOOK)
    config = site.base / "pyvenv.cfg"
    config.write_text(f"home = {site.base}/bin\n")
    return [config]
