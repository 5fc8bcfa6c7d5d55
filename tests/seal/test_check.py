"""Must-fire: every way to change what runs. Benign twins: everything that ordinary runs do."""

from __future__ import annotations

import importlib.util
import marshal
import os
import py_compile
import shutil
import sys
from pathlib import Path

import pytest
from sealed_site import PYTHON_TAG, Site

from trainwarden.errors import StoreTampered
from trainwarden.seal.check import check_seal
from trainwarden.seal.pyc import is_cache_of


def rel(site: Site, path: Path) -> str:
    return os.path.relpath(path, site.folder)


def test_nothing_changed_is_silent(site: Site) -> None:
    assert site.changes() == {}
    assert site.changes(deep=True) == {}


def test_edited_source_is_found(site: Site) -> None:
    site.package.write_text("def add(a, b):\n    return a - b\n")
    change = site.changes()[rel(site, site.package)]
    assert change.kind == "environment"
    assert change.sealed != change.found != ""
    assert change.uid == os.getuid()


@pytest.mark.parametrize("deep", [False, True])
def test_restored_mtime_after_an_edit_does_not_hide_it(site: Site, deep: bool) -> None:
    before = site.package.stat()
    site.package.write_text("def add(a, b):\n    return a * b\n")
    os.utime(site.package, ns=(before.st_atime_ns, before.st_mtime_ns))
    assert site.package.stat().st_size == before.st_size
    assert list(site.changes(deep)) == [rel(site, site.package)]


def test_replaced_native_library_is_found(site: Site) -> None:
    library = site.packages / "sums" / "fast.so"
    new = library.with_name("new")
    new.write_bytes(b"\x7fELF really not")
    os.replace(new, library)
    assert list(site.changes()) == [rel(site, library)]


def test_changed_data_file_of_a_package_is_found(site: Site) -> None:
    (site.packages / "sums" / "table.bin").write_bytes(b"\1\2\4")
    assert list(site.changes()) == [rel(site, site.packages / "sums" / "table.bin")]


@pytest.mark.parametrize(
    "name",
    ["evil.pth", "sitecustomize.py", "usercustomize.py", "torch.so", "sums/extra.py", "x.dist-info/entry_points.txt",
     "sums/__pycache__/other.bin", "libm.so.6", "code.zip"],
)  # fmt: skip
def test_new_file_that_python_could_load_is_found(site: Site, name: str) -> None:
    path = site.packages / name
    path.parent.mkdir(exist_ok=True)
    path.write_text("import os\n")
    change = site.changes()[rel(site, path)]
    assert (change.sealed, change.kind) == ("", "environment")


def test_new_program_beside_the_interpreter_is_found(site: Site) -> None:
    program = site.python.parent / "git"
    program.write_text("#!/bin/sh\n")
    program.chmod(0o755)
    assert list(site.changes()) == [rel(site, program)]


def test_new_data_file_in_site_packages_is_silent(site: Site) -> None:
    (site.packages / "sums" / "cache.json").write_text("{}")
    assert site.changes() == {}


def test_deleted_file_is_found(site: Site) -> None:
    site.package.unlink()
    change = site.changes()[rel(site, site.package)]
    assert change.found == ""
    assert change.sealed


def test_two_files_swapped_by_renames_are_found(site: Site) -> None:
    a, b = site.code / "train.py", site.code / "helper.py"
    a.rename(site.code / "x")
    b.rename(a)
    (site.code / "x").rename(b)
    assert set(site.changes()) == {"code/train.py", "code/helper.py"}


def test_package_folder_swapped_for_a_link_is_found(site: Site) -> None:
    elsewhere = site.folder / "elsewhere"
    (site.packages / "sums").rename(elsewhere)
    (elsewhere / "__init__.py").write_text("def add(a, b):\n    return 0\n")
    (site.packages / "sums").symlink_to(elsewhere)
    assert rel(site, site.package) in site.changes()


def test_file_swapped_for_a_link_to_the_same_bytes_is_found(site: Site) -> None:
    elsewhere = site.folder / "elsewhere.py"
    site.package.rename(elsewhere)
    site.package.symlink_to(elsewhere)
    assert rel(site, site.package) in site.changes()


def test_interpreter_swapped_is_found(site: Site) -> None:
    site.python.unlink()
    site.python.write_text("#!/bin/sh\n")
    site.python.chmod(0o755)
    assert rel(site, site.python) in site.changes()


def test_pyvenv_cfg_edited_is_found(site: Site) -> None:
    config = site.folder / "venv" / "pyvenv.cfg"
    config.write_text(config.read_text().replace("false", "true"))
    assert list(site.changes()) == ["venv/pyvenv.cfg"]


def test_edited_code_is_found(site: Site) -> None:
    (site.code / "helper.py").write_text("ONE = 2\n")
    assert site.changes()["code/helper.py"].kind == "code"


@pytest.mark.parametrize("name", ["json.py", "sums.so", "sums/__init__.py"])
def test_new_module_beside_the_script_that_shadows_another_is_found(site: Site, name: str) -> None:
    path = site.code / name
    path.parent.mkdir(exist_ok=True)
    path.write_text("")
    assert list(site.changes()) == [f"code/{name}"]


def test_results_beside_the_script_are_silent(site: Site) -> None:
    (site.code / "out" / "copies").mkdir(parents=True)
    (site.code / "out" / "copies" / "train.py").write_text("a copy")
    (site.code / "loss.csv").write_text("1,2\n")
    (site.code / "model.pt").write_bytes(b"weights")
    assert site.changes() == {}


def test_touching_times_and_modes_only_is_silent(site: Site) -> None:
    os.utime(site.package, (1, 1))
    site.package.chmod(0o600)
    assert site.changes() == {}


def test_files_outside_are_silent(site: Site) -> None:
    (site.folder / "elsewhere.py").write_text("x = 1\n")
    assert site.changes() == {}


# ------------------------------------------------------------------------- bytecode


def test_python_writing_its_own_cache_is_silent(site: Site) -> None:
    assert site.run("import helper, sums; print(sums.add(2, 3))") == "5\n"
    assert site.cache.exists()
    assert (site.code / "__pycache__" / f"helper.{PYTHON_TAG}.pyc").exists()
    assert site.changes() == {}


def test_python_rewriting_a_sealed_cache_is_silent(site: Site) -> None:
    site.run("import sums")
    site.seal_again()
    os.utime(site.package, (1_000_000, 1_000_000))
    before = site.cache.read_bytes()
    site.run("import sums")
    assert site.cache.read_bytes() != before
    assert site.changes() == {}


@pytest.mark.parametrize("optimize", [1, 2])
def test_optimised_cache_is_silent(site: Site, optimize: int) -> None:
    py_compile.compile(str(site.package), optimize=optimize)
    assert site.changes() == {}


@pytest.mark.parametrize("sealed_first", [False, True])
def test_forged_cache_with_the_times_of_its_source_is_found(site: Site, sealed_first: bool) -> None:
    if sealed_first:
        site.run("import sums")
        site.seal_again()
    forge(site)
    assert site.run("import sums; print(sums.add(2, 3))") == "-1\n", "the attack works"
    assert list(site.changes()) == [rel(site, site.cache)]


def forge(site: Site) -> None:
    fake = site.folder / "fake.py"
    fake.write_text("def add(a, b):\n    return a - b\n")
    status = site.package.stat()
    os.utime(fake, ns=(status.st_atime_ns, status.st_mtime_ns))
    site.cache.parent.mkdir(exist_ok=True)
    py_compile.compile(str(fake), cfile=str(site.cache), dfile=str(site.package))


def test_unchecked_hash_cache_is_found_even_with_honest_code(site: Site) -> None:
    py_compile.compile(str(site.package), invalidation_mode=py_compile.PycInvalidationMode.UNCHECKED_HASH)
    assert list(site.changes()) == [rel(site, site.cache)]


def test_stale_cache_brought_back_to_life_by_a_restored_time_is_found(site: Site) -> None:
    forge(site)  # fits its source
    status = site.package.stat()
    os.utime(site.package, (1_000_000, 1_000_000))
    site.seal_again()  # now it does not: Python ignores it
    assert site.changes() == {}
    os.utime(site.package, ns=(status.st_atime_ns, status.st_mtime_ns))
    assert site.run("import sums; print(sums.add(2, 3))") == "-1\n", "the attack works"
    assert list(site.changes()) == [rel(site, site.cache)]


def test_cache_without_a_sealed_source_is_found(site: Site) -> None:
    orphan = site.cache.with_name(f"ghost.{PYTHON_TAG}.pyc")
    orphan.parent.mkdir()
    py_compile.compile(str(site.package), cfile=str(orphan))
    assert list(site.changes()) == [rel(site, orphan)]


def test_garbage_and_hostile_caches_are_not_benign() -> None:
    source = b"x = (1, 2.5, 'e', b'y', 10**30, frozenset({1}), None, ..., 3j)\n"
    code = importlib.util.MAGIC_NUMBER + bytes(12) + marshal.dumps(compile(source, "a.py", "exec", dont_inherit=True))
    assert is_cache_of(code, source, "a.py", 0)
    assert is_cache_of(code, source, "/elsewhere/a.py", 0), "the file name does not matter"
    head = bytes(code[:16])
    for body in (b"", b"(", b"r\0\0\0\0", b"\xa9\xff" * 9, b"(\xff\xff\xff\x7f", b"[" * 5000, b")\x01" * 5000 + b"N"):
        assert not is_cache_of(head + body, source, "a.py", 0)
    name = code.index(b"a.py")
    for at in range(16, len(code)):
        changed = bytearray(code)
        changed[at] ^= 0x01
        benign = is_cache_of(bytes(changed), source, "a.py", 0)
        assert not benign or at in range(name - 2, name + 4), f"byte {at} changed and was not seen"
    assert not is_cache_of(b"\0\0\0\0" + bytes(code[4:]), source, "a.py", 0), "another Python's cache"


def test_caches_of_the_standard_library_are_recognised(stdlib_cut: Path) -> None:
    """Caches written by another process differ in reference flags: none may be a false alarm."""
    version = f"python{sys.version_info.major}.{sys.version_info.minor}"
    for path in sorted((stdlib_cut / "lib" / version).glob("[a-d]*.py"))[:25]:
        cache = py_compile.compile(str(path), cfile=str(path) + ".c", doraise=True)
        data = Path(cache).read_bytes()
        Path(cache).unlink()
        assert is_cache_of(data, path.read_bytes(), str(path), 0), path


# ------------------------------------------------------------------------- odd files


def test_names_with_newlines_and_bytes_that_are_not_utf8(site: Site) -> None:
    names = [b"new\nline.py", b"latin-\xe9.py", b"back\\slash.py", b"back\\xe9slash.py", b"snow\xe2\x98\x83.py"]
    for name in names:
        (site.packages / os.fsdecode(name)).write_bytes(b"x = 1\n")
    site.seal_again()
    assert site.changes() == {}
    (site.packages / os.fsdecode(names[1])).write_bytes(b"x = 2\n")
    (site.packages / os.fsdecode(names[2])).unlink()
    found = site.changes()
    assert {Path(p).name for p in found} == {"latin-\\xe9.py", "back\\\\slash.py"}


def test_symbolic_link_loops_are_sealed_and_end(site: Site) -> None:
    (site.packages / "loop").symlink_to("loop")
    (site.packages / "up").symlink_to("..")
    (site.packages / "sums" / "self").symlink_to(site.packages)
    site.seal_again()
    assert site.changes() == {}
    (site.packages / "up").unlink()
    (site.packages / "up").symlink_to("/tmp")
    assert rel(site, site.packages / "up") in site.changes()


def test_target_of_a_link_that_leaves_the_environment_is_sealed(site: Site) -> None:
    shared = site.folder / "shared"
    shared.mkdir()
    (shared / "mod.py").write_text("x = 1\n")
    (site.packages / "linked").symlink_to(shared)
    single = site.folder / "single.py"
    single.write_text("y = 1\n")
    (site.packages / "single.py").symlink_to(single)
    site.seal_again()
    assert site.changes() == {}
    (shared / "mod.py").write_text("x = 2\n")
    single.write_text("y = 2\n")
    assert set(site.changes()) == {"shared/mod.py", "single.py"}


def link_out(site: Site) -> tuple[Path, Path]:
    """Code that links to a module and a package elsewhere, and to pictures; the two files behind it."""
    elsewhere = site.folder / "elsewhere"
    (elsewhere / "tools").mkdir(parents=True)
    (elsewhere / "pictures").mkdir()
    (elsewhere / "pictures" / "a.png").write_bytes(b"a picture")
    module, package = elsewhere / "shared_module.py", elsewhere / "tools" / "__init__.py"
    module.write_text("x = 1\n")
    package.write_text("y = 1\n")
    (elsewhere / "beside.py").write_text("nobody links to it\n")
    (site.code / "shared.py").symlink_to(module)
    (site.code / "tools").symlink_to("../elsewhere/tools")
    (site.code / "pictures").symlink_to(elsewhere / "pictures")
    site.seal_again()
    return module, package


def test_what_links_of_the_code_import_from_elsewhere_is_sealed(site: Site) -> None:
    module, package = link_out(site)
    module.write_text("x = 2\n")
    package.write_text("y = 2\n")
    (package.parent / "new.py").write_text("z = 1\n")
    told = site.changes()
    assert {p: c.kind for p, c in told.items()} == {
        "elsewhere/shared_module.py": "code", "elsewhere/tools/__init__.py": "code", "elsewhere/tools/new.py": "code",
    }  # fmt: skip
    (site.code / "shared.py").unlink()
    (site.code / "shared.py").symlink_to(module.with_name("beside.py"))
    assert "code/shared.py" in site.changes()


def test_links_of_the_code_that_are_used_and_not_changed_are_silent(site: Site) -> None:
    module, _ = link_out(site)
    assert site.run("import shared, tools; print(shared.x + tools.y)") == "2\n"
    (module.parent / "beside.py").write_text("of another project\n")
    (module.parent / "pictures" / "b.png").write_bytes(b"no code")
    os.utime(module)
    assert site.changes() == {}
    assert site.seal.seal.data.files == 0


def test_folders_named_by_pth_files_and_finders_are_environment(site: Site) -> None:
    for name in ("by_pth", "by_finder", "by_path"):
        (site.folder / name / "pkg").mkdir(parents=True)
        (site.folder / name / "pkg" / "__init__.py").write_text("x = 1\n")
    (site.packages / "a.pth").write_text(f"# comment\nimport sys\n{site.folder}/by_pth\n/does/not/exist\n")
    finder = f"MAPPING = {{'pkg': '{site.folder}/by_finder/pkg'}}\n"
    (site.packages / "__editable___pkg_finder.py").write_text(finder)
    site.seal_again(PYTHONPATH=f"{site.folder}/by_path")
    assert site.changes() == {}
    expected = set()
    for name in ("by_pth", "by_finder", "by_path"):
        (site.folder / name / "pkg" / "new.py").write_text("")
        (site.folder / name / "pkg" / "log.txt").write_text("no code")
        expected.add(f"{name}/pkg/new.py")
    assert set(site.changes()) == expected


def test_tampered_manifest_object_is_found(site: Site) -> None:
    path = site.store.object_path(site.seal.seal.environment.digest)
    path.chmod(0o644)
    path.write_bytes(path.read_bytes().replace(b"sums/fast.so", b"sums/slow.so"))
    with pytest.raises(StoreTampered):
        check_seal(site.store, site.seal)


def test_unreadable_file_counts_as_changed(site: Site) -> None:
    site.package.unlink()
    os.mkfifo(site.package)
    assert site.changes()[rel(site, site.package)].found == ""


def test_data_changed_deleted_and_new(site: Site) -> None:
    data = site.folder / "data"
    data.mkdir()
    for name in "abc":
        (data / name).write_text(name)
    single = site.folder / "one.txt"
    single.write_text("1")
    site.seal_again("train.py", "--data", str(data), f"--extra={single}", "--missing", str(site.folder / "no"))
    assert site.seal.seal.data.files == 4
    assert site.changes() == {}
    (data / "a").write_text("A")
    (data / "b").unlink()
    (data / "d").write_text("d")
    single.write_text("2")
    assert set(site.changes()) == {"data/a", "data/b", "data/d", "one.txt"}
    shutil.rmtree(data)
    assert {"data/a", "data/b", "data/c"} <= set(site.changes())


def test_output_folder_named_on_the_command_line_is_no_data(site: Site) -> None:
    (site.code / "out").mkdir()
    (site.code / "out" / "last.pt").write_bytes(b"1")
    site.seal_again("train.py", "--out", "out", "--log-dir=out", "--save_path", "out/last.pt")
    assert site.seal.seal.data.files == 0
    (site.code / "out" / "last.pt").write_bytes(b"2")
    assert site.changes() == {}
