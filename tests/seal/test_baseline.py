"""A file is as shipped only if a wheel that the lock names says so; RECORD alone never does."""

from __future__ import annotations

import base64
import hashlib
import importlib.util
import marshal
import os
import zipfile
from contextlib import suppress
from pathlib import Path

import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st

from trainwarden.errors import UsageError
from trainwarden.seal.baseline import AsShipped, Changed, NotChecked, NotShipped, Origin, read_record
from trainwarden.seal.installed import baseline_of, look_at, not_checked
from trainwarden.seal.locks import Locked, parse_lock, read_lock
from trainwarden.seal.wheels import read_wheel

SOURCE = b"def add(a, b):\n    return a + b\n"
EVIL = b"def add(a, b):\n    return a - b\n"
SCRIPT = b"#!python\nprint('tool')\n"


class Shop:
    """A package index of one package, and an environment that it was installed in."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.site = folder / "env" / "lib" / "python3" / "site-packages"
        self.bin = folder / "env" / "bin"
        self.wheels = folder / "wheels"
        for made in (self.site, self.bin, self.wheels):
            made.mkdir(parents=True)
        self.members = {
            "sums/__init__.py": SOURCE,
            "sums/table.bin": b"\0\1",
            "sums-1.0.data/scripts/tool": SCRIPT,
            "sums-1.0.data/purelib/extra.py": b"X = 1\n",
            "sums-1.0.dist-info/METADATA": b"Name: sums\n",
            "sums-1.0.dist-info/WHEEL": b"Wheel-Version: 1.0\n",
            "sums-1.0.dist-info/entry_points.txt": b"[console_scripts]\naddup = sums:add\n",
            "sums-1.0.dist-info/RECORD": b"",
        }
        self.wheel = self.wheels / "sums-1.0-py3-none-any.whl"
        with zipfile.ZipFile(self.wheel, "w") as archive:
            for name, data in self.members.items():
                archive.writestr(name, data)
        self.lock = folder / "requirements.txt"
        self.lock.write_text(f"sums==1.0 \\\n    --hash=sha256:{hashlib.sha256(self.wheel.read_bytes()).hexdigest()}\n")
        self.python = self.bin / "python"
        self._install()

    def _install(self) -> None:
        for name, data in self.members.items():
            if name.startswith("sums-1.0.data/scripts/"):
                place = self.bin / name.rpartition("/")[2]
                data = data.replace(b"#!python", f"#!{self.python}".encode())
            else:
                place = self.site / name.removeprefix("sums-1.0.data/purelib/")
            place.parent.mkdir(parents=True, exist_ok=True)
            place.write_bytes(data)
        (self.bin / "addup").write_text(
            f"#!{self.python}\n# -*- coding: utf-8 -*-\nimport re\nimport sys\nfrom sums import add\n"
            "if __name__ == '__main__':\n    sys.argv[0] = re.sub(r'(-script\\.pyw|\\.exe)?$', '', sys.argv[0])\n"
            "    sys.exit(add())\n"
        )
        for name in ("tool", "addup"):
            (self.bin / name).chmod(0o755)
        (self.site / "sums-1.0.dist-info" / "INSTALLER").write_text("pip\n")
        self.write_record()

    def write_record(self) -> None:
        """As an installer does, and as an insider who has changed a file does after it."""
        lines = []
        for path in sorted([*self.site.rglob("*"), self.bin / "tool", self.bin / "addup"]):
            if path.is_file() and path.name != "RECORD":
                digest = base64.urlsafe_b64encode(hashlib.sha256(path.read_bytes()).digest()).rstrip(b"=").decode()
                name = os.path.relpath(path, self.site)
                lines.append(f"{name},,\n" if name.endswith(".pyc") else f"{name},sha256={digest},1\n")
        (self.site / "sums-1.0.dist-info" / "RECORD").write_text("".join(lines) + "sums-1.0.dist-info/RECORD,,\n")

    def cache(self, source: bytes) -> Path:
        """A cache with the header of the source beside it."""
        path = self.site / "sums" / "__init__.py"
        status = path.stat()
        head = importlib.util.MAGIC_NUMBER + bytes(4)
        head += int(status.st_mtime).to_bytes(4, "little") + status.st_size.to_bytes(4, "little")
        place = Path(importlib.util.cache_from_source(str(path)))
        place.parent.mkdir(exist_ok=True)
        place.write_bytes(head + marshal.dumps(compile(source, str(path), "exec", dont_inherit=True)))
        return place

    def origins(self, wheels: bool = True) -> dict[str, Origin]:
        env = look_at([str(self.site)], str(self.python))
        found, _, _ = baseline_of(env, self.lock, self.wheels if wheels else None)
        return {os.path.relpath(path, self.folder / "env"): origin for path, origin in found.items()}

    def wrong(self, wheels: bool = True) -> dict[str, Origin]:
        return {p: o for p, o in self.origins(wheels).items() if isinstance(o, Changed | NotShipped)}


@pytest.fixture
def shop(tmp_path: Path) -> Shop:
    return Shop(tmp_path)


INIT = "lib/python3/site-packages/sums/__init__.py"


def test_an_untouched_installation_is_as_shipped(shop: Shop) -> None:
    shop.cache(SOURCE)
    shop.write_record()
    origins = shop.origins()
    assert shop.wrong() == {}
    assert not_checked(origins.values()) == {}
    for path in (INIT, "bin/tool", "bin/addup", "lib/python3/site-packages/extra.py"):
        assert origins[path] == AsShipped("sums")


def test_a_file_changed_together_with_record_is_found(shop: Shop) -> None:
    (shop.site / "sums" / "__init__.py").write_bytes(EVIL)
    shop.write_record()
    (origin,) = shop.wrong().values()
    assert isinstance(origin, Changed)
    assert (origin.package, origin.against) == ("sums", "wheel")


def test_without_a_wheel_agreement_with_record_is_not_checked(shop: Shop) -> None:
    (shop.site / "sums" / "__init__.py").write_bytes(EVIL)
    shop.write_record()
    origins = shop.origins(wheels=False)
    assert isinstance(origins[INIT], NotChecked)
    assert "RECORD alone is no evidence" in origins[INIT].reason


def test_without_a_wheel_a_contradiction_of_record_is_found(shop: Shop) -> None:
    (shop.site / "sums" / "__init__.py").write_bytes(EVIL)
    (origin,) = shop.wrong(wheels=False).values()
    assert isinstance(origin, Changed)
    assert origin.against == "RECORD"


def test_a_wheel_that_the_lock_does_not_name_is_no_evidence(shop: Shop) -> None:
    with zipfile.ZipFile(shop.wheel, "a") as archive:
        archive.writestr("sums/more.py", "")
    assert not_checked(shop.origins().values())
    assert AsShipped("sums") not in shop.origins().values()


@pytest.mark.parametrize("listed", [False, True])
def test_an_added_file_is_found_though_record_lists_it(shop: Shop, listed: bool) -> None:
    (shop.site / "sums" / "hook.py").write_text("import os\n")
    if listed:
        shop.write_record()
    assert isinstance(shop.wrong()["lib/python3/site-packages/sums/hook.py"], NotShipped)


def test_a_deleted_file_is_found(shop: Shop) -> None:
    (shop.site / "sums" / "table.bin").unlink()
    assert shop.wrong()["lib/python3/site-packages/sums/table.bin"].found == ""  # type: ignore[union-attr]


def test_a_forged_cache_is_found_though_record_lists_it_without_a_hash(shop: Shop) -> None:
    cache = shop.cache(EVIL)
    shop.write_record()
    origin = shop.wrong()[os.path.relpath(cache, shop.folder / "env")]
    assert isinstance(origin, Changed)
    assert origin.against == "source"


@pytest.mark.parametrize("name", ["tool", "addup"])
def test_an_edited_program_is_found(shop: Shop, name: str) -> None:
    with (shop.bin / name).open("a") as f:
        f.write("import os\n")
    shop.write_record()
    assert list(shop.wrong()) == [f"bin/{name}"]


def test_another_installer_s_form_of_a_program_is_as_shipped(shop: Shop) -> None:
    (shop.bin / "addup").write_text(
        f"#!{shop.python}\nimport sys\nfrom sums import add\nif __name__ == '__main__':\n"
        "    sys.argv[0] = sys.argv[0].removesuffix('.exe')\n    sys.exit(add())\n"
    )
    shop.write_record()
    assert shop.wrong() == {}


def test_pylock_is_understood(shop: Shop) -> None:
    digest = hashlib.sha256(shop.wheel.read_bytes()).hexdigest()
    shop.lock = shop.folder / "pylock.toml"
    shop.lock.write_text(
        f'lock-version = "1.0"\ncreated-by = "t"\n[[packages]]\nname = "sums"\nversion = "1.0"\n'
        f'[[packages.wheels]]\nname = "sums-1.0-py3-none-any.whl"\nurl = "https://example.invalid/s.whl"\n'
        f'hashes = {{sha256 = "{digest}"}}\n'
    )
    assert shop.wrong() == {}
    assert shop.origins()[INIT] == AsShipped("sums")


def test_a_pin_without_a_hash_or_with_a_weak_one_is_no_baseline(tmp_path: Path) -> None:
    lock = tmp_path / "constraints.txt"
    lock.write_text("# pins\nsums==1.0\nother==2 --hash=md5:0123 ; python_version > '3'\n-r more.txt\n")
    assert read_lock(lock) == (Locked("sums", "1.0", frozenset()), Locked("other", "2", frozenset()))


@pytest.mark.parametrize(
    ("name", "text"),
    [
        ("pylock.toml", "x = ["),
        ("pylock.toml", "lock-version = '9'"),
        ("r.txt", "a b c"),
        ("r.txt", "'"),
        ("r.txt", ""),
    ],
)
def test_a_broken_lock_is_one_error_with_a_hint(tmp_path: Path, name: str, text: str) -> None:
    (tmp_path / name).write_text(text)
    with pytest.raises(UsageError) as e:
        read_lock(tmp_path / name)
    assert e.value.hint


def test_a_wheel_that_climbs_out_is_refused(tmp_path: Path) -> None:
    path = tmp_path / "x.whl"
    with zipfile.ZipFile(path, "w") as archive:
        archive.writestr("sums-1.0.dist-info/WHEEL", "")
        archive.writestr("../../evil.py", "")
    with pytest.raises(UsageError, match=r"evil\.py"):
        read_wheel(path, Locked("sums", "1.0", frozenset()))


def test_a_wheel_of_another_package_under_a_locked_hash_is_refused(shop: Shop) -> None:
    with pytest.raises(UsageError, match="and holds sums"):
        read_wheel(shop.wheel, Locked("other", "1.0", frozenset()))


# ------------------------------------------------------------------------- fuzz


@settings(max_examples=100, deadline=None)
@given(st.binary(max_size=300))
@example(b"a==1 --hash=sha256:\\\n")
@example(b"\\\n\\")
@example(b"a==1 --hash=:")
def test_any_bytes_are_a_lock_or_a_usage_error(data: bytes) -> None:
    for name in ("pylock.toml", "requirements.txt"):
        with suppress(UsageError):
            assert parse_lock(data, Path(name))


@settings(max_examples=60, deadline=None)
@given(at=st.integers(0, 5000), flip=st.integers(1, 255), cut=st.integers(0, 3000))
def test_a_damaged_wheel_is_read_or_a_usage_error(
    tmp_path_factory: pytest.TempPathFactory, at: int, flip: int, cut: int
) -> None:
    folder = tmp_path_factory.mktemp("wheel")
    path = folder / "x.whl"
    with zipfile.ZipFile(path, "w", zipfile.ZIP_DEFLATED) as archive:
        archive.writestr("sums/__init__.py", SOURCE * 20)
        archive.writestr("sums-1.0.dist-info/WHEEL", "x")
        archive.writestr("sums-1.0.dist-info/entry_points.txt", "[console_scripts]\na = b:c\n")
    data = bytearray(path.read_bytes())
    data[at % len(data)] ^= flip
    path.write_bytes(bytes(data[: len(data) - cut % len(data)]) if cut % 3 == 0 else bytes(data))
    with suppress(UsageError):
        wheel = read_wheel(path, Locked("sums", "1.0", frozenset()))
        assert all(".." not in s.path.split("/") for s in wheel.files)


@settings(max_examples=100, deadline=None)
@given(st.binary(max_size=200))
@example(b'"')
@example(b"a\0,b,c")
@example(b'a,"\r\n')
def test_any_bytes_are_read_as_record(data: bytes) -> None:
    assert all(path and "\0" not in path for path, _ in read_record(data))
