"""The recorder inside a rank: gathers what a step did, stage by stage, and tells the watcher.

Rules
-----
* It reads, and never writes, anything that training uses; training with it is bit for bit the training without.
* Each hook runs inside `guarded`: an error becomes a gap, and training goes on.
* A step ends when an optimizer that already moved in it moves again; each optimizer's update is one record.
"""

from __future__ import annotations

import atexit
import itertools
import os
import sys
import threading
import time
import weakref
from collections.abc import Callable, Iterable, Sequence
from types import ModuleType
from typing import TYPE_CHECKING, Any

import blake3
import torch

from trainwarden import codeform, wire
from trainwarden.model import ORDERED, Detail, Stage, StepRecord
from trainwarden.record import linear, rng, shares, stages
from trainwarden.record import names as naming
from trainwarden.record.blocks import Blocks
from trainwarden.record.buckets import BucketHook
from trainwarden.record.code import CodeWatch
from trainwarden.record.continuity import LeftWeights, look_again
from trainwarden.record.counted import Counted
from trainwarden.record.fingerprint import tensor_digest, tensor_digests, value_digest
from trainwarden.record.forwards import ForwardHooks
from trainwarden.record.gathered import COMPUTED_BY_OPTIMIZER, Gathered
from trainwarden.record.loaders import LoaderTracker
from trainwarden.record.making import details_of, record_of
from trainwarden.record.member import Member
from trainwarden.record.observers import Observer, all_observers
from trainwarden.record.saving import SavedFiles
from trainwarden.record.snapshots import Snapshots

if TYPE_CHECKING:
    from trainwarden.record.signed import SignedReduction


class Recorder(Member):
    """One per process. Joins the run when the process makes its first optimizer."""

    def __init__(self) -> None:
        super().__init__()
        self.optimizers: weakref.WeakKeyDictionary[torch.optim.Optimizer, int] = weakref.WeakKeyDictionary()
        self._numbers = itertools.count()
        self.scalers: weakref.WeakKeyDictionary[Any, int] = weakref.WeakKeyDictionary()
        self.roots: list[weakref.ref[torch.nn.Module]] = []
        self.names: dict[int, str] = {}
        self.forward_hooks = ForwardHooks()
        self.loaders = LoaderTracker()
        self.gathered = Gathered()
        self.seq = 0
        self.stepped: set[int] = set()
        self.last_of_step = 0  # the optimizer that ended the previous step
        self.last_weights: dict[int, LeftWeights] = {}  # optimizer → what its last update left
        self.layouts: list[tuple[int, list[list[str]]]] = []
        self.preparing = False  # steps that an optimizer makes now are none of training
        self._opened: set[str] = set()
        self.snapshots = Snapshots(self)
        self.files = SavedFiles(self, self.snapshots)
        self.blocks = Blocks(self)
        self.last_wall = time.time_ns()
        self.last_cpu = time.process_time_ns()
        self.code = CodeWatch()
        self.counted = Counted()
        self._looked = -1
        self.reducing: BucketHook | None = None  # whose bucket was seen last
        self.signed: SignedReduction | None = None
        self.observers: list[Observer] = self.make_observers()

    # ------------------------------------------------------------------ joining and leaving

    def make_observers(self) -> list[Observer]:
        """Those who look on beside the stages; a replay has none."""
        return all_observers(self)

    def look_on(self, look: Callable[[Observer], None]) -> None:
        """Let every observer look; one that fails is told as a gap and asked no more."""
        for observer in tuple(self.observers):
            try:
                look(observer)
            except Exception as e:  # noqa: BLE001  recorder boundary
                self.observers.remove(observer)
                self.gap(f"{observer.name} is switched off: {type(e).__name__}: {e}")

    def join(self) -> None:
        """Introduce this process as a rank."""
        super().join()
        self.look_on(lambda o: o.joined())
        atexit.register(self.leave)

    def leave(self) -> None:
        """Say goodbye and wait until the watcher has made everything durable."""
        if self.link is not None and self.is_own_process:
            self.files.tell_companions()
            self.guarded("leaving", self.snapshots.follow_marks)
            self.guarded("code", self.look_at_code)
            self.guarded("leaving", lambda: self.look_on(lambda o: o.leaving()))
            unrecorded = self.guarded("leaving", self.counted.unrecorded) or 0
            self.link.goodbye(self.seq - 1, unrecorded, timeout=30)

    # ------------------------------------------------------------------ what hooks report

    def optimizer_made(self, optimizer: torch.optim.Optimizer) -> None:
        if self.joined is None:
            try:
                self.join()
            except (OSError, RuntimeError, ValueError, TypeError) as e:
                print(f"trainwarden: this process is not recorded: {e!r}", file=sys.stderr, flush=True)
                self.paused = True
                return
        self.number(optimizer)
        self.find_names(stages.parameters(optimizer))
        if len(self.optimizers) == 1:
            self.guarded("code", self.look_at_code)

    def framework_loaded(self, module: ModuleType) -> None:
        """A training framework's module was imported; a replay has it resume."""

    def find_names(self, parameters: Iterable[torch.Tensor]) -> None:
        """(Re)build the map of names, and watch the forward passes of the modules found."""
        known = [r for ref in self.roots if (r := ref()) is not None]
        found = naming.find_roots(parameters)
        roots = known + [r for r in found if all(r is not k for k in known)]
        for root in roots[len(known) :]:
            self.watch_forward(root)
        self.names = naming.parameter_names(roots)
        for optimizer, index in self.optimizers.items():
            for i, p in enumerate(stages.parameters(optimizer)):
                self.names.setdefault(id(p), f"optimizer{index}.{i}")

    def watch_forward(self, root: torch.nn.Module) -> None:
        """Have each training forward pass of this module call `forward`."""
        if getattr(root, "_compiled_call_impl", None) is not None:
            return  # compiled in place: a hook would be traced into the graph
        self.roots.append(weakref.ref(root))

        def before(module: torch.nn.Module, args: Any, kwargs: Any) -> Any:
            if not (module.training and torch.is_grad_enabled()) or torch.compiler.is_compiling():
                return None
            return self.guarded("forward", lambda: self.forward(module, args, kwargs))

        self.forward_hooks.before(root, before)

    def wrapped(self, outer: torch.nn.Module, inner: torch.nn.Module) -> None:
        """A module was wrapped (DDP, torch.compile): watch the wrapper instead."""
        self.forward_hooks.remove(inner)
        self.roots = [r for r in self.roots if r() is not None and r() is not inner]
        self.watch_forward(outer)

    def forward(self, module: torch.nn.Module, args: Any, kwargs: Any) -> Any:
        """A training forward pass of a root module begins."""
        g = self.gathered
        if g.forwards == 0:
            g.started_ns = time.time_ns()
            self.check_continuity()
            if self.sampled(self.done):
                self.blocks.watch()
            self.look_on(lambda o: o.step_begins())
        for name, data in rng.as_bytes(rng.states()).items():
            g.rng.append((f"forward{g.forwards}/{name}", value_digest(self.key, data)))
        for name, t in stages.tensors_in([args, kwargs]):
            g.batch.append((f"input/{g.forwards}.{name}", tensor_digest(self.key, t)))
        g.forwards += 1
        self.look_on(lambda o: o.forward(module, args, kwargs))
        return None

    def backward(self, tensors: Any) -> None:
        """`backward` was called on these tensors: the losses."""
        g = self.gathered
        for _, t in stages.tensors_in(tensors):
            g.activations.append((f"loss/{g.losses}", tensor_digest(self.key, t)))
            g.losses += 1
            if t.numel() == 1:
                value = float(t.detach())
                g.loss = value if g.loss is None else g.loss + value
        self.look_on(lambda o: o.backward(tensors))

    def backward_done(self) -> None:
        """`backward` has returned."""
        self.look_on(lambda o: o.backward_done())

    def bucket_hook(self, ddp: Any) -> BucketHook:
        """The communication hook to give a DDP module."""

        def observe(bucket: Any) -> None:
            self.reducing = hook
            self.guarded("bucket", lambda: self.bucket(bucket))

        hook = BucketHook(ddp, observe, lambda: self.guarded("reduced", lambda: self.look_on(lambda o: o.reduced())))
        if os.environ.get(wire.REDUCTION_ENV) == ORDERED:
            from trainwarden.record.signed import SignedReduction  # needs cryptography, which nothing else here does

            self.signed = self.signed or SignedReduction(self)
            self.signed.use(hook)
        return hook

    def bucket(self, bucket: Any) -> None:
        """A bucket of this rank's own gradients is about to be reduced."""
        parameters = bucket.parameters()
        self.own_gradients(parameters, bucket.gradients())
        self.gathered.buckets[bucket.index()] = [id(p) for p in parameters]
        self.look_on(lambda o: o.bucket(bucket))

    def own_gradients(self, parameters: Sequence[torch.Tensor], gradients: Sequence[torch.Tensor]) -> None:
        """These gradients of this rank's own are about to be reduced."""
        g = self.gathered
        g.waiting.clear()  # from before this backward pass: nobody moved by them
        for p, digest in zip(parameters, tensor_digests(self.key, gradients), strict=True):
            earlier = g.local.get(id(p))
            # Several reductions in one step are chained, so that none can hide behind a later one.
            g.local[id(p)] = digest if earlier is None else value_digest(self.key, earlier + digest)

    def loader_making(self, loader: Any) -> None:
        """An iterator of this loader is about to be made; with workers that already draws its first batches."""
        self.loaders.making(loader)

    def loader_begins(self, iterator: Any) -> None:
        """Before a loader hands out a batch."""
        self.loaders.begin(iterator)
        self.look_on(lambda o: o.loader_begins(iterator))

    def loader_fetched(self, iterator: Any, batch: Any) -> Any:
        """A loader gave a batch to whoever asked; where that is a framework, it counts when that hands it on."""
        return None if self.loaders.hold(iterator, batch) else self.loader_gave(iterator, batch)

    def handed_on(self, loader: Any, skipped: int) -> Any:
        """A framework hands on the next batch of a loader; another one, where a replay has changed it."""
        iterator, batch = self.loaders.handed_on(loader, skipped)
        other = self.loader_gave(iterator, batch)
        return None if other is batch else other

    def loader_gave(self, iterator: Any, batch: Any) -> Any:
        """A loader handed out a batch; a replay may return another in its place."""
        self.loaders.took(iterator)
        g = self.gathered
        for name, t in stages.tensors_in(batch):
            g.batch.append((f"loader/{g.loaders}.{name}", tensor_digest(self.key, t)))
        g.loaders += 1
        self.look_on(lambda o: o.loader_gave(iterator, batch))
        return None

    def number(self, optimizer: torch.optim.Optimizer) -> int:
        """The optimizer's number, in the order in which they were made; that of one that is gone is not given again."""
        if optimizer not in self.optimizers:
            self.optimizers[optimizer] = next(self._numbers)
        return self.optimizers[optimizer]

    def next_step(self, optimizer: torch.optim.Optimizer) -> int:
        """The optimizer's number; a new step begins when one that already moved in this step moves again."""
        index = self.number(optimizer)
        if index in self.stepped:
            self.step += 1
            self.stepped.clear()
        return index

    def before_update(self, optimizer: torch.optim.Optimizer, closure: bool) -> None:
        """An optimizer is about to move its parameters."""
        self.trainer = threading.get_ident()
        self.files.tell_companions()
        self.snapshots.follow_marks()
        self.look_if_due()
        index = self.next_step(optimizer)
        if any(id(p) not in self.names for p in stages.parameters(optimizer)):
            self.find_names(stages.parameters(optimizer))
        self.gathered.by_closure = closure
        if not closure:
            self.gradients_ready(optimizer)
        self.look_on(lambda o: o.before_update(optimizer, index))

    def gradients_ready(self, optimizer: torch.optim.Optimizer) -> None:
        """The optimizer's gradients are those that it is about to use."""
        self.gathered.reduced = stages.digest_all(self.key, stages.gradients(optimizer, self.names))

    def closure_done(self, optimizer: torch.optim.Optimizer) -> None:
        """An optimizer's closure has computed gradients: those it uses, unless it calls for others."""
        self.gathered.closures += 1
        if self.gathered.closures == 1:
            self.gradients_ready(optimizer)
        else:
            self.gathered.reduced = COMPUTED_BY_OPTIMIZER

    def after_update(self, optimizer: torch.optim.Optimizer, skipped: bool = False) -> None:
        """An optimizer has moved its parameters (or the gradient scaler has skipped it): make and send the record."""
        index = self.optimizers[optimizer]
        self.look_on(lambda o: o.after_update(optimizer, index, skipped))
        details = self.details(optimizer, index)
        self.stepped.add(index)
        self.note_layout()
        record = self.make_record(optimizer, index, details, skipped)
        seen = {stage: d for stage, d in details.items() if isinstance(d, Detail)}
        self.tell(wire.Step(record=record, details=seen))
        self.seq += 1
        self.counted.recorded(optimizer)
        self.gathered = self.gathered.moved({id(p) for p in stages.parameters(optimizer)})
        self.blocks.leave()
        if index >= self.last_of_step or len(self.optimizers) == 1:
            self.last_of_step = index
            self.boundary()

    def boundary(self) -> None:
        """A step is complete on this rank."""
        self.snapshots.boundary()
        live = (self.last_weights[i] for i in self.optimizers.values() if i in self.last_weights)
        self.files.left([d for _, digests, _ in live for d in digests])
        self.look_on(lambda o: o.boundary())

    def look_if_due(self) -> None:
        """Before the first step and some of the others: tell what code is in memory."""
        every = self.joined.code_every if self.joined else 0
        if self.done > self._looked and codeform.due(self.key, self.done, every):
            self._looked = self.done
            self.guarded("code", self.look_at_code)

    def look_at_code(self) -> None:
        """Tell what is new of the code in this process."""
        if self.joined is not None and self.joined.code_every > 0:
            roots = [r for ref in self.roots if (r := ref()) is not None]
            self.tell(self.code.look(self.done, self.optimizers, roots, self.loaders.all()))

    def scaler_stepped(self, optimizer: torch.optim.Optimizer, seq_before: int) -> None:
        """A gradient scaler's step returned; when no update came of it, the step was skipped."""
        if self.seq == seq_before:
            self.before_update(optimizer, closure=False)
            self.after_update(optimizer, skipped=True)

    def loaded(self, path: str) -> None:
        """A state file is about to be read; the watcher learns of it before any step that follows."""
        self.ask_or_wait(wire.Loaded(path=path))

    def opened(self, path: str) -> None:
        """A file outside environment and code was opened for reading."""
        if path not in self._opened and len(self._opened) < 1000:
            self._opened.add(path)
            self.tell(wire.Opened(path=path))

    # ------------------------------------------------------------------ making a record

    @property
    def done(self) -> int:
        """Steps that this process has completed."""
        return self.step + (1 if self.stepped else 0)

    def details(self, optimizer: torch.optim.Optimizer, index: int) -> dict[Stage, Detail | str]:
        """The digests of every stage of the update that just happened, or why a stage was not seen."""
        return details_of(self, optimizer, index)

    def make_record(
        self, optimizer: torch.optim.Optimizer, index: int, details: dict[Stage, Detail | str], skipped: bool
    ) -> StepRecord:
        """The record of the update that just happened."""
        return record_of(self, optimizer, index, details, skipped)

    def measured(self, wall: int, cpu: int) -> None:
        """A record was made at these times, in nanoseconds: the next one counts from here."""
        self.last_wall, self.last_cpu, self.spent_ns = wall, cpu, 0

    def share(self, optimizer: torch.optim.Optimizer) -> str:
        """This rank's share of the fingerprint of the sharded weights as wholes, "" where there is none."""
        try:
            share = linear.share_of(self.key, stages.weights(optimizer, self.names), self.rank)
        except ValueError:  # cut in a way that has no places (strided shards, sums to come): the digests are there
            return ""
        return shares.packed(share).hex() if share is not None else ""

    @property
    def turn(self) -> int:
        """Whose turn it is to be looked at again; by the step alone, so that a replay looks at the same."""
        return self.done

    def check_continuity(self) -> None:
        """Digest weights again before a step begins, up to a budget, in turns; the root says whether they changed."""
        if not self.seq:
            self.gathered.began = {index: self.share(optimizer) for optimizer, index in self.optimizers.items()}
        for index, left in self.last_weights.items():
            root, changed = look_again(self.key, left, self.turn)
            self.gathered.before[index] = root
            if changed:
                self.gathered.found[index] = changed

    def sampled(self, step: int) -> bool:
        """Whether this step's activations are recorded: a keyed choice, the same on every rank and in replay."""
        every = self.joined.activations_every if self.joined else 0
        if every <= 0:
            return False
        draw = blake3.blake3(f"activations {step}".encode(), key=self.key).digest(8)
        return int.from_bytes(draw, "big") % every == 0

    def note_layout(self) -> None:
        """Keep how gradients were grouped for reduction, when it changed: a replay from here must group alike."""
        buckets = self.gathered.buckets
        if not buckets:
            return
        layout = [[self.names.get(i, "?") for i in buckets[b]] for b in sorted(buckets)]
        if not self.layouts or self.layouts[-1][1] != layout:
            self.layouts.append((self.step, layout))
