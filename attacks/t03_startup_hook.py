"""03, startup hook: a `.pth` or `sitecustomize.py` that every Python of the environment runs at its start.

How an insider does it: one file of two lines in a shared site-packages. It waits until the process trains and then
lowers the learning rate inside the update; the optimizer's settings stay as they are.

Precondition: write access to the environment (E, U). Expected evidence: before the start where the seal is approved
(the environment is not what was approved); during a run `environment` names the file, before a restarted rank loads
it. Under the default policy the restart is refused. Effect: the insider's code runs, other final weights.
Benign twin: a package is installed again over itself with equal bytes. Clean-up: the range puts the environment back.
"""

from __future__ import annotations

from attacks._shared.deliver import before_start, startup_hook
from attacks._shared.evidence import CHANGED, REFUSED, UPDATE
from attacks._shared.payload import Payload
from attacks._shared.reinstall import REINSTALLED
from attacks.t18_lr_drift import lower_lr
from trainwarden.redteam.interface import Effect, Evidence, Technique, Variant, When

PAYLOAD = Payload(lower_lr, lasts=1_000_000)

TECHNIQUE = Technique(
    id="03",
    slug="startup-hook",
    title="a startup hook in the environment",
    needs="EU",
    atlas="ATT&CK T1546.018",
    variants=(
        Variant(
            name="pth",
            does="a .pth during the run, then a kill: the restarted ranks run it (policy: alert)",
            acts=startup_hook(PAYLOAD),
            expects=(
                CHANGED,
                Evidence(When.LIVE, "update-rule", needed=False),
                Evidence(When.AUDIT, "replay", needed=False),
            ),
            effect=Effect.WEIGHTS,
            strikes=UPDATE,
            needs=("restarts", "adam"),
        ),
        Variant(
            name="sitecustomize",
            does="the same as sitecustomize.py",
            acts=startup_hook(PAYLOAD, "sitecustomize.py"),
            expects=(
                CHANGED,
                Evidence(When.LIVE, "update-rule", needed=False),
                Evidence(When.AUDIT, "replay", needed=False),
            ),
            effect=Effect.WEIGHTS,
            strikes=UPDATE,
            needs=("restarts", "adam"),
        ),
        Variant(
            name="pth-refused",
            does="the same .pth under the default policy: no rank starts in a changed environment",
            acts=startup_hook(PAYLOAD),
            expects=(CHANGED,),
            effect=Effect.ENDED,
            options=(),
            needs=("restarts",),
        ),
        Variant(
            name="before-start",
            does="the .pth is there before the start of a job whose seal was approved",
            acts=before_start(PAYLOAD),
            expects=(REFUSED,),
            effect=Effect.ENDED,
            options=(),
            approved=True,
        ),
    ),
    twin=REINSTALLED,
)
