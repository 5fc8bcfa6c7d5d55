"""Formats of plain tensors: numpy's `.npy` and safetensors."""

from __future__ import annotations

import ast
import json
import math
import re
from typing import Any, Final

from trainwarden.gate.results import Clean, Decision, joined, refused
from trainwarden.gate.scan.pickles.streams import read_one
from trainwarden.gate.scan.place import Place
from trainwarden.gate.scan.window import Window

MOST_HEADER: Final = 4 << 20
_PLAIN: Final = re.compile(r"[<>|=]?(?:[biufcmM]\d{1,2}(?:\[\w+\])?|[SUV]\d{1,6})")
_BITS: Final = {
    **{"F64": 64, "F32": 32, "F16": 16, "BF16": 16, "I64": 64, "I32": 32, "I16": 16, "I8": 8, "U64": 64, "U32": 32},
    **{"U16": 16, "U8": 8, "BOOL": 8, "F8_E4M3": 8, "F8_E5M2": 8, "F8_E8M0": 8, "F4": 4, "C64": 64},
    **{"F8_E4M3FNUZ": 8, "F8_E5M2FNUZ": 8, "F6_E2M3": 6, "F6_E3M2": 6},
}


def read_npy(window: Window, place: Place) -> Decision:
    """A numpy array (NEP 1); one of objects is a pickle behind its header."""
    head = window.read(0, 12)
    wide = head[6:7] in (b"\2", b"\3")
    size = int.from_bytes(head[8:12] if wide else head[8:10], "little")
    begin = (12 if wide else 10) + size
    if size > 1 << 16:
        return place.undecided("npy", "its header is too long")
    try:
        told = ast.literal_eval(window.read(begin - size, size).decode("latin-1").strip())
        descr, shape = told["descr"], told["shape"]
        numel = math.prod(int(n) for n in shape)
    except (ValueError, SyntaxError, TypeError, KeyError, MemoryError, RecursionError):
        return place.undecided("npy", "its header cannot be read")
    rest = window.part(begin, window.size)
    if descr in ("|O", "O", "|O8", "O8", "<O", "=O"):
        return joined("npy objects", [read_one(rest, place)[0]])
    if not isinstance(descr, str) or not _PLAIN.fullmatch(descr):
        return place.undecided("npy", "a dtype that is not a plain one")
    item = int(re.sub(r"\[.*", "", descr.lstrip("<>|=")[1:])) * (4 if "U" in descr else 1)
    if rest.size > numel * item >= 0:
        return refused("npy", place.path, "bytes behind the array", offset=begin + numel * item, field="npy")
    if numel < 0 or rest.size != numel * item:
        return place.undecided("npy", "its bytes are not as many as its shape says")
    return Clean(kind="npy")


def read_safetensors(window: Window, place: Place) -> Decision:
    """A safetensors file: a JSON header of names, kinds and places that fill the rest without gaps."""
    size = int.from_bytes(window.read(0, 8), "little")
    if size > MOST_HEADER:
        return place.undecided("safetensors", "its header is longer than a scan keeps")
    try:
        header = json.loads(window.read(8, size).decode("utf-8"), object_pairs_hook=_once)
        spans = sorted(_span(t) for name, t in header.items() if name != "__metadata__")
        told = header.get("__metadata__", {})
        plain = all(isinstance(k, str) and isinstance(v, str) for k, v in told.items())
    except (ValueError, TypeError, KeyError, AttributeError, RecursionError) as e:
        return place.undecided("safetensors", f"its header cannot be read ({e})")
    at = 0
    for begin, end in spans:
        if begin != at:
            return refused(
                "safetensors", place.path, "tensors overlap or leave gaps", offset=8 + size + at, field="header"
            )
        at = end
    if at != window.size - 8 - size or not plain:
        return refused(
            "safetensors", place.path, "bytes that belong to no tensor", offset=8 + size + at, field="header"
        )
    return Clean(kind="safetensors")


def _span(tensor: dict[str, Any]) -> tuple[int, int]:
    begin, end = tensor["data_offsets"]
    if (end - begin) * 8 != math.prod(tensor["shape"]) * _BITS[tensor["dtype"]] or begin < 0:
        raise ValueError("a tensor's size is not that of its shape")
    return begin, end


def _once(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    made = dict(pairs)
    if len(made) != len(pairs):
        raise ValueError("a name twice: readers take one or the other")
    return made
