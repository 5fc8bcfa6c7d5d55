"""LoRA by PEFT on a base checkpoint, trained by Hugging Face's `Trainer`: only the adapter moves and is saved."""

from __future__ import annotations

import os
import subprocess
import sys
import time
from collections.abc import Callable

import msgspec
import pytest
from framed import assert_quiet, located, needs
from guarded_job import Job
from judged import EVIL, FOOTHOLD, replayed

from trainwarden.audit.recorded import Recorded
from trainwarden.audit.replay import Start
from trainwarden.model import CheckpointLoaded, Stage
from trainwarden.supervise import guarded as supervised

needs("peft")

BASE = """
import torch
from transformers import GPT2Config, GPT2LMHeadModel
torch.manual_seed(7)
config = GPT2Config(vocab_size=64, n_positions=16, n_embd=32, n_layer=2, n_head=2, bos_token_id=0, eos_token_id=0)
GPT2LMHeadModel(config).save_pretrained("base")
"""
SCRIPT = (
    FOOTHOLD
    + """
import torch
from peft import LoraConfig, get_peft_model
from transformers import AutoModelForCausalLM, Trainer, TrainingArguments, set_seed
torch.set_num_threads(1); set_seed(0)
base = AutoModelForCausalLM.from_pretrained("base")
model = get_peft_model(base, LoraConfig(r=4, lora_dropout=0.1, target_modules=["c_attn"], task_type="CAUSAL_LM"))
foothold(model)
X = torch.randint(0, 64, (32, 16), generator=torch.Generator().manual_seed(1))
class Texts(torch.utils.data.Dataset):
    def __len__(self): return len(X)
    def __getitem__(self, i): return {"input_ids": X[i], "labels": X[i]}
args = TrainingArguments("out", max_steps=8, per_device_train_batch_size=4, save_steps=4, learning_rate=1e-2,
    report_to=[], use_cpu=True, disable_tqdm=True)
Trainer(model=model, args=args, train_dataset=Texts()).train()
"""
)


@pytest.fixture
def tuning(guarded: Callable[[str], Job], monkeypatch: pytest.MonkeyPatch) -> Job:
    """A job with a base checkpoint beside its script, which its seal does not list."""
    job = guarded(SCRIPT)
    monkeypatch.setattr(supervised, "sealed_paths", lambda *a: lambda path: "/base/" not in path)
    env = {**os.environ, "OMP_NUM_THREADS": "1"}
    subprocess.run([sys.executable, "-c", BASE], cwd=job.folder, check=True, env=env)
    return job


def tuned(job: Job) -> Recorded:
    """A run of the job that was sealed after the base checkpoint was made, and before anything else was put there."""
    created = max(f.stat().st_ctime_ns for f in (job.folder / "base").iterdir())
    recorded = job.run(activations_every=2)
    seal = msgspec.structs.replace(recorded.seal.seal, created_ns=created)
    recorded.seal = msgspec.structs.replace(recorded.seal, seal=seal)
    return recorded


def test_a_lora_job_knows_its_base_and_resumes_its_adapter_in_a_replay(tuning: Job) -> None:
    recorded = tuned(tuning)
    assert_quiet(recorded)
    loaded = [e.path for e in recorded.entries if isinstance(e, CheckpointLoaded)]
    assert str(tuning.folder / "base" / "model.safetensors") in loaded
    weights = recorded.seen(recorded.updates(0)[3, 0][0]).details[Stage.WEIGHTS]
    assert all(".lora_" in name for name in weights.names)
    result = replayed(tuning, recorded, 4, 7, Start.RESUME)
    assert set(result.rewritten) == {7}


def test_a_gradient_of_an_adapter_that_is_turned_is_located(tuning: Job) -> None:
    time.sleep(0.1)  # a file of a later moment than the base checkpoint, on any file system's clock
    (tuning.folder / EVIL).write_text("5 0 h.1.attn.c_attn.lora_B.default.weight")
    at = located(tuning, tuned(tuning))
    name = "base_model.model.transformer.h.1.attn.c_attn.lora_B.default.weight"
    assert (at.step, at.rank, at.stage, at.tensor) == (5, 0, Stage.REDUCED_GRADIENTS, name)
