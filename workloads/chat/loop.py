"""What pretrain.py and posttrain.py share: ranks, the order of the data, the schedule, the loop.

Every step is decided by the options, the seed and the step number, so the same command gives the same bits, and a
run that resumes from a checkpoint gives the bits of one that never stopped:

* the order of the data is a function of (seed, epoch); on resume the sampler starts at the saved place instead of
  handing out batches that are thrown away;
* the learning rate is a function of the step number;
* dropout draws from the rank's default generator, which is part of every checkpoint; nothing else draws from it.

Speaks plain PyTorch: DDP over gloo under torchrun, no process group at all without it. One thread a rank. fp32:
on this project's machine (AVX2, no AVX-512) bf16 matrix products are 8 times slower.
"""

from __future__ import annotations

import argparse
import itertools
import json
import math
import os
from collections.abc import Iterator
from datetime import timedelta
from pathlib import Path
from typing import Any

import checkpoint
import folders
import torch
import torch.distributed as dist
from load import Sample
from model import IGNORE, Llama
from torch import nn
from torch.nn.parallel import DistributedDataParallel
from torch.utils.data import DataLoader, Dataset, DistributedSampler


class PlacedSampler(DistributedSampler[Sample]):
    """A DistributedSampler that can start an epoch `start` samples in."""

    start = 0

    def __iter__(self) -> Iterator[int]:
        return itertools.islice(super().__iter__(), self.start, None)


def options(description: str, *, batch_size: int, block: int, lr: float) -> argparse.ArgumentParser:
    """The options that both scripts have (long names only: torchrun confuses short ones with its own)."""
    parser = argparse.ArgumentParser(description=description)
    parser.add_argument("--data", type=Path, required=True, help="folder written by data.py")
    parser.add_argument("--out", type=Path, required=True, help="folder for checkpoints")
    parser.add_argument("--steps", type=int, required=True)
    parser.add_argument("--checkpoint-every", type=int, default=0, help="steps between checkpoints; 0: only the last")
    parser.add_argument("--resume", type=Path, help="checkpoint to go on from; default: the newest in --out")
    parser.add_argument("--batch-size", type=int, default=batch_size, help="sequences per rank and step")
    parser.add_argument("--block", type=int, default=block, help="tokens per sequence")
    parser.add_argument("--lr", type=float, default=lr)
    parser.add_argument("--weight-decay", type=float, default=0.0)
    parser.add_argument("--clip", type=float, default=1.0, help="largest norm of the gradient")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--evaluate", action="store_true", help="measure held-out perplexity at the end")
    parser.add_argument("--alone", action="store_true", help="write the last step as a folder to be served, too")
    return parser


def start_ranks() -> tuple[int, int]:
    """Join the process group if torchrun started this process; return rank and world size.

    torchrun (2.13) keeps its key-value store across restarts, and gloo would find the addresses of the ranks that
    died in it and wait for them; so every restart gets keys of its own.
    """
    torch.set_num_threads(1)
    if "RANK" not in os.environ:
        return 0, 1
    store, rank, world = next(dist.rendezvous("env://"))
    own = dist.PrefixStore(f"restart-{os.environ.get('TORCHELASTIC_RESTART_COUNT', '0')}", store)
    dist.init_process_group("gloo", store=own, rank=rank, world_size=world, timeout=timedelta(minutes=5))
    return rank, world


def learning_rate(step: int, steps: int, peak: float) -> float:
    """Rise over the first tenth (at most 40 steps), then fall along a cosine to a tenth of `peak`."""
    warm = max(1, min(40, steps // 10))
    if step < warm:
        return peak * (step + 1) / warm
    return peak * (0.55 + 0.45 * math.cos(math.pi * (step - warm) / max(1, steps - warm)))


@torch.no_grad()
def perplexity(model: Llama, data: Dataset[Sample], rank: int = 0, world: int = 1) -> tuple[float, int]:
    """Perplexity over the labelled tokens of `data`, shared among the ranks, and how many there were."""
    was_training = model.training
    model.eval()
    sums = torch.zeros(2, dtype=torch.float64)
    for i in range(rank, len(data), world):  # type: ignore[arg-type]
        tokens, labels = data[i]
        counted = int((labels != IGNORE).sum())
        if counted:
            sums += torch.tensor([model(tokens[None], labels[None]).double() * counted, counted])
    if world > 1:
        dist.all_reduce(sums)
    model.train(was_training)
    return math.exp(sums[0] / sums[1]), int(sums[1])


def train(model: Llama, data: Dataset[Sample], held_out: Dataset[Sample], given: Any, about: dict[str, Any]) -> None:
    """Train `model` on `data` to step `given.steps`; `about` goes into every checkpoint's state.json."""
    rank, world = (dist.get_rank(), dist.get_world_size()) if dist.is_initialized() else (0, 1)
    sampler = PlacedSampler(data, world, rank, shuffle=True, seed=given.seed, drop_last=True)
    own = torch.Generator()  # the loader would otherwise draw from the default one, which belongs to dropout
    loader = DataLoader(data, given.batch_size, sampler=sampler, drop_last=True, generator=own)
    per_epoch = len(loader)
    if not per_epoch:
        raise SystemExit("error: fewer sequences than one step needs\nhint: lower --batch-size or prepare more data")
    parameters = list(checkpoint.trained(model).values())
    optimizer = torch.optim.AdamW(parameters, lr=given.lr, betas=(0.9, 0.95), weight_decay=given.weight_decay)
    ddp: nn.Module = DistributedDataParallel(model, init_sync=False) if world > 1 else model
    torch.manual_seed(given.seed + 1 + rank)

    resumed = given.resume or folders.newest(given.out)
    step = checkpoint.restore(resumed, model, optimizer, rank, world)["step"] if resumed else 0
    if rank == 0:
        given.out.mkdir(parents=True, exist_ok=True)
        if resumed:
            print(f"resumed from {resumed}", flush=True)

    loss = torch.tensor(math.nan)
    while step < given.steps:
        epoch, place = divmod(step, per_epoch)
        sampler.set_epoch(epoch)
        sampler.start = place * given.batch_size
        own.manual_seed(given.seed)
        for tokens, labels in itertools.islice(loader, per_epoch - place):
            for group in optimizer.param_groups:
                group["lr"] = learning_rate(step, given.steps, given.lr)
            loss = ddp(tokens, labels)
            loss.backward()
            nn.utils.clip_grad_norm_(parameters, given.clip)
            optimizer.step()
            optimizer.zero_grad(set_to_none=True)
            step += 1
            if rank == 0:
                print(f"step {step} loss {loss.item():.3f}", flush=True)
            if step == given.steps or (given.checkpoint_every and step % given.checkpoint_every == 0):
                at = {
                    "step": step,
                    "epoch": epoch,
                    "place": step - epoch * per_epoch,
                    "world": world,
                    "seed": given.seed,
                }
                state = about | at
                checkpoint.save(given.out, state, model, optimizer, rank)
                if given.alone and step == given.steps and rank == 0:
                    import export  # the tokenizer's library with it, which nobody else needs here

                    export.write(given.out / f"alone-{step:06d}", model, state, given.data)
            if step == given.steps:
                break

    final: dict[str, Any] = {"step": step}
    if given.evaluate:
        final["perplexity"], final["tokens"] = perplexity(model, held_out, rank, world)
    if rank == 0:
        (given.out / "final.json").write_text(json.dumps(final) + "\n", encoding="utf-8")
    if dist.is_initialized():
        dist.barrier()
        dist.destroy_process_group()
