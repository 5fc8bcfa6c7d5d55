"""Hugging Face's `Trainer`, as its users write it: nothing in the script knows of replays, nor of a resume."""

from __future__ import annotations

from collections.abc import Callable

from framed import assert_quiet, located, needs
from guarded_job import Job
from judged import EVIL, FOOTHOLD, replayed

from trainwarden.audit.replay import Start
from trainwarden.model import Stage

needs("accelerate", "transformers")

SCRIPT = (
    FOOTHOLD
    + """
import torch
from transformers import GPT2Config, GPT2LMHeadModel, Trainer, TrainingArguments, set_seed
torch.set_num_threads(1); set_seed(0)
config = GPT2Config(vocab_size=64, n_positions=16, n_embd=32, n_layer=2, n_head=2, bos_token_id=0, eos_token_id=0)
model = GPT2LMHeadModel(config)
foothold(model)
X = torch.randint(0, 64, (80, 16), generator=torch.Generator().manual_seed(1))
class Texts(torch.utils.data.Dataset):
    def __len__(self): return len(X)
    def __getitem__(self, i): return {"input_ids": X[i], "labels": X[i]}
args = TrainingArguments("out", max_steps=9, per_device_train_batch_size=4, gradient_accumulation_steps=2, save_steps=3,
    logging_steps=2, learning_rate=1e-3, gradient_checkpointing=True, report_to=[], use_cpu=True, disable_tqdm=True)
Trainer(model=model, args=args, train_dataset=Texts()).train()
"""
)


def test_trainer_with_two_ranks_resumes_in_a_replay_and_matches(guarded: Callable[[str], Job]) -> None:
    job = guarded(SCRIPT)
    recorded = job.run(world=2, activations_every=2)
    assert_quiet(recorded)
    assert {r.micro_batches for r in recorded.updates(0)[4, 0].values()} == {2}
    result = replayed(job, recorded, 3, 8, Start.RESUME)
    assert set(result.rewritten) == {5, 8}, "checkpoints written again are the recorded ones"


def test_a_gradient_turned_on_one_rank_of_trainer_is_located(guarded: Callable[[str], Job]) -> None:
    job = guarded(SCRIPT)
    (job.folder / EVIL).write_text("8 1 h.1.mlp.c_fc.weight")  # the first pass of the fifth step
    at = located(job, job.run(world=2))
    assert (at.step, at.rank, at.stage, at.tensor) == (
        4,
        1,
        Stage.LOCAL_GRADIENTS,
        "transformer.h.1.mlp.c_fc.weight",
    )
