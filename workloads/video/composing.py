"""Composing clips: a picture on a plain background, moved by a line of physics. Nothing here was ever filmed.

Pictures: the emoji artwork of Debian's `fonts-noto-color-emoji` (SIL OFL 1.1), drawn by Pillow.
Names: PyPI `emoji` (BSD).
"""

from __future__ import annotations

import math
import random
from collections.abc import Iterator
from pathlib import Path

import emoji
import numpy as np
from PIL import Image, ImageDraw, ImageFont
from words import BACKGROUNDS, MOTIONS, Label

FONT = Path("/usr/share/fonts/truetype/noto/NotoColorEmoji.ttf")
STRIKE = 109  # the one size, in pixels, that the font has pictures of
FRAMES, SIZE = 8, 32
FINER = 4  # frames are composed this many times larger, then averaged down


def picture(name: str) -> Image.Image:
    """The artwork of the emoji that Unicode calls `name`, cut to what is not transparent.

    Raises:
        SystemExit: the font is not installed, or there is no such emoji.
    """
    sign = emoji.emojize(f":{name}:")
    if sign.startswith(":"):
        raise SystemExit(f"error: PyPI emoji knows no {name}")
    try:
        font = ImageFont.truetype(FONT, STRIKE)
    except OSError as e:
        raise SystemExit(f"error: cannot draw with {FONT}: {e}\nhint: apt-get install fonts-noto-color-emoji") from e
    canvas = Image.new("RGBA", (160, 160))
    ImageDraw.Draw(canvas).text((10, 10), sign, font=font, embedded_color=True)
    return canvas.crop(canvas.getbbox())


def path(motion: str, draw: random.Random) -> Iterator[tuple[float, float, float]]:
    """Yield middle (x, y) and longest side of the object in each frame, in pixels."""
    x, y, side = draw.uniform(12, 20), draw.uniform(12, 20), draw.uniform(13, 16)
    for frame in range(FRAMES):
        u = frame / (FRAMES - 1)  # time, from 0 to 1
        away, back = 8 + 16 * u, 24 - 16 * u
        match motion:
            case "moves left":
                yield back, y, side
            case "moves right":
                yield away, y, side
            case "rises":
                yield x, back, side
            case "falls":
                yield x, away, side
            case "grows":
                yield 16, 16, 7 + 13 * u
            case "shrinks":
                yield 16, 16, 20 - 13 * u
            case "bounces":
                yield x, 23 - 14 * abs(math.sin(2 * math.pi * u)), side
            case _:
                yield x, y, side


def frame(shown: Image.Image, colour: tuple[int, int, int], x: float, y: float, side: float) -> np.ndarray:
    """One frame [SIZE, SIZE, 3]: `shown` around (x, y) on a plain colour, its longest side `side` pixels."""
    scale = side * FINER / max(shown.size)
    width, height = (max(1, round(length * scale)) for length in shown.size)
    small = shown.resize((width, height), Image.Resampling.LANCZOS)
    canvas = Image.new("RGB", (SIZE * FINER, SIZE * FINER), colour)
    canvas.paste(small, (round(x * FINER - width / 2), round(y * FINER - height / 2)), small)
    return np.asarray(canvas.resize((SIZE, SIZE), Image.Resampling.BOX))


def compose(label: Label, pictures: list[Image.Image], draw: random.Random) -> np.ndarray:
    """A clip [FRAMES, SIZE, SIZE, 3] that shows what `label` says."""
    thing, motion, background = label
    colour = list(BACKGROUNDS.values())[background]
    return np.stack([frame(pictures[thing], colour, *place) for place in path(MOTIONS[motion], draw)])
