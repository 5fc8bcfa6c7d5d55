"""Whole guarded runs: state that nobody accounts for is loaded, a loss is not a number; and honest jobs that load."""

from __future__ import annotations

from supervised import of_kind
from test_memory_run import Guarded, guarded

from trainwarden.model import CheckpointLoaded, Finding, Severity

__all__ = ["guarded"]

JOB = """
import math, sys
import torch
from safetensors.torch import load_file, save_file
torch.manual_seed(0)
model = torch.nn.Linear(4, 3)
optimizer = torch.optim.SGD(model.parameters(), lr=0.01)
model.load_state_dict(load_file("base.safetensors"))
loaded, spoilt = sys.argv[1], sys.argv[2] == "spoilt"
for step in range(8):
    loss = torch.nn.functional.cross_entropy(model(torch.randn(5, 4)), torch.zeros(5, dtype=torch.long))
    optimizer.zero_grad()
    (loss * math.nan if spoilt and step == 7 else loss).backward()
    optimizer.step()
    if step == 2:
        save_file(model.state_dict(), "state-2.safetensors")
    if step == 3:
        with open("state-2.safetensors", "rb") as saved, open("state-3.safetensors", "wb") as planted:
            planted.write(saved.read()[:-1] + b"@")
    if step == 4:
        model.load_state_dict(load_file(loaded))
"""


def raised(guarded: Guarded, loaded: str, *, spoilt: bool) -> tuple[list[CheckpointLoaded], list[Finding]]:
    import torch
    from safetensors.torch import save_file

    (guarded.job / "job.py").write_text(JOB)
    save_file({"weight": torch.ones(3, 4), "bias": torch.ones(3)}, guarded.job / "base.safetensors")
    guarded.is_sealed = lambda path: path.endswith("base.safetensors")
    entries = guarded.run("job.py", loaded, "spoilt" if spoilt else "whole")
    told = [f for f in of_kind(entries, Finding) if f.severity is not Severity.INFO and f.detector != "continuity"]
    return of_kind(entries, CheckpointLoaded), told  # loading in mid-run moves weights between two steps: that is told


def test_a_planted_checkpoint_and_a_loss_that_is_not_a_number_are_told(guarded: Guarded) -> None:
    loads, found = raised(guarded, "state-3.safetensors", spoilt=True)
    assert [(load.known_step, load.sealed) for load in loads] == [(-1, True), (-1, False)]
    assert {(f.detector, f.severity) for f in found} == {("loaded", Severity.HIGH), ("dynamics", Severity.MEDIUM)}


def test_sealed_base_weights_and_a_checkpoint_of_this_run_are_silent(guarded: Guarded) -> None:
    loads, found = raised(guarded, "state-2.safetensors", spoilt=False)
    assert [(load.known_step, load.sealed) for load in loads] == [(-1, True), (3, False)]
    assert found == []
