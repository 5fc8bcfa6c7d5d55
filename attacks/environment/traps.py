"""Every trap, registered one a line or two: what is there before the seal, what the insider does, what shows it."""

from __future__ import annotations

from attacks.environment.bytecode import (
    edit,
    edit_keeping_time,
    edit_stdlib,
    edit_with_record,
    forge_cache,
    forge_in_prefix,
    forge_unchecked,
    sourceless,
    with_prefix,
    with_record,
)
from attacks.environment.native import (
    NATIVE,
    add_trap_library,
    audit_present,
    library_folder,
    library_folder_in_code,
    library_folder_missing,
    library_in_code,
    preload_file,
    preload_missing,
    preload_present,
    recompile,
    replace_so,
    shadow_by_so,
    shadow_libc_name,
    tool_missing,
)
from attacks.environment.paths import (
    behind_link,
    case_swap,
    edit_editable,
    edit_ignored_script,
    edit_settings,
    editable,
    editable_missing,
    fill_editable,
    folder_for_link,
    ignored_script,
    linked,
    namespace,
    namespace_beside_script,
    namespace_portion,
    optional_import,
    retarget,
    shadow_beside_script,
    with_settings,
    write_zip,
    zip_of_stdlib,
    zipped,
    zipped_inside,
)
from attacks.environment.startup import (
    bare_python,
    edit_console_script,
    edit_entry_points,
    edit_home,
    move_home,
    named_by_path,
    new,
    new_program,
    python_earlier_on_path,
    python_home,
    python_path,
    python_path_missing,
    pyvenv_beside_python,
    shadow_on_path,
    user_site,
    usercustomize,
    with_entry_points,
    wrap_interpreter,
)
from attacks.environment.trap import HOOKED, Trap

_TRAP = "import os; print(os.environ.get('TRAP'))"
_TRAP_MAPPED = "print('libtrap' in open('/proc/self/maps').read())"
_LINKED = "import linked; print(linked.X)"
_PKG = "try:\n    import pkg; print(pkg.X)\nexcept ImportError:\n    print('none')"
_PLUGIN = "try:\n    import plugin\nexcept ImportError: pass\n" + HOOKED
_TWO = "try:\n    import plugins.two\nexcept ImportError: pass\n" + HOOKED
_NATIVE_FILE = f"try:\n    import {NATIVE}; print({NATIVE}.__file__)\nexcept ImportError:\n    print('none')"
_ZIPPED = "import zipped; print(zipped.X)"
_COLORS = "try:\n    import colorsys\nexcept ImportError:\n    print('none')"
_SCRIPT = "print(open('launch').read())"

TRAPS: tuple[Trap, ...] = (
    Trap("source edited", edit),
    Trap("source edited, time and size restored", edit_keeping_time),
    Trap("source edited together with RECORD", edit_with_record, with_record),
    Trap("cache forged to the source's time and size", forge_cache),
    Trap("unchecked-hash cache", forge_unchecked),
    Trap("cache forged under PYTHONPYCACHEPREFIX", forge_in_prefix, with_prefix),
    Trap("bytecode without a source", sourceless, shows=_PLUGIN),
    Trap("standard library edited", edit_stdlib, shows="import json\n" + HOOKED, own_base=True),
    Trap("native module added", shadow_by_so, shows=_NATIVE_FILE),
    Trap("native library replaced", replace_so, shows=""),
    Trap("LD_PRELOAD: missing library appears", add_trap_library, preload_missing, shows=_TRAP_MAPPED),
    Trap("LD_PRELOAD: library replaced", recompile, preload_present, shows=_TRAP, needs="cc"),
    Trap("LD_AUDIT: library replaced", recompile, audit_present, shows="", needs="cc"),
    Trap("LD_LIBRARY_PATH: library added", shadow_libc_name, library_folder, shows=""),
    Trap("LD_LIBRARY_PATH: library added below the working folder", library_in_code, library_folder_in_code, shows=""),
    Trap("LD_LIBRARY_PATH: missing folder appears", shadow_libc_name, library_folder_missing, shows=""),
    Trap("OMP_TOOL_LIBRARIES: missing library appears", add_trap_library, tool_missing, shows=""),
    Trap("/etc/ld.so.preload appears", preload_file, shows=""),
    Trap(".pth with an import line", new("evil.pth"), shows=HOOKED),
    Trap("sitecustomize", new("sitecustomize.py"), shows=HOOKED),
    Trap("usercustomize in a user site that did not exist", usercustomize, user_site, shows=HOOKED),
    Trap("PYTHONPATH: module shadows a package", shadow_on_path, python_path),
    Trap("PYTHONPATH: missing folder appears", shadow_on_path, python_path_missing),
    Trap("PYTHONHOME: standard library edited", edit_home, python_home, shows="import json\n" + HOOKED),
    Trap("console script edited", edit_console_script, shows=""),
    Trap("program added beside the interpreter", new_program, shows=""),
    Trap("entry points edited", edit_entry_points, with_entry_points, shows=""),
    Trap("interpreter wrapped", wrap_interpreter),
    Trap("interpreter placed earlier on PATH", python_earlier_on_path, named_by_path, shows=""),
    Trap("pyvenv.cfg edited", move_home, shows=HOOKED, own_base=True),
    Trap("pyvenv.cfg placed beside a plain interpreter", pyvenv_beside_python, bare_python, shows="", own_base=True),
    Trap("editable install: project edited", edit_editable, editable, shows=_PKG),
    Trap("editable install: missing folder appears", fill_editable, editable_missing, shows=_PKG),
    Trap("namespace package: portion added", namespace_portion, namespace, shows=_TWO),
    Trap("namespace package beside the script", namespace_beside_script, optional_import, shows="import tries"),
    Trap("egg replaced, time restored", lambda s: [write_zip(s.folder / "mods.egg", "X = 2\n")], zipped, _ZIPPED),
    Trap(
        "folder inside an egg",
        lambda s: [write_zip(s.folder / "mods.egg", "X = 2\n", "lib/")],
        zipped_inside,
        _ZIPPED,
    ),
    Trap("zip archive before the standard library", zip_of_stdlib, shows=_COLORS, own_base=True),
    Trap("symbolic link retargeted", retarget, linked, shows=_LINKED),
    Trap("file behind a symbolic link edited", behind_link, linked, shows=_LINKED),
    Trap("package folder swapped for a link", folder_for_link),
    Trap("package swapped by a name of another case", case_swap),
    Trap("module beside the script shadows a package", shadow_beside_script),
    Trap("file that the code opens edited", edit_settings, with_settings, "print(open('settings.json').read())"),
    Trap("script that git ignores edited", edit_ignored_script, ignored_script, _SCRIPT, needs="git"),
)
