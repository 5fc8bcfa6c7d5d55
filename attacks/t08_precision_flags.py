"""08, precision and communication flags: settings of the process that nobody logs are changed in mid-run.

How an insider does it: one line in a shared helper lets matrix products use fewer bits, or switches determinism off.

Precondition: code in the process (user's environment). Expected evidence: live, `precision` names the setting.
Effect: the insider's code runs; on a CPU the flags change no result, on a GPU the last bits drift.
Benign twin: approved code sets the same flags before the first step. Clean-up: none needed, the process ends.
"""

from __future__ import annotations

from typing import Any

from attacks._shared.deliver import approved, foothold
from attacks._shared.payload import Payload
from trainwarden.redteam.interface import Effect, Evidence, Technique, Twin, Variant, When


def fewer_bits(scene: Any) -> None:
    """Matrix products may use fewer bits."""

    def act(args: Any, kwargs: Any) -> None:
        scene.torch.set_float32_matmul_precision("medium")
        scene.torch.backends.cuda.matmul.allow_tf32 = True

    scene.inside_update(act)


def fewer_bits_at_once(scene: Any) -> None:
    """The same when the payload arrives, before the first update."""
    scene.torch.set_float32_matmul_precision("medium")


TECHNIQUE = Technique(
    id="08",
    slug="precision-flags",
    title="precision and communication settings are changed",
    needs="U",
    atlas="T0018.000",
    level=2,
    variants=(
        Variant(
            name="matmul",
            does="set_float32_matmul_precision and TF32 inside one update",
            acts=foothold(Payload(fewer_bits, lasts=1)),
            expects=(Evidence(When.LIVE, "precision"),),
            effect=Effect.CODE_RAN,
            needs=("adam",),
        ),
    ),
    twin=Twin(
        name="set by the script before it trains",
        does="approved code sets the flag before the first update",
        acts=approved(Payload(fewer_bits_at_once)),
    ),
)
