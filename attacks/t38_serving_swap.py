"""38, serving swap: another model is served than the one that was approved, or its inputs are changed on the way.

How an insider does it: the registry's tag is moved to another checkpoint after the approval; the approved file is
edited where it lies; a file beside the model decides how inputs are prepared, and nobody hashes it.

Precondition: write access to the registry or the serving host (S). Expected evidence: the gate's. The owner audited,
cleared and promoted the checkpoint; `promote` then refuses what the registry names, and a server of the name
(`trainwarden.serving`) goes on answering with the approved bytes. An edited file that was recorded fails in `verify`.
Effect: something else is served than was approved, where a host believes the registry. Benign twin: the approved
checkpoint is copied to the serving folder. Clean-up: all of it lies in the copied job and the range's store.
"""

from __future__ import annotations

import json
from pathlib import Path

from attacks._shared.checkpoints import flip_last_bit
from trainwarden.redteam.gated import approve, digest_of, register, registered
from trainwarden.redteam.interface import Act, Effect, Evidence, Moment, Technique, Twin, Variant, When
from trainwarden.redteam.place import Range

TRANSFORM = "transform.json"


def prepare(place: Range) -> None:
    """The job's repository says how inputs are prepared; that is sealed with its code."""
    place.write(place.job / TRANSFORM, json.dumps({"lower_case": False, "scale": 1.0}))


def promote(place: Range) -> None:
    """The newest checkpoint is approved where it lies."""
    approve(place, place.newest)


def promote_with_transform(place: Range) -> None:
    """The newest checkpoint is approved together with the file that says how its inputs are prepared."""
    folder = serving(place) / "approved"
    if place.newest.is_dir():
        place.copy(place.newest, folder)
    else:
        place.copy(place.newest, folder / place.newest.name)
    place.copy(place.job / TRANSFORM, folder / TRANSFORM)
    approve(place, folder)


def retag(place: Range) -> None:
    """The tag is moved to the oldest checkpoint; the digest beside it is corrected, too."""
    approved, other = registered(place), place.checkpoints[0]
    register(place, other)
    if digest_of(other) != digest_of(approved):
        place.note("the tag names other weights than those approved")


def edit_transform(place: Range) -> None:
    """What prepares the inputs scales them by a tenth."""
    place.edit(registered(place) / TRANSFORM, lambda text: text.replace(b"1.0", b"0.1"), keep_times=True)
    place.note("inputs are prepared otherwise than approved")


def edit_in_place(place: Range) -> None:
    """One bit of the approved weights, where they lie; times are put back."""
    approved = registered(place)
    before = digest_of(approved)
    flip_last_bit(place, place.weights(approved))
    if digest_of(approved) != before:
        place.note("the served weights are not those approved")


def deploy(place: Range) -> None:
    """The approved checkpoint is copied to the serving folder, as a deployment does, and the registry says so."""
    register(place, place.copy(place.newest, serving(place) / place.newest.name))


def serving(place: Range) -> Path:
    """The folder that the serving host reads."""
    return place.job / "serving"


PROMOTED = Act(Moment.END, promote)
BY_GATE = (Evidence(When.GATE, "promote"), Evidence(When.GATE, "serving"))

TECHNIQUE = Technique(
    id="38",
    slug="serving-swap",
    title="another model is served than was approved",
    needs="S",
    atlas="T0010.003",
    variants=(
        Variant(
            name="in-place",
            does="one bit of the approved checkpoint after the approval; its times are put back",
            acts=(PROMOTED, Act(Moment.END, edit_in_place)),
            expects=(Evidence(When.VERIFY, "checkpoints"), *BY_GATE),
            effect=Effect.SERVED,
        ),
        Variant(
            name="retag",
            does="the registry's tag is moved to an older checkpoint after the approval",
            acts=(PROMOTED, Act(Moment.END, retag)),
            expects=BY_GATE,
            effect=Effect.SERVED,
        ),
        Variant(
            name="transform",
            does="the file that says how inputs are prepared is edited after the approval",
            acts=(
                Act(Moment.PREPARE, prepare),
                Act(Moment.END, promote_with_transform),
                Act(Moment.END, edit_transform),
            ),
            expects=BY_GATE,
            effect=Effect.SERVED,
        ),
    ),
    twin=Twin(
        name="a deployment",
        does="the approved checkpoint is copied to the serving folder with the same bytes",
        acts=(PROMOTED, Act(Moment.END, deploy)),
    ),
)
