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
from pathlib import Path
from types import ModuleType
from typing import TYPE_CHECKING, Any, TypeVar

import blake3
import torch

from trainwarden import codeform, wire
from trainwarden.model import BUFFERS, ORDERED, Detail, Note, Stage, StepRecord
from trainwarden.record import entropy, linear, rng, shares, stages
from trainwarden.record import names as naming
from trainwarden.record.buckets import BucketHook
from trainwarden.record.code import CodeWatch
from trainwarden.record.counted import Counted
from trainwarden.record.fingerprint import stage_root, tensor_digest, tensor_digests, value_digest
from trainwarden.record.forwards import ForwardHooks, eager_modules
from trainwarden.record.introduction import introduction
from trainwarden.record.link import Link
from trainwarden.record.loaders import LoaderTracker
from trainwarden.record.observers import Observer, all_observers
from trainwarden.record.saving import SavedFiles
from trainwarden.record.snapshots import Snapshots
from trainwarden.record.stacks import stacks

if TYPE_CHECKING:
    from trainwarden.record.signed import SignedReduction

T = TypeVar("T")

CONTINUITY_BYTES = 8 << 20  # weights looked at again before each step; bigger models are looked at in turns
COMPUTED_BY_OPTIMIZER = "the optimizer computes gradients itself (closure)"
FOUND_KEPT = 32  # weights found changed that a record names; its root covers all


class Gathered:
    """What was seen since the last update."""

    def __init__(self) -> None:
        self.batch: list[tuple[str, bytes]] = []
        self.rng: list[tuple[str, bytes]] = []
        self.activations: list[tuple[str, bytes]] = []
        self.local: dict[int, bytes] = {}
        self.before: dict[int, str] = {}
        self.found: dict[int, dict[str, str]] = {}
        self.began: dict[int, str] = {}
        self.loss: float | None = None
        self.loaders = self.forwards = self.losses = 0
        self.reduced: Detail | str = COMPUTED_BY_OPTIMIZER
        self.closures = 0  # how often the optimizer has called its closure
        self.by_closure = False
        self.buckets: dict[int, list[int]] = {}
        self.started_ns = 0


class Recorder:
    """One per process. Joins the run when the process makes its first optimizer."""

    def __init__(self) -> None:
        self.link: Link | None = None
        self.joined: wire.Joined | None = None
        self.key = b""
        self.rank = self.world = 0
        self.optimizers: weakref.WeakKeyDictionary[torch.optim.Optimizer, int] = weakref.WeakKeyDictionary()
        self._numbers = itertools.count()
        self.scalers: weakref.WeakKeyDictionary[Any, int] = weakref.WeakKeyDictionary()
        self.roots: list[weakref.ref[torch.nn.Module]] = []
        self.names: dict[int, str] = {}
        self.forward_hooks = ForwardHooks()
        self.loaders = LoaderTracker()
        self.gathered = Gathered()
        self.seq = 0
        self.step = 0
        self.stepped: set[int] = set()
        self.last_of_step = 0  # the optimizer that ended the previous step
        self.last_weights: dict[int, tuple[tuple[str, ...], list[bytes], list[weakref.ref[Any]]]] = {}
        self.layouts: list[tuple[int, list[list[str]]]] = []
        self.spent_ns = 0
        self.paused = False
        self.preparing = False  # steps that an optimizer makes now are none of training
        self._pid = os.getpid()
        self._early: list[wire.Message] = []
        self._opened: set[str] = set()
        self.trainer = 0  # the thread that moves the optimizers
        self.part = ""  # of a step, in which that thread is (`model.PartTimes`)
        self.snapshots = Snapshots(self)
        self.files = SavedFiles(self, self.snapshots)
        self._sampled: list[Any] = []
        self._last_wall = time.time_ns()
        self._last_cpu = time.process_time_ns()
        self.code = CodeWatch()
        self.counted = Counted()
        self._looked = -1
        self.reducing: BucketHook | None = None  # whose bucket was seen last
        self.signed: SignedReduction | None = None
        self.observers: list[Observer] = self.make_observers()

    # ------------------------------------------------------------------ joining and leaving

    def guarded(self, what: str, action: Callable[[], T]) -> T | None:
        """Run one hook's work; an error in it is a gap and nothing else."""
        if self.paused or os.getpid() != self._pid:
            return None
        begin = time.perf_counter_ns()
        try:
            with torch.no_grad():
                return action()
        except Exception as e:  # noqa: BLE001  the recorder fails open into a gap
            self.gap(f"{what}: {type(e).__name__}: {e}")
            return None
        finally:
            self.spent_ns += time.perf_counter_ns() - begin

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

    def note(self, note: Note) -> None:
        """Tell an entry of the log that an observer made; the watcher fills in attempt, rank and the job's step."""
        self.tell(wire.Told(note=note))

    def gap(self, reason: str) -> None:
        """Say that something was not recorded."""
        self.tell(wire.Missed(step=self.step, reason=reason[:2000]))

    def tell(self, message: wire.Message) -> None:
        """Send a message to the watcher, now or when this process has joined."""
        if self.link is not None:
            self.link.tell(message)
        elif len(self._early) < 1000:
            self._early.append(message)

    def join(self) -> None:
        """Introduce this process as a rank."""
        connection = wire.Connection.connect(os.environ[wire.SOCKET_ENV])
        join = introduction()
        self.rank, self.world = join.rank, join.world
        connection.send(join)
        answer = connection.receive(timeout=60)
        if not isinstance(answer, wire.Joined):
            raise RuntimeError(f"the watcher answered {type(answer).__name__}")
        self.joined, self.key = answer, answer.key
        self.link = Link(connection, self.looked_at)
        entropy.write(self.folder)
        for message in self._early:
            if isinstance(message, wire.Loaded):
                self.link.ask(message, timeout=120)
            else:
                self.link.tell(message)
        self._early.clear()
        self.look_on(lambda o: o.joined())
        atexit.register(self.leave)

    def leave(self) -> None:
        """Say goodbye and wait until the watcher has made everything durable."""
        if self.link is not None and os.getpid() == self._pid:
            self.files.tell_companions()
            self.guarded("leaving", self.snapshots.follow_marks)
            self.guarded("code", self.look_at_code)
            self.guarded("leaving", lambda: self.look_on(lambda o: o.leaving()))
            unrecorded = self.guarded("leaving", self.counted.unrecorded) or 0
            self.link.goodbye(self.seq - 1, unrecorded, timeout=30)

    def looked_at(self, token: int) -> wire.Message:
        """The answer to a watcher that asks where this process stands."""
        return stacks(token, self.trainer, self.part)

    @property
    def folder(self) -> Path:
        """Where this rank writes its snapshots."""
        if self.joined is None:
            raise RuntimeError("not joined")
        return Path(self.joined.run_dir) / "snapshots" / f"a{self.joined.attempt}-r{self.rank}"

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
                self.watch_activations()
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
        self.gathered = Gathered()
        for handle in self._sampled:
            handle.remove()
        self._sampled.clear()
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
        message = wire.Loaded(path=path)
        if self.link is None:
            self._early.append(message)
        else:
            self.link.ask(message, timeout=120)

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
        g, key, names = self.gathered, self.key, self.names
        own = [p for p in stages.parameters(optimizer) if id(p) in g.local]
        weights = stages.weights(optimizer, names)
        roots = [r for ref in self.roots if (r := ref()) is not None]
        buffers = [(f"{BUFFERS}{n}", b) for n, b in naming.buffers(roots)] if index == 0 else []
        weight_detail = stages.digest_all(key, [*weights, *buffers])
        n = len(weights)
        self.last_weights[index] = (
            weight_detail.names[:n],
            list(weight_detail.digests[:n]),
            [weakref.ref(p) for p in stages.parameters(optimizer)],
        )
        scaler_state = [(f"scaler{i}/{k}", v) for s, i in self.scalers.items() for k, v in s.state_dict().items()]
        groups = stages.settings(optimizer)
        return {
            Stage.BATCH: _pairs(g.batch) if g.batch else "no loader and no watched forward pass",
            Stage.RNG: _pairs(g.rng or self.rng_now()),
            Stage.ACTIVATIONS: _pairs(g.activations) if g.activations else "backward was not called",
            Stage.LOCAL_GRADIENTS: Detail(
                names=tuple(names[id(p)] for p in own), digests=tuple(g.local[id(p)] for p in own)
            )
            if own
            else "no reduction across ranks was seen",
            Stage.REDUCED_GRADIENTS: g.reduced,
            Stage.HYPERPARAMETERS: Detail(
                names=tuple(f"group{i}" for i in range(len(groups))),
                digests=tuple(stages.settings_digest(key, group) for group in groups),
            ),
            Stage.OPTIMIZER_STATE: stages.digest_all(key, [*stages.optimizer_state(optimizer, names), *scaler_state]),
            Stage.WEIGHTS: weight_detail,
        }

    def make_record(self, optimizer: Any, index: int, details: dict[Stage, Detail | str], skipped: bool) -> StepRecord:
        wall, cpu = time.time_ns(), time.process_time_ns()
        names, digests, _ = self.last_weights[index]
        record = StepRecord(
            attempt=self.joined.attempt if self.joined else 0,
            rank=self.rank,
            world=self.world,
            step=self.step,
            optimizer=index,
            seq=self.seq,
            stages=stages.commit(self.key, details),
            loss=self.gathered.loss,
            hyper=tuple(stages.settings(optimizer)),
            skipped=skipped,
            micro_batches=max(self.gathered.forwards, self.gathered.losses),
            wall_ns=wall,
            duration_ns=wall - self._last_wall,
            cpu_ns=cpu - self._last_cpu,
            recorder_ns=self.spent_ns,
            before=self.gathered.before.get(index, ""),
            found=self.gathered.found.get(index, {}),
            left=stage_root(self.key, names, digests) if stages.count(details, Stage.WEIGHTS) > len(names) else "",
            share=self.share(optimizer),
            began=self.gathered.began.get(index, ""),
        )
        self._last_wall, self._last_cpu, self.spent_ns = wall, cpu, 0
        return record

    def share(self, optimizer: torch.optim.Optimizer) -> str:
        """This rank's share of the fingerprint of the sharded weights as wholes, "" where there is none."""
        try:
            share = linear.share_of(self.key, stages.weights(optimizer, self.names), self.rank)
        except ValueError:  # cut in a way that has no places (strided shards, sums to come): the digests are there
            return ""
        return shares.packed(share).hex() if share is not None else ""

    def rng_now(self) -> list[tuple[str, bytes]]:
        """Generator states at the update, where no forward pass was seen."""
        return [(f"update/{n}", value_digest(self.key, b)) for n, b in rng.as_bytes(rng.states()).items()]

    @property
    def turn(self) -> int:
        """Whose turn it is to be looked at again; by the step alone, so that a replay looks at the same."""
        return self.done

    def check_continuity(self) -> None:
        """Digest weights again before a step begins, up to a budget, in turns; the root says whether they changed."""
        if not self.seq:
            self.gathered.began = {index: self.share(optimizer) for optimizer, index in self.optimizers.items()}
        for index, (names, digests, references) in self.last_weights.items():
            weights = [r() for r in references]
            fresh = list(digests)
            shares = _shares([0 if p is None else p.nbytes for p in weights])
            looked = [(i, p) for i in shares[self.turn % len(shares)] if (p := weights[i]) is not None]
            for (i, _), digest in zip(looked, tensor_digests(self.key, [p for _, p in looked]), strict=True):
                fresh[i] = digest
            self.gathered.before[index] = stage_root(self.key, names, fresh)
            if fresh != digests:
                pairs = zip(names, digests, fresh, strict=True)
                changed = ((n, new.hex()) for n, old, new in pairs if new != old)
                self.gathered.found[index] = dict(itertools.islice(changed, FOUND_KEPT))

    def sampled(self, step: int) -> bool:
        """Whether this step's activations are recorded: a keyed choice, the same on every rank and in replay."""
        every = self.joined.activations_every if self.joined else 0
        if every <= 0:
            return False
        draw = blake3.blake3(f"activations {step}".encode(), key=self.key).digest(8)
        return int.from_bytes(draw, "big") % every == 0

    def watch_activations(self) -> None:
        """Digest the outputs of the model's blocks (children of module lists) during this step."""
        for root in [r for ref in self.roots if (r := ref()) is not None]:
            for raw, module in eager_modules(root):
                if isinstance(module, torch.nn.ModuleList | torch.nn.Sequential):
                    for child, block in module.named_children():
                        self._watch_block(naming.clean_name(f"{raw}.{child}"), block)

    def _watch_block(self, name: str, block: torch.nn.Module) -> None:
        def after(module: torch.nn.Module, args: Any, output: Any) -> None:
            if torch.compiler.is_compiling():
                return

            def digest() -> None:
                g = self.gathered
                for path, t in stages.tensors_in(output):
                    g.activations.append((f"module/{name}#{g.forwards}.{path}", tensor_digest(self.key, t)))

            self.guarded("activations", digest)

        self._sampled.append(self.forward_hooks.after(block, after))

    def note_layout(self) -> None:
        """Keep how gradients were grouped for reduction, when it changed: a replay from here must group alike."""
        buckets = self.gathered.buckets
        if not buckets:
            return
        layout = [[self.names.get(i, "?") for i in buckets[b]] for b in sorted(buckets)]
        if not self.layouts or self.layouts[-1][1] != layout:
            self.layouts.append((self.step, layout))


def _shares(sizes: list[int]) -> list[range]:
    """Neighbouring tensors, cut into shares of at most `CONTINUITY_BYTES` each (a bigger tensor is one share)."""
    cuts, held = [0], 0
    for i, size in enumerate(sizes):
        if held and held + size > CONTINUITY_BYTES:
            cuts.append(i)
            held = 0
        held += size
    return [range(a, b) for a, b in zip(cuts, [*cuts[1:], len(sizes)], strict=True)]


def _pairs(pairs: list[tuple[str, bytes]]) -> Detail:
    return Detail(names=tuple(n for n, _ in pairs), digests=tuple(d for _, d in pairs))
