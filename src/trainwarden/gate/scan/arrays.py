"""Formats of plain tensors: numpy's `.npy`, safetensors, GGUF."""

from __future__ import annotations

import ast
import json
import math
import re
import struct
from typing import Any, Final

from trainwarden.gate.results import Clean, Decision, joined, refused
from trainwarden.gate.scan.pickles.streams import read_one
from trainwarden.gate.scan.place import Place
from trainwarden.gate.scan.templates import judge_template
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


_GGUF_BYTES: Final = {0: 1, 1: 1, 2: 2, 3: 2, 4: 4, 5: 4, 6: 4, 7: 1, 10: 8, 11: 8, 12: 8}


class _Reader:
    """Little-endian numbers and texts, one behind the other."""

    def __init__(self, window: Window) -> None:
        self.window, self.at, self.texts = window, 0, dict[str, bytes]()
        self._buffer, self._base = b"", 0

    def take(self, count: int) -> bytes:
        begin = self.at - self._base
        if not 0 <= begin <= begin + count <= len(self._buffer):
            self._buffer, self._base, begin = self.window.read(self.at, max(count, 1 << 16)), self.at, 0
        got = self._buffer[begin : begin + count]
        if len(got) != count:
            raise ValueError("it is cut off")
        self.at += count
        return got

    def number(self, width: int) -> int:
        return int.from_bytes(self.take(width), "little")

    def skip(self, count: int) -> None:
        self.at += count
        if self.at > self.window.size:
            raise ValueError("it is cut off")

    def text(self, most: int) -> bytes:
        size = self.number(8)
        if size > most:
            self.skip(size)
            return b""
        return self.take(size)

    def value(self, key: str, kind: int, depth: int = 0) -> None:
        if kind == 8:
            if "template" in key:
                self.texts[key] = self.text(MOST_HEADER)
                if not self.texts[key]:
                    raise ValueError("a template that is too long")
            else:
                self.skip(self.number(8))
        elif kind == 9:
            inner, count = self.number(4), self.number(8)
            if inner in _GGUF_BYTES:
                self.skip(count * _GGUF_BYTES[inner])
            elif depth > 4 or count > 1 << 22:
                raise ValueError("an array that is too long")
            else:
                for n in range(count):
                    self.value(f"{key}.{n}" if "template" in key else key, inner, depth + 1)
        else:
            self.skip(_GGUF_BYTES[kind])


def read_gguf(window: Window, place: Place) -> Decision:
    """A GGUF file (ggml/docs/gguf.md): its chat templates are programs; everything else is numbers."""
    reader = _Reader(window)
    try:
        reader.take(4)
        version, tensors, pairs = reader.number(4), reader.number(8), reader.number(8)
        if version not in (2, 3) or pairs > 1 << 16 or tensors > 1 << 20:
            return place.undecided("gguf", f"version {version} with {pairs} keys is not known")
        seen = set()
        for _ in range(pairs):
            key = reader.text(1 << 10).decode("utf-8")
            if not key or key in seen:
                return refused("gguf", place.path, "a key twice, or none", offset=reader.at, field="key", name=key)
            seen.add(key)
            reader.value(key, reader.number(4))
        for _ in range(tensors):
            reader.text(1 << 10)
            reader.skip(8 * reader.number(4) + 12)
    except (ValueError, KeyError, struct.error) as e:
        return place.undecided("gguf", f"its metadata cannot be read ({e})")
    judged = [judge_template(text.decode("utf-8", "replace"), place, key) for key, text in reader.texts.items()]
    return joined("gguf", judged)
