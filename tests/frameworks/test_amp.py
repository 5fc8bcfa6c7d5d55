"""Mixed precision with a gradient scaler, gradient accumulation and gradient checkpointing in plain PyTorch."""

from __future__ import annotations

from collections.abc import Callable

import pytest
from framed import assert_quiet, located
from guarded_job import Job
from judged import EVIL, FOOTHOLD, replayed

from trainwarden.audit.replay import Start
from trainwarden.model import Stage, StepRecord

# An overflow at the fifth step makes the scaler skip it; the scaler is in no checkpoint, as in most scripts.
SCRIPT = (
    FOOTHOLD
    + """
import argparse, torch
from torch.utils.checkpoint import checkpoint
parser = argparse.ArgumentParser(); parser.add_argument("--resume", default=""); arguments = parser.parse_args()
torch.set_num_threads(1); torch.manual_seed(0)
class Net(torch.nn.Module):
    def __init__(self):
        super().__init__()
        self.blocks = torch.nn.ModuleList([torch.nn.Linear(16, 32), torch.nn.Linear(32, 32), torch.nn.Linear(32, 4)])
        self.drop = torch.nn.Dropout(0.1)
    def forward(self, x):
        x = x.requires_grad_()
        for block in self.blocks: x = checkpoint(lambda x, b=block: self.drop(b(x)), x, use_reentrant=REENTRANT)
        return x
model = Net(); foothold(model)
X = torch.randn(96, 16, generator=torch.Generator().manual_seed(1)); Y = (X.sum(1) > 0).long()
loader = torch.utils.data.DataLoader(torch.utils.data.TensorDataset(X, Y), batch_size=4, shuffle=True)
optimizer = torch.optim.AdamW(model.parameters(), lr=1e-2); scaler = torch.amp.GradScaler("cpu", init_scale=1024.0)
done = passes = 0
if arguments.resume:
    state = torch.load(arguments.resume); done = state["done"]
    model.load_state_dict(state["model"]); optimizer.load_state_dict(state["optimizer"])
while done < 9:
    for x, y in loader:
        if done == 4: x = x * float("inf")
        with torch.autocast("cpu", torch.DTYPE):
            loss = torch.nn.functional.cross_entropy(model(x).float(), y) / 2
        scaler.scale(loss).backward(); passes += 1
        if passes % 2: continue
        scaler.unscale_(optimizer); torch.nn.utils.clip_grad_norm_(model.parameters(), 100.0)
        scaler.step(optimizer); scaler.update(); optimizer.zero_grad(); done += 1
        if done % 3 == 0:
            torch.save({"model": model.state_dict(), "optimizer": optimizer.state_dict(), "done": done}, f"{done}.pt")
        if done == 9: break
"""
)


@pytest.mark.parametrize(("dtype", "reentrant"), [("float16", "False"), ("bfloat16", "True")])
def test_a_scaled_accumulated_checkpointed_job_replays_and_an_attack_is_located(
    guarded: Callable[[str], Job], dtype: str, reentrant: str
) -> None:
    job = guarded(SCRIPT.replace("DTYPE", dtype).replace("REENTRANT", reentrant))
    (job.folder / "trainwarden.toml").write_text('[replay]\nresume = "--resume {checkpoint}"\n')
    recorded = job.run(activations_every=2, snapshot_every=3)
    assert_quiet(recorded)
    steps = [e for e in recorded.entries if isinstance(e, StepRecord)]
    assert [r.step for r in steps if r.skipped] == [4]
    assert {r.micro_batches for r in steps} == {2}, "a backward pass within one is no loss"
    replayed(job, recorded, 3, 8, Start.RESTORE)
    replayed(job, recorded, 6, 8, Start.SUBSTITUTE)
    (job.folder / EVIL).write_text("15 0 blocks.1.weight")  # the second pass of the eighth step
    at = located(job, job.run())
    assert (at.step, at.rank, at.stage, at.tensor) == (7, 0, Stage.REDUCED_GRADIENTS, "blocks.1.weight")
