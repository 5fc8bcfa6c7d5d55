"""A plain loop with `accelerate`: it saves its state, and nothing in the script loads it."""

from __future__ import annotations

from collections.abc import Callable

from framed import assert_quiet, located, needs
from guarded_job import Job
from judged import EVIL, FOOTHOLD, replayed

from trainwarden.audit.replay import Start
from trainwarden.model import Stage

needs("accelerate")

SCRIPT = (
    FOOTHOLD
    + """
import torch
from accelerate import Accelerator
from accelerate.utils import set_seed
torch.set_num_threads(1); set_seed(0)
accelerator = Accelerator(cpu=True, gradient_accumulation_steps=2)
model = torch.nn.Sequential(torch.nn.Linear(16, 32), torch.nn.Dropout(0.1), torch.nn.ReLU(), torch.nn.Linear(32, 4))
foothold(model)
optimizer = torch.optim.AdamW(model.parameters(), lr=1e-2)
scheduler = torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, 40)
X = torch.randn(160, 16, generator=torch.Generator().manual_seed(1)); Y = (X.sum(1) > 0).long()
loader = torch.utils.data.DataLoader(torch.utils.data.TensorDataset(X, Y), batch_size=8, shuffle=True)
model, optimizer, loader, scheduler = accelerator.prepare(model, optimizer, loader, scheduler)
done = 0
for epoch in range(2):
    for x, y in loader:
        with accelerator.accumulate(model):
            accelerator.backward(torch.nn.functional.cross_entropy(model(x), y))
            if accelerator.sync_gradients: accelerator.clip_grad_norm_(model.parameters(), 1.0)
            optimizer.step(); scheduler.step(); optimizer.zero_grad()
        if accelerator.sync_gradients:
            done += 1
            if done % 3 == 0: accelerator.save_state(f"out/step_{done}")
accelerator.end_training()
"""
)


def test_a_plain_loop_of_two_ranks_resumes_from_its_saved_state_and_matches(guarded: Callable[[str], Job]) -> None:
    job = guarded(SCRIPT)
    recorded = job.run(world=2, activations_every=2, snapshot_every=3)
    assert_quiet(recorded)
    replayed(job, recorded, 3, 9, Start.RESTORE)  # through the end of an epoch of five steps
    replayed(job, recorded, 7, 9, Start.AHEAD)  # accelerate fetches a batch before it hands on the one before


def test_a_gradient_turned_on_one_rank_of_a_plain_loop_is_located(guarded: Callable[[str], Job]) -> None:
    job = guarded(SCRIPT)
    (job.folder / EVIL).write_text("13 1 3.weight")  # the second pass of the seventh step
    at = located(job, job.run(world=2))
    assert (at.step, at.rank, at.stage, at.tensor) == (6, 1, Stage.LOCAL_GRADIENTS, "3.weight")
