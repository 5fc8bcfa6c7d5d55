"""Installs the recorder into torch: its own global optimizer hooks where they exist, thin wrappers elsewhere.

Every wrapper calls the original with the same arguments and returns its result; what the recorder does beside it
is guarded. The recorder is the live one, or the replayer in an audit.
"""

from __future__ import annotations

import functools
import os
import weakref
from typing import Any

from trainwarden.record import files
from trainwarden.record.buckets import BucketHook
from trainwarden.record.loaders import hook_creation
from trainwarden.record.recorder import Recorder


def install(torch: Any, recorder: Recorder) -> None:
    """Hook optimizers, DDP, backward, data loaders, the gradient scaler, torch.compile, save and load."""
    _optimizers(recorder)
    recorder.forward_hooks.keep_out(torch.nn.Module)
    _ddp(recorder)
    _backward(torch, recorder)
    _loaders(recorder)
    _scaler(recorder)
    _compile(torch, recorder)
    files.install(torch, recorder)
    os.register_at_fork(after_in_child=lambda: _silence(recorder))


def _silence(recorder: Recorder) -> None:
    """A forked child (a loader's worker) is not a rank."""
    recorder.paused = True
    recorder.link = None


def _optimizers(recorder: Recorder) -> None:
    from torch.optim import optimizer as module

    original = module.Optimizer.__init__

    @functools.wraps(original)
    def init(self: Any, *args: Any, **kwargs: Any) -> None:
        original(self, *args, **kwargs)
        recorder.guarded("optimizer", lambda: recorder.optimizer_made(self))

    module.Optimizer.__init__ = init

    def pre(optimizer: Any, args: Any, kwargs: Any) -> Any:
        if recorder.preparing:
            return None
        closure = any(callable(a) for a in [*args[1:], *kwargs.values()])
        recorder.guarded("before update", lambda: recorder.before_update(optimizer, closure))
        if not closure:
            return None
        # Whatever is called computes gradients: the optimizer gets the same function, and we look after each call.
        watched = functools.partial(_watched, recorder, optimizer)
        return (optimizer, *map(watched, args[1:])), {k: watched(v) for k, v in kwargs.items()}

    def post(optimizer: Any, args: Any, kwargs: Any) -> None:
        if recorder.preparing:
            return
        # A fused optimizer is called in any case, and leaves everything as it is where the scaler found an infinity.
        refused = getattr(optimizer, "found_inf", None)
        recorder.guarded(
            "after update", lambda: recorder.after_update(optimizer, refused is not None and bool(refused))
        )

    module.register_optimizer_step_pre_hook(pre)
    module.register_optimizer_step_post_hook(post)


def _watched(recorder: Recorder, optimizer: Any, argument: Any) -> Any:
    """An argument of an optimizer's step: a closure tells when it has computed gradients."""
    if not callable(argument):
        return argument

    @functools.wraps(argument)
    def closure(*args: Any, **kwargs: Any) -> Any:
        result = argument(*args, **kwargs)
        recorder.guarded("closure", lambda: recorder.closure_done(optimizer))
        return result

    return closure


def _ddp(recorder: Recorder) -> None:
    from torch.nn.parallel import DistributedDataParallel as DDP

    original, register, getstate = DDP.__init__, DDP.register_comm_hook, DDP.__getstate__
    ours: weakref.WeakKeyDictionary[Any, tuple[BucketHook, Any]] = weakref.WeakKeyDictionary()

    @functools.wraps(original)
    def init(self: Any, module: Any, *args: Any, **kwargs: Any) -> None:
        original(self, module, *args, **kwargs)

        def attach() -> None:
            hook = recorder.bucket_hook(self)

            def comm_hook(state, bucket):  # type: ignore[no-untyped-def]  # DDP checks annotations
                return hook(state, bucket)

            register(self, None, comm_hook)
            ours[self] = hook, comm_hook
            recorder.wrapped(self, module)

        recorder.guarded("DDP", attach)

    @functools.wraps(register)
    def register_comm_hook(self: Any, state: Any, hook: Any) -> None:
        if self in ours:
            ours[self][0].user = (state, hook)
        else:
            register(self, state, hook)

    @functools.wraps(getstate)
    def state_of(self: Any) -> Any:
        state = getstate(self)
        if self in ours and "_comm_hooks" in state:
            state["_comm_hooks"] = [pair for pair in state["_comm_hooks"] if pair[0] is not ours[self][1]]
        return state

    DDP.__init__ = init
    DDP.__getstate__ = state_of
    recorder.forward_hooks.keep_out(DDP)
    DDP.register_comm_hook = register_comm_hook


def _backward(torch: Any, recorder: Recorder) -> None:
    original = torch.autograd.backward

    @functools.wraps(original)
    def backward(tensors: Any, *args: Any, **kwargs: Any) -> Any:
        if torch._C._current_graph_task_id() != -1:
            return original(tensors, *args, **kwargs)  # within a backward pass (reentrant checkpointing): no loss
        recorder.guarded("backward", lambda: recorder.backward(tensors))
        result = original(tensors, *args, **kwargs)
        recorder.guarded("backward", recorder.backward_done)
        return result

    torch.autograd.backward = backward


def _loaders(recorder: Recorder) -> None:
    from torch.utils.data import dataloader as module

    hook_creation(module.DataLoader, recorder)
    give = module._BaseDataLoaderIter.__next__

    @functools.wraps(give)
    def following(self: Any) -> Any:
        if recorder.loaders.aside:
            return give(self)  # a loader that goes forward by itself, before anybody gets a batch
        recorder.guarded("loader", lambda: recorder.loader_begins(self))
        batch = give(self)
        other = recorder.guarded("batch", lambda: recorder.loader_fetched(self, batch))
        return batch if other is None else other

    module._BaseDataLoaderIter.__next__ = following


def _scaler(recorder: Recorder) -> None:
    from torch.amp.grad_scaler import GradScaler

    make, original = GradScaler.__init__, GradScaler.step

    @functools.wraps(make)
    def init(self: Any, *args: Any, **kwargs: Any) -> None:
        make(self, *args, **kwargs)
        recorder.guarded("scaler", lambda: recorder.scalers.setdefault(self, len(recorder.scalers)))

    @functools.wraps(original)
    def step(self: Any, optimizer: Any, *args: Any, **kwargs: Any) -> Any:
        before = recorder.seq
        result = original(self, optimizer, *args, **kwargs)
        if self.is_enabled():
            recorder.guarded("scaler", lambda: recorder.scaler_stepped(optimizer, before))
        return result

    GradScaler.__init__ = init
    GradScaler.step = step


def _compile(torch: Any, recorder: Recorder) -> None:
    original = torch.compile

    @functools.wraps(original)
    def compile(model: Any = None, *args: Any, **kwargs: Any) -> Any:
        result = original(model, *args, **kwargs)
        if isinstance(model, torch.nn.Module) and result is not model:
            recorder.guarded("compile", lambda: recorder.wrapped(result, model))
        return result

    torch.compile = compile
