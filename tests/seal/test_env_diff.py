"""`env diff` shows what changed, and nothing hostile in a changed file reaches the terminal or runs."""

from __future__ import annotations

import dis
import importlib.util
import json
import marshal
import os
import py_compile
import shutil
import struct
from pathlib import Path

import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st
from sealed_site import Site

from attacks.environment import EVIL, TRAPS, library
from trainwarden.cli import main
from trainwarden.errors import SealBroken
from trainwarden.model import canonical
from trainwarden.seal.check import check_seal, load_manifest
from trainwarden.seal.diff import Differ, FileDiff, gone_by
from trainwarden.seal.disassembly import disassemble
from trainwarden.seal.elf import outline
from trainwarden.seal.manifest import decode_manifest, manifest_ref
from trainwarden.seal.pyc import compiled, is_cache_of
from trainwarden.seal.seal import write_seal

SOURCE = (
    b"def f(a, *b, c=(1, 2.5, None)):\n    try:\n        return {a: [x for x in b]}\n    finally:\n        print(c)\n"
)
ACTS = {trap.name: trap.act for trap in TRAPS}


def diffs(site: Site) -> dict[str, FileDiff]:
    differ = Differ(site.store, site.seal.seal)
    return {os.path.relpath(c.path, site.folder): differ.of(c) for c in check_seal(site.store, site.seal)}


def test_edited_source_is_a_unified_diff(site: Site) -> None:
    site.package.write_text(EVIL)
    (found,) = diffs(site).values()
    assert (found.kind, found.change, found.shown) == ("source", "changed", "source")
    assert "-    return a + b" in found.diff
    assert "+    return a - b" in found.diff


def test_bytecode_that_alone_changed_is_a_diff_of_instructions(site: Site) -> None:
    ACTS["cache forged to the source's time and size"](site)
    (found,) = diffs(site).values()
    assert (found.kind, found.bytecode, found.shown) == ("bytecode", "differs", "disassembly")
    changed = [line.split() for line in found.diff if line[0] in "+-" and line[:3] not in ("+++", "---")]
    assert changed == [["-", "BINARY_OP", "+"], ["+", "BINARY_OP", "-"]]
    assert any(line.endswith("│ 2: return a + b") for line in found.diff), "the sealed source's line is told"


def test_bytecode_that_does_more_than_its_source_is_named_by_what_it_brings_along(site: Site) -> None:
    site.run("import sums")
    site.seal_again()
    honest, times = site.package.read_text(), site.package.stat()
    site.package.write_text("import os\n\ndef add(a, b):\n    os.system('curl evil')\n    return a + b\n")
    py_compile.compile(str(site.package), cfile=str(site.cache))
    site.package.write_text(honest)
    os.utime(site.package, ns=(times.st_atime_ns, times.st_mtime_ns))
    (found,) = diffs(site).values()
    assert found.diff[0] == "only in the found bytecode: 0, os, system, 'curl evil'"
    for line in found.diff:
        if "│" in line:
            number, text = line.partition("│ ")[2].split(": ")
            assert honest.splitlines()[int(number) - 1].strip() == text


@pytest.mark.parametrize("source", [SOURCE, b"x = 1\n\n\n\ndef f():\n" + b"\n" * 70 + b"    return (1,\n  2)\n"])
def test_source_lines_are_those_that_python_tells(source: bytes) -> None:
    code = compile(source, "a.py", "exec", dont_inherit=True)
    wanted = []
    pending = [code]
    while pending:
        part = pending.pop(0)
        wanted.append(part.co_firstlineno)
        wanted += [i.positions.lineno or 0 for i in dis.get_instructions(part) if i.opname != "EXTENDED_ARG"]
        pending[:0] = [c for c in part.co_consts if hasattr(c, "co_code")]
    lines = disassemble(compiled(source, "a.py", 0) or b"") or []
    assert [line.source for line in lines if "exception table" not in line.text] == wanted


def test_sealed_bytecode_that_was_replaced_is_compared_with_the_sealed_bytes(site: Site) -> None:
    site.run("import sums")
    site.seal_again()
    ACTS["unchecked-hash cache"](site)
    (found,) = diffs(site).values()
    assert found.sealed
    assert any(line.split() == ["+", "BINARY_OP", "-"] for line in found.diff)


def test_source_and_bytecode_changed_together_agree(site: Site) -> None:
    site.package.write_text(EVIL)
    py_compile.compile(str(site.package))
    found = diffs(site)
    assert {d.bytecode for d in found.values()} == {"agrees"}


def test_package_is_named_from_the_sealed_record(site: Site) -> None:
    info = site.packages / "sums-1.0.dist-info"
    info.mkdir()
    (info / "RECORD").write_text("sums/__init__.py,,\n")
    site.seal_again()
    site.package.write_text(EVIL)
    (site.packages / "stray.pth").write_text("import os\n")
    (site.code / "helper.py").write_text("ONE = 2\n")
    found = diffs(site)
    assert found[os.path.relpath(site.package, site.folder)].package == "sums 1.0"
    assert found["code/helper.py"].package == "the code"
    stray = found[os.path.relpath(site.packages / "stray.pth", site.folder)]
    assert stray.package == "stray.pth (of no installed package)"
    assert (stray.kind, stray.change, stray.diff[-1]) == ("startup hook", "new", "+import os")


def test_native_library_is_a_diff_of_sections_and_symbols(site: Site) -> None:
    path = library(site.packages / "real.so")
    site.seal_again()
    data = bytearray(path.read_bytes())
    data[len(data) // 2] ^= 1
    path.write_bytes(bytes(data))
    (found,) = diffs(site).values()
    assert found.shown == "sections and symbols"
    assert found.diff


def test_change_during_the_run_that_was_put_back_is_shown_from_the_store(site: Site) -> None:
    honest = site.package.read_text()
    site.package.write_text(EVIL)
    (during,) = check_seal(site.store, site.seal)
    site.store.put_file(site.package)
    site.package.write_text(honest)
    (gone,) = gone_by(check_seal(site.store, site.seal), [during])
    found = Differ(site.store, site.seal.seal).of(gone, "during the run")
    assert "+    return a - b" in found.diff


def run_verb(site: Site, capsys: pytest.CaptureFixture[str], *words: str) -> tuple[int, str]:
    seal = site.folder / "seal.json"
    write_seal(seal, site.seal)
    code = main(["env", "diff", str(seal), "--store", str(site.store.path), "--key", site.key.public, *words])
    return code, capsys.readouterr().out


def test_verb_says_that_nothing_changed(site: Site, capsys: pytest.CaptureFixture[str]) -> None:
    assert run_verb(site, capsys) == (0, "environment and code are as sealed\n")


def test_verb_shows_hostile_contents_without_control_codes(site: Site, capsys: pytest.CaptureFixture[str]) -> None:
    hostile = "x = 1 # \x1b]0;owned\x07\x1b[2J\u202egnp.exe\r\x00"
    site.package.write_text(hostile.replace("\x00", ""))
    (site.packages / "evil\x1b[2J.py").write_text("x = 1\n")
    (site.packages / "many.py").write_text("y = 1\n" * 5000)
    code, out = run_verb(site, capsys)
    assert code == 1
    assert not set(out) & {"\x1b", "\x07", "\r", "\u202e"}
    assert "x = 1" in out
    assert "lines more" in out
    assert len(out.splitlines()) < 200


def test_verb_as_json_has_every_change(site: Site, capsys: pytest.CaptureFixture[str]) -> None:
    ACTS["cache forged to the source's time and size"](site)
    code, out = run_verb(site, capsys, "--json", "--lines", "3")
    told = json.loads(out)
    assert (code, told["exit_code"], told["baseline"]) == (1, 1, None)
    (change,) = told["changes"]
    assert (change["kind"], change["bytecode"], len(change["diff"])) == ("bytecode", "differs", 3)
    assert change["cut"] > 0


def test_verb_without_wheels_could_not_decide(site: Site, capsys: pytest.CaptureFixture[str]) -> None:
    info = site.packages / "sums-1.0.dist-info"
    info.mkdir()
    names = ["sums/__init__.py", "sums/table.bin", "sums/fast.so", "../../../bin/addup", "sums-1.0.dist-info/RECORD"]
    (info / "RECORD").write_text("".join(f"{name},,\n" for name in names))
    site.seal_again()
    lock = site.folder / "lock.txt"
    lock.write_text("sums==1.0\n")
    code, out = run_verb(site, capsys, "--lock", str(lock))
    assert code == 2
    assert "not checked: 4 files, no wheel that the lock names was given" in out


def test_a_lock_of_which_nothing_is_installed_could_not_be_decided(
    site: Site, capsys: pytest.CaptureFixture[str]
) -> None:
    shutil.rmtree(site.packages / "sums")
    (site.python.parent / "addup").unlink()
    site.seal_again()
    lock = site.folder / "lock.txt"
    lock.write_text(f"torch==1.0 --hash=sha256:{'0' * 64}\n")
    code, out = run_verb(site, capsys, "--lock", str(lock))
    assert (code, "nothing that the lock names was found" in out) == (2, True)


@pytest.mark.parametrize("data", [b"", b"\xff", b'{"seal":1}', b'{"x":' + b"[" * 100_000 + b"]" * 100_000 + b"}"])
def test_a_file_that_is_no_seal_is_one_error_and_one_hint(
    site: Site, capsys: pytest.CaptureFixture[str], data: bytes
) -> None:
    path = site.folder / "seal.json"
    path.write_bytes(data)
    assert main(["env", "diff", str(path), "--store", str(site.store.path)]) == 1
    err = capsys.readouterr().err
    assert (err.count("error:"), err.count("hint:"), err.count("Traceback")) == (1, 1, 0)


@pytest.mark.parametrize("words", [("--wheels", "."), ("--lock", "absent.txt"), ("--lines", "-1")])
def test_wrong_calls_are_one_error_and_one_hint(
    site: Site, capsys: pytest.CaptureFixture[str], words: tuple[str, ...]
) -> None:
    seal = site.folder / "seal.json"
    write_seal(seal, site.seal)
    words = (*words, "--store", str(site.store.path), "--key", site.key.public)
    assert main(["env", "diff", str(seal), *words]) == 3
    err = capsys.readouterr().err
    assert (err.count("error:"), err.count("hint:")) == (1, 1) or words[1] == "absent.txt"


# ------------------------------------------------------------------------- fuzz


@settings(max_examples=150, deadline=None)
@given(st.data())
def test_damaged_bytecode_is_lines_or_none_and_never_benign(data: st.DataObject) -> None:
    whole = bytearray(compiled(SOURCE, "a.py", 0) or b"")
    for _ in range(data.draw(st.integers(1, 4))):
        whole[data.draw(st.integers(16, len(whole) - 1))] = data.draw(st.integers(0, 255))
    lines = disassemble(bytes(whole))
    assert lines is None or lines[0].text.startswith("code ")
    is_cache_of(bytes(whole), SOURCE, "a.py", 0)


@settings(max_examples=150, deadline=None)
@given(st.binary(max_size=200))
@example(b"\xe3" + bytes(20))
@example(b"c" + bytes(20) + b"N" * 8 + bytes(4) + b"NN")
@example(b"c" + bytes(20) + b"s\4\0\0\0\x90\xff\x90\xff" + b"N" * 7 + bytes(4) + b"NN")
@example(b")\xff" * 60)
@example(b"\xa9\x01r\x00\x00\x00\x00")
def test_any_bytes_after_a_header_are_lines_or_none(body: bytes) -> None:
    lines = disassemble(importlib.util.MAGIC_NUMBER + bytes(12) + body)
    assert lines is None or lines[0].text.startswith("code ")


def test_a_cache_that_unfolds_without_end_is_refused() -> None:
    body = b"\xa9\x01N"  # slot 0
    for slot in range(60):
        body = b"\xa9\x02" + body + b"r" + struct.pack("<i", 59 - slot)
    assert disassemble(importlib.util.MAGIC_NUMBER + bytes(12) + body) is None
    deep = marshal.dumps(None)
    for _ in range(300):
        deep = b")\x01" + deep
    assert disassemble(importlib.util.MAGIC_NUMBER + bytes(12) + deep) is None


@settings(max_examples=150, deadline=None)
@given(st.binary(max_size=300), st.data())
def test_any_library_is_an_outline_or_none(tail: bytes, data: st.DataObject) -> None:
    fields = [data.draw(st.integers(0, 400)) for _ in range(6)]
    head = struct.pack(
        "<16sHHIQQQIHHHHHH",
        b"\x7fELF\x02\x01",
        3,
        62,
        1,
        0,
        0,
        fields[0],
        0,
        64,
        0,
        0,
        64,
        fields[1] % 8,
        fields[2] % 8,
    )
    found = outline(head + tail)
    assert found is None or all(line.startswith(("section ", "symbol ")) for line in found)


@settings(max_examples=100, deadline=None)
@given(st.binary(max_size=120))
@example(b'{"kind":"code","roots":["/r"],"trees":[]}')
def test_any_bytes_are_the_named_manifest_or_refused(data: bytes) -> None:
    from blake3 import blake3

    from trainwarden.model import Manifest, ManifestRef

    named = ManifestRef(kind="code", digest=blake3(data).hexdigest(), files=0, bytes=0, roots=("/r",))
    with pytest.raises(SealBroken):
        decode_manifest(data, named)
    honest = Manifest(kind="code", roots=("/r",), trees=((),))
    assert decode_manifest(canonical(honest), manifest_ref(honest)) == honest


def test_manifest_of_a_seal_reads_back(site: Site) -> None:
    manifest = load_manifest(site.store, site.seal.seal.environment)
    assert manifest_ref(manifest) == site.seal.seal.environment
    assert Path(site.seal.seal.interpreter).exists()
