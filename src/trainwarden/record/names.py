"""Finds the modules that own an optimizer's parameters, and gives every parameter a stable name."""

from __future__ import annotations

import gc
from collections.abc import Iterable

import torch

_WRAPPERS = ("module.", "_orig_mod.", "_fsdp_wrapped_module.", "_checkpoint_wrapped_module.")


def clean_name(name: str) -> str:
    """A parameter's name without the prefixes that DDP, FSDP and torch.compile put before or inside it."""
    for wrapper in _WRAPPERS:
        name = name.removeprefix(wrapper).replace("." + wrapper, ".")
    return name


def find_roots(parameters: Iterable[torch.Tensor]) -> list[torch.nn.Module]:
    """The outermost live modules that own any of `parameters`, in the order in which they were made."""
    wanted = {id(p) for p in parameters}
    modules = [m for m in gc.get_objects() if _is_module(m)]
    children = {id(c) for m in modules for c in m._modules.values() if c is not None}
    roots = [m for m in modules if id(m) not in children and any(id(p) in wanted for p in m.parameters())]
    return [r for r in roots if not _inside_another(r, roots)]


def _is_module(thing: object) -> bool:
    # type() and not isinstance(): lazy proxies import half the world when asked for their __class__.
    kind = type(thing)
    return issubclass(kind, torch.nn.Module) and "_modules" in getattr(thing, "__dict__", {})


def _inside_another(root: torch.nn.Module, roots: list[torch.nn.Module]) -> bool:
    # A compiled module holds the original outside `_modules`' reach in some releases.
    return any(other is not root and getattr(other, "_orig_mod", None) is root for other in roots)


def parameter_names(roots: list[torch.nn.Module]) -> dict[int, str]:
    """id(parameter) → name; when several roots claim one name, later roots are prefixed with their index."""
    names: dict[int, str] = {}
    taken: set[str] = set()
    for i, root in enumerate(roots):
        for raw, p in root.named_parameters():
            if id(p) in names:
                continue
            name = clean_name(raw)
            if name in taken:
                name = f"model{i}.{name}"
            taken.add(name)
            names[id(p)] = name
    return names


def buffers(roots: list[torch.nn.Module]) -> list[tuple[str, torch.Tensor]]:
    """(name, buffer) of all roots, in order."""
    found: dict[str, torch.Tensor] = {}
    for i, root in enumerate(roots):
        for raw, b in root.named_buffers():
            name = clean_name(raw)
            found[name if name not in found else f"model{i}.{name}"] = b
    return list(found.items())
