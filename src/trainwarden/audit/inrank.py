"""The auditor's half inside a replaying rank: a recorder that first puts the process into a recorded state.

Rules
-----
* It runs only in clean processes that the auditor starts; the live recorder never loads it.
* What the plan gives (snapshot, generators, loader positions, settings) is given and not checked by this replay;
  everything computed from it is.
* A failure here must not look like a match: it is told as a gap, and the auditor answers `Inconclusive`.
"""

from __future__ import annotations

import os
import weakref
from collections.abc import Sequence
from pathlib import Path
from types import ModuleType
from typing import Any

import msgspec
import torch

from trainwarden import wire
from trainwarden.audit import perturb
from trainwarden.audit.plan import Plan, decode
from trainwarden.audit.regroup import Regrouper
from trainwarden.audit.resuming import RESUME_ENV, Resumer
from trainwarden.audit.taking import Taker
from trainwarden.audit.trial import Trial
from trainwarden.model import StepRecord
from trainwarden.record import entropy, rng, snapshot, stages
from trainwarden.record import loaders as positions
from trainwarden.record import names as naming
from trainwarden.record.buckets import BucketHook
from trainwarden.record.fingerprint import own_part, stage_root
from trainwarden.record.observers import Observer
from trainwarden.record.recorder import Recorder

_PATIENCE = 7 * 86_400.0  # seconds that a recorded job may stand still while it is followed


class Replayer(Recorder):
    """Restores, replays, perturbs, captures and stops as its plan says."""

    def __init__(self) -> None:
        super().__init__()
        self.plan = Plan()
        self.taker: Taker | None = None
        self.trial: Trial | None = None
        self._state: dict[str, Any] = {}
        self._restored: dict[int, int] = {}  # loader number → ordinal of the recorded iterator it stands at
        self._followed: dict[int, int] = {}  # loader number → iterators begun since
        self._seen_iterators: weakref.WeakSet[Any] = weakref.WeakSet()
        place = os.environ.get(RESUME_ENV, "")
        self._resumer = Resumer(Path(place)) if place else None
        self._updating = 0  # optimizers that are moving now: one may move another in its step

    # ------------------------------------------------------------------ where we are

    @property
    def position(self) -> int:
        """The recorded index of the step being computed."""
        return self.plan.first - self.plan.warmup + (self.step if self._updating else self.done)

    @property
    def computing(self) -> int:
        """The same, but the last step lasts until each of its optimizers has moved (a model after its critic)."""
        begun = 0 < len(self.stepped) < self.plan.updates
        return self.plan.last if begun and self.position == self.plan.last + 1 else self.position

    def make_observers(self) -> list[Observer]:
        return []  # they tell a live run's detectors; a replay is compared by its stages

    def join(self) -> None:
        super().join()
        if self.joined is None or not self.joined.plan:
            raise RuntimeError("a replay without a plan")
        self.plan = decode(self.joined.plan)
        if self.plan.held:
            self.go_on()
        if self.plan.entropy:
            entropy.give_late(self.plan.entropy)
        if self.plan.complement:
            self._state = snapshot.read(Path(self.plan.complement))
        if self.plan.capture_step >= 0:
            self.taker = Taker(
                self,
                self.plan.capture,
                self.plan.capture_optimizer,
                samples=self.plan.capture_samples,
                seek=self.plan.seek,
            )
        if self.plan.perturb_step >= 0:
            self.trial = Trial(self, perturb.decode(self.plan.perturbations.encode()))

    def make_record(self, optimizer: Any, index: int, details: Any, skipped: bool) -> StepRecord:
        record = super().make_record(optimizer, index, details, skipped)
        return msgspec.structs.replace(record, step=self.plan.first - self.plan.warmup + self.step)

    def sampled(self, step: int) -> bool:
        return super().sampled(self.position)

    @property
    def turn(self) -> int:
        return self.position

    def check_continuity(self) -> None:
        if self.last_weights:
            super().check_continuity()
            return
        # In mid-run there is no record to go by: every weight is looked at and told.
        for optimizer, index in self.optimizers.items():
            seen = stages.digest_all(self.key, stages.weights(optimizer, self.names))
            self.gathered.before[index] = stage_root(self.key, seen.names, seen.digests)
            self.gathered.found[index] = {n: d.hex() for n, d in zip(seen.names, seen.digests, strict=True)}

    def share(self, optimizer: torch.optim.Optimizer) -> str:
        return ""  # for the watcher of a live run; a replay is compared by its stages

    @property
    def capturing(self) -> bool:
        return self.taker is not None and self.computing == self.plan.capture_step

    @property
    def perturbing(self) -> bool:
        return self.trial is not None and self.computing == self.plan.perturb_step

    # ------------------------------------------------------------------ starting

    def framework_loaded(self, module: ModuleType) -> None:
        if self._resumer is not None:
            self._resumer.framework_loaded(module)

    def _begins(self) -> None:
        if self._resumer is not None and self.done == 0:
            self._resumer.begins()

    def loader_making(self, loader: Any) -> None:
        if self._state:
            # With workers the first batches are drawn as the iterator is made: the epoch has to be there before.
            positions.set_epoch(loader, self._epoch_to_come(self.loaders.number(loader)))
        super().loader_making(loader)

    def loader_begins(self, iterator: Any) -> None:
        self._begins()
        if self._state and iterator not in self._seen_iterators:
            self._seen_iterators.add(iterator)
            self._follow(iterator)
        super().loader_begins(iterator)

    def _follow(self, iterator: Any) -> None:
        """Put a resumed loader's first iterator where it stood; give later ones the recorded epoch."""
        loader = self.loaders.loader_of(iterator)
        number = self.loaders.number(loader)
        if number not in self._restored and not self.plan.warmup:
            for state in self._state["loaders"]:
                if state["loader"] == number:
                    if not self.loaders.was_given(iterator):  # else the script has put it there by its own state
                        self.loaders.reposition(loader, iterator, state)
                    self._restored[number] = state["ordinal"]
            self.restore_generators()
        else:
            positions.set_epoch(loader, self._epoch_to_come(number))
            self._followed[number] = self._followed.get(number, 0) + 1

    def _epoch_to_come(self, number: int) -> int | None:
        """The recorded epoch of the next iterator of a loader, None where it is not known."""
        mine = [i for i, e in enumerate(self.plan.epochs) if e["loader"] == number]
        if self._restored.get(number) not in mine:
            return None
        at = mine.index(self._restored[number]) + self._followed.get(number, 0) + 1
        return self.plan.epochs[mine[at]]["epoch"] if at < len(mine) else None

    def restore_generators(self) -> None:
        rng.restore(self._state["rng"])
        for scaler, state in zip(list(self.scalers), self._state["scalers"], strict=False):
            scaler.load_state_dict(state)

    def boundary(self) -> None:
        super().boundary()
        plan = self.plan
        if plan.warmup and self.done == plan.warmup:
            self._substitute(plan.complement, plan.weights)
        elif plan.again and self.done == plan.warmup + 1:
            self._substitute(plan.again, plan.again_weights)

    def _substitute(self, complement: str, weights: str) -> None:
        """Put the recorded state in place of this process's own."""
        self._state = snapshot.read(Path(complement))
        full = snapshot.read(Path(weights))
        roots = [r for ref in self.roots if (r := ref()) is not None]
        buffers = dict(naming.buffers(roots))
        for name, saved in full["buffers"].items():
            own_part(buffers[name]).copy_(saved)
        for optimizer, index in self.optimizers.items():
            for p in stages.parameters(optimizer):
                own_part(p).copy_(full["weights"][self.names[id(p)]])
            _set_state(optimizer, full["state"][str(index)], self.names)
        for state in self._state["loaders"]:
            for number, loader, iterator in self.loaders.live():
                self._seen_iterators.add(iterator)
                if number == state["loader"]:
                    self._followed.pop(number, None)
                    self.loaders.reposition(loader, iterator, state, self.loaders.ahead(iterator))
                    self._restored[number] = state["ordinal"]
        self.restore_generators()
        self.last_weights.clear()

    # ------------------------------------------------------------------ during a step

    def forward(self, module: torch.nn.Module, args: Any, kwargs: Any) -> Any:
        if self.gathered.forwards == 0:
            if self.link is not None and self.link.dead:
                os._exit(1)  # the auditor is gone: nobody waits for what comes
            self._begins()
            if self.computing > self.plan.last >= 0:
                self.go_on()
            if self._state and not self.plan.warmup and not self._restored and self.done == 0:
                self.restore_generators()
        changed = None
        if self.perturbing and self.trial is not None:
            changed = self.trial.forward(module, args, kwargs)
        if self.capturing and self.taker is not None and self.gathered.forwards == 0:
            self.taker.before()
        seen_args, seen_kwargs = changed if changed is not None else (args, kwargs)
        super().forward(module, seen_args, seen_kwargs)
        if self.capturing and self.taker is not None:
            self.taker.forward(module, self.gathered.forwards - 1, seen_args, seen_kwargs)
        return changed

    def loader_gave(self, iterator: Any, batch: Any) -> Any:
        number = self.gathered.loaders
        if self.perturbing and self.trial is not None:
            batch = self.trial.batch(number, batch)
        if self.capturing and self.taker is not None:
            self.taker.batch(number, batch, self.loaders.loader_of(iterator))
        super().loader_gave(iterator, batch)
        return batch

    def bucket_hook(self, ddp: Any) -> BucketHook:
        hook = super().bucket_hook(ddp)
        if hook.ordered:
            return hook  # its sums do not depend on the layout of the buckets
        # DDP is usually made before the optimizer, and so before the plan is known: it is asked at each reduction.
        hook.reduce = Regrouper(self._recorded_layout, lambda p: self.names.get(id(p), "?"))
        return hook

    def _recorded_layout(self) -> Any:
        layouts = [layout for step, layout in self.plan.layouts if step <= self.position]
        return layouts[-1] if layouts and self.done >= self.plan.warmup else None

    def bucket(self, bucket: Any) -> None:
        if self.perturbing and self.trial is not None:
            self.trial.bucket(bucket)
        super().bucket(bucket)

    def own_gradients(self, parameters: Sequence[torch.Tensor], gradients: Sequence[torch.Tensor]) -> None:
        if self.capturing and self.taker is not None:
            self.taker.own_gradients(parameters, gradients)
        super().own_gradients(parameters, gradients)

    def before_update(self, optimizer: torch.optim.Optimizer, closure: bool) -> None:
        index = self.next_step(optimizer)
        self._updating += 1
        self._give_settings(optimizer, index)
        super().before_update(optimizer, closure)

    def gradients_ready(self, optimizer: torch.optim.Optimizer) -> None:
        trial = self.trial if self.perturbing else None
        if trial is not None:
            trial.before_update(optimizer)
        super().gradients_ready(optimizer)
        if self.capturing and self.taker is not None:
            self.taker.before_update(optimizer, self.optimizers[optimizer])
        if trial is not None:
            trial.at_update(optimizer)

    def _give_settings(self, optimizer: torch.optim.Optimizer, index: int) -> None:
        for group, recorded in zip(
            optimizer.param_groups, self.plan.hyper.get(f"{self.position}/{index}", ()), strict=False
        ):
            for key, value in recorded.items():
                if isinstance(value, int | float | bool | list) and key in group:
                    old = group[key]
                    if isinstance(old, torch.Tensor):
                        old.fill_(value)
                    else:
                        group[key] = tuple(value) if isinstance(old, tuple) and isinstance(value, list) else value

    def after_update(self, optimizer: torch.optim.Optimizer, skipped: bool = False) -> None:
        capturing, perturbing = self.capturing, self.perturbing
        self._updating -= 1
        if perturbing and self.trial is not None:
            self.trial.after_update(optimizer)
        if capturing and self.taker is not None:
            self.taker.after_update(optimizer, self.optimizers[optimizer])
        super().after_update(optimizer, skipped)
        if perturbing and self.trial is not None:
            self.trial.done(optimizer)

    def go_on(self) -> None:
        """The last step of the plan has run, or none may yet: wait for one that goes further, or end."""
        answer = self.link.ask(wire.NextUnit(), _PATIENCE) if self.plan.follow and self.link is not None else None
        if not isinstance(answer, wire.NewUnit) or not answer.plan:
            self.stop()
        else:
            self.plan = decode(answer.plan)

    def stop(self) -> None:
        """Everything asked for has run: say goodbye and leave without the script's own ending."""
        self.leave()
        os._exit(0)


def _set_state(optimizer: torch.optim.Optimizer, saved: dict[str, Any], names: dict[int, str]) -> None:
    for p in stages.parameters(optimizer):
        prefix = names[id(p)] + "/"
        entries = {k.removeprefix(prefix): v for k, v in saved.items() if k.startswith(prefix)}
        state = optimizer.state[p]
        for key in list(state):
            if key not in entries:
                del state[key]
        for key, value in entries.items():
            state[key] = _like(p, value) if isinstance(value, torch.Tensor) else value


def _like(parameter: torch.Tensor, value: torch.Tensor) -> torch.Tensor:
    """A copy of an entry of a parameter's state: a shard like it where it is one of its shape."""
    if own_part(parameter) is parameter or value.dim() == 0 or value.shape != own_part(parameter).shape:
        return value.clone()
    shard = torch.zeros_like(parameter, dtype=value.dtype)
    own_part(shard).copy_(value)
    return shard
