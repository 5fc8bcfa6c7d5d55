"""What a clip shows, read off its pixels by rules: object, motion, background. No model takes part in it.

* Background: of the four colours the one nearest to the median of the clip's edges.
* The object's pixels are those that differ from that colour. How their middle travels and how their number changes
  between first and last frame is the motion.
* Object: in every frame the smallest square around these pixels is compared with all pictures; the nearest one overall.

The rules read real clips right (`eval.py` measures it on the way); what they say about others is a lower bound.
"""

from __future__ import annotations

import numpy as np
from composing import picture
from PIL import Image
from words import BACKGROUNDS, MOTIONS, OBJECTS

DIFFERENT = 90  # summed over the three colours: then a pixel is the object's
LOOK = 16  # side of the squares that are compared
FEWEST = 20  # pixels of an object whose picture can be told
COLOURS = np.array(list(BACKGROUNDS.values()), dtype=float)


def square(shown: Image.Image, colour: tuple[int, int, int]) -> np.ndarray:
    """`shown` in the middle of a plain square of `colour`, as [LOOK, LOOK, 3]."""
    side = max(shown.size)
    canvas = Image.new("RGB", (side, side), colour)
    corner = ((side - shown.width) // 2, (side - shown.height) // 2)
    canvas.paste(shown, corner, shown if shown.mode == "RGBA" else None)
    return np.asarray(
        canvas.resize((LOOK, LOOK), Image.Resampling.BOX if side > LOOK else Image.Resampling.BILINEAR), dtype=float
    )


class Reader:
    """Holds how every object looks on every background."""

    def __init__(self) -> None:
        pictures = [picture(name) for name in OBJECTS]
        self.looks = [np.stack([square(p, colour) for p in pictures]) for colour in BACKGROUNDS.values()]

    def read(self, clip: np.ndarray) -> tuple[int, int, int]:
        """Object, motion and background that `clip` (uint8, [frames, height, width, 3]) shows; -1 where none is."""
        background = background_of(clip)
        mask = np.abs(clip - COLOURS[background]).sum(-1) > DIFFERENT
        return self.thing(clip, mask, background), motion_of(mask), background

    def thing(self, clip: np.ndarray, mask: np.ndarray, background: int) -> int:
        """The object whose picture is nearest to what `mask` holds, over all frames; -1: none."""
        distance = np.zeros(len(OBJECTS))
        for frame, own in zip(clip, mask, strict=True):
            ys, xs = np.nonzero(own)
            if len(xs) < FEWEST:
                continue
            cut = Image.fromarray(frame[ys.min() : ys.max() + 1, xs.min() : xs.max() + 1])
            seen = square(cut, list(BACKGROUNDS.values())[background])
            distance += ((self.looks[background] - seen) ** 2).mean((1, 2, 3))
        return int(distance.argmin()) if distance.any() else -1


def background_of(clip: np.ndarray) -> int:
    """The background whose colour is nearest to the median of the clip's edges."""
    edges = (clip[:, 0], clip[:, -1], clip[:, :, 0], clip[:, :, -1])
    middle = np.median(np.concatenate([edge.reshape(-1, 3) for edge in edges]), axis=0)
    return int(((COLOURS - middle) ** 2).sum(1).argmin())


def motion_of(mask: np.ndarray) -> int:
    """The motion of the pixels in `mask` [frames, height, width]; -1 if there is nothing in the first or last frame."""
    area = mask.sum((1, 2))
    if min(area[0], area[-1]) < 4:
        return -1
    heights, widths = np.arange(mask.shape[1]), np.arange(mask.shape[2])
    some = np.maximum(area, 1)
    xs, ys = mask.sum(1) @ widths / some, mask.sum(2) @ heights / some
    right, down, growth = xs[-1] - xs[0], ys[-1] - ys[0], area[-1] / area[0]
    rules = {
        "grows": growth > 2.2,
        "shrinks": growth < 0.45,
        "moves left": right < -6,
        "moves right": right > 6,
        "rises": down < -6,
        "falls": down > 6,
        "bounces": np.ptp(ys[area > 0]) > 5,
        "stays still": True,
    }
    return MOTIONS.index(next(motion for motion, holds in rules.items() if holds))
