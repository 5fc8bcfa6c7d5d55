"""Train the text-to-video model.

    python workloads/video/data.py --out data/video
    torchrun --nproc-per-node 2 workloads/video/train.py --data data/video --out out/video --steps 1200
    python workloads/video/sample.py --checkpoint out/video/step-001200 --prompt "a rocket rises on a black background"

Runs without torchrun too, as one rank. Started again with the same --out, it goes on from the newest checkpoint.

Every step is decided by the options, the seed and the step number, so the same command gives the same bits, and a
run that resumes gives the bits of one that never stopped: the order of the clips is a function of (seed, epoch), the
learning rate one of the step; noise, times and dropped words come from the rank's default generator, which is part
of every checkpoint. One thread a rank. The forward pass is in bf16 where the processor has instructions for it.
"""

from __future__ import annotations

import argparse
import copy
import itertools
import os
import re
from collections.abc import Iterator
from datetime import timedelta
from pathlib import Path
from typing import Any

import checkpoint
import folders
import numpy as np
import torch
import torch.distributed as dist
from flow import drop, loss
from model import VideoDiT
from torch import Tensor, nn
from torch.nn.parallel import DistributedDataParallel
from torch.utils.data import DataLoader, Dataset, DistributedSampler
from words import caption, vocabulary

Sample = tuple[Tensor, Tensor]  # a clip, uint8 [frames, height, width, 3], and the tokens of its caption
WARM = 50  # steps in which the learning rate rises
LAST = 0.03  # of the peak learning rate, at the end


class Clips(Dataset[Sample]):
    """The training clips of a folder that data.py wrote, with their captions as tokens."""

    def __init__(self, data: Path, model: VideoDiT) -> None:
        try:
            self.clips = torch.from_numpy(np.load(data / "clips.npy"))
            labels = np.load(data / "labels.npy").tolist()
        except (OSError, ValueError) as e:
            raise SystemExit(
                f"error: no readable data at {data}: {e}\nhint: python workloads/video/data.py --out {data}"
            ) from e
        self.tokens = model.read([caption(label) for label in labels])

    def __len__(self) -> int:
        return len(self.clips)

    def __getitem__(self, index: int) -> Sample:
        return self.clips[index], self.tokens[index]


class PlacedSampler(DistributedSampler[Sample]):
    """A DistributedSampler that can start an epoch `start` samples in."""

    start = 0

    def __iter__(self) -> Iterator[int]:
        return itertools.islice(super().__iter__(), self.start, None)


def start_ranks() -> tuple[int, int]:
    """Join the process group if torchrun started this process; return rank and world size.

    torchrun (2.13) keeps its key-value store across restarts, and gloo would wait for the ranks that died; so every
    restart gets keys of its own.
    """
    torch.set_num_threads(1)
    if "RANK" not in os.environ:
        return 0, 1
    store, rank, world = next(dist.rendezvous("env://"))
    own = dist.PrefixStore(f"restart-{os.environ.get('TORCHELASTIC_RESTART_COUNT', '0')}", store)
    dist.init_process_group("gloo", store=own, rank=rank, world_size=world, timeout=timedelta(minutes=5))
    return rank, world


def batches(data: Clips, given: Any, step: int, rank: int, world: int) -> Iterator[list[Tensor]]:
    """Yield this rank's batches from `step` on, without end."""
    sampler = PlacedSampler(data, world, rank, shuffle=True, seed=given.seed, drop_last=True)
    own = torch.Generator()  # the loader would otherwise draw from the default one, which belongs to the noise
    loader = DataLoader(data, given.batch_size, sampler=sampler, drop_last=True, generator=own)
    if not len(loader):
        raise SystemExit("error: fewer clips than one step needs\nhint: lower --batch-size or compose more clips")
    first, place = divmod(step, len(loader))
    for epoch in itertools.count(first):
        sampler.set_epoch(epoch)
        sampler.start = place * given.batch_size
        own.manual_seed(given.seed)
        yield from itertools.islice(loader, len(loader) - place)
        place = 0


def make_optimizers(model: VideoDiT, peaks: dict[str, float]) -> dict[str, torch.optim.Optimizer]:
    """Muon (Jordan et al., 2024) for the matrices of the blocks, AdamW for all else."""
    inside = re.compile(r"blocks\.\d+\.(qkv|out|up|down)\.weight")
    by_muon = [p for name, p in model.named_parameters() if inside.fullmatch(name)]
    others = [p for name, p in model.named_parameters() if not inside.fullmatch(name)]
    return {
        "muon": torch.optim.Muon(by_muon, lr=peaks["muon"], weight_decay=0.01),
        "adamw": torch.optim.AdamW(others, lr=peaks["adamw"], betas=(0.9, 0.95), weight_decay=0.01),
    }


def share_of_peak(step: int, steps: int) -> float:
    """The learning rate as a share of its peak: it rises, stays, and falls in a line over the last three tenths."""
    return min(1.0, (step + 1) / WARM) * (LAST + (1 - LAST) * min(1.0, (1 - step / steps) / 0.3))


@torch.no_grad()
def average(averaged: nn.Module, model: nn.Module, step: int) -> None:
    """Move `averaged` towards `model`: a mean over the last hundreds of steps, shorter in the beginning."""
    torch._foreach_lerp_(
        list(averaged.parameters()), list(model.parameters()), 1 - min(0.995, (step + 1) / (step + 10))
    )


def fast_precision() -> str:
    """bf16 where the processor has instructions for it; elsewhere it is many times slower than fp32."""
    return "bf16" if torch.cpu._is_avx512_bf16_supported() else "fp32"


def main() -> None:
    parser = argparse.ArgumentParser(description="Train a small text-to-video diffusion transformer.")
    parser.add_argument("--data", type=Path, required=True, help="folder written by data.py")
    parser.add_argument("--out", type=Path, required=True, help="folder for checkpoints")
    parser.add_argument("--steps", type=int, required=True)
    parser.add_argument("--checkpoint-every", type=int, default=0, help="steps between checkpoints; 0: only the last")
    parser.add_argument("--resume", type=Path, help="checkpoint to go on from; default: the newest in --out")
    parser.add_argument("--batch-size", type=int, default=32, help="clips per rank and step")
    parser.add_argument("--width", type=int, default=192)
    parser.add_argument("--layers", type=int, default=6)
    parser.add_argument("--heads", type=int, default=3)
    parser.add_argument("--lr", type=float, default=1.5e-3, help="of AdamW")
    parser.add_argument("--lr-muon", type=float, default=0.02, help="of Muon, which trains the matrices of the blocks")
    parser.add_argument("--precision", choices=("bf16", "fp32"), default=fast_precision(), help="of the forward pass")
    parser.add_argument("--seed", type=int, default=0)
    given = parser.parse_args()

    rank, world = start_ranks()
    torch.manual_seed(given.seed)
    model = VideoDiT(vocabulary(), width=given.width, layers=given.layers, heads=given.heads)
    averaged = copy.deepcopy(model).requires_grad_(False)
    data = Clips(given.data, model)
    peaks = {"muon": given.lr_muon, "adamw": given.lr}
    optimizers = make_optimizers(model, peaks)
    ddp: nn.Module = DistributedDataParallel(model, init_sync=False) if world > 1 else model
    torch.manual_seed(given.seed + 1 + rank)

    shape = {"width": given.width, "layers": given.layers, "heads": given.heads}
    about = {"world": world, "seed": given.seed, "batch_size": given.batch_size, "precision": given.precision, **shape}
    resumed = given.resume or folders.newest(given.out)
    step = checkpoint.restore(resumed, about, model, averaged, optimizers, rank) if resumed else 0
    if rank == 0 and resumed:
        print(f"resumed from {resumed}", flush=True)

    for clips, tokens in itertools.islice(batches(data, given, step, rank, world), max(0, given.steps - step)):
        for name, optimizer in optimizers.items():
            optimizer.param_groups[0]["lr"] = peaks[name] * share_of_peak(step, given.steps)
        with torch.autocast("cpu", dtype=torch.bfloat16, enabled=given.precision == "bf16"):
            error = loss(ddp, clips.float() / 127.5 - 1, drop(tokens, whole=0.1, role=0.05))
        error.backward()
        nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        for optimizer in optimizers.values():
            optimizer.step()
            optimizer.zero_grad(set_to_none=True)
        average(averaged, model, step)
        step += 1
        if rank == 0:
            print(f"step {step} loss {error.item():.4f}", flush=True)
        if step == given.steps or (given.checkpoint_every and step % given.checkpoint_every == 0):
            checkpoint.save(given.out, about | {"step": step}, model, averaged, optimizers, rank)

    if dist.is_initialized():
        dist.barrier()
        dist.destroy_process_group()


if __name__ == "__main__":
    main()
