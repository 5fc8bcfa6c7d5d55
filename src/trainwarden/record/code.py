"""The functions that live in this rank: what they are made of, told to the watcher, who alone judges.

Looked at are the names of the modules that decide training, of the job's own modules and of this recorder, of the
classes of its models, optimizers and loaders, what hangs on these objects (replaced methods and hooks), and what the
interpreter and torch call on their own (`places.py`). A name's value is
followed through wrappers (`__wrapped__`, closures, partials, properties, bound methods) to every function in it.

Rules
-----
* Reads only, and keeps code objects alive but no function: a closure may hold a model.
* The first look tells everything, a later one what changed. What is equal costs one comparison for each name.
* What this rank tells is a claim. Code injected into it can lie here; replay from sealed inputs is what it
  cannot fool. Native functions, values in closures and in globals, and modules outside of the list are not seen.
"""

from __future__ import annotations

import functools
import importlib.util
import itertools
import sys
import types
from collections.abc import Iterable, Iterator
from typing import Any

import torch

from trainwarden import codeform, wire
from trainwarden.record.places import BUILTIN, Named, absolute, file_of, live, modules

MOST_LINKS = 16


class CodeWatch:
    """Remembers what was told, so that a look tells only what is new."""

    def __init__(self) -> None:
        self._codes: dict[int, tuple[types.CodeType, bytes]] = {}
        self._functions: dict[wire.LiveFunction, int] = {}
        self._slots: dict[str, wire.Slot] = {}
        self._classes: dict[str, tuple[str, ...]] = {}
        self._modules: dict[str, str] = {}
        self._plain: dict[str, tuple[types.CodeType, Any, Any, wire.Slot]] = {}

    def look(
        self,
        step: int,
        optimizers: Iterable[torch.optim.Optimizer] = (),
        roots: Iterable[torch.nn.Module] = (),
        loaders: Iterable[Any] = (),
    ) -> wire.Code:
        """What is new in this process since the last look."""
        forms: list[bytes] = []
        known = len(self._functions)
        slots: dict[str, wire.Slot] = {}
        watched = modules()
        files = {name: file_of(module) for name, module in watched.items()}
        classes: dict[str, tuple[str, ...]] = {}
        for name, value in live(watched, list(optimizers), list(roots), list(loaders)):
            if isinstance(value, tuple):
                classes[name] = value
                continue
            slots[name] = self._unchanged(name, value) or self._slot(name, value, forms)
        message = wire.Code(
            step=step,
            magic=importlib.util.MAGIC_NUMBER,
            optimize=sys.flags.optimize,
            functions=tuple(itertools.islice(self._functions, known, None)),
            forms=tuple(forms),
            slots={n: s for n, s in slots.items() if (old := self._slots.get(n)) is not s and old != s},
            gone=tuple(n for n in self._slots if n not in slots),
            classes={n: bases for n, bases in classes.items() if self._classes.get(n) != bases},
            modules={n: f for n, f in files.items() if self._modules.get(n) != f},
        )
        self._slots, self._modules, self._classes = slots, files, classes
        return message

    def _unchanged(self, name: str, value: Any) -> wire.Slot | None:
        """What was told of a plain function, if it is made of the very same objects: they cannot be changed."""
        if type(value) is not types.FunctionType:
            return None
        known = self._plain.get(name)
        if known is None or value.__code__ is not known[0] or value.__defaults__ is not known[1]:
            return None
        same = value.__globals__ is known[2] and value.__closure__ is None and value.__kwdefaults__ is None
        return known[3] if same and "__wrapped__" not in value.__dict__ else None

    def _slot(self, name: str, value: Any, forms: list[bytes]) -> wire.Slot:
        slot = wire.Slot(_kind(value), tuple([self._number(f, forms) for f in links_of(value)]))
        if type(value) is types.FunctionType and slot.functions:
            self._plain[name] = (value.__code__, value.__defaults__, value.__globals__, slot)
        return slot

    def _number(self, function: types.FunctionType, forms: list[bytes]) -> int:
        code = function.__code__
        known = self._codes.get(id(code))
        text = b""
        if known is None:
            text = codeform.form_text(code)
            known = self._codes[id(code)] = (code, codeform.digest(text))
        defaults = function.__defaults__
        keywords = function.__kwdefaults__
        row = wire.LiveFunction(
            file=absolute(code.co_filename),
            qualname=code.co_qualname,
            line=code.co_firstlineno,
            digest=known[1],
            defaults=tuple(map(codeform.value_text, defaults)) if defaults else (),
            keywords=tuple((k, codeform.value_text(v)) for k, v in sorted(keywords.items())) if keywords else (),
            home=_home(function),
        )
        number = self._functions.get(row)
        if number is None:
            number = self._functions[row] = len(self._functions)
            forms.append(text or codeform.form_text(code))
        return number


def _home(function: types.FunctionType) -> str:
    """The module whose globals a function uses; a "?" before it when they only say that they are its."""
    name = str(function.__globals__.get("__name__", ""))
    module = sys.modules.get(name)
    own = type(module) is not types.ModuleType or vars(module) is function.__globals__  # some put an object there
    return name if own else f"?{name}"


def links_of(value: Any) -> list[types.FunctionType]:
    """Every Python function in a value: itself, and what it wraps, outermost first."""
    if type(value) is types.FunctionType and value.__closure__ is None and "__wrapped__" not in value.__dict__:
        return [value]
    found: list[types.FunctionType] = []
    pending: list[Any] = [value]
    seen: set[int] = set()
    while pending and len(found) < MOST_LINKS and len(seen) < 4 * MOST_LINKS:
        item = pending.pop(0)
        if id(item) not in seen:
            seen.add(id(item))
            if type(item) is types.FunctionType:
                found.append(item)
            pending += _inside(item)
    return found


def _inside(item: Any) -> Iterable[Any]:
    """What a value wraps. Types are asked, never the value: `isinstance` may run code of its `__class__`."""
    kind = type(item)
    if kind is types.FunctionType:
        return _inside_function(item)
    if issubclass(kind, types.MethodType | staticmethod | classmethod):
        return (item.__func__,)
    if issubclass(kind, property):
        return tuple(f for f in (item.fget, item.fset, item.fdel) if f is not None)
    if issubclass(kind, functools.partial):
        return (item.func, *(a for a in item.args if callable(a)))
    if issubclass(kind, functools.cached_property):
        return (item.func,)
    if issubclass(kind, (type, types.ModuleType, *BUILTIN)):
        return ()
    return tuple(_inside_object(item))


def _inside_function(function: types.FunctionType) -> Iterator[Any]:
    if function.__dict__:
        yield from (v for k, v in list(function.__dict__.items()) if k == "__wrapped__" and callable(v))
    for cell in function.__closure__ or ():
        try:
            content = cell.cell_contents
        except ValueError:
            continue  # empty
        if isinstance(content, types.FunctionType | types.MethodType | staticmethod | classmethod | functools.partial):
            yield content


def _inside_object(item: Any) -> Iterator[Any]:
    kind = type(item)
    call = getattr(kind, "__call__", None)  # noqa: B004  the function itself is wanted
    if type(call) is types.FunctionType and not issubclass(kind, torch.nn.Module):
        yield call
    try:
        wrapped = object.__getattribute__(item, "__dict__").get("__wrapped__")
    except AttributeError:
        wrapped = None
    if callable(wrapped):
        yield wrapped


def _kind(value: Any) -> str:
    if type(value) is Named:
        return str(value.kind)
    return "function" if type(value) is types.FunctionType else type(value).__name__
