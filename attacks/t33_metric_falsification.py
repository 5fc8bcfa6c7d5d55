"""33, metric falsification: what is reported to the tracker is not what was computed.

How an insider does it: the tracker's call is wrapped, and the loss it is given is a tenth smaller. Decisions rest on
it.

Precondition: code in the process (R), or write access to the tracker (L). Expected evidence: live, `metrics` compares
what the script reports with the recorded loss. Effect: the reported metric differs. Benign twin: approved code reports
the mean of the last steps from the start. Clean-up: the tracker's file lies in the copied job.
"""

from __future__ import annotations

from typing import Any

from attacks._shared.deliver import approved, foothold
from attacks._shared.payload import Payload, Trigger
from trainwarden.redteam.interface import Effect, Evidence, Technique, Twin, Variant, When


def smaller(scene: Any) -> None:
    """What is reported is a tenth smaller."""
    import sys

    def make(original: Any) -> Any:
        def log(values: Any, *args: Any, **kwargs: Any) -> Any:
            if scene.on:
                scene.mark()
                values = {name: value * 0.9 for name, value in values.items()}
            return original(values, *args, **kwargs)

        return log

    scene.replace(sys.modules["trackio"], "log", make)


def averaged(scene: Any) -> None:
    """What is reported is the mean of the last four values."""
    import sys

    last: list[float] = []

    def make(original: Any) -> Any:
        def log(values: Any, *args: Any, **kwargs: Any) -> Any:
            last.append(values["train/loss"])
            del last[:-4]
            return original({"train/loss": sum(last) / len(last)}, *args, **kwargs)

        return log

    scene.replace(sys.modules["trackio"], "log", make)


RANK_0 = Trigger(ranks=(0,))

TECHNIQUE = Technique(
    id="33",
    slug="metric-falsification",
    title="the reported metric is not the computed one",
    needs="RL",
    atlas="ATT&CK T1565.001",
    level=2,
    variants=(
        Variant(
            name="tracker",
            does="the loss given to the tracker is a tenth smaller than it is",
            acts=foothold(Payload(smaller, trigger=RANK_0)),
            expects=(Evidence(When.LIVE, "metrics"),),
            effect=Effect.METRIC,
            needs=("tracker",),
        ),
    ),
    twin=Twin(
        name="an averaged loss",
        does="approved code reports the mean of the last four losses from the start",
        acts=approved(Payload(averaged, trigger=RANK_0)),
        needs=("tracker",),
    ),
)
