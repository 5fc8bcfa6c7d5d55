"""Only what a scan found clean is loaded, and bit for bit."""

from __future__ import annotations

import argparse
import os
from pathlib import Path

import pytest
import torch
from safetensors.torch import save_file

import trainwarden
from tests.gate.corpus.assemble import pickled
from tests.gate.corpus.gadgets import GADGETS
from tests.gate.corpus.payloads import legacy, torch_zip
from trainwarden.errors import CannotDecide, CheckpointRefused, UsageError


def test_a_clean_checkpoint_is_loaded_bit_for_bit(tmp_path: Path) -> None:
    state = {"a": torch.randn(3, 4), "b": torch.randn(4).to(torch.bfloat16)}
    save_file(state, tmp_path / "s.safetensors")
    torch.save(state, tmp_path / "s.pt")
    torch.save(state, tmp_path / "old.pt", _use_new_zipfile_serialization=False)
    for name in ("s.safetensors", "s.pt", "old.pt"):
        loaded = trainwarden.load(tmp_path / name)
        assert {k: (t.dtype, t.view(torch.uint8).tolist()) for k, t in loaded.items()} == {
            k: (t.dtype, t.view(torch.uint8).tolist()) for k, t in state.items()
        }


@pytest.mark.parametrize("wrap", [torch_zip, legacy, bytes])
def test_a_payload_is_refused_and_does_not_run(wrap: object, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    Path("evil.pt").write_bytes(wrap(pickled(GADGETS["os-mkdir"])))  # type: ignore[operator]
    with pytest.raises(CheckpointRefused, match=r"os\.mkdir"):
        trainwarden.load("evil.pt")
    assert not Path("fired").exists()


def test_what_is_not_understood_or_no_weights_is_not_loaded(tmp_path: Path) -> None:
    (tmp_path / "noise").write_bytes(b"\xff\xfe\x00noise")
    torch.save({"args": argparse.Namespace(a=1)}, tmp_path / "args.pt")
    for name in ("noise", "args.pt"):
        with pytest.raises(CannotDecide):
            trainwarden.load(tmp_path / name)
    with pytest.raises(UsageError):
        trainwarden.load(tmp_path / "missing.pt")


def test_a_pipe_or_a_device_is_not_waited_for(tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "pipe")
    (tmp_path / "endless").symlink_to("/dev/zero")
    for name in ("pipe", "endless"):
        with pytest.raises(UsageError, match="it is no regular file"):
            trainwarden.load(tmp_path / name)
