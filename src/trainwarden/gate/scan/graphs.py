"""Formats that hold a program of operators: HDF5 (Keras's older files) and ONNX."""

from __future__ import annotations

import json
import re
from collections.abc import Iterator
from typing import Final

from trainwarden.gate.results import Clean, Decision, joined, refused
from trainwarden.gate.scan.place import Place
from trainwarden.gate.scan.protobuf import BadMessage, fields
from trainwarden.gate.scan.texts import judge_json
from trainwarden.gate.scan.window import PIECE, Window

_OBJECT: Final = re.compile(rb'\{\s*"')
_OVERLAP: Final = 64
_MOST_JSON: Final = 4 << 20
_DOMAINS: Final = frozenset(
    {"", "ai.onnx", "ai.onnx.ml", "ai.onnx.training", "ai.onnx.preview.training", "com.microsoft"}
)
_MODEL_FIELDS: Final = frozenset({1, 2, 3, 4, 5, 6, 7, 8, 14, 20, 25, 26})
_DEEPEST: Final = 12
_MOST_TOLD: Final = 20
_MOST_BESIDE: Final = 4096  # files with data of one model


def read_hdf5(window: Window, place: Place) -> Decision:
    """An HDF5 file: weights, unless an attribute `model_config` makes it one of Keras's whole models.

    HDF5 keeps names and texts of attributes unpacked and in one piece (format specification 3.0, IV.A.2.m), so each
    JSON object that Keras could read there is found by its bytes.
    """
    if not any(_found(window, re.compile(rb"model_config|training_config|keras_version"))):
        return Clean(kind="hdf5")
    parts: list[Decision] = []
    done = 0
    for at in _found(window, _OBJECT):
        if at < done:
            continue
        tree, size = _decoded(window.read(at, _MOST_JSON))
        if isinstance(tree, dict):
            parts.append(judge_json(tree, place))
            done = at + size
    if not parts:
        return place.undecided("hdf5", "a whole model of Keras whose architecture was not found")
    return joined("hdf5", parts)


def _found(window: Window, pattern: re.Pattern[bytes]) -> Iterator[int]:
    at, last = 0, -1
    while piece := window.read(at, PIECE):
        for match in pattern.finditer(piece):
            if at + match.start() > last:
                last = at + match.start()
                yield last
        at += PIECE - _OVERLAP if len(piece) == PIECE else len(piece)


def _decoded(raw: bytes) -> tuple[object, int]:
    try:
        return json.JSONDecoder().raw_decode(raw.decode("utf-8", "replace").replace("\0", " "))
    except (ValueError, RecursionError):
        return None, 0


def looks_like_onnx(window: Window) -> bool:
    """Does it begin with a model's version, and consist of a model's fields, a graph among them?"""
    head = window.read(0, 2)
    if len(head) < 2 or head[0] != 8 or not 1 <= head[1] <= 32:
        return False
    try:
        numbers = {number for number, _, _, _ in fields(window, 0, window.size, [0])}
    except BadMessage:
        return False
    return 7 in numbers and numbers <= _MODEL_FIELDS


def read_onnx(window: Window, place: Place) -> Decision:
    """An ONNX model: only operators that every runtime brings itself, and data that stays beside the file."""
    told = _Told()
    try:
        for number, kind, begin, end in fields(window, 0, window.size, [0]):
            if number == 7 and kind == 2:
                _graph(window, begin, end, told, [0], 0)
            elif number == 8 and kind == 2:
                domain = _text(window, begin, end, 1)
                if domain not in _DOMAINS:
                    told.object(begin, "opset_import", domain, "operators of a library that must be loaded first")
            elif number == 25 and kind == 2:
                for inner, sort, start, stop in fields(window, begin, end, [0]):
                    if inner == 7 and sort == 2:
                        _node(window, start, stop, told, [0], 0)
    except (BadMessage, RecursionError) as e:
        return place.undecided("onnx", f"it cannot be read ({e})")
    found = [
        refused("onnx", place.path, why, offset=at, field=field, name=name[:80]) for at, field, name, why in told.bad
    ]
    return joined("onnx", found) if found else Clean(kind="onnx", beside=tuple(sorted(told.beside.items())))


class _Told:
    """What was met in a model: objections (offset, field, name, why), and its data's files with how much of each."""

    def __init__(self) -> None:
        self.bad: list[tuple[int, str, str, str]] = []
        self.beside: dict[str, int] = {}

    def object(self, at: int, field: str, name: str, why: str) -> None:
        if len(self.bad) < _MOST_TOLD:
            self.bad.append((at, field, name, why))

    def needs(self, name: str, end: int) -> None:
        if len(self.beside) >= _MOST_BESIDE and name not in self.beside:
            raise BadMessage("data in too many files")
        self.beside[name] = max(end, self.beside.get(name, 0))


def _text(window: Window, begin: int, end: int, wanted: int) -> str:
    got = ""
    for number, kind, start, stop in fields(window, begin, end, [0]):
        if number == wanted and kind == 2:
            got = window.read(start, min(stop - start, 1024)).decode("utf-8", "replace")
    return got


def _graph(window: Window, begin: int, end: int, told: _Told, spent: list[int], depth: int) -> None:
    if depth > _DEEPEST:
        raise BadMessage("graphs in graphs")
    for number, kind, start, stop in fields(window, begin, end, spent):
        if number == 1 and kind == 2:
            _node(window, start, stop, told, spent, depth)
        elif number == 5 and kind == 2:
            _tensor(window, start, stop, told, spent)


def _node(window: Window, begin: int, end: int, told: _Told, spent: list[int], depth: int) -> None:
    operator = _text(window, begin, end, 4)
    domain = _text(window, begin, end, 7)
    if domain not in _DOMAINS or operator == "PyOp":
        told.object(begin, "node", f"{domain}.{operator}", "an operator of a library that must be loaded first")
    for number, kind, start, stop in fields(window, begin, end, spent):
        if number != 5 or kind != 2:
            continue
        for inner, sort, first, last in fields(window, start, stop, spent):
            if inner in (6, 11) and sort == 2:
                _graph(window, first, last, told, spent, depth + 1)
            elif inner in (5, 10) and sort == 2:
                _tensor(window, first, last, told, spent)


def _tensor(window: Window, begin: int, end: int, told: _Told, spent: list[int]) -> None:
    external: dict[str, str] = {}
    for number, kind, start, stop in fields(window, begin, end, spent):
        if number == 13 and kind == 2:
            external[_text(window, start, stop, 1)] = _text(window, start, stop, 2)
    if "location" not in external:
        return
    place = external["location"]
    if place.startswith("/") or ".." in place.split("/") or "\\" in place or not place:
        told.object(begin, "external_data", place, "data from outside of the model's folder")
        return
    numbers = [external.get(key, "0") for key in ("offset", "length")]
    if not all(number.isascii() and number.isdigit() and len(number) < 20 for number in numbers):
        told.object(begin, "external_data", place, "its offset or length is no number")
        return
    told.needs(place, sum(map(int, numbers)))
