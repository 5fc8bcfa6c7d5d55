r"""A small job to strike quickly: two ranks sort points into classes, with all that attacks aim at, in seconds.

Sampler, loader, dropout, AdamW, checkpoints by torch.save (pickle), and going on from the newest one.

    torchrun --nproc-per-node 2 --max-restarts 2 train.py --steps 40 --every 8 --seed 0
"""

from __future__ import annotations

import argparse
import os
import time
from pathlib import Path

import torch
import torch.distributed as dist
from torch import nn
from torch.nn.parallel import DistributedDataParallel
from torch.utils.data import DataLoader, DistributedSampler, TensorDataset


def start_ranks() -> int:
    """Join the group, with keys of its own for every restart (torchrun keeps its store across restarts)."""
    store, rank, world = next(dist.rendezvous("env://"))
    own = dist.PrefixStore(f"restart-{os.environ.get('TORCHELASTIC_RESTART_COUNT', '0')}", store)
    dist.init_process_group("gloo", store=own, rank=rank, world_size=world)
    return rank


def main() -> None:
    parser = argparse.ArgumentParser(description="Train a small classifier.")
    parser.add_argument("--steps", type=int, default=40)
    parser.add_argument("--every", type=int, default=8, help="steps between checkpoints")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--pause", type=float, default=0.03, help="seconds after each step: real ones are not so short")
    given = parser.parse_args()
    torch.set_num_threads(1)
    rank = start_ranks()
    made = torch.Generator().manual_seed(1)
    points = torch.randn(256, 16, generator=made)
    data = TensorDataset(points, points[:, :8].argmax(1))
    torch.manual_seed(given.seed)
    model = nn.Sequential(nn.Linear(16, 64), nn.ReLU(), nn.Dropout(0.1), nn.Linear(64, 8))
    ddp = DistributedDataParallel(model)
    optimizer = torch.optim.AdamW(model.parameters(), lr=1e-2)
    sampler: DistributedSampler[int] = DistributedSampler(data, seed=given.seed)
    loader = DataLoader(data, batch_size=8, sampler=sampler, generator=torch.Generator())
    torch.manual_seed(given.seed + 1 + rank)

    step, out = 0, Path("out")
    saved = sorted(out.glob("step-*.pt"))
    if saved:
        state = torch.load(saved[-1], weights_only=False)
        model.load_state_dict(state["model"])
        optimizer.load_state_dict(state["optimizer"])
        torch.set_rng_state(state["rng"][rank])
        step = state["step"]
    while step < given.steps:
        epoch, place = divmod(step, len(loader))
        sampler.set_epoch(epoch)
        for i, (inputs, labels) in enumerate(loader):
            if i < place:
                continue
            loss = nn.functional.cross_entropy(ddp(inputs), labels)
            loss.backward()
            optimizer.step()
            optimizer.zero_grad()
            time.sleep(given.pause)
            step += 1
            if rank == 0:
                print(f"step {step} loss {loss.item():.4f}", flush=True)
            if step % given.every == 0:
                save(out / f"step-{step:06d}.pt", step, model, optimizer, rank)
            if step == given.steps:
                break
    dist.barrier()
    dist.destroy_process_group()


def save(path: Path, step: int, model: nn.Module, optimizer: torch.optim.Optimizer, rank: int) -> None:
    """Rank 0 writes the state of all, whole or not at all."""
    states: list[torch.Tensor] = [torch.empty(0)] * dist.get_world_size()
    dist.all_gather_object(states, torch.get_rng_state())
    if rank == 0:
        path.parent.mkdir(exist_ok=True)
        state = {"model": model.state_dict(), "optimizer": optimizer.state_dict(), "step": step, "rng": states}
        torch.save(state, path.with_suffix(".partial"))
        os.replace(path.with_suffix(".partial"), path)
    dist.barrier()


if __name__ == "__main__":
    main()
