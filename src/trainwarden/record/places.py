"""Where a rank is looked at for functions: names of modules and classes, objects, the interpreter's own hooks.

Rules
-----
* Reads only. Types are asked, never values: `isinstance`, `getattr` on an instance and `==` may run foreign code.
* A class that says it is another one (same module, same name) stands under a slot of its own.
"""

from __future__ import annotations

import functools
import gc
import os
import signal
import sys
import types
from collections.abc import Iterator
from typing import Any

import torch
import torch.overrides
from torch.utils import _python_dispatch

MODULES = (
    "torch.optim", "torch.autograd", "torch.amp", "torch.nn.functional", "torch.nn.init", "torch.nn.modules",
    "torch.nn.parallel", "torch.nn.utils", "torch.utils.data", "torch.utils.checkpoint", "torch.random",
    "torch.cuda.random", "torch.functional", "torch.serialization", "torch._tensor", "torch._utils",
    "torch.distributed.distributed_c10d", "torch.distributed.fsdp", "torch.distributed.algorithms.ddp_comm_hooks",
    "safetensors", "random", "trainwarden",
)  # fmt: skip
"""Modules, with what lies below them, whose functions decide a step: update, loss, gradients, data, RNG, state."""
EXACT = ("torch", "torch._ops", "torch.distributed", "__main__", "builtins")
_SYMBOLIC = ("SymInt", "SymFloat", "SymBool")  # their methods are made and attached when the compiler is imported
BUILTIN = (
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
_OF_LOADERS = ("dataset", "sampler", "batch_sampler", "collate_fn")
_MOST_IN_TABLE = 256
_GLOBAL_HOOKS = (
    ("torch.nn.modules.module", "_global_forward_hooks"),
    ("torch.nn.modules.module", "_global_forward_pre_hooks"),
    ("torch.nn.modules.module", "_global_backward_hooks"),
    ("torch.nn.modules.module", "_global_backward_pre_hooks"),
    ("torch.optim.optimizer", "_global_optimizer_pre_hooks"),
    ("torch.optim.optimizer", "_global_optimizer_post_hooks"),
)


def modules() -> dict[str, types.ModuleType]:
    """The watched modules that this process has imported, and the job's own, by the name they are imported under."""
    ours = os.environ.get("TRAINWARDEN_SOURCE", "") + os.sep + "trainwarden"
    library = os.path.dirname(os.__file__) + os.sep
    found: dict[str, types.ModuleType] = {}
    seen: set[int] = set()
    for name, module in list(sys.modules.items()):
        if id(module) in seen or not issubclass(type(module), types.ModuleType):
            continue
        seen.add(id(module))  # some modules have two names
        if name in EXACT or name.startswith(MODULES):
            if name in EXACT or any(name == m or name.startswith(m + ".") for m in MODULES):
                found[name] = module
            continue
        file = file_of(module)
        installed = file.startswith((ours, library)) or "/site-packages/" in file or "/dist-packages/" in file
        if file and not installed and not name.startswith("torch."):  # torch names what its compiler generates so
            found[name] = module
    return found


@functools.lru_cache(maxsize=65536)
def absolute(path: str) -> str:
    """Where a code object's file lies; that of a module frozen into the interpreter is its source's."""
    if path.startswith("<frozen "):
        place = os.path.join(os.path.dirname(os.__file__), path[8:-1].replace(".", "/"))
        return f"{place}/__init__.py" if os.path.isdir(place) else f"{place}.py"
    return path if path.startswith(("/", "<")) else os.path.join(_CWD, path)


def _start_folder() -> str:
    try:
        return os.getcwd()
    except FileNotFoundError:
        return "/"


_CWD = _start_folder()  # what relative file names in code objects are relative to


def file_of(module: types.ModuleType) -> str:
    file = vars(module).get("__file__")
    return absolute(file) if isinstance(file, str) else ""


def live(
    watched: dict[str, types.ModuleType],
    optimizers: list[torch.optim.Optimizer],
    roots: list[torch.nn.Module],
    loaders: list[Any],
) -> Iterator[tuple[str, Any]]:
    """(slot, value) of every name looked at, and (class slot, its bases' slots)."""
    classes = _Classes()
    for name, module in watched.items():
        own = not name.startswith(MODULES) and name != "builtins"
        if type(module) is not types.ModuleType:  # properties of its class stand before its own names
            yield from _methods(f"class of {name}", type(module))
        for key, value in list(vars(module).items()):
            if issubclass(type(value), type):
                yield from _named_class(name, key, value, classes)
            elif own and type(value) in (dict, list, tuple):
                yield from _table(f"{name}:{key}", value)
            elif issubclass(type(value), types.ModuleType):
                if not _is_imported(value):
                    yield f"{name}:{key}", Named(value)
            elif _telling(key, value):
                yield f"{name}:{key}", value
    yield from _objects(classes, optimizers, roots, loaders)
    yield from _interpreter()
    for slot, kind in classes.pending():
        yield from _class(slot, kind, classes)


def _named_class(name: str, key: str, value: type, classes: _Classes) -> Iterator[tuple[str, Any]]:
    if not _at_home(value) and value.__module__ in sys.modules:
        classes.add(value, f"{name}:{key}")
    elif value.__module__ == name and not (name == "torch" and key in _SYMBOLIC):
        classes.add(value)
    if value.__name__ != key:
        yield f"{name}:{key}", Named(value)


def _is_imported(module: types.ModuleType) -> bool:
    """Whether a module is the one of its name; native ones inside another are often found through that alone."""
    name = str(vars(module).get("__name__"))
    if name in sys.modules:
        return sys.modules[name] is module
    outer, _, inner = name.rpartition(".")
    return getattr(sys.modules.get(outer), "__dict__", {}).get(inner) is module


def _table(slot: str, value: Any) -> Iterator[tuple[str, Any]]:
    """Functions in a small list or dictionary of the job's own: tables of losses, of optimizers."""
    if len(value) > _MOST_IN_TABLE:
        return
    for key, item in list(value.items() if type(value) is dict else enumerate(value)):
        if type(item) in _TOLD and type(key) in (str, int):
            yield f"{slot}[{key!r}]", item


class _Classes:
    """The classes to look at, by slot."""

    def __init__(self) -> None:
        self._kinds: dict[str, type] = {}
        self._slots: dict[int, str] = {}

    def add(self, kind: type, slot: str = "") -> None:
        """Look at a class, under a slot of its own where another stands in its place."""
        if not slot and id(kind) in self._slots:
            return
        slot = slot or (class_slot(kind) if _at_home(kind) else f"{class_slot(kind)} (another)")
        self._kinds.setdefault(slot, kind)
        self._slots.setdefault(id(kind), slot)
        if type(kind) is not type:
            self.add(type(kind))

    def add_bases(self, kind: type) -> None:
        """Look at a class and all its bases."""
        for part in type.__getattribute__(kind, "__mro__")[:-1]:
            self.add(part)

    def slot(self, kind: type) -> str:
        """Under which slot a class stands, or would."""
        return self._slots.get(id(kind)) or class_slot(kind)

    def pending(self) -> Iterator[tuple[str, type]]:
        """All classes, also those added meanwhile."""
        done = 0
        while done < len(self._kinds):
            for slot, kind in list(self._kinds.items())[done:]:
                done += 1
                yield slot, kind


def _at_home(kind: type) -> bool:
    """Whether a class is the one that is found under the module and name that it gives as its own."""
    if "<locals>" in kind.__qualname__:
        return True
    found: Any = sys.modules.get(kind.__module__)
    for part in kind.__qualname__.split("."):
        held = (
            type.__getattribute__(found, "__dict__")
            if issubclass(type(found), type)
            else getattr(found, "__dict__", {})
        )
        found = held.get(part)
    return found is kind


def _telling(key: str, value: Any) -> bool:
    """Whether a name's value is told of: functions, and what could stand in the place of one."""
    kind = type(value)
    if kind in _TOLD:
        return True
    if kind in _SILENT:
        return False
    if issubclass(kind, BUILTIN):
        return bool(getattr(value, "__name__", key) != key)
    if issubclass(kind, types.ModuleType | torch.Tensor):
        return False
    if callable(value):
        return kind.__module__ != "typing"
    return any(type(v) in _TOLD for v in list((_held(value) or {}).values()))


def _held(value: Any) -> dict[str, Any] | None:
    """An object's own attributes, asked past whatever its class makes of that."""
    try:
        held = object.__getattribute__(value, "__dict__")
    except (AttributeError, TypeError):
        return None
    return held if type(held) is dict else None


class Named:
    """Stands for a class under a name that is not its own, or for a module that is not the imported one of its name."""

    def __init__(self, value: type | types.ModuleType) -> None:
        self.value = value

    @property
    def kind(self) -> str:
        """What it is, in words."""
        if issubclass(type(self.value), types.ModuleType):
            return "module that nobody imported"
        return f"class {self.value.__module__}.{self.value.__qualname__}"


def _class(slot: str, kind: type, classes: _Classes) -> Iterator[tuple[str, Any]]:
    mro = type.__getattribute__(kind, "__mro__")
    yield slot, tuple(classes.slot(base) for base in mro[1:-1])
    for key, value in list(type.__getattribute__(kind, "__dict__").items()):
        if issubclass(type(value), type):
            if value.__qualname__ == f"{kind.__qualname__}.{key}":
                classes.add(value)
        elif _telling(key, value):
            yield f"{slot}.{key}", value


def class_slot(kind: type) -> str:
    """The slot of a class: its module and qualified name."""
    return f"{kind.__module__}:{kind.__qualname__}"


def _objects(
    classes: _Classes, optimizers: list[torch.optim.Optimizer], roots: list[torch.nn.Module], loaders: list[Any]
) -> Iterator[tuple[str, Any]]:
    """Replaced methods and hooks of optimizers, modules, parameters, loaders; their classes are looked at as well."""
    for name, key in _GLOBAL_HOOKS:
        yield from _hooks(f"{name}.{key}", getattr(sys.modules.get(name), key, None))
    for i, optimizer in enumerate(optimizers):
        classes.add_bases(type(optimizer))
        yield from _instance(f"optimizer{i}", optimizer)
    for i, loader in enumerate(loaders):
        for key, part in (("", loader), *((f".{k}", (_held(loader) or {}).get(k)) for k in _OF_LOADERS)):
            if part is not None and type(part) not in _TOLD and _held(part) is not None:
                classes.add_bases(type(part))
                yield from _instance(f"loader{i}{key}", part)
    for r, root in enumerate(roots):
        for path, module in root.named_modules():
            classes.add_bases(type(module))
            place = f"model{r}.{path}" if path else f"model{r}"
            yield from _instance(place, module)
            for name, parameter in module._parameters.items():
                if parameter is not None:
                    yield from _hooks(f"{place}.{name}._backward_hooks", parameter._backward_hooks)
                    after = getattr(parameter, "_post_accumulate_grad_hooks", None)
                    yield from _hooks(f"{place}.{name}._post_accumulate_grad_hooks", after)


def _instance(place: str, item: Any) -> Iterator[tuple[str, Any]]:
    kind = type(item)
    for key, value in list((_held(item) or {}).items()):
        plain = type(value) in (types.FunctionType, types.MethodType, functools.partial)
        if key in _HOOKS:
            yield from _hooks(f"{place}.{key}", value)
        elif plain or (callable(value) and callable(_of_class(kind, key))):
            yield f"{place}.{key}", value


def _of_class(kind: type, key: str) -> Any:
    """What the classes of an object hold under a name: an object's own value of it stands before that."""
    for part in type.__getattribute__(kind, "__mro__"):
        held = type.__getattribute__(part, "__dict__")
        if key in held:
            return held[key]
    return None


def _interpreter() -> Iterator[tuple[str, Any]]:
    """What Python and torch call on their own: tracing, signal handlers, finders of modules, modes."""
    yield from (
        (f"interpreter.{name}", hook)
        for name, hook in (("trace", sys.gettrace()), ("profile", sys.getprofile()))
        if hook is not None
    )
    for number in signal.valid_signals():
        handler = signal.getsignal(number)
        if type(handler) in _TOLD or (handler is not None and _is_python(handler)):
            yield f"interpreter.signal {number}", handler
    yield from ((f"interpreter.gc {n}", f) for n, f in enumerate(list(gc.callbacks)))
    modes = (*torch.overrides._get_current_function_mode_stack(), *_python_dispatch._get_current_dispatch_mode_stack())
    for name, found in (("finder", sys.meta_path), ("mode", modes)):
        for n, hook in enumerate(list(found)):
            yield from _methods(f"interpreter.{name} {n}", hook if issubclass(type(hook), type) else type(hook))


def _methods(place: str, kind: type) -> Iterator[tuple[str, Any]]:
    """All methods that objects of a class have, its own and inherited ones."""
    held: dict[str, Any] = {}
    for part in reversed(type.__getattribute__(kind, "__mro__")[:-1]):
        held |= type.__getattribute__(part, "__dict__")
    yield from ((f"{place}.{key}", value) for key, value in held.items() if type(value) in _TOLD)


def _is_python(value: Any) -> bool:
    return not issubclass(type(value), BUILTIN) and callable(value)


def _hooks(place: str, hooks: Any) -> Iterator[tuple[str, Any]]:
    if isinstance(hooks, dict) and hooks:
        for n, hook in enumerate(list(hooks.values())):
            yield f"{place}[{n}]", hook
