"""31, state or metadata edit: moments, learning rate or step are altered, the weights are not.

How an insider does it: write access to shared checkpoints (a byte of the optimizer's file), or one line in memory.
Scanners and safe loaders pass it; the job goes on from a bad state.

Precondition: write access to the checkpoints (K), or code in the rank. Expected evidence: `checkpoints` before the
file is loaded; in memory `continuity`. Effect: other final weights.
Benign twin: a checkpoint is copied away and put back with the same bytes. Clean-up: checkpoints lie in the copied job.
"""

from __future__ import annotations

import json
import re
import struct
from typing import Any

from attacks._shared.checkpoints import PUT_BACK, flip_last_bit, pickle_changed
from attacks._shared.deliver import foothold, restart, while_stopped
from attacks._shared.payload import Payload
from trainwarden.errors import CannotDecide
from trainwarden.redteam.interface import Act, Effect, Evidence, Moment, Technique, Variant, When
from trainwarden.redteam.place import Range

# BINUNICODE "lr", perhaps put into the memo (BINPUT, LONG_BINPUT), then BINFLOAT: pickletools.
_LR = re.compile(rb"X\x02\x00\x00\x00lr(?:q.|r....)?G(.{8})", re.DOTALL)


def scale_moment(scene: Any) -> None:
    """The second moments of the target × 4 between two steps, alike on every rank."""
    name, parameter = scene.target()
    scene.between_steps(lambda: scene.optimizer.state[parameter]["exp_avg_sq"].mul_(4.0), f"{name}/exp_avg_sq")


def lower_lr(pickle: bytes) -> bytes:
    """The pickle of an optimizer's state with its learning rate × 0.7: a float behind the word "lr"."""
    found = _LR.search(pickle)
    if found is None:
        raise CannotDecide("no learning rate in the checkpoint's pickle", hint="its optimizer keeps it elsewhere")
    (lr,) = struct.unpack(">d", found[1])
    return pickle[: found.start(1)] + struct.pack(">d", lr * 0.7) + pickle[found.end(1) :]


def edit_lr(place: Range) -> None:
    """The learning rate in the newest checkpoint's pickle; its times are put back."""
    place.edit(place.newest, lambda data: pickle_changed(data, lower_lr), keep_times=True)


def edit_step(place: Range) -> None:
    """The newest checkpoint says that three more steps were made: their data is never seen."""
    file = place.newest / "state.json"
    state = json.loads(file.read_bytes())
    place.edit(file, lambda _: json.dumps(state | {"step": state["step"] + 3}).encode(), keep_times=True)


def edit_optimizer(place: Range) -> None:
    """One bit of the newest checkpoint's optimizer state."""
    flip_last_bit(place, place.newest / "optimizer.safetensors")


TECHNIQUE = Technique(
    id="31",
    slug="state-edit",
    title="optimizer state is edited in a checkpoint or in memory",
    needs="K",
    atlas="T0018.000",
    variants=(
        Variant(
            name="checkpoint",
            does="one bit of the newest checkpoint's optimizer state, then a kill so that it is loaded",
            acts=(Act(Moment.STEP, edit_optimizer), Act(Moment.STEP, restart)),
            expects=(Evidence(When.LIVE, "checkpoints"),),
            effect=Effect.WEIGHTS,
            needs=("restarts", "optimizer-file"),
        ),
        Variant(
            name="lr",
            does="the learning rate in the newest checkpoint × 0.7, then a kill so that it is loaded",
            acts=(while_stopped(edit_lr),),
            expects=(Evidence(When.LIVE, "checkpoints"),),
            effect=Effect.WEIGHTS,
            needs=("restarts", "pickle", "adam"),
        ),
        Variant(
            name="step",
            does="the newest checkpoint's step + 3, then a kill: the data of three steps is never seen",
            acts=(while_stopped(edit_step),),
            expects=(Evidence(When.LIVE, "checkpoints"),),
            effect=Effect.WEIGHTS,
            needs=("restarts", "state-json"),
        ),
        Variant(
            name="memory",
            does="the second moments of one matrix × 4 between two steps, alike on every rank",
            acts=foothold(Payload(scale_moment, lasts=1)),
            expects=(Evidence(When.LIVE, "continuity"), Evidence(When.LIVE, "update-rule", needed=False)),
            effect=Effect.WEIGHTS,
            strikes=("optimizer_state",),
            needs=("adam",),
            level=2,
        ),
    ),
    twin=PUT_BACK,
)
