"""The index of a distributed checkpoint: read without running anything, and equal but for its own name and place."""

from __future__ import annotations

import os
import pickle
from pathlib import Path
from typing import Any

import pytest
import torch
import torch.distributed.checkpoint as dcp

from trainwarden.audit.dcpindex import index_digest


def saved(folder: Path, scale: float = 1.0, name: str = "a") -> Path:
    dcp.save({name: torch.arange(6.0) * scale, "n": {"step": 3}}, checkpoint_id=folder)
    return folder / ".metadata"


def test_two_savings_of_one_state_have_one_digest_and_other_states_another(tmp_path: Path) -> None:
    one, other = saved(tmp_path / "one"), saved(tmp_path / "deep" / "er" / "two")
    assert one.read_bytes() != other.read_bytes(), "place and name are in it"
    assert index_digest(one) == index_digest(other)
    assert index_digest(saved(tmp_path / "three", name="b")) != index_digest(one)


def test_an_index_that_points_elsewhere_in_a_part_has_another_digest(tmp_path: Path) -> None:
    index = saved(tmp_path / "one")
    honest = index_digest(index)
    metadata = pickle.loads(index.read_bytes())
    info = next(iter(metadata.storage_data.values()))
    info.offset += 4
    index.write_bytes(pickle.dumps(metadata))
    assert index_digest(index) != honest


class Payload:
    def __reduce__(self) -> tuple[Any, ...]:
        return os.mkdir, ("ran",)


def test_nothing_that_an_index_names_is_run(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    hostile = tmp_path / ".metadata"
    hostile.write_bytes(pickle.dumps({"state": Payload()}))
    assert len(index_digest(hostile)) == 64
    assert not Path("ran").exists()


def looped() -> bytes:
    ring: list[Any] = []
    ring.append(ring)
    return pickle.dumps(ring)


@pytest.mark.parametrize(
    "data",
    [b"", b"not a pickle", pickle.dumps({"a": 1})[:-1], looped(), b"\x80\x04\x8c\x01a\x8c\x01b\x93R."],
    ids=["empty", "text", "cut-off", "looped", "reduce-of-nothing"],
)
def test_what_is_no_index_is_said_to_be_none(tmp_path: Path, data: bytes) -> None:
    path = tmp_path / ".metadata"
    path.write_bytes(data)
    with pytest.raises(ValueError, match="index of a checkpoint"):
        index_digest(path)
