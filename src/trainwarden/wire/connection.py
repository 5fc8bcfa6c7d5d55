"""A connection on either side, and the server that answers: frames, slots of names, threads."""

from __future__ import annotations

import contextlib
import os
import socket
import struct
import threading
import time
from collections.abc import Callable
from pathlib import Path
from typing import Protocol

import msgspec

from trainwarden.model import Detail, cut_digests
from trainwarden.wire.messages import Base, Frame, Message, Names, Row, Step

MAX_FRAME = 256 * 1024 * 1024
NAME_SLOTS = 1024
MAX_NAMES = 64 * 1024 * 1024  # bytes of names that one connection may have in its slots
_encoder = msgspec.msgpack.Encoder()
_decoder: msgspec.msgpack.Decoder[Frame] = msgspec.msgpack.Decoder(Frame)


class _Sender:
    """The sending end's table of names."""

    def __init__(self) -> None:
        self._slots: dict[tuple[str, ...], int] = {}

    def frames(self, message: Message) -> bytes:
        if not isinstance(message, Step):
            return _frame(message)
        fresh: list[Names] = []
        details = {stage: (self._slot(d.names, fresh), b"".join(d.digests)) for stage, d in message.details.items()}
        return b"".join(map(_frame, (*fresh, Row(record=message.record, details=details))))

    def _slot(self, names: tuple[str, ...], fresh: list[Names]) -> int:
        slot = self._slots.get(names)
        if slot is None:
            if len(self._slots) == NAME_SLOTS:
                self._slots.clear()
            slot = self._slots[names] = len(self._slots)
            fresh.append(Names(slot=slot, names=names))
        return slot


class _Receiver:
    """The receiving end's table of names."""

    def __init__(self) -> None:
        self._slots: dict[int, tuple[str, ...]] = {}
        self._sizes: dict[int, int] = {}

    def message(self, body: bytes) -> Message | None:
        """The message in a frame; None for a frame that only fills the table."""
        frame = _decoder.decode(body)
        if isinstance(frame, Names):
            self._keep(frame, len(body))
            return None
        if isinstance(frame, Row):
            details = {stage: self._detail(slot, data) for stage, (slot, data) in frame.details.items()}
            return Step(record=frame.record, details=details)
        return frame

    def _keep(self, frame: Names, size: int) -> None:
        if not 0 <= frame.slot < NAME_SLOTS:
            raise ValueError(f"slot {frame.slot} of {NAME_SLOTS}")
        self._slots[frame.slot], self._sizes[frame.slot] = frame.names, size
        if sum(self._sizes.values()) > MAX_NAMES:
            raise ValueError(f"names above the limit of {MAX_NAMES} bytes")

    def _detail(self, slot: int, data: bytes) -> Detail:
        names = self._slots.get(slot)
        if names is None:
            raise ValueError(f"slot {slot} was given no names")
        return Detail(names=names, digests=cut_digests(data, len(names)))


def _frame(message: Base) -> bytes:
    body = _encoder.encode(message)
    return struct.pack(">I", len(body)) + body


class Connection:
    """One end of the socket. `send` may be called from several threads; `receive` from one."""

    def __init__(self, sock: socket.socket) -> None:
        self._sock = sock
        self._lock = threading.Lock()
        self._sender, self._receiver = _Sender(), _Receiver()

    @classmethod
    def connect(cls, path: str, timeout: float = 10.0) -> Connection:
        """Connect to the server at `path`.

        Raises:
            OSError: nobody listens there.
        """
        sock = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
        sock.settimeout(timeout)
        sock.connect(path)
        return cls(sock)

    def send(self, message: Message) -> None:
        """Write one message. Raises OSError when the other end is gone."""
        with self._lock:
            self._sock.sendall(self._sender.frames(message))

    def receive(self, timeout: float | None = None) -> Message | None:
        """Read one message; None at the end of the stream.

        Raises:
            OSError, TimeoutError: the connection broke or nothing came in `timeout` seconds.
            msgspec.DecodeError, ValueError: the frame is not a message.
        """
        self._sock.settimeout(timeout)
        while (body := self._body()) is not None:
            message = self._receiver.message(body)
            if message is not None:
                return message
        return None

    def _body(self) -> bytes | None:
        head = self._exactly(4)
        if head is None:
            return None
        (length,) = struct.unpack(">I", head)
        if length > MAX_FRAME:
            raise ValueError(f"frame of {length} bytes is above the limit of {MAX_FRAME}")
        return self._exactly(length)

    def peer_pid(self) -> int:
        """The process id at the other end as the kernel reports it (SO_PEERCRED), not as it claims."""
        cred = self._sock.getsockopt(socket.SOL_SOCKET, socket.SO_PEERCRED, struct.calcsize("3i"))
        return int(struct.unpack("3i", cred)[0])

    def take_no_more(self) -> None:
        """The other end can send nothing more; what has arrived can still be received, and then the stream ends."""
        with contextlib.suppress(OSError):
            self._sock.shutdown(socket.SHUT_RD)

    def close(self) -> None:
        with contextlib.suppress(OSError):
            self._sock.shutdown(socket.SHUT_RDWR)
        self._sock.close()

    def _exactly(self, n: int) -> bytes | None:
        parts = bytearray()
        while len(parts) < n:
            chunk = self._sock.recv(min(n - len(parts), 1 << 20))
            if not chunk:
                return None
            parts += chunk
        return bytes(parts)


class Handler(Protocol):
    """What a server does with one connection's messages. Called from that connection's own thread."""

    def message(self, message: Message) -> Message | None:
        """Handle one message; a returned message is sent back."""

    def closed(self, error: str) -> None:
        """The connection ended; `error` is empty when it ended in order."""


class Server:
    """Listens on a Unix socket and runs one thread per connection.

    Linux limits a socket's path to 107 bytes, so the path is chosen by the caller in a short folder.
    """

    def __init__(self, path: Path, make_handler: Callable[[Connection], Handler]) -> None:
        self._make_handler = make_handler
        self._sock = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
        self._sock.bind(str(path))
        os.chmod(path, 0o600)
        self._sock.listen(128)
        self.path = path
        self._threads: list[threading.Thread] = []
        self._open: list[Connection] = []
        self._acceptor = threading.Thread(target=self._accept, daemon=True, name="trainwarden-accept")
        self._acceptor.start()

    def _accept(self) -> None:
        while True:
            try:
                sock, _ = self._sock.accept()
            except OSError:
                return
            connection = Connection(sock)
            thread = threading.Thread(target=self._serve, args=(connection,), daemon=True)
            self._open.append(connection)
            self._threads.append(thread)
            thread.start()

    def _serve(self, connection: Connection) -> None:
        handler = self._make_handler(connection)
        error = ""
        try:
            while (message := connection.receive()) is not None:
                answer = handler.message(message)
                if answer is not None:
                    connection.send(answer)
        except (OSError, ValueError, msgspec.DecodeError, RecursionError) as e:
            error = f"{type(e).__name__}: {e}"
        finally:
            handler.closed(error)
            connection.close()

    def close(self, drain_seconds: float = 10.0, arrived_seconds: float = 60.0) -> None:
        """Stop accepting, let open connections go on for a while, then take no more and handle what has arrived.

        What a rank sent before it was killed lies in the kernel's buffer, and a busy host may not have come to it yet:
        `arrived_seconds` is a bound for handlers that do not return, and is never waited for where they do.
        """
        with contextlib.suppress(OSError):
            self._sock.shutdown(socket.SHUT_RDWR)  # the acceptor takes those that have connected, and ends
        self._acceptor.join()
        self._sock.close()
        self._wait(drain_seconds)
        for connection in self._open:
            connection.take_no_more()
        self._wait(arrived_seconds)
        for connection in self._open:
            connection.close()
        self.path.unlink(missing_ok=True)

    def _wait(self, seconds: float) -> None:
        """Wait for all connections to end; one that does not leaves the others their share of the time."""
        deadline = time.monotonic() + seconds
        for done, thread in enumerate(self._threads):
            thread.join(max(0.0, deadline - time.monotonic()) / (len(self._threads) - done))
