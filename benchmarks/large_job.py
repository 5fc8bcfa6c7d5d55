"""A 110M-parameter language model under DDP on made-up tokens: the size at which recording must cost at most 1 %.

torchrun --nproc-per-node 2 benchmarks/large_job.py --steps 5 --micro-batches 16 --block 1024

fp32: without instructions for it bf16 is slower (docs/log.md), and the figures of two machines would not compare.
"""

from __future__ import annotations

import argparse
import contextlib
import os

import torch
import torch.distributed as dist
from torch import nn
from torch.nn.parallel import DistributedDataParallel


class Model(nn.Module):
    """Twelve encoder layers of width 768 over 16,384 tokens, tied output."""

    def __init__(self, vocabulary: int = 16384, width: int = 768, layers: int = 12, heads: int = 12) -> None:
        super().__init__()
        self.embed = nn.Embedding(vocabulary, width)
        layer = nn.TransformerEncoderLayer(width, heads, 4 * width, 0.0, "gelu", batch_first=True, norm_first=True)
        self.layers = nn.TransformerEncoder(layer, layers, enable_nested_tensor=False)
        self.head = nn.Linear(width, vocabulary, bias=False)

    def forward(self, tokens: torch.Tensor) -> torch.Tensor:
        mask = nn.Transformer.generate_square_subsequent_mask(tokens.shape[1] - 1)
        hidden = self.layers(self.embed(tokens[:, :-1]), mask=mask, is_causal=True)
        return nn.functional.cross_entropy(self.head(hidden).flatten(0, 1), tokens[:, 1:].flatten())


def main() -> None:
    parser = argparse.ArgumentParser(description="Train a 110M-parameter model on made-up tokens.")
    parser.add_argument("--steps", type=int, default=5)
    parser.add_argument("--micro-batches", type=int, default=16)
    parser.add_argument("--block", type=int, default=1024)
    given = parser.parse_args()
    torch.set_num_threads(1)
    dist.init_process_group("gloo")
    torch.manual_seed(0)
    model = Model()
    ddp = DistributedDataParallel(model)
    optimizer = torch.optim.AdamW(model.parameters(), lr=1e-4)
    draw = torch.Generator().manual_seed(int(os.environ["RANK"]))
    if dist.get_rank() == 0:
        print(f"{sum(p.numel() for p in model.parameters()) / 1e6:.1f}M parameters", flush=True)
    for step in range(given.steps):
        for i in range(given.micro_batches):
            tokens = torch.randint(0, 16384, (1, given.block + 1), generator=draw)
            with contextlib.nullcontext() if i == given.micro_batches - 1 else ddp.no_sync():
                (ddp(tokens) / given.micro_batches).backward()
        optimizer.step()
        optimizer.zero_grad()
        if dist.get_rank() == 0:
            print(f"step {step + 1}", flush=True)
    dist.barrier()
    dist.destroy_process_group()


if __name__ == "__main__":
    main()
