"""Traps in import paths, and in files that the code opens."""

from __future__ import annotations

import os
import subprocess
import sys
import zipfile
from pathlib import Path
from typing import TYPE_CHECKING

from attacks.environment.trap import EVIL, HOOK

if TYPE_CHECKING:
    from sealed_site import Site


def editable(site: Site) -> None:
    (site.folder / "project" / "pkg").mkdir(parents=True)
    (site.folder / "project" / "pkg" / "__init__.py").write_text("X = 1\n")
    (site.packages / "__editable__.pkg.pth").write_text("import __editable___pkg_finder\n")
    (site.packages / "__editable___pkg_finder.py").write_text(
        f"import sys\nMAPPING = {{'pkg': '{site.folder}/project/pkg'}}\nsys.path.append('{site.folder}/project')\n"
    )


def edit_editable(site: Site) -> list[Path]:
    path = site.folder / "project" / "pkg" / "__init__.py"
    path.write_text("X = 2\n")
    return [path]


def editable_missing(site: Site) -> None:
    (site.packages / "moved.pth").write_text(f"{site.folder}/moved\n")


def fill_editable(site: Site) -> list[Path]:
    path = site.folder / "moved" / "pkg.py"
    path.parent.mkdir()
    path.write_text("X = 2\n")
    return [path]


def namespace(site: Site) -> None:
    (site.packages / "plugins").mkdir()
    (site.packages / "plugins" / "one.py").write_text("")


def namespace_portion(site: Site) -> list[Path]:
    path = site.packages / "plugins" / "two.py"
    path.write_text(HOOK)
    return [path]


def optional_import(site: Site) -> None:
    (site.packages / "tries.py").write_text(
        "try:\n    from apex.fused import FAST\nexcept ImportError:\n    FAST = 0\nprint(FAST)\n"
    )


def namespace_beside_script(site: Site) -> list[Path]:
    path = site.code / "apex" / "fused.py"
    path.parent.mkdir()
    path.write_text("FAST = 1\n")
    return [path]


def zipped(site: Site) -> None:
    write_zip(site.folder / "mods.egg", "X = 1\n")
    site.env["PYTHONPATH"] = f"{site.folder}/mods.egg"


def zipped_inside(site: Site) -> None:
    write_zip(site.folder / "mods.egg", "X = 1\n", "lib/")
    (site.packages / "egg.pth").write_text("")
    site.env["PYTHONPATH"] = f"{site.folder}/mods.egg/lib"


def write_zip(path: Path, text: str, folder: str = "") -> Path:
    status = path.stat() if path.exists() else None
    with zipfile.ZipFile(path, "w") as archive:
        archive.writestr(zipfile.ZipInfo(f"{folder}zipped.py", (2020, 1, 1, 0, 0, 0)), text)
    if status:
        os.utime(path, ns=(status.st_atime_ns, status.st_mtime_ns))
    return path


def zip_of_stdlib(site: Site) -> list[Path]:
    """`sys.path` begins with a zip archive that usually does not exist: before the whole standard library."""
    path = site.base / "lib" / f"python{sys.version_info.major}{sys.version_info.minor}.zip"
    with zipfile.ZipFile(path, "w") as archive:
        archive.writestr("colorsys.py", "print('zipped')")
    return [path]


def linked(site: Site) -> None:
    for name, text in (("v1", "X = 1\n"), ("v2", "X = 2\n")):
        (site.folder / name).mkdir()
        (site.folder / name / "linked.py").write_text(text)
    (site.packages / "linked.py").symlink_to(site.folder / "v1" / "linked.py")


def retarget(site: Site) -> list[Path]:
    link = site.packages / "linked.py"
    link.unlink()
    link.symlink_to(site.folder / "v2" / "linked.py")
    return [link]


def behind_link(site: Site) -> list[Path]:
    (site.folder / "v1" / "linked.py").write_text("X = 2\n")
    return [site.folder / "v1" / "linked.py"]


def folder_for_link(site: Site) -> list[Path]:
    elsewhere = site.folder / "elsewhere"
    (site.packages / "sums").rename(elsewhere)
    (elsewhere / "__init__.py").write_text(EVIL)
    (site.packages / "sums").symlink_to(elsewhere)
    return [site.package]


def case_swap(site: Site) -> list[Path]:
    """The honest package stays under a name of another case; what is imported is a new file."""
    (site.packages / "sums").rename(site.packages / "Sums")
    (site.packages / "sums.py").write_text(EVIL)
    return [site.packages / "sums.py"]


def with_settings(site: Site) -> None:
    (site.code / "settings.json").write_text('{"lr": 0.1}')


def edit_settings(site: Site) -> list[Path]:
    (site.code / "settings.json").write_text('{"lr": 0.9}')
    return [site.code / "settings.json"]


def ignored_script(site: Site) -> None:
    (site.code / "launch").write_text("import helper\nprint(helper.ONE)\n")
    (site.code / ".gitignore").write_text("launch\n")
    subprocess.run(["git", "init", "-q", str(site.code)], check=True, capture_output=True)
    site.script = "launch"


def edit_ignored_script(site: Site) -> list[Path]:
    (site.code / "launch").write_text("print('evil')\n")
    return [site.code / "launch"]


def shadow_beside_script(site: Site) -> list[Path]:
    (site.code / "sums.py").write_text(EVIL)
    return [site.code / "sums.py"]
