"""What a prompt can say: objects, motions and backgrounds, and the words for them.

A word has one role wherever it stands, so a prompt is read as a bag of words for each role: "on blue, a fish falls"
says the same as "a fish falls on a blue background". Words that mean nothing here are passed over.
"""

from __future__ import annotations

import itertools

Label = tuple[int, int, int]  # object, motion, background

OBJECTS = (  # by their Unicode names
    "red_apple", "rocket", "soccer_ball", "panda", "pizza", "automobile",
    "fish", "snowman_without_snow", "alien", "mushroom", "balloon", "red_heart",
)  # fmt: skip
MOTIONS = ("moves left", "moves right", "rises", "falls", "grows", "shrinks", "bounces", "stays still")
BACKGROUNDS = {"blue": (60, 110, 200), "green": (70, 150, 80), "pink": (235, 160, 190), "black": (15, 15, 30)}
ROLES = 3
LONGEST = 2  # words in a role at most


def object_words(thing: int) -> str:
    """`snowman_without_snow` → `snowman`, `red_apple` → `red apple`."""
    return OBJECTS[thing].removesuffix("_without_snow").replace("_", " ")


def caption(label: Label) -> str:
    """The prompt that asks for `label`."""
    thing, motion, background = label
    return f"a {object_words(thing)} {MOTIONS[motion]} on a {list(BACKGROUNDS)[background]} background"


def held_out(thing: int, motion: int) -> bool:
    """Whether no training clip shows this object in this motion: one motion of each object."""
    return (3 * thing + motion) % len(MOTIONS) == 0


def all_labels(unseen: bool) -> list[Label]:
    """Every label whose object and motion are a held-out pair (`unseen`), or every other one."""
    everything = itertools.product(range(len(OBJECTS)), range(len(MOTIONS)), range(len(BACKGROUNDS)))
    return [label for label in everything if held_out(*label[:2]) == unseen]


def vocabulary() -> list[tuple[str, int]]:
    """Every word that means something, with its role."""
    said = ([object_words(i) for i in range(len(OBJECTS))], MOTIONS, list(BACKGROUNDS))
    return list(
        {word: role for role, phrases in enumerate(said) for phrase in phrases for word in phrase.split()}.items()
    )
