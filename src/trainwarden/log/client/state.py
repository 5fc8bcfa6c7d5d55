"""What the shipping of one run to one log server must not forget, in a folder of its own.

    target     where to and as whom, canonical JSON
    outbox     the request under way, replaced whole: written before it is first sent
    receipts   one frame an answer, append-only: what was sent, where it is in the server's log, the head
    alarms     one line of JSON each, append-only
    lock       held by the one who ships

    frame = length of the body (4 bytes, big-endian) · first 8 bytes of its SHA-256 · body (msgpack of `Receipt`)

Rules
-----
* The outbox is durable before its request leaves, and a receipt is durable before the next outbox is made. So after
  any crash the same bytes are sent again under the same numbers, which a server answers as the first time.
* A receipt is written only after the answer was checked. A frame that a crash tore is cut on opening: its request is
  still in the outbox.

Trust: these files are the host's own. Whoever can change them can hide that something was sent, and cannot make a
server's log hold what it does not hold: `verify` asks the server's signed tree.
"""

from __future__ import annotations

import fcntl
import hashlib
import os
import struct
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import msgspec
from blake3 import blake3

from trainwarden.durable import fsync_folder, hint_for, make_folder, write_all, write_atomically
from trainwarden.errors import LogError, LogLocked
from trainwarden.log.client.packing import Pack

_HEADER = struct.Struct(">I8s")
_TARGET, _OUTBOX, _RECEIPTS, _ALARMS, _LOCK = "target", "outbox", "receipts", "alarms", "lock"


class Target(msgspec.Struct, frozen=True, kw_only=True):
    """A log server and the host that sends to it."""

    url: str
    origin: str
    server_key: str
    host: str
    host_key: str = ""  # the file of the host's signing key, "" = the user's own


class Sent(msgspec.Struct, frozen=True):
    """One item that the server keeps: the host's entries `first` to `last` as entry `index` of its log."""

    first: int
    last: int
    end: int  # the host's journal offset behind them
    index: int
    object: str  # the digest of its object, "" when it has none
    leaf: bytes


class Receipt(msgspec.Struct, frozen=True):
    """A checked answer: items `seq`, `seq` + 1, … are in the server's log under the signed head `head`."""

    seq: int
    sent: tuple[Sent, ...]
    head: str


class Outbox(msgspec.Struct, frozen=True):
    """The request under way: items `seq`, `seq` + 1, …"""

    seq: int
    packs: tuple[Pack, ...]


class Alarm(msgspec.Struct, frozen=True, kw_only=True):
    """A server contradicted itself: two signed heads, and for different sizes the proof between them."""

    kind: str
    sentence: str
    first: str
    second: str
    begins: str = ""
    proof: tuple[str, ...] = ()
    wall_ns: int = 0


class ShippingState:
    """The folder, held open by the one who ships. `seq` and `index` are the next item and the next entry."""

    def __init__(self, folder: Path, target: Target) -> None:
        self.folder, self.target = folder, target
        self.seq, self.index, self.end = 0, 0, 0
        self.head = ""
        """The newest head that was checked, a signed note, "" before the first."""
        self._receipts = -1
        self._lock = -1

    @classmethod
    def open(cls, shipping: Path, target: Target) -> ShippingState:
        """Open (or begin) the state of shipping to `target`, below a run's `shipping/`.

        Raises:
            LogLocked: another process ships this run.
            LogError: the folder cannot be read or written.
        """
        state = cls(folder_of(shipping, target), target)
        with _errors(f"open {state.folder}"):
            try:
                state._open()
            except BaseException:
                state.close()
                raise
        return state

    def _open(self) -> None:
        make_folder(self.folder, 0o700)
        self._lock = os.open(self.folder / _LOCK, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
        try:
            fcntl.flock(self._lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            raise LogLocked(
                f"another process is sending this run to {self.target.url}, this is process {os.getpid()}",
                hint="the run itself does so while it goes on: wait for its end",
            ) from None
        path, told = self.folder / _TARGET, msgspec.json.encode(self.target)
        if not path.exists() or path.read_bytes() != told:  # the same log may have moved to another address
            write_atomically(path, told, mode=0o600)
        self._receipts = os.open(self.folder / _RECEIPTS, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
        end = 0
        for receipt, after in _frames((self.folder / _RECEIPTS).read_bytes()):
            self._advance(receipt)
            end = after
        os.ftruncate(self._receipts, end)
        os.lseek(self._receipts, 0, os.SEEK_END)
        fsync_folder(self.folder)

    def outbox(self) -> Outbox | None:
        """The request that was begun and has no receipt.

        Raises:
            LogError: it cannot be read, or is none of ours.
        """
        found = _read_outbox(self.folder / _OUTBOX)
        return found if found is not None and found.seq == self.seq else None

    def begin(self, packs: tuple[Pack, ...]) -> Outbox:
        """Make the next request durable.

        Raises:
            LogError: it cannot be written.
        """
        outbox = Outbox(self.seq, packs)
        with _errors(f"write {self.folder / _OUTBOX}"):
            write_atomically(self.folder / _OUTBOX, msgspec.msgpack.encode(outbox), mode=0o600)
        return outbox

    def settle(self, receipt: Receipt) -> None:
        """Make a checked answer durable; its items count as sent from here on.

        Raises:
            LogError: it cannot be written; the items count as not sent.
        """
        body = msgspec.msgpack.encode(receipt)
        with _errors(f"write {self.folder / _RECEIPTS}"):
            before = os.fstat(self._receipts).st_size
            try:
                write_all(self._receipts, _HEADER.pack(len(body), _checksum(body)) + body)
                os.fsync(self._receipts)
            except OSError:
                os.ftruncate(self._receipts, before)
                os.lseek(self._receipts, 0, os.SEEK_END)
                raise
        self._advance(receipt)

    def alarm(self, alarm: Alarm) -> None:
        """Keep the evidence of an alarm.

        Raises:
            LogError: it cannot be written.
        """
        with _errors(f"write {self.folder / _ALARMS}"):
            fd = os.open(self.folder / _ALARMS, os.O_WRONLY | os.O_CREAT | os.O_APPEND | os.O_CLOEXEC, 0o600)
            try:
                write_all(fd, msgspec.json.encode(alarm) + b"\n")
                os.fsync(fd)
            finally:
                os.close(fd)
            fsync_folder(self.folder)

    def close(self) -> None:
        for fd in (self._receipts, self._lock):
            if fd >= 0:
                os.close(fd)
        self._receipts = self._lock = -1

    def _advance(self, receipt: Receipt) -> None:
        self.seq = receipt.seq + len(receipt.sent)
        if receipt.sent:
            self.index = receipt.sent[-1].last + 1
            self.end = receipt.sent[-1].end
        self.head = receipt.head


_DAMAGED = "keep the folder as evidence; what is not sent yet stays in the run's own log"


def folder_of(shipping: Path, target: Target) -> Path:
    """The folder of one host's shipping to one server's log."""
    name = "\n".join((target.origin, target.server_key, target.host))
    return shipping / blake3(name.encode()).hexdigest()[:16]


def targets(shipping: Path) -> list[Target]:
    """Every log server that a run was or is being sent to.

    Raises:
        LogError: a target cannot be read.
    """
    found = []
    for path in sorted(shipping.glob(f"*/{_TARGET}")):
        with _errors(f"read {path}"):
            data = path.read_bytes()
        try:
            found.append(msgspec.json.decode(data, type=Target))
        except msgspec.DecodeError as e:
            raise LogError(f"{path} is damaged: {e}", hint=_DAMAGED) from e
    return found


def read_receipts(shipping: Path, target: Target) -> list[Receipt]:
    """The receipts of shipping to `target`, while it may be under way.

    Raises:
        LogError: they cannot be read.
    """
    path = folder_of(shipping, target) / _RECEIPTS
    with _errors(f"read {path}"):
        try:
            return [receipt for receipt, _ in _frames(path.read_bytes())]
        except FileNotFoundError:
            return []


def read_outbox(shipping: Path, target: Target) -> Outbox | None:
    """The request that was last begun, whether it has a receipt or not.

    Raises:
        LogError: it cannot be read, or is none of ours.
    """
    return _read_outbox(folder_of(shipping, target) / _OUTBOX)


def _read_outbox(path: Path) -> Outbox | None:
    with _errors(f"read {path}"):
        try:
            data = path.read_bytes()
        except FileNotFoundError:
            return None
    try:
        return msgspec.msgpack.decode(data, type=Outbox)
    except msgspec.DecodeError as e:
        raise LogError(f"{path} is damaged: {e}", hint=_DAMAGED) from e


def read_alarms(shipping: Path, target: Target) -> list[Alarm]:
    """The alarms that were kept; a line that a crash tore is left out.

    Raises:
        LogError: they cannot be read.
    """
    path = folder_of(shipping, target) / _ALARMS
    with _errors(f"read {path}"):
        try:
            lines = path.read_bytes().split(b"\n")
        except FileNotFoundError:
            return []
    found = []
    for line in lines:
        try:
            found.append(msgspec.json.decode(line, type=Alarm))
        except msgspec.DecodeError:
            continue
    return found


def _frames(data: bytes) -> Iterator[tuple[Receipt, int]]:
    """The whole frames in order, each with the offset behind it."""
    at, seq = 0, 0
    while at + _HEADER.size <= len(data):
        length, checksum = _HEADER.unpack_from(data, at)
        body = data[at + _HEADER.size : at + _HEADER.size + length]
        if len(body) != length or _checksum(body) != checksum:
            return
        try:
            receipt = msgspec.msgpack.decode(body, type=Receipt)
        except msgspec.DecodeError:
            return
        if receipt.seq != seq:
            return
        at, seq = at + _HEADER.size + length, seq + len(receipt.sent)
        yield receipt, at


def _checksum(body: bytes) -> bytes:
    return hashlib.sha256(body).digest()[:8]


@contextmanager
def _errors(what: str) -> Iterator[None]:
    try:
        yield
    except OSError as e:
        raise LogError(f"cannot {what}: {e.strerror or e}", hint=hint_for(e)) from e
