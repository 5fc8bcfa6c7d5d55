"""The functions that live in this rank: what they are made of, told to the watcher, who alone judges.

Looked at are the names of the modules that decide training (`MODULES`), of the job's own modules, of the classes
of its models and optimizers, and what hangs on these objects: replaced methods and hooks. A name's value is
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
import os
import sys
import types
from collections.abc import Iterable, Iterator
from typing import Any

import torch

from trainwarden import codeform, wire

MODULES = (
    "torch.optim", "torch.autograd", "torch.amp", "torch.nn.functional", "torch.nn.init", "torch.nn.modules",
    "torch.nn.parallel", "torch.nn.utils", "torch.utils.data", "torch.utils.checkpoint", "torch.random",
    "torch.cuda.random", "torch.functional", "torch.serialization", "torch._tensor", "torch._utils",
    "torch.distributed.distributed_c10d", "torch.distributed.fsdp", "torch.distributed.algorithms.ddp_comm_hooks",
    "safetensors", "random",
)  # fmt: skip
"""Modules, with what lies below them, whose functions decide a step: update, loss, gradients, data, RNG, state."""
EXACT = ("torch", "torch._ops", "torch.distributed", "__main__")
_SYMBOLIC = ("SymInt", "SymFloat", "SymBool")  # their methods are made and attached when the compiler is imported
MOST_LINKS = 16
_BUILTIN = (
    *(types.BuiltinFunctionType, types.MethodWrapperType, types.WrapperDescriptorType, types.MethodDescriptorType),
    *(types.ClassMethodDescriptorType, types.GetSetDescriptorType, types.MemberDescriptorType),
)
_TOLD = frozenset(
    {types.FunctionType, types.MethodType, staticmethod, classmethod, property}
    | {functools.partial, functools.cached_property}
)
_SILENT = frozenset({str, int, float, bool, type(None), dict, list, tuple, set, frozenset, types.ModuleType})
_HOOKS = ("_forward_hooks", "_forward_pre_hooks", "_backward_hooks", "_backward_pre_hooks", "_state_dict_hooks",
          "_load_state_dict_pre_hooks", "_load_state_dict_post_hooks", "_state_dict_pre_hooks",
          "_optimizer_step_pre_hooks", "_optimizer_step_post_hooks", "_optimizer_state_dict_pre_hooks",
          "_optimizer_state_dict_post_hooks", "_optimizer_load_state_dict_pre_hooks",
          "_optimizer_load_state_dict_post_hooks")  # fmt: skip
_GLOBAL_HOOKS = (
    ("torch.nn.modules.module", "_global_forward_hooks"),
    ("torch.nn.modules.module", "_global_forward_pre_hooks"),
    ("torch.nn.modules.module", "_global_backward_hooks"),
    ("torch.nn.modules.module", "_global_backward_pre_hooks"),
    ("torch.optim.optimizer", "_global_optimizer_pre_hooks"),
    ("torch.optim.optimizer", "_global_optimizer_post_hooks"),
)


class CodeWatch:
    """Remembers what was told, so that a look tells only what is new."""

    def __init__(self) -> None:
        self._codes: dict[int, tuple[types.CodeType, bytes]] = {}
        self._functions: dict[wire.LiveFunction, int] = {}
        self._slots: dict[str, wire.Slot] = {}
        self._classes: dict[str, tuple[str, ...]] = {}
        self._modules: dict[str, str] = {}
        self._first = True
        self._plain: dict[str, tuple[types.CodeType, Any, Any, wire.Slot]] = {}

    def look(
        self, step: int, optimizers: Iterable[torch.optim.Optimizer] = (), roots: Iterable[torch.nn.Module] = ()
    ) -> wire.Code:
        """What is new in this process since the last look."""
        forms: list[bytes] = []
        known = len(self._functions)
        slots: dict[str, wire.Slot] = {}
        modules = {str(vars(m).get("__name__", "")): _file_of(m) for m in _modules()}
        modules["__main__"] = _file_of(sys.modules["__main__"])
        for name, value in _live(modules, list(optimizers), list(roots)):
            if isinstance(value, tuple):
                self._classes.setdefault(name, value)
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
            classes=dict(self._classes) if self._first else {},
            modules={n: f for n, f in modules.items() if self._modules.get(n) != f},
        )
        self._slots, self._modules, self._first = slots, modules, False
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
            file=_absolute(code.co_filename),
            qualname=code.co_qualname,
            line=code.co_firstlineno,
            digest=known[1],
            defaults=tuple(map(codeform.value_text, defaults)) if defaults else (),
            keywords=tuple((k, codeform.value_text(v)) for k, v in sorted(keywords.items())) if keywords else (),
            home=str(function.__globals__.get("__name__", "")),
        )
        number = self._functions.get(row)
        if number is None:
            number = self._functions[row] = len(self._functions)
            forms.append(text or codeform.form_text(code))
        return number


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
    if issubclass(kind, (type, types.ModuleType, *_BUILTIN)):
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
    if type(value) is _Named:
        return f"class {value.kind.__module__}.{value.kind.__qualname__}"
    return "function" if type(value) is types.FunctionType else type(value).__name__


# ------------------------------------------------------------------------- what is looked at


def _modules() -> list[types.ModuleType]:
    """The watched modules that this process has imported, and the job's own."""
    ours = os.environ.get("TRAINWARDEN_SOURCE", "") + os.sep + "trainwarden"
    library = os.path.dirname(os.__file__) + os.sep
    found = []
    for name, module in list(sys.modules.items()):
        if not issubclass(type(module), types.ModuleType):
            continue
        if name in EXACT or name.startswith(MODULES):
            if name in EXACT or any(name == m or name.startswith(m + ".") for m in MODULES):
                found.append(module)
            continue
        file = _file_of(module)
        installed = file.startswith((ours, library)) or "/site-packages/" in file or "/dist-packages/" in file
        if file and not installed and not name.startswith("torch."):  # torch names what its compiler generates so
            found.append(module)
    return found


@functools.lru_cache(maxsize=65536)
def _absolute(path: str) -> str:
    return path if path.startswith(("/", "<")) else os.path.join(_CWD, path)


def _start_folder() -> str:
    try:
        return os.getcwd()
    except FileNotFoundError:
        return "/"


_CWD = _start_folder()  # what relative file names in code objects are relative to


def _file_of(module: types.ModuleType) -> str:
    file = vars(module).get("__file__")
    return _absolute(file) if isinstance(file, str) else ""


def _live(
    modules: dict[str, str], optimizers: list[torch.optim.Optimizer], roots: list[torch.nn.Module]
) -> Iterator[tuple[str, Any]]:
    """(slot, value) of every name looked at, and (class slot, its bases' slots)."""
    classes: dict[int, type] = {}
    for name in modules:
        module = sys.modules.get(name)
        if module is None:
            continue
        for key, value in list(vars(module).items()):
            if issubclass(type(value), type):
                if value.__module__ == name and not (name == "torch" and key in _SYMBOLIC):
                    classes[id(value)] = value
                elif value.__name__ != key:
                    yield f"{name}:{key}", _Named(value)
            elif _telling(key, value):
                yield f"{name}:{key}", value
    yield from _objects(classes, optimizers, roots)
    for kind in list(classes.values()):
        yield from _class(kind, classes)


def _telling(key: str, value: Any) -> bool:
    """Whether a name's value is told of: functions, and what could stand in the place of one."""
    kind = type(value)
    if kind in _TOLD:
        return True
    if kind in _SILENT:
        return False
    if issubclass(kind, _BUILTIN):
        return bool(getattr(value, "__name__", key) != key)
    return callable(value) and kind.__module__ != "typing" and not issubclass(kind, types.ModuleType | torch.Tensor)


class _Named:
    """Stands for a class under a name that is not its own."""

    def __init__(self, kind: type) -> None:
        self.kind = kind


def _class(kind: type, classes: dict[int, type]) -> Iterator[tuple[str, Any]]:
    slot = _class_slot(kind)
    mro = type.__getattribute__(kind, "__mro__")
    yield slot, tuple(_class_slot(base) for base in mro[1:-1])
    for key, value in list(type.__getattribute__(kind, "__dict__").items()):
        if issubclass(type(value), type):
            if value.__qualname__ == f"{kind.__qualname__}.{key}" and id(value) not in classes:
                classes[id(value)] = value
                yield from _class(value, classes)
        elif _telling(key, value):
            yield f"{slot}.{key}", value


def _class_slot(kind: type) -> str:
    return f"{kind.__module__}:{kind.__qualname__}"


def _objects(
    classes: dict[int, type], optimizers: list[torch.optim.Optimizer], roots: list[torch.nn.Module]
) -> Iterator[tuple[str, Any]]:
    """Replaced methods and hooks of optimizers, modules and parameters; their classes are looked at as well."""
    for name, key in _GLOBAL_HOOKS:
        yield from _hooks(f"{name}.{key}", getattr(sys.modules.get(name), key, None))
    for i, optimizer in enumerate(optimizers):
        _add_classes(classes, type(optimizer))
        yield from _instance(f"optimizer{i}", optimizer)
    for r, root in enumerate(roots):
        for path, module in root.named_modules():
            _add_classes(classes, type(module))
            place = f"model{r}.{path}" if path else f"model{r}"
            yield from _instance(place, module)
            for name, parameter in module._parameters.items():
                if parameter is not None:
                    yield from _hooks(f"{place}.{name}._backward_hooks", parameter._backward_hooks)
                    after = getattr(parameter, "_post_accumulate_grad_hooks", None)
                    yield from _hooks(f"{place}.{name}._post_accumulate_grad_hooks", after)


def _add_classes(classes: dict[int, type], kind: type) -> None:
    if id(kind) not in classes:
        classes.update((id(k), k) for k in kind.__mro__[:-1])


def _instance(place: str, item: Any) -> Iterator[tuple[str, Any]]:
    for key, value in list(vars(item).items()):
        if key in _HOOKS:
            yield from _hooks(f"{place}.{key}", value)
        elif type(value) in (types.FunctionType, types.MethodType, functools.partial):
            yield f"{place}.{key}", value


def _hooks(place: str, hooks: Any) -> Iterator[tuple[str, Any]]:
    if isinstance(hooks, dict) and hooks:
        for n, hook in enumerate(list(hooks.values())):
            yield f"{place}[{n}]", hook
