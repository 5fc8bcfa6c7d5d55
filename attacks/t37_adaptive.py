"""37, adaptive: the insider knows the recorder, lies in it, and strikes only where nobody looks.

How an insider does it: a weight is edited between two steps, and the recorder in the process is made to say that it was
not. Triggers (big jobs only, no debugger, off-hours, after a meeting) combine with any other technique's payload. Or
the hooks are silenced, honest digests are given for a tampered gradient, the digests of an older step are sent again,
TrainWarden's own copy of itself is edited, or the process that guards the job is killed.

Precondition: code in the rank that knows TrainWarden (level 2), or its user's account. Expected evidence: in a replay
the first stage after the lie differs; live, code in memory that no seal lists (`patched`); a silenced recorder
(`recorder`); a log without an end, with which `verify` never passes.
Effect: other final weights, or evidence is missing.
Known miss: whoever switches the recorder off and, before the process ends, on again is found by what the optimizer
counts itself (`off-and-on`). With an optimizer that does not count, or with its counts set back, too, nothing but the
number of recorded steps tells, and what was saved later is not vouched for.
Benign twin: the job with another seed; nobody honest edits the recorder. Clean-up: none needed, the process ends.
"""

from __future__ import annotations

from typing import Any

from attacks._shared.against_recorder import (
    honest_digests,
    hooks_off,
    kill_supervisor,
    off_and_on,
    old_records,
    patch_package,
)
from attacks._shared.deliver import EARLY, foothold, while_stopped
from attacks._shared.evidence import BETWEEN, REDUCTION, UPDATE
from attacks._shared.payload import Payload, Trigger
from attacks._shared.seeded import OTHER_SEED
from trainwarden.redteam.interface import Act, Effect, Evidence, Moment, Technique, Variant, When


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


RANK_1 = Trigger(ranks=(1,))
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
            strikes=(*BETWEEN, "activations"),
        ),
        Variant(
            name="liar-in-big-jobs",
            does="the same only where two ranks or more train and no debugger looks on",
            acts=foothold(Payload(liar, lasts=1, trigger=Trigger(min_world=2, no_debugger=True))),
            expects=EXPECTS,
            effect=Effect.WEIGHTS,
            strikes=(*BETWEEN, "activations"),
            needs=("ranks",),
        ),
        Variant(
            name="hooks-off",
            does="the recorder's hooks are silenced on every rank, then a row × 1.05 before every step",
            acts=foothold(Payload(hooks_off)),
            expects=(Evidence(When.LIVE, "recorder"),),
            effect=Effect.WEIGHTS,
        ),
        Variant(
            name="off-and-on",
            does="the same, and just before each process ends its recorder is switched on again",
            acts=foothold(Payload(off_and_on)),
            expects=(Evidence(When.LIVE, "recorder"),),
            effect=Effect.WEIGHTS,
            needs=("adam",),
        ),
        Variant(
            name="honest-digests",
            does="rank 1 turns the sign of one gradient and gives the recorder the digest of the honest one",
            acts=foothold(Payload(honest_digests, trigger=RANK_1)),
            expects=(
                Evidence(When.AUDIT, "replay", "reduced_gradients", exact=("step",)),
                Evidence(When.LIVE, "patched", needed=False),
            ),
            effect=Effect.WEIGHTS,
            strikes=REDUCTION,
            needs=("ranks",),
        ),
        Variant(
            name="old-records",
            does="rank 1 turns the sign of one gradient and sends the digests of its last honest step again and again",
            acts=foothold(Payload(old_records, trigger=RANK_1)),
            expects=(
                Evidence(When.AUDIT, "replay", exact=("step", "rank")),
                Evidence(When.LIVE, "replicas", needed=False),
            ),
            effect=Effect.WEIGHTS,
            strikes=("batch", *REDUCTION),
            needs=("ranks",),
        ),
        Variant(
            name="own-package",
            does="TrainWarden's own copy halves a gradient on rank 1 after its digest; a kill makes the ranks load it",
            acts=(while_stopped(patch_package),),
            expects=(
                Evidence(When.LIVE, "patched"),
                Evidence(When.LIVE, "replicas", needed=False),
                Evidence(When.AUDIT, "replay", needed=False),
            ),
            effect=Effect.WEIGHTS,
            strikes=("reduced_gradients", *UPDATE),
            needs=("ranks", "restarts", "adam"),
        ),
        Variant(
            name="supervisor-killed",
            does="SIGKILL for the process that guards the job, which trains on without it",
            acts=(Act(Moment.STEP, kill_supervisor, step=-EARLY),),
            expects=(Evidence(When.VERIFY, "records"),),
            effect=Effect.EVIDENCE,
        ),
    ),
    twin=OTHER_SEED,
)
