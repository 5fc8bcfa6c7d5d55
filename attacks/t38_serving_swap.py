"""38, serving swap: another model is served than the one that was approved, or its inputs are changed on the way.

How an insider does it: the registry's tag is moved to another checkpoint after the approval; the approved file is
edited where it lies; a file beside the model decides how inputs are prepared, and nobody hashes it.

Precondition: write access to the registry or the serving host (S). Expected evidence: a served file that differs from
the recorded checkpoint fails in `verify`. A moved tag and an edited transform are the gate's to refuse (`promote`, and
a server that verifies what it reads: tests/gate, tests/serving). In the range nothing is cleared, so that both are
"not checked" here, and the outcome says so. Effect: something else is served than was approved. Benign twin: the
approved checkpoint is copied to the serving folder. Clean-up: all of it lies in the copied job.
"""

from __future__ import annotations

import hashlib
import json
from pathlib import Path

from attacks._shared.checkpoints import flip_last_bit
from trainwarden.redteam.interface import Act, Effect, Evidence, Moment, Technique, Twin, Variant, When
from trainwarden.redteam.place import Range


def promote(place: Range) -> None:
    """The newest checkpoint is approved: a registry names it and its digest, and a transform lies beside it."""
    file = place.weights(place.newest)
    approved = {"production": str(file), "sha256": digest(file)}
    place.write(serving(place) / "registry.json", json.dumps(approved))
    place.write(serving(place) / "transform.json", json.dumps({"lower_case": False, "scale": 1.0}))


def retag(place: Range) -> None:
    """The tag is moved to the oldest checkpoint; the digest beside it is corrected, too."""
    other = place.weights(place.checkpoints[0])
    before = json.loads((serving(place) / "registry.json").read_text())
    place.write(serving(place) / "registry.json", json.dumps({"production": str(other), "sha256": digest(other)}))
    if digest(other) != before["sha256"]:
        place.note("the tag names other weights than those approved")


def edit_transform(place: Range) -> None:
    """What prepares the inputs scales them by a tenth."""
    place.write(serving(place) / "transform.json", json.dumps({"lower_case": False, "scale": 0.1}))
    place.note("inputs are prepared otherwise than approved")


def edit_in_place(place: Range) -> None:
    """One bit of the approved weights, where they lie; times are put back."""
    approved = json.loads((serving(place) / "registry.json").read_text())
    file = Path(approved["production"])
    flip_last_bit(place, file)
    if digest(file) != approved["sha256"]:
        place.note("the served weights are not those approved")


def deploy(place: Range) -> None:
    """The approved checkpoint is copied to the serving folder, as a deployment does."""
    place.copy(place.newest, serving(place) / place.newest.name)


def serving(place: Range) -> Path:
    """The folder that the serving host reads."""
    return place.job / "serving"


def digest(file: Path) -> str:
    """SHA-256, as registries name files."""
    return hashlib.sha256(file.read_bytes()).hexdigest()


PROMOTED = Act(Moment.END, promote)
BY_GATE = Evidence(When.GATE, "gate")

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
            expects=(Evidence(When.VERIFY, "checkpoints"), Evidence(When.GATE, "gate", needed=False)),
            effect=Effect.SERVED,
        ),
        Variant(
            name="retag",
            does="the registry's tag is moved to an older checkpoint after the approval",
            acts=(PROMOTED, Act(Moment.END, retag)),
            expects=(BY_GATE,),
            effect=Effect.SERVED,
        ),
        Variant(
            name="transform",
            does="the file that says how inputs are prepared is edited after the approval",
            acts=(PROMOTED, Act(Moment.END, edit_transform)),
            expects=(BY_GATE,),
            effect=Effect.SERVED,
        ),
    ),
    twin=Twin(
        name="a deployment",
        does="the approved checkpoint is copied to the serving folder with the same bytes",
        acts=(PROMOTED, Act(Moment.END, deploy)),
    ),
)
