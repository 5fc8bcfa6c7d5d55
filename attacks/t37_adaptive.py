"""37, adaptive: the insider knows the recorder, lies in it, and strikes only where nobody looks.

How an insider does it: a weight is edited between two steps, and the recorder in the process is made to say that it was
not. Triggers (big jobs only, no debugger, off-hours, after a meeting) combine with any other technique's payload.

Precondition: code in the rank that knows TrainWarden (level 2). Expected evidence: in a replay the first stage after
the edit differs; live, code in memory that no seal lists (`patched`). Effect: other final weights.
Benign twin: the job with another seed; nobody honest edits the recorder. Clean-up: none needed, the process ends.
"""

from __future__ import annotations

from typing import Any

from attacks._shared.deliver import foothold
from attacks._shared.payload import Payload, Trigger
from attacks._shared.seeded import OTHER_SEED
from trainwarden.redteam.interface import Effect, Evidence, Technique, Variant, When


def liar(scene: Any) -> None:
    """One row × 1.05 between two steps, and the recorder is told the weights from before."""
    from trainwarden.record.recorder import Recorder

    name, parameter = scene.target()

    def make(original: Any) -> Any:
        def check_continuity(recorder: Any) -> None:
            if scene.done != scene.first:
                original(recorder)
                return
            from trainwarden.record.fingerprint import stage_root

            for index, (names, digests, _) in recorder.last_weights.items():
                recorder.gathered.before[index] = stage_root(recorder.key, names, digests)

        return check_continuity

    def act() -> None:
        with scene.torch.no_grad():
            parameter[0].mul_(1.05)

    scene.replace(Recorder, "check_continuity", make)
    scene.between_steps(act, name)


EXPECTS = (
    Evidence(When.AUDIT, "replay", "activations", exact=("step",)),
    Evidence(When.LIVE, "patched", needed=False),
)

TECHNIQUE = Technique(
    id="37",
    slug="adaptive",
    title="the insider knows the recorder and adapts",
    alleged=True,
    needs="EUK",
    atlas="T0097",
    level=2,
    variants=(
        Variant(
            name="liar",
            does="a weight edit on every rank, hidden from the recorder's own check",
            acts=foothold(Payload(liar, lasts=1)),
            expects=EXPECTS,
            effect=Effect.WEIGHTS,
        ),
        Variant(
            name="liar-in-big-jobs",
            does="the same only where two ranks or more train and no debugger looks on",
            acts=foothold(Payload(liar, lasts=1, trigger=Trigger(min_world=2, no_debugger=True))),
            expects=EXPECTS,
            effect=Effect.WEIGHTS,
            needs=("ranks",),
        ),
    ),
    twin=OTHER_SEED,
)
