"""The benchmark of fingerprints: what it says without a GPU, and that what it measures fits together."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch

from benchmarks import fingerprint, machine


def test_without_a_gpu_it_says_so_and_writes_nothing(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    monkeypatch.setattr(machine, "RESULTS", tmp_path)
    fingerprint.main()
    assert fingerprint.NO_GPU in capsys.readouterr().err
    assert not list(tmp_path.iterdir())


def test_the_rates_of_a_device_fit_together() -> None:
    found = fingerprint.measure(torch.device("cpu"), 8)
    assert found["of_memory_pct"] == pytest.approx(100 * found["fingerprint_gb_s"] / found["memory_gb_s"], rel=0.2)
    assert found["one_kernel"] is False, "on the CPU the plain operations are used"


@pytest.mark.skipif(not torch.cuda.is_available(), reason="no GPU here: the rate on a device is not measured")
def test_on_a_gpu_no_state_comes_to_the_host() -> None:
    from trainwarden.record.fingerprint import tensor_digest

    state = torch.randn(1 << 24, device="cuda")
    tensor_digest(bytes(32), state)
    with torch.profiler.profile(activities=[torch.profiler.ProfilerActivity.CUDA]) as profile:
        tensor_digest(bytes(32), state)
    copied = [e for e in profile.events() if "DtoH" in e.name]
    assert len(copied) <= 1, "32 bytes a tensor, and nothing else"
