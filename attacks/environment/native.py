"""Traps in native code and the dynamic loader."""

from __future__ import annotations

import os
import shutil
import subprocess
import sysconfig
from pathlib import Path
from typing import TYPE_CHECKING

from attacks.environment.trap import PRELOAD_FILE

if TYPE_CHECKING:
    from sealed_site import Site


NATIVE = "_queue"  # a module of the standard library that nothing else here imports


def library(path: Path) -> Path:
    """A real shared library at `path`: a copy of one of Python's own."""
    path.parent.mkdir(parents=True, exist_ok=True)
    found = sorted(Path(sysconfig.get_path("stdlib"), "lib-dynload").glob(f"{NATIVE}.*.so"))
    shutil.copyfile(found[0] if found else sysconfig.get_config_var("LIBDIR") + "/libpython3.so", path)
    return path


def shadow_by_so(site: Site) -> list[Path]:
    return [library(site.packages / f"{NATIVE}{sysconfig.get_config_var('EXT_SUFFIX')}")]


def replace_so(site: Site) -> list[Path]:
    new = site.folder / "new"
    new.write_bytes(b"\x7fELF really not")
    os.replace(new, site.packages / "sums" / "fast.so")
    return [site.packages / "sums" / "fast.so"]


def preload_missing(site: Site) -> None:
    site.env["LD_PRELOAD"] = str(site.folder / "lib" / "libtrap.so")


def add_trap_library(site: Site) -> list[Path]:
    return [library(site.folder / "lib" / "libtrap.so")]


def preload_present(site: Site) -> None:
    _compiled(site.folder / "lib" / "libtrap.so", "0")
    site.env["LD_PRELOAD"] = str(site.folder / "lib" / "libtrap.so")


def audit_present(site: Site) -> None:
    _compiled(site.folder / "lib" / "libtrap.so", "0")
    site.env["LD_AUDIT"] = str(site.folder / "lib" / "libtrap.so")


def _compiled(path: Path, value: str) -> Path:
    """A library that sets TRAP in the process, and that ld.so accepts as an auditor (rtld-audit(7))."""
    path.parent.mkdir(parents=True, exist_ok=True)
    source = path.with_suffix(".c")
    source.write_text(
        "#include <stdlib.h>\nunsigned la_version(unsigned v) { return v; }\n"
        f'__attribute__((constructor)) static void go(void) {{ setenv("TRAP", "{value}", 1); }}\n'
    )
    subprocess.run(["cc", "-shared", "-fPIC", "-o", str(path) + ".new", str(source)], check=True, capture_output=True)
    os.replace(str(path) + ".new", path)
    return path


def recompile(site: Site) -> list[Path]:
    return [_compiled(site.folder / "lib" / "libtrap.so", "1")]


def library_folder(site: Site) -> None:
    (site.folder / "lib").mkdir()
    (site.folder / "lib" / "notes.txt").write_text("not a library\n")
    site.env["LD_LIBRARY_PATH"] = str(site.folder / "lib")


def library_folder_missing(site: Site) -> None:
    site.env["LD_LIBRARY_PATH"] = f"{site.folder}/lib:/usr/lib"


def library_folder_in_code(site: Site) -> None:
    (site.code / "libs").mkdir()
    site.env["LD_LIBRARY_PATH"] = "libs"


def library_in_code(site: Site) -> list[Path]:
    return [library(site.code / "libs" / "libtrap.so.6")]


def shadow_libc_name(site: Site) -> list[Path]:
    return [library(site.folder / "lib" / "libtrap.so.6")]


def tool_missing(site: Site) -> None:
    site.env["OMP_TOOL_LIBRARIES"] = f"{site.folder}/lib/libtrap.so:/usr/lib/none.so"


def preload_file(site: Site) -> list[Path]:
    (site.folder / PRELOAD_FILE).write_text("/somewhere/libtrap.so\n")
    return [site.folder / PRELOAD_FILE]
