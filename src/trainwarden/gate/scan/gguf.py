"""GGUF (ggml/docs/gguf.md): tensors, and metadata of which chat templates are programs."""

from __future__ import annotations

import struct
from typing import Final

from trainwarden.gate.results import Decision, joined, refused
from trainwarden.gate.scan.place import Place
from trainwarden.gate.scan.templates import judge_template
from trainwarden.gate.scan.window import Window

MOST_TEMPLATE: Final = 4 << 20
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
                self.texts[key] = self.text(MOST_TEMPLATE)
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
