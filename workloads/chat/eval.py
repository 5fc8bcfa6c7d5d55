"""Held-out perplexity of a checkpoint, as one line of JSON.

    python workloads/chat/eval.py --data data/chat --checkpoint out/chat/step-000024
    python workloads/chat/eval.py --data data/chat --base        SmolLM2 as it came

For a post-trained model only the assistant's tokens count, as in training; for a pretrained one all do. Figures of
the two kinds have different tokens and do not compare.
"""

from __future__ import annotations

import argparse
import json
from pathlib import Path

import torch
from load import Blocks, Exchanges, base_model, model_at
from loop import perplexity
from torch.utils.data import Subset


def main() -> None:
    options = argparse.ArgumentParser(description="Measure the held-out perplexity of a checkpoint.")
    options.add_argument("--data", type=Path, required=True, help="folder written by data.py")
    options.add_argument("--block", type=int, default=128, help="tokens of context at most")
    options.add_argument("--examples", type=int, default=0, help="sequences, spread evenly; 0: all")
    which = options.add_mutually_exclusive_group(required=True)
    which.add_argument("--checkpoint", type=Path)
    which.add_argument("--base", action="store_true", help="SmolLM2 without any training of ours")
    given = options.parse_args()

    torch.set_num_threads(1)
    model, state = (
        (base_model(given.data), {"kind": "posttrain"}) if given.base else model_at(given.checkpoint, given.data)
    )
    held_out = (Exchanges if state["kind"] == "posttrain" else Blocks)(given.data, "held-out", given.block)
    stride = max(1, len(held_out) // given.examples) if given.examples else 1
    result, tokens = perplexity(model, Subset(held_out, range(0, len(held_out), stride)))
    figures = {"kind": state["kind"], "step": state.get("step", 0), "perplexity": round(result, 3), "tokens": tokens}
    print(json.dumps(figures))


if __name__ == "__main__":
    main()
