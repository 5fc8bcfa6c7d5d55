"""Do clips show what was asked? python workloads/video/eval.py --checkpoint out/video/step-002000

Prints one line of JSON: the share of clips in which score.py reads object, motion and background right, and all
three, for prompts whose (object, motion) pair was trained on (`seen`) and for held-out ones (`unseen`). By default
that is every seen prompt once and every unseen one four times. `reader` is the same of freshly composed clips of all
prompts: what the rules themselves get right. Noise is fixed by --seed and sampling is in fp32, so a checkpoint has
one result on one machine.
"""

from __future__ import annotations

import argparse
import json
import random
from pathlib import Path

import checkpoint
import folders
import numpy as np
import torch
from composing import compose, picture
from flow import GUIDANCE, STEPS, sample
from model import VideoDiT
from score import Reader
from words import OBJECTS, Label, all_labels, caption

AT_ONCE = 48  # clips sampled together


def shares(read: list[Label], asked: list[Label]) -> dict[str, float]:
    """How much of what was `asked` for was `read`: by role and altogether."""
    right = np.array(read) == np.array(asked)
    found = {role: float(right[:, i].mean()) for i, role in enumerate(("object", "motion", "background"))}
    return {name: round(share, 4) for name, share in (found | {"all": float(right.all(1).mean())}).items()}


def measure(
    model: VideoDiT, reader: Reader, asked: list[Label], seed: int, steps: int, guidance: float
) -> dict[str, float]:
    """The shares of clips that `model` makes for `asked`."""
    read = []
    for first in range(0, len(asked), AT_ONCE):
        prompts = [caption(label) for label in asked[first : first + AT_ONCE]]
        read += [reader.read(clip) for clip in sample(model, prompts, seed + first, steps, guidance)]
    return shares(read, asked)


def main() -> None:
    options = argparse.ArgumentParser(description="Measure how often clips show what their prompts ask for.")
    options.add_argument("--checkpoint", type=Path, required=True)
    options.add_argument("--prompts", type=int, default=0, help="of each kind, spread evenly; 0: all, see above")
    options.add_argument("--steps", type=int, default=STEPS, help="steps from noise to clip")
    options.add_argument("--guidance", type=float, default=GUIDANCE, help="how many times the prompt counts")
    options.add_argument("--seed", type=int, default=0)
    given = options.parse_args()

    torch.set_num_threads(1)
    model, reader = checkpoint.load(given.checkpoint), Reader()
    asked = {"seen": all_labels(unseen=False), "unseen": all_labels(unseen=True) * 4}
    pictures, draw = [picture(name) for name in OBJECTS], random.Random("real")
    real = asked["seen"] + asked["unseen"]
    result: dict[str, object] = {"step": folders.read_json(given.checkpoint, "state")["step"]}
    result["reader"] = shares([reader.read(compose(label, pictures, draw)) for label in real], real)
    for name, labels in asked.items():
        chosen = labels[:: max(1, len(labels) // given.prompts)] if given.prompts else labels
        result[name] = measure(model, reader, chosen, given.seed, given.steps, given.guidance)
        result[f"{name} clips"] = len(chosen)
    print(json.dumps(result))


if __name__ == "__main__":
    main()
