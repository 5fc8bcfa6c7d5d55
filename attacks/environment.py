"""Technique family 02, environment traps: every known way to change what a sealed Python environment runs.

Precondition: write access to the environment, to a place that it loads from, or to a place that is empty and would be
loaded from (E). Each `Trap` prepares an environment before it is sealed, then acts as an insider would; `shows` is code
whose output in that environment proves that the act changed what runs ("" where a harmless proof is not possible).

Expected evidence: `check_seal` and the watch name one of the files that `act` returns.
Benign twin: the same prepared environment, used and filled with results as ordinary runs do (`ordinary`).
Clean-up: they touch only the temporary site that they are given (`tests/seal/sealed_site.py`).
"""

from __future__ import annotations

import os
import py_compile
import shutil
import subprocess
import sys
import sysconfig
import zipfile
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from sealed_site import Site

EVIL = "def add(a, b):\n    return a - b\n"
SUM = "import sums; print(sums.add(2, 3))"
HOOK = "import builtins; builtins.HOOKED = 1\n"
HOOKED = "import builtins; print(hasattr(builtins, 'HOOKED'))"
PRELOAD_FILE = "ld.so.preload"  # stands for /etc/ld.so.preload, which no test may write


def nothing(site: Site) -> None:
    """Nothing to prepare."""


@dataclass(frozen=True)
class Trap:
    """One way in: what is there before the seal, what the insider does, what shows that it works."""

    name: str
    act: Callable[[Site], list[Path]]
    prepare: Callable[[Site], None] = nothing
    shows: str = SUM
    own_base: bool = False  # it changes the installation itself
    needs: str = ""  # a program without which it cannot be carried out


def ordinary(site: Site) -> None:
    """What honest runs do: import, write caches, data and results."""
    site.run("import helper, sums, json")
    (site.packages / "sums" / "cache.json").write_text("{}")
    (site.code / "out" / "copies").mkdir(parents=True, exist_ok=True)
    (site.code / "out" / "copies" / "train.py").write_text("a copy\n")
    (site.code / "loss.csv").write_text("1\n")
    os.utime(site.package)


# ------------------------------------------------------------------------- sources and bytecode


def _edit(site: Site) -> list[Path]:
    site.package.write_text(EVIL)
    return [site.package]


def _edit_keeping_time(site: Site) -> list[Path]:
    before = site.package.stat()
    site.package.write_text(EVIL)
    os.utime(site.package, ns=(before.st_atime_ns, before.st_mtime_ns))
    return [site.package]


def _edit_with_record(site: Site) -> list[Path]:
    record = site.packages / "sums-1.0.dist-info" / "RECORD"
    _edit(site)
    record.write_text(f"sums/__init__.py,,{len(EVIL)}\n")
    return [site.package]


def _with_record(site: Site) -> None:
    info = site.packages / "sums-1.0.dist-info"
    info.mkdir()
    (info / "METADATA").write_text("Metadata-Version: 2.1\nName: sums\nVersion: 1.0\n")
    (info / "RECORD").write_text("sums/__init__.py,,\n")


def _forge_cache(site: Site) -> list[Path]:
    return [_forged(site, site.cache, py_compile.PycInvalidationMode.TIMESTAMP)]


def _forge_unchecked(site: Site) -> list[Path]:
    return [_forged(site, site.cache, py_compile.PycInvalidationMode.UNCHECKED_HASH)]


def _forged(site: Site, cache: Path, mode: py_compile.PycInvalidationMode) -> Path:
    """A cache of other code that claims to be made from the sealed source: its time and size are in the header."""
    fake = site.folder / "fake.py"
    fake.write_text(EVIL)
    status = site.package.stat()
    os.utime(fake, ns=(status.st_atime_ns, status.st_mtime_ns))
    cache.parent.mkdir(parents=True, exist_ok=True)
    py_compile.compile(str(fake), cfile=str(cache), dfile=str(site.package), invalidation_mode=mode)
    return cache


def _with_prefix(site: Site) -> None:
    site.env["PYTHONPYCACHEPREFIX"] = str(site.folder / "caches")


def _forge_in_prefix(site: Site) -> list[Path]:
    relative = str(site.package.parent).lstrip("/")
    return [
        _forged(site, site.folder / "caches" / relative / site.cache.name, py_compile.PycInvalidationMode.TIMESTAMP)
    ]


def _sourceless(site: Site) -> list[Path]:
    module = site.packages / "plugin.pyc"
    source = site.folder / "plugin.py"
    source.write_text(HOOK)
    py_compile.compile(str(source), cfile=str(module))
    return [module]


def _edit_stdlib(site: Site) -> list[Path]:
    path = site.stdlib / "json" / "__init__.py"
    path.write_text(path.read_text() + "\n" + HOOK)
    return [path]


# ------------------------------------------------------------------------- native code and the dynamic loader


_NATIVE = "_queue"  # a module of the standard library that nothing else here imports


def library(path: Path) -> Path:
    """A real shared library at `path`: a copy of one of Python's own."""
    path.parent.mkdir(parents=True, exist_ok=True)
    found = sorted(Path(sysconfig.get_path("stdlib"), "lib-dynload").glob(f"{_NATIVE}.*.so"))
    shutil.copyfile(found[0] if found else sysconfig.get_config_var("LIBDIR") + "/libpython3.so", path)
    return path


def _shadow_by_so(site: Site) -> list[Path]:
    return [library(site.packages / f"{_NATIVE}{sysconfig.get_config_var('EXT_SUFFIX')}")]


def _replace_so(site: Site) -> list[Path]:
    new = site.folder / "new"
    new.write_bytes(b"\x7fELF really not")
    os.replace(new, site.packages / "sums" / "fast.so")
    return [site.packages / "sums" / "fast.so"]


def _preload_missing(site: Site) -> None:
    site.env["LD_PRELOAD"] = str(site.folder / "lib" / "libtrap.so")


def _add_trap_library(site: Site) -> list[Path]:
    return [library(site.folder / "lib" / "libtrap.so")]


def _preload_present(site: Site) -> None:
    _compiled(site.folder / "lib" / "libtrap.so", "0")
    site.env["LD_PRELOAD"] = str(site.folder / "lib" / "libtrap.so")


def _audit_present(site: Site) -> None:
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


def _recompile(site: Site) -> list[Path]:
    return [_compiled(site.folder / "lib" / "libtrap.so", "1")]


def _library_folder(site: Site) -> None:
    (site.folder / "lib").mkdir()
    (site.folder / "lib" / "notes.txt").write_text("not a library\n")
    site.env["LD_LIBRARY_PATH"] = str(site.folder / "lib")


def _library_folder_missing(site: Site) -> None:
    site.env["LD_LIBRARY_PATH"] = f"{site.folder}/lib:/usr/lib"


def _library_folder_in_code(site: Site) -> None:
    (site.code / "libs").mkdir()
    site.env["LD_LIBRARY_PATH"] = "libs"


def _library_in_code(site: Site) -> list[Path]:
    return [library(site.code / "libs" / "libtrap.so.6")]


def _shadow_libc_name(site: Site) -> list[Path]:
    return [library(site.folder / "lib" / "libtrap.so.6")]


def _tool_missing(site: Site) -> None:
    site.env["OMP_TOOL_LIBRARIES"] = f"{site.folder}/lib/libtrap.so:/usr/lib/none.so"


def _preload_file(site: Site) -> list[Path]:
    (site.folder / PRELOAD_FILE).write_text("/somewhere/libtrap.so\n")
    return [site.folder / PRELOAD_FILE]


# ------------------------------------------------------------------------- startup hooks


def _new(name: str, text: str = HOOK) -> Callable[[Site], list[Path]]:
    def act(site: Site) -> list[Path]:
        path = site.packages / name
        path.parent.mkdir(exist_ok=True)
        path.write_text(text)
        return [path]

    return act


def _user_site(site: Site) -> None:
    config = site.folder / "venv" / "pyvenv.cfg"
    config.write_text(config.read_text().replace("packages = false", "packages = true"))
    site.env["PYTHONUSERBASE"] = str(site.folder / "user")


def _usercustomize(site: Site) -> list[Path]:
    path = site.folder / "user" / "lib" / site.stdlib.name / "site-packages" / "usercustomize.py"
    path.parent.mkdir(parents=True)
    path.write_text(HOOK)
    return [path]


def _python_path(site: Site) -> None:
    (site.folder / "shared").mkdir()
    site.env["PYTHONPATH"] = f"{site.folder}/shared"


def _python_path_missing(site: Site) -> None:
    site.env["PYTHONPATH"] = f"{site.folder}/shared"


def _shadow_on_path(site: Site) -> list[Path]:
    path = site.folder / "shared" / "sums.py"
    path.parent.mkdir(exist_ok=True)
    path.write_text(EVIL)
    return [path]


def _python_home(site: Site) -> None:
    shutil.copytree(site.base, site.folder / "home", symlinks=True)
    site.env["PYTHONHOME"] = str(site.folder / "home")
    site.env["PYTHONPATH"] = str(site.packages)


def _edit_home(site: Site) -> list[Path]:
    path = site.folder / "home" / "lib" / site.stdlib.name / "json" / "__init__.py"
    path.write_text(path.read_text() + "\n" + HOOK)
    return [path]


# ------------------------------------------------------------------------- programs and interpreters


def _edit_console_script(site: Site) -> list[Path]:
    script = site.python.parent / "addup"
    script.write_text(script.read_text() + "print('evil')\n")
    return [script]


def _new_program(site: Site) -> list[Path]:
    program = site.python.parent / "git"
    program.write_text("#!/bin/sh\necho evil\n")
    program.chmod(0o755)
    return [program]


def _with_entry_points(site: Site) -> None:
    info = site.packages / "sums-1.0.dist-info"
    info.mkdir()
    (info / "METADATA").write_text("Metadata-Version: 2.1\nName: sums\nVersion: 1.0\n")
    (info / "entry_points.txt").write_text("[torch.backends]\nfast = sums:add\n")


def _edit_entry_points(site: Site) -> list[Path]:
    path = site.packages / "sums-1.0.dist-info" / "entry_points.txt"
    path.write_text("[torch.backends]\nfast = evil:add\n")
    return [path]


def _wrap_interpreter(site: Site) -> list[Path]:
    real = os.readlink(site.python)
    site.python.unlink()
    site.python.write_text(f'#!/bin/sh\necho wrapped\nPYTHONPATH={site.packages} exec {real} "$@"\n')
    site.python.chmod(0o755)
    return [site.python]


def _named_by_path(site: Site) -> None:
    (site.folder / "earlier").mkdir()
    site.env["PATH"] = f"{site.folder}/earlier:{site.python.parent}:{os.environ['PATH']}"
    site.first_word = "python"


def _python_earlier_on_path(site: Site) -> list[Path]:
    program = site.folder / "earlier" / "python"
    program.write_text(f'#!/bin/sh\necho wrapped\nexec {site.python} "$@"\n')
    program.chmod(0o755)
    return [program]


def _move_home(site: Site) -> list[Path]:
    config = site.folder / "venv" / "pyvenv.cfg"
    config.write_text(config.read_text().replace("packages = false", "packages = true"))
    hook = site.stdlib / "site-packages" / "sitecustomize.py"
    hook.parent.mkdir(exist_ok=True)
    hook.write_text(HOOK)
    return [config]


def _bare_python(site: Site) -> None:
    site.python = site.base / "bin" / "python3"
    site.env["PYTHONPATH"] = str(site.packages)
    site.env["PYTHONNOUSERSITE"] = "1"


def _pyvenv_beside_python(site: Site) -> list[Path]:
    """Makes a plain installation a virtual environment of another one's packages."""
    packages = site.base / "lib" / site.stdlib.name / "site-packages"
    packages.mkdir(exist_ok=True)
    (packages / "evil.pth").write_text(HOOK)
    config = site.base / "pyvenv.cfg"
    config.write_text(f"home = {site.base}/bin\n")
    return [config]


# ------------------------------------------------------------------------- import paths


def _editable(site: Site) -> None:
    (site.folder / "project" / "pkg").mkdir(parents=True)
    (site.folder / "project" / "pkg" / "__init__.py").write_text("X = 1\n")
    (site.packages / "__editable__.pkg.pth").write_text("import __editable___pkg_finder\n")
    (site.packages / "__editable___pkg_finder.py").write_text(
        f"import sys\nMAPPING = {{'pkg': '{site.folder}/project/pkg'}}\nsys.path.append('{site.folder}/project')\n"
    )


def _edit_editable(site: Site) -> list[Path]:
    path = site.folder / "project" / "pkg" / "__init__.py"
    path.write_text("X = 2\n")
    return [path]


def _editable_missing(site: Site) -> None:
    (site.packages / "moved.pth").write_text(f"{site.folder}/moved\n")


def _fill_editable(site: Site) -> list[Path]:
    path = site.folder / "moved" / "pkg.py"
    path.parent.mkdir()
    path.write_text("X = 2\n")
    return [path]


def _namespace(site: Site) -> None:
    (site.packages / "plugins").mkdir()
    (site.packages / "plugins" / "one.py").write_text("")


def _namespace_portion(site: Site) -> list[Path]:
    path = site.packages / "plugins" / "two.py"
    path.write_text(HOOK)
    return [path]


def _optional_import(site: Site) -> None:
    (site.packages / "tries.py").write_text(
        "try:\n    from apex.fused import FAST\nexcept ImportError:\n    FAST = 0\nprint(FAST)\n"
    )


def _namespace_beside_script(site: Site) -> list[Path]:
    path = site.code / "apex" / "fused.py"
    path.parent.mkdir()
    path.write_text("FAST = 1\n")
    return [path]


def _zipped(site: Site) -> None:
    _write_zip(site.folder / "mods.egg", "X = 1\n")
    site.env["PYTHONPATH"] = f"{site.folder}/mods.egg"


def _zipped_inside(site: Site) -> None:
    _write_zip(site.folder / "mods.egg", "X = 1\n", "lib/")
    (site.packages / "egg.pth").write_text("")
    site.env["PYTHONPATH"] = f"{site.folder}/mods.egg/lib"


def _write_zip(path: Path, text: str, folder: str = "") -> Path:
    status = path.stat() if path.exists() else None
    with zipfile.ZipFile(path, "w") as archive:
        archive.writestr(zipfile.ZipInfo(f"{folder}zipped.py", (2020, 1, 1, 0, 0, 0)), text)
    if status:
        os.utime(path, ns=(status.st_atime_ns, status.st_mtime_ns))
    return path


def _zip_of_stdlib(site: Site) -> list[Path]:
    """`sys.path` begins with a zip archive that usually does not exist: before the whole standard library."""
    path = site.base / "lib" / f"python{sys.version_info.major}{sys.version_info.minor}.zip"
    with zipfile.ZipFile(path, "w") as archive:
        archive.writestr("colorsys.py", "print('zipped')")
    return [path]


def _linked(site: Site) -> None:
    for name, text in (("v1", "X = 1\n"), ("v2", "X = 2\n")):
        (site.folder / name).mkdir()
        (site.folder / name / "linked.py").write_text(text)
    (site.packages / "linked.py").symlink_to(site.folder / "v1" / "linked.py")


def _retarget(site: Site) -> list[Path]:
    link = site.packages / "linked.py"
    link.unlink()
    link.symlink_to(site.folder / "v2" / "linked.py")
    return [link]


def _behind_link(site: Site) -> list[Path]:
    (site.folder / "v1" / "linked.py").write_text("X = 2\n")
    return [site.folder / "v1" / "linked.py"]


def _folder_for_link(site: Site) -> list[Path]:
    elsewhere = site.folder / "elsewhere"
    (site.packages / "sums").rename(elsewhere)
    (elsewhere / "__init__.py").write_text(EVIL)
    (site.packages / "sums").symlink_to(elsewhere)
    return [site.package]


def _case_swap(site: Site) -> list[Path]:
    """The honest package stays under a name of another case; what is imported is a new file."""
    (site.packages / "sums").rename(site.packages / "Sums")
    (site.packages / "sums.py").write_text(EVIL)
    return [site.packages / "sums.py"]


# ------------------------------------------------------------------------- what the code opens


def _with_settings(site: Site) -> None:
    (site.code / "settings.json").write_text('{"lr": 0.1}')


def _edit_settings(site: Site) -> list[Path]:
    (site.code / "settings.json").write_text('{"lr": 0.9}')
    return [site.code / "settings.json"]


def _ignored_script(site: Site) -> None:
    (site.code / "launch").write_text("import helper\nprint(helper.ONE)\n")
    (site.code / ".gitignore").write_text("launch\n")
    subprocess.run(["git", "init", "-q", str(site.code)], check=True, capture_output=True)
    site.script = "launch"


def _edit_ignored_script(site: Site) -> list[Path]:
    (site.code / "launch").write_text("print('evil')\n")
    return [site.code / "launch"]


def _shadow_beside_script(site: Site) -> list[Path]:
    (site.code / "sums.py").write_text(EVIL)
    return [site.code / "sums.py"]


_TRAP = "import os; print(os.environ.get('TRAP'))"
_TRAP_MAPPED = "print('libtrap' in open('/proc/self/maps').read())"
_LINKED = "import linked; print(linked.X)"
_PKG = "try:\n    import pkg; print(pkg.X)\nexcept ImportError:\n    print('none')"
_PLUGIN = "try:\n    import plugin\nexcept ImportError: pass\n" + HOOKED
_TWO = "try:\n    import plugins.two\nexcept ImportError: pass\n" + HOOKED
_NATIVE_FILE = f"try:\n    import {_NATIVE}; print({_NATIVE}.__file__)\nexcept ImportError:\n    print('none')"
_ZIPPED = "import zipped; print(zipped.X)"
_COLORS = "try:\n    import colorsys\nexcept ImportError:\n    print('none')"
_SCRIPT = "print(open('launch').read())"

TRAPS: tuple[Trap, ...] = (
    Trap("source edited", _edit),
    Trap("source edited, time and size restored", _edit_keeping_time),
    Trap("source edited together with RECORD", _edit_with_record, _with_record),
    Trap("cache forged to the source's time and size", _forge_cache),
    Trap("unchecked-hash cache", _forge_unchecked),
    Trap("cache forged under PYTHONPYCACHEPREFIX", _forge_in_prefix, _with_prefix),
    Trap("bytecode without a source", _sourceless, shows=_PLUGIN),
    Trap("standard library edited", _edit_stdlib, shows="import json\n" + HOOKED, own_base=True),
    Trap("native module added", _shadow_by_so, shows=_NATIVE_FILE),
    Trap("native library replaced", _replace_so, shows=""),
    Trap("LD_PRELOAD: missing library appears", _add_trap_library, _preload_missing, shows=_TRAP_MAPPED),
    Trap("LD_PRELOAD: library replaced", _recompile, _preload_present, shows=_TRAP, needs="cc"),
    Trap("LD_AUDIT: library replaced", _recompile, _audit_present, shows="", needs="cc"),
    Trap("LD_LIBRARY_PATH: library added", _shadow_libc_name, _library_folder, shows=""),
    Trap(
        "LD_LIBRARY_PATH: library added below the working folder", _library_in_code, _library_folder_in_code, shows=""
    ),
    Trap("LD_LIBRARY_PATH: missing folder appears", _shadow_libc_name, _library_folder_missing, shows=""),
    Trap("OMP_TOOL_LIBRARIES: missing library appears", _add_trap_library, _tool_missing, shows=""),
    Trap("/etc/ld.so.preload appears", _preload_file, shows=""),
    Trap(".pth with an import line", _new("evil.pth"), shows=HOOKED),
    Trap("sitecustomize", _new("sitecustomize.py"), shows=HOOKED),
    Trap("usercustomize in a user site that did not exist", _usercustomize, _user_site, shows=HOOKED),
    Trap("PYTHONPATH: module shadows a package", _shadow_on_path, _python_path),
    Trap("PYTHONPATH: missing folder appears", _shadow_on_path, _python_path_missing),
    Trap("PYTHONHOME: standard library edited", _edit_home, _python_home, shows="import json\n" + HOOKED),
    Trap("console script edited", _edit_console_script, shows=""),
    Trap("program added beside the interpreter", _new_program, shows=""),
    Trap("entry points edited", _edit_entry_points, _with_entry_points, shows=""),
    Trap("interpreter wrapped", _wrap_interpreter),
    Trap("interpreter placed earlier on PATH", _python_earlier_on_path, _named_by_path, shows=""),
    Trap("pyvenv.cfg edited", _move_home, shows=HOOKED, own_base=True),
    Trap("pyvenv.cfg placed beside a plain interpreter", _pyvenv_beside_python, _bare_python, shows="", own_base=True),
    Trap("editable install: project edited", _edit_editable, _editable, shows=_PKG),
    Trap("editable install: missing folder appears", _fill_editable, _editable_missing, shows=_PKG),
    Trap("namespace package: portion added", _namespace_portion, _namespace, shows=_TWO),
    Trap("namespace package beside the script", _namespace_beside_script, _optional_import, shows="import tries"),
    Trap("egg replaced, time restored", lambda s: [_write_zip(s.folder / "mods.egg", "X = 2\n")], _zipped, _ZIPPED),
    Trap(
        "folder inside an egg",
        lambda s: [_write_zip(s.folder / "mods.egg", "X = 2\n", "lib/")],
        _zipped_inside,
        _ZIPPED,
    ),
    Trap("zip archive before the standard library", _zip_of_stdlib, shows=_COLORS, own_base=True),
    Trap("symbolic link retargeted", _retarget, _linked, shows=_LINKED),
    Trap("file behind a symbolic link edited", _behind_link, _linked, shows=_LINKED),
    Trap("package folder swapped for a link", _folder_for_link),
    Trap("package swapped by a name of another case", _case_swap),
    Trap("module beside the script shadows a package", _shadow_beside_script),
    Trap("file that the code opens edited", _edit_settings, _with_settings, "print(open('settings.json').read())"),
    Trap("script that git ignores edited", _edit_ignored_script, _ignored_script, _SCRIPT, needs="git"),
)
