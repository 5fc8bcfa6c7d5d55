"""Lightning's `Trainer`: its checkpoints are seen, and a replay resumes from them though the script does not."""

from __future__ import annotations

from collections.abc import Callable

from framed import assert_quiet, located, needs
from guarded_job import Job
from judged import EVIL, FOOTHOLD, replayed

from trainwarden.audit.replay import Start
from trainwarden.model import CheckpointSaved, Stage

needs("lightning")

SCRIPT = (
    FOOTHOLD
    + """
import torch, lightning as L
torch.set_num_threads(1); L.seed_everything(0)
class Net(L.LightningModule):
    def __init__(self):
        super().__init__()
        layers = torch.nn.Linear(16, 32), torch.nn.Dropout(0.1), torch.nn.ReLU(), torch.nn.Linear(32, 4)
        self.body = torch.nn.Sequential(*layers)
        foothold(self)
    def training_step(self, batch, index):
        x, y = batch
        return torch.nn.functional.cross_entropy(self.body(x), y)
    def configure_optimizers(self):
        o = torch.optim.AdamW(self.parameters(), lr=1e-2)
        return [o], [{"scheduler": torch.optim.lr_scheduler.StepLR(o, 3, 0.5), "interval": "step"}]
X = torch.randn(160, 16, generator=torch.Generator().manual_seed(1)); Y = (X.sum(1) > 0).long()
loader = torch.utils.data.DataLoader(torch.utils.data.TensorDataset(X, Y), batch_size=8, shuffle=True)
keep = L.pytorch.callbacks.ModelCheckpoint(every_n_train_steps=3, save_top_k=-1)
trainer = L.Trainer(max_steps=12, accelerator="cpu", devices=1, accumulate_grad_batches=2, callbacks=[keep],
    enable_progress_bar=False, enable_model_summary=False, log_every_n_steps=2)
trainer.fit(Net(), loader)
"""
)


def test_lightning_resumes_in_a_replay_and_matches(guarded: Callable[[str], Job]) -> None:
    job = guarded(SCRIPT)
    recorded = job.run(activations_every=2)
    assert_quiet(recorded)
    saved = {e.step for e in recorded.entries if isinstance(e, CheckpointSaved)}
    assert saved == {3, 6, 9, 12}, "Lightning writes the bytes of its checkpoints itself"
    replayed(job, recorded, 6, 11, Start.RESTORE)  # through the end of an epoch of ten steps
    result = replayed(job, recorded, 0, 5, Start.START)
    assert set(result.rewritten) >= {2, 5}, "a checkpoint that names its own place is the recorded one"


def test_a_turned_gradient_is_located_under_lightning(guarded: Callable[[str], Job]) -> None:
    job = guarded(SCRIPT)
    (job.folder / EVIL).write_text("9 0 body.3.weight")  # the second pass of the fifth step
    at = located(job, job.run())
    assert (at.step, at.rank, at.stage, at.tensor) == (4, 0, Stage.REDUCED_GRADIENTS, "body.3.weight")


def test_lightning_with_two_ranks_resumes_and_a_gradient_turned_on_one_of_them_is_located(
    guarded: Callable[[str], Job],
) -> None:
    two = SCRIPT.replace("devices=1", 'devices=2, strategy="ddp"')
    job = guarded(two)
    (job.folder / EVIL).write_text("8 1 body.3.weight")  # the first pass of the fifth step
    recorded = job.run(world=2, activations_every=2)
    assert_quiet(recorded)
    assert {r.micro_batches for r in recorded.updates(0)[4, 0].values()} == {2}
    at = located(job, recorded)
    assert (at.step, at.rank, at.stage, at.tensor) == (4, 1, Stage.LOCAL_GRADIENTS, "body.3.weight")
    replayed(job, recorded, 6, 11, Start.RESTORE)  # the steps after it, from what Lightning saved
