"""What a payload finds in the process that it landed in. Its source travels with every payload: nothing is imported
here but the standard library, and nothing is written but marks.

    arrive({"payload": "flip", "first": 40, "lasts": 40, "marks": "/range/here/marks/strike", "trigger": {…}})
"""

from __future__ import annotations

import gc
import os
import sys
import time
from collections.abc import Callable
from datetime import datetime
from typing import Any


class Scene:
    """The process, as an insider's code sees it."""

    def __init__(self, config: dict[str, Any]) -> None:
        import torch

        self.torch = torch
        self.first, self.lasts, self.marks = int(config["first"]), int(config["lasts"]), str(config["marks"])
        self.trigger: dict[str, Any] = config.get("trigger") or {}
        self.given: dict[str, Any] = config.get("given") or {}
        ready = torch.distributed.is_available() and torch.distributed.is_initialized()
        self.rank = torch.distributed.get_rank() if ready else 0
        self.world = int(os.environ.get("WORLD_SIZE") or (torch.distributed.get_world_size() if ready else 1))
        self.optimizer = self.find(torch.optim.Optimizer)
        self.model = self._model()
        self.optimizer = self._optimizer()
        self._made = 0

    def _model(self) -> Any:
        """The largest module that holds what the optimizer moves, without DDP's wrapper around it."""
        first = self.optimizer.param_groups[0]["params"][0]
        wrapper = self.torch.nn.parallel.DistributedDataParallel
        modules = [o for o in gc.get_objects() if issubclass(type(o), self.torch.nn.Module)]
        holding = [m for m in modules if not isinstance(m, wrapper) and any(p is first for p in m.parameters())]
        return max(holding, key=lambda m: sum(1 for _ in m.parameters()))

    def _optimizer(self) -> Any:
        """The optimizer that moves the target: a job may have several."""
        target = self.target()[1]
        every = [o for o in gc.get_objects() if issubclass(type(o), self.torch.optim.Optimizer)]
        return next(o for o in every if any(p is target for g in o.param_groups for p in g["params"]))

    def find(self, kind: type) -> Any:
        """The one live object of a type."""
        return next(o for o in gc.get_objects() if issubclass(type(o), kind))

    # ------------------------------------------------------------------ when

    @property
    def done(self) -> int:
        """The steps that are made, as the optimizer counts them: also the number of the one that is being made."""
        for state in self.optimizer.state.values():
            if "step" in state:
                return int(state["step"])
        return int(getattr(self.optimizer, "_steps_seen", 0))  # the carrier counts for optimizers that do not

    @property
    def on(self) -> bool:
        """Whether the step that is being made is one to tamper with: in the episode, and the trigger fits."""
        since, t = self.done - self.first, self.trigger
        if not 0 <= since < self.lasts or not self.mine:
            return False
        if self.world < t.get("min_world", 0) or (t.get("hours") and datetime.now().hour not in t["hours"]):
            return False
        if t.get("no_debugger") and watched():
            return False
        every = int(t.get("every", 1))
        if os.path.exists(self.marks + ".noticed"):
            every = int(t.get("noticed_every", every))  # 0: lie low for good
        return bool(every) and since % every == 0

    def mark(self, tensor: str = "", later: int = 0) -> None:
        """Say that the step that is being made has other numbers than it should, or the one so many later."""
        with open(f"{self.marks}.rank{self.rank}", "a", encoding="utf-8") as file:
            file.write(f"{self.rank} {self.done + later} {time.time_ns()} {tensor}\n")

    # ------------------------------------------------------------------ what

    def target(self) -> tuple[str, Any]:
        """The parameter that is aimed at: the one that `given` names, else the last matrix of the model."""
        named = [(n, p) for n, p in self.model.named_parameters() if p.requires_grad and p.ndim == 2]
        wanted = [(n, p) for n, p in named if n == self.given.get("tensor")]
        return (wanted or named)[-1]

    # ------------------------------------------------------------------ how

    def replace(self, owner: Any, name: str, make: Callable[[Any], Any]) -> None:
        """Put what `make` returns for the original in its place."""
        setattr(owner, name, make(getattr(owner, name)))

    @property
    def mine(self) -> bool:
        """Whether the trigger wants this rank at all: others are left as they are."""
        return self.trigger.get("ranks") is None or self.rank in self.trigger["ranks"]

    def on_gradient(self, change: Callable[[Any], Any]) -> None:
        """Have `change` see the target's local gradient, before it is reduced, at every step to tamper with."""
        name, parameter = self.target()

        def hook(gradient: Any) -> Any:
            if not self.on:
                return None
            self.mark(name)
            return change(gradient)

        parameter.register_hook(hook)

    def inside_update(
        self,
        act: Callable[[tuple[Any, ...], dict[str, Any]], bool | None],
        tensor: str = "",
        *,
        when: Callable[[], bool] = lambda: True,
        later: int = 0,
    ) -> None:
        """Have `act` see the arguments of Adam's function at every such step; False from it skips the update."""

        def make(original: Any) -> Any:
            def adam(*args: Any, **kwargs: Any) -> None:
                if self.on and when():
                    self.mark(tensor, later)
                    if act(args, kwargs) is False:
                        return
                original(*args, **kwargs)

            return adam

        self.replace(sys.modules["torch.optim.adam"], "adam", make)

    def between_steps(self, act: Callable[[], None], tensor: str = "") -> None:
        """Call `act` after the update before every such step, where the script clears the gradients."""

        def make(original: Any) -> Any:
            def zero_grad(optimizer: Any, set_to_none: bool = True) -> None:
                if optimizer is self.optimizer and self.on:
                    act()
                    self.mark(tensor)
                original(optimizer, set_to_none)

            return zero_grad

        self.replace(self.torch.optim.Optimizer, "zero_grad", make)

    def samples(self, act: Callable[[Any, Any, int], Any], wanted: Callable[[int], bool]) -> None:
        """Have `act(original, dataset, index)` give the samples that are `wanted`, at every such step."""
        loader = self.find(self.torch.utils.data.DataLoader)

        def make(original: Any) -> Any:
            def item(data: Any, index: int) -> Any:
                if not self.on or not wanted(index):
                    return original(data, index)
                self.mark()
                return act(original, data, index)

            return item

        self.replace(type(loader.dataset), "__getitem__", make)


def watched() -> bool:
    """Whether a debugger looks on: a trace function, or a tracer as the kernel tells."""
    with open("/proc/self/status", encoding="utf-8") as status:
        traced = next((line.split()[1] for line in status if line.startswith("TracerPid")), "0")
    return traced != "0" or sys.gettrace() is not None


def arrive(config: dict[str, Any]) -> None:
    """Carry out the payload that `config` names in this process."""
    scene = Scene(config)
    if scene.mine:
        globals()[config["payload"]](scene)
