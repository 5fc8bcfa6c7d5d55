"""Loads the catalogue of sabotage, which is code of its own and never part of the wheel.

A catalogue is a folder with `catalogue.py` in it, whose `TECHNIQUES` lists every technique: the repository's
`attacks/`, or another one that is named. It is imported as the package `attacks`.
"""

from __future__ import annotations

import importlib
import importlib.util
import inspect
import sys
from collections.abc import Sequence
from pathlib import Path

from trainwarden.errors import UsageError
from trainwarden.redteam.interface import Technique, Variant

DEFAULT = Path(__file__).resolve().parents[3] / "attacks"


def load(folder: Path | None = None) -> tuple[Technique, ...]:
    """The techniques of a catalogue, in the order of their ids.

    Raises:
        UsageError: there is none, or it is not one.
    """
    place = (folder or DEFAULT).resolve()
    if not (place / "catalogue.py").is_file():
        raise UsageError(
            f"no catalogue of attacks in {place}: it is not part of the wheel",
            hint="clone the repository and run it there, or name the folder: --catalogue DIR",
        )
    _as_package(place)
    techniques: Sequence[Technique] = importlib.import_module("attacks.catalogue").TECHNIQUES
    return tuple(sorted(techniques, key=lambda t: t.id))


def _as_package(place: Path) -> None:
    known = sys.modules.get("attacks")
    if known is not None and str(place) in map(str, known.__path__):
        return
    for name in [n for n in sys.modules if n == "attacks" or n.startswith("attacks.")]:
        del sys.modules[name]
    spec = importlib.util.spec_from_file_location(
        "attacks", place / "__init__.py", submodule_search_locations=[str(place)]
    )
    if spec is None or spec.loader is None or not (place / "__init__.py").is_file():
        raise UsageError(f"{place} is not a Python package", hint="put an __init__.py beside its catalogue.py")
    module = importlib.util.module_from_spec(spec)
    sys.modules["attacks"] = module
    spec.loader.exec_module(module)


def find(techniques: Sequence[Technique], name: str) -> tuple[Technique, Variant | None]:
    """The technique that "22", "rank-sign-flip" or "22/every-8" names, and the variant if one is named.

    Raises:
        UsageError: there is none.
    """
    head, _, tail = name.partition("/")
    found = next((t for t in techniques if head.removeprefix("t") == t.id or head == t.slug), None)
    if found is None:
        raise UsageError(f"no technique is called {head}", hint="trainwarden redteam list")
    if not tail:
        return found, None
    variant = found.variant(tail)
    if variant is None:
        names = ", ".join(v.name for v in found.variants)
        raise UsageError(f"technique {found.id} has no variant {tail}", hint=f"one of {names}")
    return found, variant


def document(technique: Technique) -> str:
    """The docstring of the file that a technique is written in."""
    name = f"attacks.t{technique.id}_{technique.slug.replace('-', '_')}"
    return inspect.cleandoc(importlib.import_module(name).__doc__ or "")
