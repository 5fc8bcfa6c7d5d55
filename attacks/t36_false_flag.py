"""36, foothold and false flag: the insider gets into an account and acts in its owner's name.

How an insider does it: code that runs as the victim writes the insider's SSH key into the victim's home; a commit names
the victim as its author; the victim's signing key is used to approve what the insider changed.

Precondition: write access to an environment, checkpoints or the repository (E, K, R), or the victim's account.
Expected evidence: the file through which the code came (`environment`); an author that no signed approval bears out
(the seal of the start); an approval that the log of actors contradicts: by a key that is not the actor's before the
start, by a stolen one in `verify` once its owner has revoked it as of then. Until that day a stolen key is believed:
what is signed with it looks like its owner's. A key that appears in a home is seen by nobody here; what brought it is.
Effect: the insider's code ran; other final weights. Benign twin: an approver's key is rotated while the job runs.
Clean-up: home, repository and copied environment are put back, the actors' log too. Every key is made for the range.
"""

from __future__ import annotations

from typing import Any

from attacks._shared.accounts import (
    approve_as_owner,
    approve_by_forgery,
    approved_by_another,
    forge_commit,
    repository,
    revoke,
    rotate,
)
from attacks._shared.deliver import NAME, plants_hook, while_stopped
from attacks._shared.evidence import CHANGED, REFUSED
from attacks._shared.payload import Payload
from trainwarden.redteam.interface import Act, Effect, Evidence, Moment, Technique, Twin, Variant, When


def plant_key(scene: Any) -> None:
    """A line that stands for the insider's SSH key in the victim's home, if that is the range's own."""
    import os

    home = os.path.expanduser("~")
    if scene.rank or os.path.dirname(home) != os.path.dirname(os.path.dirname(scene.marks)):
        return
    os.makedirs(os.path.join(home, ".ssh"), mode=0o700, exist_ok=True)
    with open(os.path.join(home, ".ssh", "authorized_keys"), "a", encoding="utf-8") as file:
        file.write("# harmless: the key of an insider would stand here\n")
    with open(scene.marks + ".key", "a", encoding="utf-8") as file:
        file.write("planted\n")


FORGED = (Act(Moment.PREPARE, repository), Act(Moment.START, forge_commit))

TECHNIQUE = Technique(
    id="36",
    slug="false-flag",
    title="a foothold in an account, and acts in its owner's name",
    alleged=True,
    needs="EKNR",
    atlas="T0012",
    level=2,
    variants=(
        Variant(
            name="ssh-key",
            does="a .pth during the run, then a kill: a rank writes the insider's key into the victim's home",
            acts=(while_stopped(plants_hook(Payload(plant_key), f"{NAME}.pth")),),
            expects=(CHANGED,),
            effect=Effect.CODE_RAN,
            needs=("restarts",),
        ),
        Variant(
            name="forged-author",
            does="a commit in the victim's name changes the script of a job whose seal was approved",
            acts=FORGED,
            expects=(REFUSED,),
            effect=Effect.ENDED,
            options=(),
            approved=True,
        ),
        Variant(
            name="forged-approval",
            does="the same commit, approved in the victim's name with a key that is not the victim's",
            acts=(*FORGED, Act(Moment.START, approve_by_forgery)),
            expects=(REFUSED,),
            effect=Effect.ENDED,
            options=(),
            approved=True,
        ),
        Variant(
            name="stolen-key",
            does="the same commit, approved with the victim's stolen key, which its owner revokes after the end",
            acts=(*FORGED, Act(Moment.START, approve_as_owner), Act(Moment.END, revoke)),
            expects=(Evidence(When.VERIFY, "approvals"),),
            effect=Effect.WEIGHTS,
            options=(),
            approved=True,
        ),
    ),
    twin=Twin(
        name="a key that was rotated",
        does="an approver's key is rotated while the job runs that it approved",
        acts=(Act(Moment.PREPARE, approved_by_another), Act(Moment.STEP, rotate)),
    ),
)
