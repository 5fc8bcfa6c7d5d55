"""06, path shadowing: another module of the same name is found first.

How an insider does it: a folder is put on PYTHONPATH, or a file beside the training script, with a module that PyTorch
imports early. It does its work and then becomes the module that it stands for, so nothing breaks.

Precondition: write access to the user's launcher or folder (U). Expected evidence: an approved job is not started (the
variable, or the new file in the code, is not what was approved); a file that appears while the job runs is told by
`environment` before a restarted rank imports it. Effect: the insider's code runs.
Benign twin: a note and a folder of results are put beside the script. Clean-up: the job is a copy.
"""

from __future__ import annotations

from pathlib import Path

from attacks._shared.deliver import restart
from attacks._shared.evidence import CHANGED, REFUSED
from attacks._shared.source import STEP, script_with
from trainwarden.redteam.interface import Act, Effect, Moment, Technique, Twin, Variant
from trainwarden.redteam.place import Range

MODULE = "typing_extensions"  # torch imports it early, and it is one file
_SHADOW = """\
import importlib.util, os, time
with open({marks!r}, "a") as file:
    file.write("%d a shadow of {module} was imported\\n" % time.time_ns())
_spec = importlib.util.spec_from_file_location(__name__, {real!r})
_spec.loader.exec_module(__import__("sys").modules[__name__])
"""


def shadow(place: Range, folder: Path) -> None:
    """A module in `folder` that marks its import and becomes the real one."""
    real = str(place.site / f"{MODULE}.py")
    place.write(folder / f"{MODULE}.py", _SHADOW.format(marks=str(place.marks / "acts"), module=MODULE, real=real))


def on_path(place: Range) -> None:
    """By PYTHONPATH."""
    shadow(place, place.home / "lib")
    place.added["PYTHONPATH"] = str(place.home / "lib")


def beside_script(place: Range) -> None:
    """Beside the script, whose folder comes first."""
    shadow(place, script_with(place, STEP).parent)


def leave_notes(place: Range) -> None:
    """Files that nobody imports."""
    place.write(script_with(place, STEP).parent / "NOTES.md", "tried a larger batch\n")
    place.write(place.job / "results" / "old.csv", "1,2\n")


TECHNIQUE = Technique(
    id="06",
    slug="path-shadowing",
    title="another module of the same name is found first",
    needs="U",
    atlas="ATT&CK T1574.006",
    variants=(
        Variant(
            name="pythonpath",
            does="PYTHONPATH is set for a job whose seal was approved",
            acts=(Act(Moment.START, on_path),),
            expects=(REFUSED,),
            effect=Effect.ENDED,
            options=(),
            approved=True,
        ),
        Variant(
            name="beside-script",
            does="a module beside the script appears while the job runs; a kill makes the ranks import it",
            acts=(Act(Moment.STEP, beside_script), Act(Moment.STEP, restart)),
            expects=(CHANGED,),
            effect=Effect.CODE_RAN,
            needs=("restarts",),
        ),
    ),
    twin=Twin(
        name="notes beside the script",
        does="a text file and a folder of results appear while the job runs",
        acts=(Act(Moment.STEP, leave_notes),),
    ),
)
