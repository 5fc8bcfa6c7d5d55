r"""Train the ranker from nothing but events.

    python workloads/ranking/data.py --out data/ranking
    torchrun --nproc-per-node 2 workloads/ranking/train.py --data data/ranking --out out/ranking --checkpoint-every 159
    python workloads/ranking/eval.py --data data/ranking --checkpoint out/ranking/step-000477

Runs without torchrun too, as one rank. Started again with the same --out, it goes on from the newest checkpoint.

Every step is decided by the options, the seed and the step number, so the same command gives the same bits, and a
run that resumes from a checkpoint gives the bits of one that never stopped: the order of the events is a function of
(seed, epoch), and on resume the sampler starts at the saved place; the learning rates are functions of the step;
dropout draws from the rank's default generator, which is part of every checkpoint, and nothing else does.
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
from load import Events, all_logits, as_it_is, read_shape
from model import Batch, Ranker, Shape
from scores import scores
from torch import nn
from torch.nn.parallel import DistributedDataParallel
from torch.utils.data import DataLoader, DistributedSampler


class PlacedSampler(DistributedSampler[Batch]):
    """A DistributedSampler that can start an epoch `start` events in."""

    start = 0

    def __iter__(self) -> Iterator[int]:
        return itertools.islice(super().__iter__(), self.start, None)


def options() -> argparse.Namespace:
    """The command line (long names only: torchrun confuses short ones with its own)."""
    parser = argparse.ArgumentParser(description="Train the ranker.")
    parser.add_argument("--data", type=Path, required=True, help="folder written by data.py")
    parser.add_argument("--out", type=Path, required=True, help="folder for checkpoints")
    parser.add_argument(
        "--steps", type=int, default=477, help="in all; 159 are an epoch of the defaults with two ranks"
    )
    parser.add_argument("--checkpoint-every", type=int, default=0, help="steps between checkpoints; 0: only the last")
    parser.add_argument("--resume", type=Path, help="checkpoint to go on from; default: the newest in --out")
    parser.add_argument("--batch-size", type=int, default=256, help="events per rank and step")
    parser.add_argument("--lr", type=float, default=2e-3, help="highest learning rate")
    parser.add_argument("--lr-biases", type=float, default=1e-2, help="the same for the biases of the fields' values")
    parser.add_argument("--weight-decay", type=float, default=0.1)
    parser.add_argument("--weight-decay-tables", type=float, default=1.0, help="the same for the embeddings")
    parser.add_argument("--width", type=int, default=16, help="of an embedding")
    parser.add_argument("--history", type=int, default=50, help="events of it that are looked at")
    parser.add_argument("--layers", type=int, default=2, help="cross layers")
    parser.add_argument("--inner", type=int, default=128, help="width inside the feed-forward part")
    parser.add_argument("--dropout", type=float, default=0.3)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--evaluate", action="store_true", help="measure the validation part at the end")
    return parser.parse_args()


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


def groups(model: Ranker, given: argparse.Namespace) -> list[dict[str, Any]]:
    """Parameter groups of the optimizer, in the order of the model: biases, embeddings, everything else.

    Biases are what a logistic regression has, and take its large steps; embeddings of rare values are held down.
    """
    kinds: dict[str, list[nn.Parameter]] = {"biases": [], "tables": [], "rest": []}
    for name, parameter in model.named_parameters():
        kind = name.partition(".")[0]
        kinds[kind if kind in kinds else "rest"].append(parameter)
    return [
        {"params": kinds["biases"], "lr": given.lr_biases, "weight_decay": given.weight_decay},
        {"params": kinds["tables"], "lr": given.lr, "weight_decay": given.weight_decay_tables},
        {"params": kinds["rest"], "lr": given.lr, "weight_decay": given.weight_decay},
    ]


def share_of_peak(step: int, steps: int) -> float:
    """Of the highest learning rate: up over the first twentieth (at most 40 steps), then down a cosine to 1 %."""
    warm = max(1, min(40, steps // 20))
    if step < warm:
        return (step + 1) / warm
    return 0.505 + 0.495 * math.cos(math.pi * (step - warm) / max(1, steps - warm))


def train(
    model: Ranker, events: Events, given: argparse.Namespace, about: dict[str, Any], rank: int, world: int
) -> int:
    """Train `model` on `events`; `about` goes into every checkpoint's state.json. Returns the step reached."""
    sampler = PlacedSampler(events, world, rank, shuffle=True, seed=given.seed, drop_last=True)
    own = torch.Generator()  # the loader would otherwise draw from the default one, which belongs to dropout
    loader = DataLoader(events, given.batch_size, sampler=sampler, drop_last=True, generator=own, collate_fn=as_it_is)
    per_epoch = len(loader)
    if not per_epoch:
        raise SystemExit("error: fewer events than one step needs\nhint: lower --batch-size")
    optimizer = torch.optim.AdamW(groups(model, given))
    peaks = [group["lr"] for group in optimizer.param_groups]
    ddp: nn.Module = DistributedDataParallel(model, init_sync=False) if world > 1 else model
    torch.manual_seed(given.seed + 1 + rank)

    resumed = given.resume or folders.newest(given.out)
    step = checkpoint.restore(resumed, model, optimizer, rank, world)["step"] if resumed else 0
    if rank == 0 and resumed:
        print(f"resumed from {resumed}", flush=True)

    while step < given.steps:
        epoch, place = divmod(step, per_epoch)
        sampler.set_epoch(epoch)
        sampler.start = place * given.batch_size
        own.manual_seed(given.seed)
        for batch in itertools.islice(loader, min(per_epoch - place, given.steps - step)):
            for group, peak in zip(optimizer.param_groups, peaks, strict=True):
                group["lr"] = peak * share_of_peak(step, given.steps)
            loss = ddp(batch)
            loss.backward()
            optimizer.step()
            optimizer.zero_grad(set_to_none=True)
            step += 1
            if rank == 0:
                print(f"step {step} loss {loss.item():.4f}", flush=True)
            if step == given.steps or (given.checkpoint_every and step % given.checkpoint_every == 0):
                at = {
                    "step": step,
                    "epoch": epoch,
                    "place": step - epoch * per_epoch,
                    "world": world,
                    "seed": given.seed,
                }
                checkpoint.save(given.out, about | at, model, optimizer, rank)
    return step


def main() -> None:
    given = options()
    rank, world = start_ranks()
    torch.manual_seed(given.seed)
    known = read_shape(given.data)
    shape = Shape(
        known["fields"], known["genres"], given.width, given.history, given.layers, given.inner, given.dropout
    )
    model = Ranker(shape)
    events = Events(given.data, "train", given.history)
    if rank == 0:
        given.out.mkdir(parents=True, exist_ok=True)
    step = train(model, events, given, {"kind": "ranking", "shape": shape._asdict()}, rank, world)
    if rank == 0:
        final: dict[str, Any] = {"step": step}
        if given.evaluate:
            held_out = Events(given.data, "validation", given.history)
            final["validation"] = scores(all_logits(model, held_out), held_out.liked, held_out.person)
        (given.out / "final.json").write_text(json.dumps(final) + "\n", encoding="utf-8")
    if world > 1:
        dist.barrier()
        dist.destroy_process_group()


if __name__ == "__main__":
    main()
