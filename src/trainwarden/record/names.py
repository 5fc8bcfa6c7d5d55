"""Finds the modules that own an optimizer's parameters, and gives every parameter a stable name."""

from __future__ import annotations

import gc
import weakref
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


class Buffers:
    """Finds the buffers of models; a model whose modules are still the same is not walked again.

    It holds no module alive. A module that took the place of another is seen: the reference to the old one is dead.
    """

    def __init__(self) -> None:
        self._roots: list[int] = []
        self._modules: list[tuple[weakref.ref[torch.nn.Module], list[int]]] = []  # with its children, by identity
        self._places: list[tuple[int, str]] = []  # root and prefix of each

    def of(self, roots: list[torch.nn.Module]) -> list[tuple[str, torch.Tensor]]:
        """(name, buffer) of all roots, in order; of a buffer with several names in a root the first counts."""
        if [id(r) for r in roots] != self._roots or (held := self._held()) is None:
            self._walk(roots)
            held = self._held() or []
        found: dict[str, torch.Tensor] = {}
        seen: set[tuple[int, int]] = set()
        for number, buffers in held:
            root, prefix = self._places[number]
            for raw, b in buffers.items():
                if b is not None and (root, id(b)) not in seen:
                    seen.add((root, id(b)))
                    name = clean_name(f"{prefix}.{raw}" if prefix else raw)
                    found[name if name not in found else f"model{root}.{name}"] = b
        return list(found.items())

    def _walk(self, roots: list[torch.nn.Module]) -> None:
        self._roots = [id(r) for r in roots]
        places = [(i, prefix, m) for i, root in enumerate(roots) for prefix, m in root.named_modules()]
        self._modules = [(weakref.ref(m), list(map(id, m._modules.values()))) for _, _, m in places]
        self._places = [(i, prefix) for i, prefix, _ in places]

    def _held(self) -> list[tuple[int, dict[str, torch.Tensor | None]]] | None:
        """The modules that have buffers, by number; None when a module is not as it was found."""
        held = []
        for number, (ref, children) in enumerate(self._modules):
            module = ref()
            if module is None:
                return None
            now = module._modules
            if now if not children else list(map(id, now.values())) != children:
                return None
            if module._buffers:
                held.append((number, module._buffers))
        return held
