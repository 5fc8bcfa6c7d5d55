"""A seal says what was approved, by whom, and cannot be altered or passed off as another's."""

from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import msgspec
import pytest
from hypothesis import given
from hypothesis import strategies as st
from sealed_site import Site, base_env

from trainwarden.config import Config, DataConfig, SealConfig
from trainwarden.errors import SealBroken, SignatureInvalid, UsageError
from trainwarden.keys import SigningKey
from trainwarden.model import FileEntry, Manifest, canonical
from trainwarden.seal import scan
from trainwarden.seal.cache import digest_files
from trainwarden.seal.check import load_manifest
from trainwarden.seal.interpreter import ask_interpreter
from trainwarden.seal.latent import latent_places
from trainwarden.seal.manifest import compare, decode_manifest, make_manifest, manifest_ref, path_real, path_text
from trainwarden.seal.seal import read_seal, relevant_env, write_seal
from trainwarden.supervise.samples import Table
from trainwarden.supervise.sealed import sealed_samples


def paths(site: Site, kind: str) -> set[str]:
    manifest = load_manifest(site.store, getattr(site.seal.seal, kind))
    return {
        f"{root.rstrip('/')}/{e.path}" for root, tree in zip(manifest.roots, manifest.trees, strict=True) for e in tree
    }


def git(folder: Path, *words: str) -> None:
    identity = ["-c", "user.name=t", "-c", "user.email=t@example.invalid", "-c", "init.defaultBranch=main"]
    subprocess.run(["git", *identity, *words], cwd=folder, check=True, capture_output=True)


def test_seal_says_what_is_run(site: Site) -> None:
    seal = site.seal_again("train.py", "--seed", "5", OMP_NUM_THREADS="3", HF_TOKEN="secret", EDITOR="vi").seal
    assert seal.argv == (str(site.python), "train.py", "--seed", "5")
    assert seal.interpreter == str(site.python)
    assert seal.seeds == {"seed": 5}
    assert seal.env_vars == {"LANG": "C.UTF-8", "OMP_NUM_THREADS": "3"}
    assert seal.numerics.threads == 3
    assert seal.numerics.python == ".".join(map(str, sys.version_info[:3]))
    assert seal.code.roots == (str(site.code),)


def test_environment_holds_all_that_python_loads(site: Site) -> None:
    loaded = (
        "import sys, sums, json, runpy\nfor m in list(sys.modules.values()): print(getattr(m, '__file__', None) or '')"
    )
    environment = paths(site, "environment")
    for path in site.run(loaded, PYTHONDONTWRITEBYTECODE="1").split():
        assert path in environment
    binary = os.path.realpath(site.python)
    assert {str(site.python), binary, str(site.folder / "venv" / "pyvenv.cfg")} <= environment
    assert not [p for p in environment if p.startswith(str(site.code))]


def test_a_library_placed_before_libpython_for_newer_processors_is_new(site: Site) -> None:
    """ld.so(8), "Hardware capabilities": `glibc-hwcaps` beside a library is searched first."""
    asked = ask_interpreter(str(site.python), str(site.code), base_env())
    library = site.folder / "lib" / "libpython3.so.1.0"  # the interpreter of these tests may have none of its own
    interpreter = msgspec.structs.replace(asked, libpython=(*asked.libpython, str(library)))
    beside = {f"{os.path.dirname(each)}/glibc-hwcaps" for each in interpreter.libpython}
    assert str(library.parent / "glibc-hwcaps") in beside
    assert beside <= set(latent_places(interpreter, site.command()))
    assert not beside & set(latent_places(msgspec.structs.replace(asked, libpython=()), site.command()))


def test_every_sealed_file_of_code_and_environment_is_kept(site: Site) -> None:
    for ref in (site.seal.seal.code, site.seal.seal.environment):
        kept = [e.digest for tree in load_manifest(site.store, ref).trees for e in tree if not e.link]
        assert kept
        for digest in kept:
            site.store.check(digest)  # that its bytes are there and are these


def test_second_seal_is_the_same_and_uses_the_cache(site: Site, monkeypatch: pytest.MonkeyPatch) -> None:
    first = site.seal.seal
    read: list[str] = []
    monkeypatch.setattr(
        "trainwarden.seal.trees.digest_files",
        lambda items, cache, *, read, **rest: digest_files(items, cache, read=counted(read), **rest),
    )

    def counted(inner: Callable[[str, int], object]) -> Callable[[str, int], object]:
        def reader(path: str, fd: int) -> object:
            read.append(path)
            return inner(path, fd)

        return reader

    os.utime(site.package, (1, 1))
    site.seal_again()
    second = site.seal.seal
    assert (first.environment, first.code, first.data) == (second.environment, second.code, second.data)
    read.clear()
    monkeypatch.setattr("trainwarden.seal.cache.RACY_NS", 0)
    site.seal_again()
    read.clear()
    site.seal_again()
    assert read == []


def test_removed_object_is_stored_again_though_the_digest_is_cached(
    site: Site, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("trainwarden.seal.cache.RACY_NS", 0)
    site.seal_again()
    tree = load_manifest(site.store, site.seal.seal.code).trees[0]
    site.store.object_path(tree[0].digest).unlink()
    assert not site.store.has(tree[0].digest)
    site.seal_again()
    assert site.store.has(tree[0].digest)
    site.store.check(tree[0].digest)


def test_git_repository_is_the_code_with_commit_and_diff(site: Site) -> None:
    git(site.folder, "init")
    (site.folder / ".gitignore").write_text("store\nvenv\nkey\nout\n*.so\n__pycache__\n")
    git(site.folder, "add", "code", ".gitignore")
    git(site.folder, "commit", "-m", "x")
    (site.code / "helper.py").write_text("ONE = 10\n")
    (site.code / "untracked.py").write_text("")
    (site.code / "built.so").write_text("ignored, but importable")
    (site.folder / "out").mkdir()
    (site.folder / "out" / "x.py").write_text("")
    seal = site.seal_again().seal
    assert seal.code.roots == (str(site.folder),)
    names = {os.path.relpath(p, site.folder) for p in paths(site, "code")}
    expected = {"train.py", "helper.py", "notes.md", "untracked.py", "built.so"}
    assert names == {".gitignore"} | {f"code/{n}" for n in expected}
    assert len(seal.git_commit) == 40
    assert b"+ONE = 10" in site.store.get(seal.git_dirty)
    git(site.folder, "checkout", "code/helper.py")
    assert site.seal_again().seal.git_dirty == ""
    assert site.changes() == {}


def test_the_file_that_our_own_output_goes_to_is_no_code_unless_it_can_be_imported(site: Site) -> None:
    for name, sealed in (("log.txt", False), ("log.py", True)):
        with (site.code / name).open("w") as log:
            before = os.dup(2)
            os.dup2(log.fileno(), 2)
            try:
                site.seal_again()
            finally:
                os.dup2(before, 2)
                os.close(before)
        assert (f"code/{name}" in {os.path.relpath(p, site.folder) for p in paths(site, "code")}) is sealed


def test_too_much_code_is_a_clear_error(site: Site, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(scan, "MAX_CODE_FILES", 3)
    (site.code / "more.txt").write_text("")
    with pytest.raises(UsageError) as e:
        site.seal_again()
    assert "[seal] code" in e.value.hint
    (site.code / "src").mkdir()
    (site.code / "src" / "a.py").write_text("")
    site.seal_again(config=Config(seal=SealConfig(code=("src",))))
    assert paths(site, "code") == {f"{site.code}/src/a.py"}


@pytest.mark.parametrize(
    "config",
    [
        Config(seal=SealConfig(code=("absent",))),
        Config(seal=SealConfig(data=("absent",))),
        Config(data=DataConfig(samples="absent")),
    ],
)
def test_configured_data_that_is_not_there_is_a_clear_error(site: Site, config: Config) -> None:
    with pytest.raises(UsageError, match="absent"):
        site.seal_again(config=config)


def test_a_manifest_of_samples_is_sealed_and_refused_once_it_is_edited(site: Site) -> None:
    table = Table(("0",), 4)
    table.put(2, bytes(16))
    for file in (site.code / "samples.txt", site.folder / "samples.txt"):
        file.write_text(table.text())
        site.seal_again(config=Config(data=DataConfig(samples=str(file))))
        read = sealed_samples(site.store, site.seal, str(file))
        assert read is not None
        assert read.get(2) == bytes(16)
        file.write_text(table.text().replace("00", "01"))
        with pytest.raises(UsageError, match="not what was sealed"):
            sealed_samples(site.store, site.seal, str(file))
    assert sealed_samples(site.store, site.seal, "") is None


@pytest.mark.skipif(os.geteuid() == 0, reason="root can read every file")
def test_unreadable_file_is_a_clear_error(site: Site) -> None:
    site.package.chmod(0)
    with pytest.raises(UsageError) as e:
        site.seal_again()
    assert e.value.hint


def test_environment_variable_that_is_not_utf8_is_a_clear_error() -> None:
    with pytest.raises(UsageError, match="OMP_X"):
        relevant_env({"OMP_X": "\udce9"})


# ------------------------------------------------------------------------- the file


def test_written_seal_reads_back(site: Site) -> None:
    path = site.folder / "seal.json"
    write_seal(path, site.seal)
    assert read_seal(path, site.key.public) == site.seal


def test_wrong_key_is_refused(site: Site) -> None:
    path = site.folder / "seal.json"
    write_seal(path, site.seal)
    with pytest.raises(SignatureInvalid):
        read_seal(path, SigningKey.load_or_create(site.folder / "other").public)


def test_altered_seal_is_refused(site: Site) -> None:
    path = site.folder / "seal.json"
    seal = msgspec.structs.replace(site.seal.seal, argv=("other",))
    write_seal(path, msgspec.structs.replace(site.seal, seal=seal))
    with pytest.raises(SealBroken):
        read_seal(path, site.key.public)


def test_seal_signed_again_by_a_stranger_under_the_expected_name_is_refused(site: Site) -> None:
    from trainwarden.seal.seal import sign_seal

    path = site.folder / "seal.json"
    other = SigningKey.load_or_create(site.folder / "other")
    forged = sign_seal(msgspec.structs.replace(site.seal.seal, argv=("other",)), other)
    named = msgspec.structs.replace(forged.signatures[0], key=site.key.public)
    write_seal(path, msgspec.structs.replace(forged, signatures=(named,)))
    with pytest.raises(SignatureInvalid):
        read_seal(path, site.key.public)


@pytest.mark.parametrize("data", [b"", b"{", b"[]", b"\xff", b'{"seal": 1}'])
def test_garbage_is_no_seal(tmp_path: Path, data: bytes) -> None:
    (tmp_path / "seal.json").write_bytes(data)
    with pytest.raises(SealBroken):
        read_seal(tmp_path / "seal.json", "00" * 32)


def test_bytes_added_to_a_seal_are_refused(site: Site) -> None:
    path = site.folder / "seal.json"
    path.write_bytes(canonical(site.seal)[:-1] + b',"note":"approved"}')
    with pytest.raises(SealBroken, match="canonical"):
        read_seal(path, site.key.public)


def test_missing_seal_is_a_usage_error(tmp_path: Path) -> None:
    with pytest.raises(UsageError):
        read_seal(tmp_path / "absent", "00" * 32)


# ------------------------------------------------------------------------- manifests


@given(st.binary(min_size=1, max_size=40).filter(lambda b: b"\0" not in b))
def test_any_file_name_survives_the_manifest(name: bytes) -> None:
    path = os.fsdecode(name)
    manifest = make_manifest("code", {"/r": [FileEntry(path=path_text(path), digest="0" * 64, size=1)]})
    back = decode_manifest(canonical(manifest), manifest_ref(manifest))
    assert os.fsencode(path_real(back.trees[0][0].path)) == name


@given(st.binary(max_size=20), st.binary(max_size=20))
def test_two_names_never_share_a_text(a: bytes, b: bytes) -> None:
    assert (path_text(os.fsdecode(a)) == path_text(os.fsdecode(b))) == (a == b)


def manifest_of(**files: str) -> Manifest:
    return make_manifest("code", {"/r": [FileEntry(path=p, digest=d, size=1) for p, d in files.items()]})


def test_compare_names_changed_new_and_gone() -> None:
    changes = compare(manifest_of(a="1", b="2", c="3"), manifest_of(a="1", b="9", d="4"))
    assert [(c.path, c.sealed, c.found) for c in changes] == [("/r/b", "2", "9"), ("/r/c", "3", ""), ("/r/d", "", "4")]


def test_manifest_that_the_seal_does_not_name_is_refused() -> None:
    one, other = manifest_of(a="1"), manifest_of(a="2")
    with pytest.raises(SealBroken):
        decode_manifest(canonical(other), manifest_ref(one))
