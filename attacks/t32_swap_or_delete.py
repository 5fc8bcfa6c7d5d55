"""32, swap or delete: an older, a planted or a truncated checkpoint is what the job goes on from.

How an insider does it: write access to the checkpoints; then a kill, so that something is loaded. Work is lost, or the
job goes on from a state that nobody saved.

Precondition: write access to the checkpoints (K). Expected evidence: `checkpoints` (a recorded file is gone or cut),
`loaded` (a file that no record knows). Effect: steps made twice, other final weights, or a job that does not end well.
Benign twin: only the newest checkpoint is kept, as rotation does. Clean-up: checkpoints lie in the copied job.
"""

from __future__ import annotations

import json
import re

from attacks._shared.checkpoints import flip_last_bit
from attacks._shared.deliver import while_stopped
from trainwarden.redteam.interface import Act, Effect, Evidence, Moment, Technique, Twin, Variant, When
from trainwarden.redteam.place import Range


def delete_newest(place: Range) -> None:
    """The newest checkpoint is gone."""
    place.remove(place.newest)


def truncate_newest(place: Range) -> None:
    """The newest checkpoint's weights lose their second half."""
    place.edit(place.weights(place.newest), lambda data: data[: len(data) // 2])


def plant(place: Range) -> None:
    """A checkpoint that nobody saved, one step newer than the newest, with one bit of its weights turned."""
    old = place.newest
    step = int(re.findall(r"\d+", old.name)[-1])
    planted = place.copy(old, old.with_name(old.name.replace(f"{step:06d}", f"{step + 1:06d}")))
    flip_last_bit(place, place.weights(planted))
    place.edit(planted / "state.json", lambda data: json.dumps(json.loads(data) | {"step": step + 1}).encode())


def rotate(place: Range) -> None:
    """Only the newest checkpoint is kept."""
    for old in place.checkpoints[:-1]:
        place.remove(old)


TECHNIQUE = Technique(
    id="32",
    slug="swap-or-delete",
    title="checkpoints are deleted, planted or cut",
    needs="K",
    atlas="ATT&CK T1485",
    variants=(
        Variant(
            name="delete",
            does="the newest is gone, then a kill: an older one is loaded",
            acts=(while_stopped(delete_newest, step=0),),  # so late that there is an older one
            expects=(Evidence(When.LIVE, "checkpoints"),),
            effect=Effect.STEPS_TWICE,
            needs=("restarts",),
        ),
        Variant(
            name="plant",
            does="one that nobody saved, newer than all, then a kill",
            acts=(while_stopped(plant),),
            expects=(Evidence(When.LIVE, "loaded"),),
            effect=Effect.WEIGHTS,
            needs=("restarts", "safetensors", "state-json"),
        ),
        Variant(
            name="truncate",
            does="the newest loses half of its weights, then a kill: it cannot be loaded",
            acts=(while_stopped(truncate_newest),),
            expects=(Evidence(When.LIVE, "checkpoints"),),
            effect=Effect.ENDED,
            needs=("restarts",),
        ),
    ),
    twin=Twin(
        name="rotated checkpoints",
        does="only the newest checkpoint is kept",
        acts=(Act(Moment.STEP, rotate), Act(Moment.STEP, rotate, step=30)),
        needs=("restarts",),
    ),
)
