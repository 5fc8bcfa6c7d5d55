"""Who changed a file is what the kernel says, and where it says nothing nobody is named."""

from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from trainwarden.model import Writer
from trainwarden.seal import writers as module
from trainwarden.seal.writers import Writers

WRITE = "import os, sys; open(sys.argv[1], 'w').write('x'); print(flush=True); sys.stdin.read()"
REPLACE = (
    "import os, sys; t = sys.argv[1] + '.tmp'; open(t, 'w').write('x'); os.replace(t, sys.argv[1]);"
    "print(flush=True); sys.stdin.read()"
)
DELETE = "import os, sys; os.unlink(sys.argv[1]); print(flush=True); sys.stdin.read()"
SWAP = (
    "import os, sys; d = os.path.dirname(sys.argv[1]); os.rename(d, d + '.old'); os.mkdir(d + '.new');"
    "open(d + '.new/' + os.path.basename(sys.argv[1]), 'w').write('x'); os.rename(d + '.new', d);"
    "print(flush=True); sys.stdin.read()"
)


@pytest.fixture
def sealed(tmp_path: Path) -> Path:
    path = tmp_path / "site" / "pkg" / "mod.py"
    path.parent.mkdir(parents=True)
    path.write_text("honest")
    return path


@pytest.fixture
def listening(tmp_path: Path) -> Iterator[Writers]:
    writers = Writers()
    writers.start([str(tmp_path / "site")])
    if writers._thread is None:
        pytest.skip(f"{writers._reason}")
    yield writers
    writers.close()


@pytest.mark.parametrize("act", [WRITE, REPLACE, DELETE, SWAP], ids=["write", "replace", "delete", "swap"])
def test_writer_is_named_with_its_user_and_command(sealed: Path, listening: Writers, act: str) -> None:
    command = [sys.executable, "-I", "-S", "-c", act, str(sealed)]
    with subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE) as insider:
        assert insider.stdout is not None
        insider.stdout.readline()
        told = listening.of(str(sealed))
    assert isinstance(told, Writer)
    assert (told.pid, told.uid) == (insider.pid, os.getuid())
    assert told.argv == tuple(command)
    assert told.program == os.path.realpath(sys.executable)


def test_writer_that_has_ended_is_named_by_its_id_alone(sealed: Path, listening: Writers) -> None:
    insider = subprocess.Popen([sys.executable, "-I", "-S", "-c", f"open({str(sealed)!r}, 'w')"])
    insider.wait()
    told = listening.of(str(sealed))
    assert isinstance(told, Writer)
    assert told.pid == insider.pid


def test_writer_elsewhere_is_not_named(sealed: Path, listening: Writers, tmp_path: Path) -> None:
    subprocess.run([sys.executable, "-I", "-S", "-c", f"open({str(tmp_path / 'other')!r}, 'w')"], check=True)
    assert "no process was named" in str(listening.of(str(sealed)))


def test_without_the_right_the_reason_is_told(sealed: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def refused(name: str, *_: object) -> int:
        raise PermissionError(1, "Operation not permitted")

    monkeypatch.setattr(module, "_call", refused)
    writers = Writers()
    writers.start([str(sealed.parent)])
    told = writers.of(str(sealed))
    writers.close()
    assert isinstance(told, str)
    assert "CAP_SYS_ADMIN" in told


def test_torn_event_records_end_the_reading() -> None:
    assert list(module._infos(b"\x04\0\x03\0xxxx")) == []
    assert list(module._infos(b"\x04\0\x08\0abcd\x02")) == [(4, b"abcd")]
