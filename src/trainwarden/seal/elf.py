"""A native library in outline: its sections by digest and its dynamic symbols, enough to say where two differ.

Only ELF64 little-endian (the ELF specification, gABI chapter 4) is read; every offset and count is checked against the
file, and all that does not fit is None. Nothing is executed or relocated.
"""

from __future__ import annotations

import struct

from blake3 import blake3

_MOST_SECTIONS = 10_000
_MOST_SYMBOLS = 200_000
_DYNSYM, _NOBITS = 11, 8
_HEADER = struct.Struct("<16sHHIQQQIHHHHHH")
_SECTION = struct.Struct("<IIQQQQIIQQ")
_SYMBOL = struct.Struct("<IBBHQQ")


def outline(data: bytes) -> list[str] | None:
    """One line a section and a dynamic symbol, in the file's order; None when it is no such file."""
    if len(data) < _HEADER.size or data[:6] != b"\x7fELF\x02\x01":
        return None
    fields = _HEADER.unpack_from(data)
    at, size, count, names_at = fields[6], fields[11], fields[12], fields[13]
    if size != _SECTION.size or not 0 < count <= _MOST_SECTIONS or names_at >= count or at + size * count > len(data):
        return None
    sections = [_SECTION.unpack_from(data, at + i * size) for i in range(count)]
    names = _body(data, sections[names_at])
    lines = []
    for section in sections:
        body = b"" if section[1] == _NOBITS else _body(data, section)
        lines.append(f"section {_name(names, section[0])} {section[5]} bytes {blake3(body).hexdigest()[:16]}")
    for section in sections:
        if section[1] == _DYNSYM and section[6] < count:
            lines += _symbols(_body(data, section), _body(data, sections[section[6]]))
    return lines


def _body(data: bytes, section: tuple[int, ...]) -> bytes:
    start, size = section[4], section[5]
    return data[start : start + size] if start + size <= len(data) else b""


def _name(table: bytes, at: int) -> str:
    end = table.find(b"\0", at)
    return table[at : end if end >= 0 else len(table)][:200].decode("utf-8", "replace") if at < len(table) else "?"


def _symbols(body: bytes, names: bytes) -> list[str]:
    lines = []
    for i in range(min(len(body) // _SYMBOL.size, _MOST_SYMBOLS)):
        name, _, _, section, _, size = _SYMBOL.unpack_from(body, i * _SYMBOL.size)
        if name:
            lines.append(f"symbol {_name(names, name)} {'imported' if section == 0 else f'{size} bytes'}")
    return sorted(lines)
