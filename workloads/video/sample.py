"""A clip for a prompt.

    python workloads/video/sample.py --checkpoint out/video/step-002000 --prompt "a panda grows on a pink background"

Writes a GIF for every --prompt; with --sheet also one PNG, a row of frames for each. The same seed gives the same
clips. It reads safetensors and JSON only: a checkpoint cannot run code here.
"""

from __future__ import annotations

import argparse
from pathlib import Path
from typing import BinaryIO

import checkpoint
import numpy as np
import torch
from flow import GUIDANCE, STEPS, sample
from PIL import Image

FRAME_MS = 125


def write_gif(clip: np.ndarray, path: Path | BinaryIO, larger: int) -> None:
    """Write `clip` [frames, height, width, 3] as an endless GIF, each pixel `larger` pixels wide."""
    frames = [Image.fromarray(frame.repeat(larger, 0).repeat(larger, 1)) for frame in clip]
    frames[0].save(path, format="GIF", save_all=True, append_images=frames[1:], duration=FRAME_MS, loop=0)


def sheet(clips: np.ndarray, larger: int) -> Image.Image:
    """One picture of `clips` [clips, frames, height, width, 3]: a row for each, its frames side by side."""
    rows = [np.concatenate(list(clip), axis=1) for clip in clips]
    return Image.fromarray(np.concatenate(rows, axis=0).repeat(larger, 0).repeat(larger, 1))


def main() -> None:
    options = argparse.ArgumentParser(description="Make clips that show what prompts ask for.")
    options.add_argument("--checkpoint", type=Path, required=True)
    options.add_argument("--prompt", action="append", required=True, help="may be given several times")
    options.add_argument("--out", type=Path, default=Path("clip.gif"), help="of further prompts: clip-2.gif, …")
    options.add_argument("--sheet", type=Path, help="write all frames of all clips into this PNG too")
    options.add_argument("--larger", type=int, default=6, help="pixels on the screen for one of the model's")
    options.add_argument("--steps", type=int, default=STEPS, help="steps from noise to clip")
    options.add_argument("--guidance", type=float, default=GUIDANCE, help="how many times the prompt counts")
    options.add_argument("--seed", type=int, default=0)
    given = options.parse_args()

    torch.set_num_threads(1)
    clips = sample(checkpoint.load(given.checkpoint), given.prompt, given.seed, given.steps, given.guidance)
    for number, (prompt, clip) in enumerate(zip(given.prompt, clips, strict=True), start=1):
        path = given.out if number == 1 else given.out.with_stem(f"{given.out.stem}-{number}")
        write_gif(clip, path, given.larger)
        print(f"{path}: {prompt}", flush=True)
    if given.sheet:
        sheet(clips, given.larger).save(given.sheet, optimize=True)


if __name__ == "__main__":
    main()
