"""The ways in which an insider's code gets into a rank of any job, as acts. None of them changes the user's script.

* `foothold`: a sleeper was sealed and approved with the environment (a back door that two people overlooked); it runs a
  payload that no seal lists. What is found is then the effect, at an exact step.
* `startup_hook`: a file that Python runs at its start is put into the environment during the run; a killed rank loads
  it.
* `before_start`: the same, between the approval of the seal and the start.
* `approved`: the code was sealed and approved, and does the same from the start. For twins: nobody hides anything.
"""

from __future__ import annotations

import json
import signal
import time
from collections.abc import Callable

from attacks._shared.carrier import approved_module, carrier, sleeper
from attacks._shared.payload import Payload
from trainwarden.redteam.interface import Act, Moment
from trainwarden.redteam.place import Range

NAME = "_warmcache"
EARLY = 10  # steps before the workload's first, so that quick jobs do not end before the strike
_LEISURE = 1.0  # seconds


def foothold(payload: Payload) -> tuple[Act, ...]:
    """A sealed sleeper, and a strike that it finds `lead` steps before the payload acts."""

    def plant(place: Range) -> None:
        plant_module(place, sleeper(place))

    def strike(place: Range) -> None:
        told = {"text": payload.text(), "config": payload.config(place)}
        place.write(place.strike, json.dumps(told))

    return Act(Moment.PREPARE, plant), Act(Moment.STEP, strike, step=payload.delay, ahead=True)


def startup_hook(payload: Payload, name: str = f"{NAME}.pth") -> tuple[Act, ...]:
    """A startup hook put into the environment at the step, then a kill, so that the restarted ranks run it."""
    return Act(Moment.STEP, plants_hook(payload, name)), Act(Moment.STEP, restart)


def before_start(payload: Payload, name: str = f"{NAME}.pth") -> tuple[Act, ...]:
    """A startup hook put into the environment after its seal was approved. For variants that are `approved`."""
    return (Act(Moment.START, plants_hook(payload, name)),)


def approved(payload: Payload) -> tuple[Act, ...]:
    """The same code as a sealed file of the environment, at work from the first forward pass on."""

    def plant(place: Range) -> None:
        plant_module(place, approved_module(place, payload))

    return (Act(Moment.PREPARE, plant),)


def plants_hook(payload: Payload, name: str) -> Callable[[Range], None]:
    """Write a `.pth` with an import line and its module, or a module that Python imports by itself."""

    def plant(place: Range) -> None:
        if name.endswith(".pth"):
            plant_module(place, carrier(place, payload), name.removesuffix(".pth"))
        else:
            place.write(place.site / name, carrier(place, payload))

    return plant


def plant_module(place: Range, text: str, name: str = NAME) -> None:
    """A module in site-packages and the `.pth` that imports it in every Python of the environment."""
    place.write(place.site / f"{name}.py", text)
    place.write(place.site / f"{name}.pth", f"import {name}\n")


def while_stopped(act: Callable[[Range], None], step: int = -EARLY) -> Act:
    """Done at leisure, some steps early: the ranks are stopped, `act` is done, one rank is killed and all start again.

    A stopped job cannot run past the strike, and what it saved last is recorded by the time that it is altered.
    """

    def do(place: Range) -> None:
        ranks = place.workers()
        for pid in ranks.values():
            place.signal(pid, signal.SIGSTOP)
        try:
            time.sleep(_LEISURE)
            act(place)
            if ranks:
                place.signal(ranks[max(ranks)])
        finally:
            for pid in ranks.values():
                place.signal(pid, signal.SIGCONT)

    return Act(Moment.STEP, do, step=step)


def restart(place: Range) -> None:
    """SIGKILL for one rank; its launcher starts all of them again."""
    place.kill_rank(max(place.workers(), default=0))
