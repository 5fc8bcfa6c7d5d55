"""Compose the captioned clips: python workloads/video/data.py --out data/video

12 objects × 8 motions × 4 backgrounds, 8 frames of 32 × 32; where an object starts and how large it is vary from
clip to clip (composing.py). An eighth of the (object, motion) pairs, one motion of each object, is held out: no
training clip shows it. The same command with the same font and packages writes the same bytes.

Written to --out, of training clips only: `clips.npy` (uint8, [clips, 8, 32, 32, 3]) and `labels.npy` (int64 rows:
object, motion, background). Held-out clips are composed where they are needed (eval.py).
"""

from __future__ import annotations

import argparse
import json
import random
from pathlib import Path

import numpy as np
from composing import compose, picture
from words import OBJECTS, all_labels, caption


def main() -> None:
    options = argparse.ArgumentParser(description="Compose captioned clips out of emoji artwork.")
    options.add_argument("--out", type=Path, required=True)
    options.add_argument("--each", type=int, default=24, help="clips of every object, motion and background")
    given = options.parse_args()
    given.out.mkdir(parents=True, exist_ok=True)
    pictures, draw = [picture(name) for name in OBJECTS], random.Random(0)
    labels = [label for label in all_labels(unseen=False) for _ in range(given.each)]
    np.save(given.out / "clips.npy", np.stack([compose(label, pictures, draw) for label in labels]))
    np.save(given.out / "labels.npy", np.array(labels))
    print(json.dumps({"clips": len(labels), "of": len(labels) // given.each, "for example": caption(labels[0])}))


if __name__ == "__main__":
    main()
