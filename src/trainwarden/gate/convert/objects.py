"""The objects of a clean checkpoint, made of the allow-list's names and nothing else.

A scan has found that the stream uses each name only as its rule says; here each name means its own object where that
is torch's, numpy's or plain Python's, and a stand-in where it is a class of somebody's library, which is not imported.
"""

from __future__ import annotations

import importlib
import pickle
from functools import cache
from io import BytesIO
from types import SimpleNamespace
from typing import IO, Any

from trainwarden.errors import CannotDecide
from trainwarden.gate.scan.pickles.allowed import ALLOWED, ATTRIBUTE_DICTS, ENUMS, PATHS, PROPERTIES, PYTHON_2, RECORDS


class Record:
    """An instance of a class that is nothing but its state; `kind` is the class's full name."""

    kind = ""

    def __setstate__(self, state: object) -> None:
        self.state = state


class MappingRecord(dict[Any, Any]):
    """The same of a class that is a dict."""

    kind = ""

    def __setstate__(self, state: object) -> None:
        self.state = state


class Choice:
    """A value made of plain arguments: a member of an enumeration, a path."""

    kind = ""

    def __init__(self, *args: object) -> None:
        self.args = args


@cache
def meaning(module: str, name: str) -> Any:
    """What a name of the allow-list means here.

    Raises:
        CannotDecide: it is not in the list, or what it makes cannot be written down.
    """
    if (module, name) not in ALLOWED or module == "joblib.numpy_pickle":
        raise CannotDecide(f"{module}.{name} cannot be converted", hint="save its tensors alone, by state_dict()")
    for base, names in ((Record, RECORDS), (Choice, ENUMS)):
        if name in names.get(module, ()):
            return type(name, (base,), {"kind": f"{module}.{name}"})
    if (module, name) in (PROPERTIES, ("types", "SimpleNamespace")):
        return type(name, (Record,), {"kind": f"{module}.{name}"})
    if module.startswith("pathlib") and name in PATHS:
        return type(name, (Choice,), {"kind": f"pathlib.{name}"})
    if module in ATTRIBUTE_DICTS:
        return type(name, (MappingRecord,), {"kind": f"{module}.{name}"})
    if (module, name) == ("torch.storage", "_load_from_bytes"):
        return lambda data: read_torch(BytesIO(data))
    return getattr(importlib.import_module(module), name)


class _Unpickler(pickle.Unpickler):
    def find_class(self, module: str, name: str) -> Any:
        return meaning(*PYTHON_2.get((module, name), (module, name)))


def read_pickle(file: IO[bytes]) -> object:
    """The object of a plain pickle that a scan found clean."""
    return _Unpickler(file).load()


def read_torch(file: IO[bytes] | str) -> object:
    """The object of a file of torch's that a scan found clean, its tensors on the CPU."""
    import torch

    names = SimpleNamespace(
        __name__="trainwarden", Unpickler=_Unpickler, load=lambda f, **how: _Unpickler(f, **how).load()
    )
    return torch.load(file, map_location="cpu", pickle_module=names, weights_only=False)
