"""A dossier as one zip file of which every byte is determined by its members. Pure: bytes in, members out.

Rules
-----
* Members lie one after the other in the order of their names, stored and not compressed, with a fixed date; then the
  central directory, then its end (APPNOTE 6.3.10, 4.3). No comment, no extra field, no gap, no data descriptor.
* What is read is written again and compared: a byte that means nothing has nowhere to be. Where two readers of zip
  files could disagree (names twice, sizes that contradict each other), this one refuses.

Why not `zipfile`: it takes many spellings of one archive, and writes another one with each release.
"""

from __future__ import annotations

import struct
import zlib
from collections.abc import Mapping

from trainwarden.errors import DossierTampered

MAX_BYTES = (1 << 31) - 1  # below the sizes that need zip64
_LOCAL, _CENTRAL, _END = b"PK\x03\x04", b"PK\x01\x02", b"PK\x05\x06"
_LOCAL_FORM, _CENTRAL_FORM, _END_FORM = "<4sHHHHHIIIHH", "<4sHHHHHHIIIHHHHHII", "<4sHHHHIIH"
_VERSION, _UTF8, _TIME, _DATE, _UNIX, _MODE = 20, 0x800, 0, 0x21, 3 << 8, 0o100444 << 16  # 1 January 1980
_LOCAL_SIZE = struct.calcsize(_LOCAL_FORM)
_HINT = "the file was damaged or changed after it was made: ask for it again, and keep this one"


def pack(members: Mapping[str, bytes]) -> bytes:
    """The zip file of these members."""
    body, central, at = [], [], 0
    for name in sorted(members):
        data, raw = members[name], name.encode()
        sizes = (zlib.crc32(data), len(data), len(data))
        local = struct.pack(_LOCAL_FORM, _LOCAL, _VERSION, _UTF8, 0, _TIME, _DATE, *sizes, len(raw), 0) + raw
        central.append(
            struct.pack(
                _CENTRAL_FORM,
                _CENTRAL,
                _UNIX | _VERSION,
                _VERSION,
                _UTF8,
                0,
                _TIME,
                _DATE,
                *sizes,
                len(raw),
                0,
                0,
                0,
                0,
                _MODE,
                at,
            )
            + raw
        )
        body += [local, data]
        at += len(local) + len(data)
    directory = b"".join(central)
    end = struct.pack(_END_FORM, _END, 0, 0, len(central), len(central), len(directory), at, 0)
    return b"".join([*body, directory, end])


def unpack(data: bytes) -> dict[str, bytes]:
    """The members of a zip file that `pack` wrote.

    Raises:
        DossierTampered: it is another file, or a byte of its structure was changed; the message says where.
    """
    members: dict[str, bytes] = {}
    at, last = 0, ""
    while data[at : at + 4] == _LOCAL:
        name, first, size = _local(data, at)
        if name <= last:
            raise DossierTampered(f"the zip file has {name!r} after {last!r}", hint=_HINT)
        members[name], last, at = data[first : first + size], name, first + size
    if not members:
        raise DossierTampered("this is no dossier: it does not begin as a zip file of ours does", hint=_HINT)
    return members


def check_structure(data: bytes, members: Mapping[str, bytes]) -> None:
    """Check that the file is, byte for byte, the one of these members.

    Raises:
        DossierTampered: at the first byte that is not; it names the member whose part it is in.
    """
    again = pack(members)
    if again == data:
        return
    at = next((i for i, (a, b) in enumerate(zip(data, again, strict=False)) if a != b), min(len(data), len(again)))
    raise DossierTampered(f"byte {at} of the zip file, in {_part(members, at)}, is not as it was written", hint=_HINT)


def _local(data: bytes, at: int) -> tuple[str, int, int]:
    """The name of the member that begins at `at`, where its bytes begin, and how many they are."""
    if at + _LOCAL_SIZE > len(data):
        raise DossierTampered(f"the zip file breaks off at byte {at}", hint=_HINT)
    *_, size, _, length, extra = struct.unpack_from(_LOCAL_FORM, data, at)
    first = at + _LOCAL_SIZE + length
    if extra or first + size > len(data):
        raise DossierTampered(f"the header at byte {at} of the zip file is malformed", hint=_HINT)
    try:
        return data[at + _LOCAL_SIZE : first].decode(), first, size
    except UnicodeDecodeError:
        raise DossierTampered(f"the name at byte {at} of the zip file is malformed", hint=_HINT) from None


def _part(members: Mapping[str, bytes], at: int) -> str:
    """Which part of the file of these members the byte `at` is in."""
    end = 0
    for name in sorted(members):
        end += _LOCAL_SIZE + len(name.encode()) + len(members[name])
        if at < end:
            return f"the header of {name}" if at < end - len(members[name]) else name
    return "its directory"
