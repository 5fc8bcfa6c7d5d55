"""Verified reading: what is handed out is what was hashed, whatever happens to the file."""

from __future__ import annotations

import os
from pathlib import Path

import pytest
from blake3 import blake3
from gated import safetensors

from trainwarden.errors import CheckpointRefused, CheckpointTampered
from trainwarden.model import CheckpointFile, CheckpointManifest
from trainwarden.serving import Files, Version, reading
from trainwarden.serving.tensors import tensors


def told(data: bytes, name: str = "model.safetensors") -> CheckpointFile:
    return CheckpointFile(path=name, size=len(data), digest=blake3(data).hexdigest(), sha256="")


@pytest.mark.parametrize("size", [0, 1, reading._THREADED - 1, reading._THREADED, reading.PIECE, 3 * reading.PIECE + 5])
def test_bytes_come_back_as_they_are(tmp_path: Path, size: int) -> None:
    data = os.urandom(size)
    (tmp_path / "f").write_bytes(data)
    assert reading.read_verified(tmp_path / "f", told(data)) == data


def test_one_flipped_bit_hands_out_nothing(tmp_path: Path) -> None:
    data = bytearray(os.urandom(3 * reading.PIECE))
    file = told(bytes(data))
    data[-1] ^= 1
    (tmp_path / "f").write_bytes(data)
    with pytest.raises(CheckpointTampered, match=f"cleared was {file.digest}") as caught:
        reading.read_verified(tmp_path / "f", file)
    assert caught.value.hint


@pytest.mark.parametrize("change", [-1, 1, -(2 * reading.PIECE)])
def test_a_file_of_another_length_is_refused_before_it_is_read(tmp_path: Path, change: int) -> None:
    data = bytes(3 * reading.PIECE)
    (tmp_path / "f").write_bytes(bytes(len(data) + change))
    with pytest.raises(CheckpointTampered, match="cleared were 12,582,912"):
        reading.read_verified(tmp_path / "f", told(data))


def test_a_file_that_is_cut_while_it_is_read_is_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    data = bytes(3 * reading.PIECE)
    (tmp_path / "f").write_bytes(data)
    real = os.preadv

    def cut(fd: int, buffers: list[memoryview], at: int) -> int:
        if at >= reading.PIECE:
            os.truncate(tmp_path / "f", reading.PIECE + 7)
        return real(fd, buffers, at)

    monkeypatch.setattr(os, "preadv", cut)
    with pytest.raises(CheckpointTampered, match="it was cut while it was read"):
        reading.read_verified(tmp_path / "f", told(data))


@pytest.mark.parametrize("how", ["renamed over", "written in place"])
def test_what_is_exchanged_during_the_read_never_gets_in(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, how: str
) -> None:
    data, evil = os.urandom(3 * reading.PIECE), bytes(3 * reading.PIECE)
    path = tmp_path / "f"
    path.write_bytes(data)
    (tmp_path / "evil").write_bytes(evil)
    real = os.preadv

    def exchange(fd: int, buffers: list[memoryview], at: int) -> int:
        got = real(fd, buffers, at)
        if at == 0 and how == "renamed over":
            os.replace(tmp_path / "evil", path)
        elif at == 0:
            path.write_bytes(evil)
        return got

    monkeypatch.setattr(os, "preadv", exchange)
    if how == "renamed over":
        assert reading.read_verified(path, told(data)) == data  # the file that was opened is read to its end
    else:
        with pytest.raises(CheckpointTampered, match="digest"):
            reading.read_verified(path, told(data))


def test_what_is_written_after_the_read_is_not_seen(tmp_path: Path) -> None:
    data = os.urandom(2 * reading.PIECE)
    (tmp_path / "f").write_bytes(data)
    memory = reading.read_verified(tmp_path / "f", told(data))
    with (tmp_path / "f").open("r+b") as file:
        file.write(bytes(len(data)))
    assert memory == data


def test_a_pipe_a_folder_and_nothing_are_refused_at_once(tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "pipe")
    (tmp_path / "folder").mkdir()
    for name in ("pipe", "folder", "nothing"):
        with pytest.raises(CheckpointTampered, match=r"is not a file|cannot be read"):
            reading.read_verified(tmp_path / name, told(b"x"))


def version(place: Path, *files: CheckpointFile) -> Files:
    return Files(Version(digest="d" * 64, manifest=CheckpointManifest(files=files), place=str(place)))


def test_a_file_beside_the_manifest_and_one_that_leads_out_are_not_read(tmp_path: Path) -> None:
    (tmp_path / "in").mkdir()
    for name in ("in/listed", "in/beside", "out"):
        (tmp_path / name).write_bytes(b"x")
    files = version(tmp_path / "in", told(b"x", "listed"), told(b"x", "../out"), told(b"x", str(tmp_path / "out")))
    assert files.read("listed") == b"x"
    for name in ("beside", "../out", str(tmp_path / "out")):
        with pytest.raises(CheckpointTampered):
            files.read(name)


def test_a_lone_file_is_its_own_place(tmp_path: Path) -> None:
    (tmp_path / "model.safetensors").write_bytes(b"x")
    assert version(tmp_path / "model.safetensors", told(b"x")).read("model.safetensors") == b"x"


def test_tensors_are_views_of_the_verified_memory() -> None:
    memory = memoryview(bytearray(safetensors(7.0, extra=3)))
    found = tensors(memory, "f")
    assert {name: tensor.tolist() for name, tensor in found.items()} == {"weight": [7.0], "more": [0, 0, 0]}
    memory[-1] = 9
    assert found["more"].tolist() == [0, 0, 9]


def test_tensors_are_those_of_the_library(tmp_path: Path) -> None:
    import torch
    from safetensors.torch import save

    made = {
        "a": torch.randn(3, 5),
        "b": torch.randn(4).bfloat16(),
        "c": torch.arange(7),
        "d": torch.tensor(True),
        "e": torch.empty(0, 3),
    }
    found = tensors(memoryview(bytearray(save(made))), "f")
    assert found.keys() == made.keys()
    assert all(torch.equal(found[name], made[name]) and found[name].dtype == made[name].dtype for name in made)


@pytest.mark.parametrize(
    "header",
    [
        b"",
        b"[]",
        b'{"a":1}',
        b'{"a":{"dtype":"F32","shape":[1],"data_offsets":[0,8]}}',
        b'{"a":{"dtype":"F32","shape":[2],"data_offsets":[4,12]}}',
        b'{"a":{"dtype":"F32","shape":[4],"data_offsets":[0,16]}}',
        b'{"a":{"dtype":"F32","shape":[-1,-2],"data_offsets":[0,8]}}',
        b'{"a":{"dtype":"__class__","shape":[2],"data_offsets":[0,8]}}',
        b'{"a":{"dtype":"F32","shape":[1],"data_offsets":[0,4]}}',
        b'{"a":{"dtype":"F32","shape":[2],"data_offsets":[0,8]},"a":{"dtype":"F32","shape":[2],"data_offsets":[0,8]}}',
        b"[" * 100_000,
    ],
)
def test_a_header_that_does_not_fit_its_bytes_is_refused(header: bytes) -> None:
    for claimed in (len(header), 1 << 60):
        data = claimed.to_bytes(8, "little") + header + bytes(8)
        with pytest.raises(CheckpointRefused):
            tensors(memoryview(bytearray(data)), "f")
    with pytest.raises(CheckpointRefused):
        tensors(memoryview(bytearray(b"x")), "f")
