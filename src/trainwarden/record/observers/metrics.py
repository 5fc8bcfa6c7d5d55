"""What the script reports to its tracker: losses by name, so that they can be compared with those recorded.

Rules
-----
* A tracker is wrapped once the script has imported it, at the end of a step; it is never imported here.
* Told are values whose names say that they are the training loss. Of all other names the first few are told once, as
  not checked.
* A value is seen as the script hands it over. What code inside the tracker makes of it later is not seen.
"""

from __future__ import annotations

import functools
import math
import re
import sys
import threading
from collections.abc import Callable, Iterable
from typing import TYPE_CHECKING, Any, TypeAlias

from trainwarden.model import Reported, TrackerSeen
from trainwarden.record.observers.interface import Observer

if TYPE_CHECKING:
    from trainwarden.record.recorder import Recorder

MOST_NAMES = 16  # unchecked ones that are told
MOST_REPORTS = 4  # a step
_LOSS = re.compile(r"[^a-z0-9]+")
_WORDS = frozenset({"loss", "train", "training", "step", "batch", "iter", "mean", "avg", "running", "smooth", "ema"})

_Values: TypeAlias = "Iterable[tuple[str, Any]]"


def is_loss(name: str) -> bool:
    """Whether a metric's name says that it is the training loss, and nothing more special."""
    words = {word for word in _LOSS.split(name.lower()) if word}
    return "loss" in words and words <= _WORDS


def _of_log(args: tuple[Any, ...], kwargs: dict[str, Any]) -> tuple[_Values, Any]:
    """`log(metrics, step)`: trackio, wandb's function, mlflow's `log_metrics`."""
    given = args[0] if args else next((kwargs[k] for k in ("data", "metrics") if k in kwargs), {})
    return (given.items() if isinstance(given, dict) else ()), args[1] if len(args) > 1 else kwargs.get("step")


def _of_method(args: tuple[Any, ...], kwargs: dict[str, Any]) -> tuple[_Values, Any]:
    return _of_log(args[1:], kwargs)


def _of_metric(args: tuple[Any, ...], kwargs: dict[str, Any]) -> tuple[_Values, Any]:
    """`log_metric(key, value, step)`: mlflow."""
    named = [*args[:3], *(kwargs[k] for k in ("key", "value", "step")[len(args) :] if k in kwargs)]
    return ([(str(named[0]), named[1])] if len(named) > 1 else []), named[2] if len(named) > 2 else None


def _of_scalar(args: tuple[Any, ...], kwargs: dict[str, Any]) -> tuple[_Values, Any]:
    """`SummaryWriter.add_scalar(self, tag, scalar_value, global_step)`: TensorBoard."""
    keys = ("tag", "scalar_value", "global_step")
    named = [*args[1:4], *(kwargs[k] for k in keys[max(0, len(args) - 1) :] if k in kwargs)]
    return ([(str(named[0]), named[1])] if len(named) > 1 else []), named[2] if len(named) > 2 else None


_Reader: TypeAlias = Callable[[tuple[Any, ...], dict[str, Any]], tuple[_Values, Any]]
_PLACES: tuple[tuple[str, str, str, _Reader], ...] = (  # module, class, function, how its arguments are read
    ("trackio", "", "log", _of_log),
    ("wandb", "", "log", _of_log),
    ("wandb.sdk.wandb_run", "Run", "log", _of_method),
    ("mlflow", "", "log_metric", _of_metric),
    ("mlflow", "", "log_metrics", _of_log),
    ("torch.utils.tensorboard.writer", "SummaryWriter", "add_scalar", _of_scalar),
    ("tensorboardX.writer", "SummaryWriter", "add_scalar", _of_scalar),
)


class Metrics(Observer):
    """Listens at the trackers that the script uses."""

    name = "metrics"

    def __init__(self, recorder: Recorder) -> None:
        super().__init__(recorder)
        self._left = list(_PLACES)
        self._unchecked: set[str] = set()
        self._told = (-1, 0)  # step, reports told in it
        self._inside = threading.local()

    def joined(self) -> None:
        self.boundary()

    def boundary(self) -> None:
        """Wrap what the script has imported since."""
        if self._left:
            self._left = [place for place in self._left if not self._wrap(*place)]

    def _wrap(self, module: str, kind: str, function: str, read: _Reader) -> bool:
        found: Any = sys.modules.get(module)
        owner = getattr(found, kind, None) if kind and found is not None else found
        original = None if owner is None else vars(owner).get(function)
        if original is None or not callable(original):
            return False
        tracker = module.partition(".")[0] if kind != "SummaryWriter" else "tensorboard"

        @functools.wraps(original)
        def wrapper(*args: Any, **kwargs: Any) -> Any:
            outermost = not getattr(self._inside, "yes", False)  # one of a tracker's functions calls another
            if outermost:
                self._inside.yes = True
                self.recorder.guarded("metrics", lambda: self.reported(tracker, *read(args, kwargs)))
            try:
                return original(*args, **kwargs)
            finally:
                if outermost:
                    self._inside.yes = False

        setattr(owner, function, wrapper)
        return True

    def reported(self, tracker: str, values: _Values, at: Any) -> None:
        """The script hands these values to its tracker."""
        step = self.recorder.done
        for name, value in values:
            if not is_loss(str(name)):
                self._not_checked(tracker, str(name))
                continue
            said = float(value.detach() if hasattr(value, "detach") else value)
            told = self._told[1] if self._told[0] == step else 0
            self._told = step, told + 1
            if told < MOST_REPORTS and math.isfinite(said):
                own = at if isinstance(at, int) else -1
                self.recorder.note(Reported(step=step, tracker=tracker, name=str(name)[:200], value=said, own_step=own))

    def _not_checked(self, tracker: str, name: str) -> None:
        if name in self._unchecked or len(self._unchecked) >= MOST_NAMES:
            return
        self._unchecked.add(name)
        self.recorder.note(TrackerSeen(step=self.recorder.done, tracker=tracker, unchecked=name[:200]))
