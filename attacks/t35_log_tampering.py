"""35, log tampering: evidence is deleted or rewritten, or clocks are shifted so that times contradict.

How an insider does it: one rank's clock goes an hour wrong, so that its records do not fit those of others; or, with
the supervisor's account, the local store is edited after the end: bytes, a cut, another history under another key.

Precondition: access to the logs (L) or the node (N). Expected evidence: live, `clock`; afterwards `verify` (a log that
contradicts its own signed head, or is signed by another key). A log that was put back to an earlier state of itself
verifies as far as it goes and lacks the run's end, so `verify` never passes; that it was longer shows only where a
head was kept elsewhere. Effect: evidence is altered. Benign twin: the job with another seed (a clock that time
synchronisation slews is what every host has). Clean-up: the range puts its store back.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from attacks._shared.deliver import foothold
from attacks._shared.payload import Payload, Trigger
from attacks._shared.seeded import OTHER_SEED
from attacks._shared.stores import (
    cut_log,
    edit_details,
    edit_log,
    edit_object,
    edit_seal,
    rewrite_without_findings,
    roll_back,
)
from trainwarden.redteam.interface import Act, Effect, Evidence, Moment, Technique, Variant, When
from trainwarden.redteam.place import Range


def shift(scene: Any) -> None:
    """This rank's clock goes an hour wrong from the step on."""
    import time

    real_ns, real = time.time_ns, time.time

    def act(args: Any, kwargs: Any) -> None:
        time.time_ns = lambda: real_ns() - 3_600 * 10**9
        time.time = lambda: real() - 3_600

    scene.inside_update(act)


def at_rest(name: str, does: str, act: Callable[[Range], None], check: str) -> Variant:
    """A variant that edits the store after the end, and the check of `verify` that has to fail."""
    acts = (Act(Moment.END, act),)
    return Variant(name, does, acts=acts, expects=(Evidence(When.VERIFY, check),), effect=Effect.EVIDENCE, options=())


TECHNIQUE = Technique(
    id="35",
    slug="log-tampering",
    title="evidence is altered, clocks are shifted",
    needs="LN",
    atlas="ATT&CK T1685.006",
    level=2,
    variants=(
        Variant(
            name="clock",
            does="rank 1's clock is an hour behind",
            acts=foothold(Payload(shift, trigger=Trigger(ranks=(1,)), lasts=1)),
            expects=(Evidence(When.LIVE, "clock"),),
            effect=Effect.EVIDENCE,
            needs=("ranks", "adam"),
        ),
        at_rest("log-edited", "one bit in the middle of the log", edit_log, "log"),
        at_rest("log-cut", "the log loses its second half", cut_log, "log"),
        at_rest("rolled-back", "the log is put back to an earlier state of itself", roll_back, "records"),
        at_rest(
            "findings-erased", "a log without findings, under a key of the insider", rewrite_without_findings, "key"
        ),
        at_rest("details-edited", "one bit of the digests beside the log", edit_details, "details"),
        at_rest("seal-edited", "the seal says that it was made later", edit_seal, "seal"),
        at_rest("object-edited", "one bit of the stored list of sealed code", edit_object, "stored objects"),
    ),
    twin=OTHER_SEED,
)
