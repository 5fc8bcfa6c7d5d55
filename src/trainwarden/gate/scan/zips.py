"""Zip archives: torch's, numpy's `.npz`, Keras's, and any other; read so that no two readers can see different things.

Every byte must be accounted for: a local header, its data and its descriptor follow each other up to the directory, the
directory up to the end record, the end record up to the end of the file. The two headers of a member agree in all that
either is read for. Names are unique, plain and stay inside.

Source: PKWARE APPNOTE 6.3.10; torch writes members stored, with descriptors (caffe2/serialize/inline_container.cc).
"""

from __future__ import annotations

import struct
import zlib
from collections.abc import Iterator
from typing import Final, NamedTuple

from trainwarden.gate.results import Clean, Decision, joined, refused
from trainwarden.gate.scan.pickles.streams import read_one
from trainwarden.gate.scan.pickles.values import Storage
from trainwarden.gate.scan.place import Place
from trainwarden.gate.scan.window import PIECE, TooLarge, Window, unpacked

_END: Final = struct.Struct("<4s4H2IH")
_END64: Final = struct.Struct("<4sQ2H2I4Q")
_LOCATOR: Final = struct.Struct("<4sIQI")
_CENTRAL: Final = struct.Struct("<4s6H3I5H2I")
_LOCAL: Final = struct.Struct("<4s5H3I2H")
_FULL: Final = 0xFFFFFFFF
MOST_DIRECTORY: Final = 1 << 25
_NEWEST: Final = 63  # "version needed", ten times
_FOLDER: Final = 0x10  # of a member's attributes
_KNOWN_FLAGS: Final = 0x0808 | 0x0006  # descriptor, UTF-8 names, deflate's hints


class Tricky(ValueError):
    """The archive can be read in more than one way."""


class Member(NamedTuple):
    """One member: its name, how it is packed, its check sum and where its bytes are."""

    name: str
    method: int
    crc: int
    packed: int
    size: int
    header: int
    flags: int


def read_zip(window: Window, place: Place) -> Decision:
    """The decision on a zip archive, or on several written one behind the other (torch's distributed checkpoints)."""
    parts: list[Decision] = []
    end = window.size
    try:
        while end > 0:
            if len(parts) > 100_000:
                return place.undecided("zip", "too many archives in one file")
            begin, members = _directory(window, end)
            archive = window.part(begin, end - begin)
            parts.append(_judge(archive, members, place))
            end = begin
            if not isinstance(parts[-1], Clean):
                break
    except Tricky as e:
        return refused("zip", place.path, str(e), field="zip")
    except (struct.error, UnicodeDecodeError, zlib.error, TooLarge) as e:
        return place.undecided("zip", f"the archive is damaged or too large ({e})")
    return parts[0] if len(parts) == 1 else joined("torch zips", parts)


def _directory(window: Window, end: int) -> tuple[int, list[Member]]:
    """Where the archive that ends at `end` begins, and its members."""
    at = end - _END.size
    record = _END.unpack(window.read(at, _END.size))
    if record[0] != b"PK\5\6" or record[7]:
        raise Tricky("no end record closes the archive: bytes lie behind it, or it is cut off")
    _, disk, first, here, count, size, offset, _ = record
    directory_end = at
    locator = window.read(at - _LOCATOR.size, _LOCATOR.size)
    if locator[:4] == b"PK\6\7":
        directory_end = at - _LOCATOR.size - _END64.size
        wide = _END64.unpack(window.read(directory_end, _END64.size))
        if wide[0] != b"PK\6\6" or wide[1] != _END64.size - 12 or wide[4] or wide[5]:
            raise Tricky("its 64-bit end record is not where it must be")
        for narrow, real, most in (
            (here, wide[6], 0xFFFF),
            (count, wide[7], 0xFFFF),
            (size, wide[8], _FULL),
            (offset, wide[9], _FULL),
        ):
            if narrow not in (most, real):
                raise Tricky("its two end records differ")
        here, count, size, offset = wide[6:10]
        if _LOCATOR.unpack(locator)[1:] != (0, offset + size, 1):
            raise Tricky("its 64-bit end record is not where it must be")
    begin = directory_end - size - offset
    if disk or first or here != count or begin < 0:
        raise Tricky("its end record does not fit the archive")
    if size > MOST_DIRECTORY:
        raise TooLarge("its directory is too long")
    members = list(_members(window.read(begin + offset, size), count))
    return begin, _laid_out(window, begin, offset, members)


def _members(raw: bytes, count: int) -> Iterator[Member]:
    at, names = 0, set()
    for _ in range(count):
        entry = _CENTRAL.unpack_from(raw, at)
        if entry[0] != b"PK\1\2" or entry[13] or entry[12]:
            raise Tricky("its directory is not what it must be")
        flags, method, crc, packed, size = entry[3], entry[4], entry[7], entry[8], entry[9]
        name_size, extra_size, header = entry[10], entry[11], entry[16]
        at += _CENTRAL.size
        name = raw[at : at + name_size].decode("utf-8")
        packed, size, header = _wide(raw[at + name_size : at + name_size + extra_size], packed, size, header)
        at += name_size + extra_size
        if flags & ~_KNOWN_FLAGS:
            raise Tricky(f"member {name!r} has flags {flags:#x}: encrypted, patched or hidden")
        _known_version(name, entry[2])
        if entry[15] & _FOLDER and not name.endswith("/"):
            raise Tricky(f"member {name!r} is marked as a folder: torch reads nothing of it, others read its bytes")
        _plain_name(name)
        if name.casefold() in names:
            raise Tricky(f"two members are called {name!r}: readers take one or the other")
        names.add(name.casefold())
        yield Member(name, method, crc, packed, size, header, flags)
    if at != len(raw):
        raise Tricky("its directory holds more than its members")


def _known_version(name: str, needed: int) -> None:
    if needed > _NEWEST:
        raise Tricky(f"member {name!r} needs version {needed / 10:g} of the format: readers that look at it stop")


def _plain_name(name: str) -> None:
    parts = name.rstrip("/").split("/")
    if not name or name.startswith("/") or "\\" in name or ".." in parts or "" in parts or not name.isprintable():
        raise Tricky(f"a member's name {name!r} leads elsewhere or is read in two ways")


def _wide(extra: bytes, packed: int, size: int, header: int) -> tuple[int, int, int]:
    at = 0
    while at + 4 <= len(extra):
        kind, length = struct.unpack_from("<HH", extra, at)
        if kind == 1:
            fields = list(struct.unpack_from(f"<{length // 8}Q", extra, at + 4))
            size = fields.pop(0) if size == _FULL and fields else size
            packed = fields.pop(0) if packed == _FULL and fields else packed
            header = fields.pop(0) if header == _FULL and fields else header
        elif kind == 0x7075:
            raise Tricky("a member has a second name in an extra field")
        at += 4 + length
    return packed, size, header


def _laid_out(window: Window, begin: int, directory: int, members: list[Member]) -> list[Member]:
    """The members with `header` moved to their data, once local headers agree and leave no gaps."""
    moved, expected = [], 0
    for m in sorted(members, key=lambda m: m.header):
        if m.header != expected:
            raise Tricky(f"bytes before member {m.name!r} belong to no member")
        head = window.read(begin + m.header, _LOCAL.size + 512)
        local = _LOCAL.unpack_from(head)
        name_size = local[9]
        if len(head) < _LOCAL.size + name_size:
            head = window.read(begin + m.header, _LOCAL.size + name_size)
        if local[0] != b"PK\3\4" or head[_LOCAL.size : _LOCAL.size + name_size] != m.name.encode():
            raise Tricky(f"member {m.name!r} has another name in its own header")
        _known_version(m.name, local[1])
        later = bool(m.flags & 8)
        if local[2] != m.flags or local[3] != m.method:
            raise Tricky(f"member {m.name!r} is packed in another way in its own header")
        for near, far in ((local[6], m.crc), (local[7], m.packed), (local[8], m.size)):
            if near != far and not (later and near == 0) and near != _FULL:
                raise Tricky(f"member {m.name!r} has another size or sum in its own header")
        data = m.header + _LOCAL.size + name_size + local[10]
        expected = data + m.packed
        if later:
            expected += _descriptor(window.read(begin + expected, 24), m)
        moved.append(Member(m.name, m.method, m.crc, m.packed, m.size, data, m.flags))
    if expected != directory:
        raise Tricky("bytes before its directory belong to no member")
    return moved


def _descriptor(raw: bytes, m: Member) -> int:
    for form in ("<4sIII", "<4sIQQ"):
        if len(raw) >= struct.calcsize(form) and struct.unpack_from(form, raw) == (b"PK\7\10", m.crc, m.packed, m.size):
            return struct.calcsize(form)
    raise Tricky(f"what follows member {m.name!r} does not describe it")


def _opened(archive: Window, m: Member) -> Window:
    """A member's bytes, their check sum compared."""
    stored = archive.part(m.header, m.packed)
    if m.method == 0:
        if m.packed != m.size:
            raise Tricky(f"member {m.name!r} is stored in another size than it has")
        whole = stored
    elif m.method == 8:
        whole = unpacked(_inflated(stored), m.packed)
    else:
        raise TooLarge(f"member {m.name!r} is packed by method {m.method}")
    if whole.size != m.size or _sum(whole) != m.crc:
        raise Tricky(
            f"member {m.name!r} is not what its check sum says: readers that skip the check see something else"
        )
    return whole


def _inflated(window: Window) -> Iterator[bytes]:
    inflate = zlib.decompressobj(-15)
    at = 0
    while at < window.size and not inflate.eof:
        piece = window.read(at, PIECE >> 4)
        at += len(piece)
        while piece:
            yield inflate.decompress(piece, PIECE)
            piece = inflate.unconsumed_tail
    if not inflate.eof or inflate.unused_data or at < window.size:
        raise Tricky("a member's packed bytes do not end where it ends")


def _sum(window: Window) -> int:
    crc = at = 0
    while piece := window.read(at, PIECE):
        crc, at = zlib.crc32(piece, crc), at + len(piece)
    return crc


def _judge(archive: Window, members: list[Member], place: Place) -> Decision:
    roots = {m.name.partition("/")[0] for m in members}
    root = next(iter(roots)) if len(roots) == 1 else ""
    pickle = next((m for m in members if m.name == f"{root}/data.pkl"), None)
    if pickle is not None:
        return _torch(archive, members, root, pickle, place)
    parts: list[Decision] = []
    for m in members:
        if not m.name.endswith("/"):
            parts.append(place.inside(_opened(archive, m), m.name))
        elif m.size:
            raise Tricky(f"folder {m.name!r} has bytes")
    return joined("zip", parts)


def _torch(archive: Window, members: list[Member], root: str, pickle: Member, place: Place) -> Decision:
    """torch's form: one pickle, and raw bytes that only become tensors."""
    parts: list[Decision] = []
    sizes: dict[str, int] = {}
    for m in members:
        inner = m.name[len(root) + 1 :]
        if m.method != 0 or m.packed != m.size:
            parts.append(place.undecided("torch zip", f"member {m.name!r} is packed, as torch never does"))
        elif inner.startswith("data/"):
            sizes[inner[5:]] = m.size
        elif m is not pickle and (inner.startswith("code/") or inner.endswith((".py", ".pkl"))):
            parts.append(
                refused("torch zip", place.path, "TorchScript: a program, not a state", field="member", name=m.name)
            )
        elif m is not pickle and inner not in _TORCH_MEMBERS:
            parts.append(place.undecided("torch zip", f"member {m.name!r} is not one that torch writes"))
    if "byteorder" in {m.name[len(root) + 1 :] for m in members}:
        order = next(m for m in members if m.name == f"{root}/byteorder")
        if _opened(archive, order).read(0, 16) != b"little":
            parts.append(place.undecided("torch zip", "a byte order other than little"))
    inner_place = Place(
        f"{place.path}!{pickle.name}".lstrip("!"), place.depth + 1, "data.pkl", place.judge, place.budget
    )
    decision, storages = read_one(_opened(archive, pickle), inner_place)
    parts.append(decision)
    if isinstance(decision, Clean):
        parts.extend(_short_storages(storages, sizes, place))
    return joined("torch zip", parts)


_TORCH_MEMBERS: Final = (*("version", "byteorder", ".format_version", ".storage_alignment", ".data/serialization_id"),)


def _short_storages(storages: list[Storage], sizes: dict[str, int], place: Place) -> list[Decision]:
    short = [s.key for s in storages if sizes.get(s.key, -1) < s.numel * s.itemsize]
    return [place.undecided("torch zip", f"storage {short[0]} is missing or too short")] if short else []
