"""The forward hooks that the recorder puts on modules: none of them is in what a script pickles or copies.

A module's hooks are part of its state. A script that saves a whole model would save ours with it, or fail, since they
are no functions that can be found by name.
"""

from __future__ import annotations

import functools
import weakref
from collections.abc import Callable, Iterator
from typing import Any

import torch

Hook = Callable[..., Any]


class ForwardHooks:
    """Registers our hooks and knows them again."""

    def __init__(self) -> None:
        self._ours: weakref.WeakValueDictionary[int, Any] = weakref.WeakValueDictionary()  # by identity
        self._before: weakref.WeakKeyDictionary[torch.nn.Module, Any] = weakref.WeakKeyDictionary()

    def before(self, module: torch.nn.Module, hook: Hook) -> None:
        """Call `hook(module, args, kwargs)` before each forward pass."""
        if not hasattr(type(module).__getstate__, "__wrapped__"):  # a class with a state of its own
            self.keep_out(type(module))
        self._ours[id(hook)] = hook
        self._before[module] = module.register_forward_pre_hook(hook, with_kwargs=True)

    def after(self, module: torch.nn.Module, hook: Hook) -> Any:
        """Call `hook(module, args, output)` after each forward pass, until the result's `remove` is called."""
        self._ours[id(hook)] = hook
        return module.register_forward_hook(hook)

    def remove(self, module: torch.nn.Module) -> None:
        """Call nothing before this module's forward passes any more."""
        handle = self._before.pop(module, None)
        if handle is not None:
            handle.remove()

    def keep_out(self, kind: Any) -> None:
        """Leave our hooks out of the state of modules of this class, and of those that inherit its `__getstate__`."""
        original = kind.__getstate__

        @functools.wraps(original)
        def getstate(module: Any) -> Any:
            return self._without(original(module))

        kind.__getstate__ = getstate

    def _without(self, state: Any) -> Any:
        if not isinstance(state, dict):
            return state
        found = {k: state[k] for k in ("_forward_pre_hooks", "_forward_hooks") if state.get(k)}
        for key, hooks in found.items():
            ours = [i for i, hook in hooks.items() if self._ours.get(id(hook)) is hook]
            for name in (key, f"{key}_with_kwargs") if ours else ():
                state[name] = type(state[name])((i, v) for i, v in state[name].items() if i not in ours)
        return state


def eager_modules(module: torch.nn.Module, prefix: str = "") -> Iterator[tuple[str, torch.nn.Module]]:
    """(name, module) of a module and those below it, without what is compiled: a hook there would be traced."""
    if hasattr(module, "_orig_mod") or getattr(module, "_compiled_call_impl", None) is not None:
        return
    yield prefix, module
    for name, child in module._modules.items():
        if child is not None:
            yield from eager_modules(child, f"{prefix}.{name}" if prefix else name)
