"""How `trainwarden contain` reaches the supervisor of a run that goes on, on the same host.

A socket in the run's private folder takes one question a connection, one line of JSON, and answers with one.

Rules
-----
* Only the user who trains, or root, is answered, and no process below the supervisor: the supervisor is a subreaper, so
  what the job starts stays below it, also when it is orphaned. A job that has another service start a process gets
  around that; it could as well signal its own processes.
* What may be logged this way are acts of containment alone. Who asked is what the kernel says, not what is asked.
* The log has one writer. When nobody listens the run has ended, or runs on another host, and its lock says which.
"""

from __future__ import annotations

import os
import socket
import struct
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Literal, Protocol, TypeAlias

import msgspec

from trainwarden.errors import CannotDecide
from trainwarden.model import Contained, Quarantined, Restored, Undone
from trainwarden.store import RunDir
from trainwarden.supervise.ledger import Ledger
from trainwarden.supervise.process import descends_from

_NAME = "control"
_LONGEST = 1 << 20
_SECONDS = 60.0
_PEER = struct.Struct("3i")

Act: TypeAlias = Contained | Undone | Quarantined | Restored


class Ask(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """A question: `append` logs `act`, the others log themselves."""

    what: Literal["state", "hold", "release", "stop", "append"]
    reason: str = ""
    act: Act | None = None


class Answer(msgspec.Struct, frozen=True):
    """`failed` says why it was not done; `index` is where the act is in the log."""

    failed: str = ""
    held: bool = False
    index: int = -1


class Job(Protocol):
    """What can be done to the running command."""

    @property
    def held(self) -> bool: ...

    def hold(self) -> str: ...

    def release(self, by: str) -> str: ...

    def stop(self) -> str: ...


class Control:
    """Listens while a command runs."""

    def __init__(self, run: RunDir, job: Job, ledger: Ledger) -> None:
        self._job, self._ledger = job, ledger
        self._path = run.private / _NAME
        self._socket = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
        self._closing = False
        try:
            with _short(run) as name:
                self._socket.bind(name)
            self._socket.listen(8)
        except OSError:  # a file system without sockets: the run goes on, and `contain` says that nobody listens
            self._socket.close()
            self._path.unlink(missing_ok=True)
            return
        threading.Thread(target=self._work, daemon=True, name="trainwarden-control").start()

    def close(self) -> None:
        self._closing = True
        with suppress(OSError):
            self._socket.shutdown(socket.SHUT_RDWR)
        self._socket.close()
        self._path.unlink(missing_ok=True)

    def _work(self) -> None:
        while not self._closing:
            try:
                connection, _ = self._socket.accept()
            except OSError:
                continue
            with connection:
                connection.settimeout(_SECONDS / 10)
                with suppress(OSError):
                    connection.sendall(msgspec.json.encode(self._answered(connection)) + b"\n")

    def _answered(self, connection: socket.socket) -> Answer:
        pid, uid, _ = _PEER.unpack(connection.getsockopt(socket.SOL_SOCKET, socket.SO_PEERCRED, _PEER.size))
        if uid not in (os.geteuid(), 0) or pid <= 0 or descends_from(pid, os.getpid()):
            return Answer(failed="the watcher does not answer this process")
        try:
            ask = msgspec.json.decode(_line(connection), type=Ask)
        except (msgspec.DecodeError, UnicodeDecodeError, RecursionError):
            return Answer(failed="the question was not understood")
        return self._do(ask, account(pid, uid))

    def _do(self, ask: Ask, by: str) -> Answer:
        match ask.what:
            case "state":
                return Answer(held=self._job.held)
            case "release":
                return Answer(failed=self._job.release(by))
            case "hold" | "stop":
                failed = self._job.hold() if ask.what == "hold" else self._job.stop()
                if failed:
                    return Answer(failed=failed)
                return self._logged(Contained(what=ask.what, reason=ask.reason, by=by, wall_ns=time.time_ns()))
            case "append":
                if ask.act is None:
                    return Answer(failed="there is nothing to log")
                named = ask.act if isinstance(ask.act, Restored) else msgspec.structs.replace(ask.act, by=by)
                return self._logged(named)

    def _logged(self, act: Act) -> Answer:
        done, index = threading.Event(), [-1]

        def durable(at: int) -> None:
            index[0] = at
            done.set()

        self._ledger.submit(act, done=durable)
        if not done.wait(_SECONDS / 2):
            return Answer(failed="the log cannot be written now")
        return Answer(held=self._job.held, index=index[0])


# --------------------------------------------------------------------------- the other end


def ask_supervisor(run: RunDir, ask: Ask) -> Answer | None:
    """The answer of the run's supervisor, None when nobody listens on this host.

    Raises:
        CannotDecide: it refuses, or does not answer.
    """
    with socket.socket(socket.AF_UNIX, socket.SOCK_STREAM) as connection:
        connection.settimeout(_SECONDS)
        try:
            with _short(run) as name:
                connection.connect(name)
        except (FileNotFoundError, ConnectionRefusedError):
            return None
        except OSError as e:
            raise CannotDecide(f"the watcher of run {run.id} cannot be reached: {e.strerror or e}") from e
        try:
            connection.sendall(msgspec.json.encode(ask) + b"\n")
            answer = msgspec.json.decode(_line(connection), type=Answer)
        except (OSError, msgspec.DecodeError, UnicodeDecodeError) as e:
            raise CannotDecide(
                f"the watcher of run {run.id} does not answer: {e}", hint="it may be ending: try again"
            ) from e
    if answer.failed:
        raise CannotDecide(f"the watcher of run {run.id} did not do it: {answer.failed}")
    return answer


def account(pid: int, uid: int) -> str:
    """Who a process is, as the kernel tells: user and login, which are accounts and no persons."""
    login = ""
    with suppress(OSError):
        told = Path(f"/proc/{pid}/loginuid").read_text().strip()
        login = f", logged in as {told}" if told != "4294967295" else ""
    return f"user {uid}{login} (process {pid})"


def _line(connection: socket.socket) -> bytes:
    data = b""
    while b"\n" not in data and len(data) < _LONGEST:
        chunk = connection.recv(65536)
        if not chunk:
            break
        data += chunk
    return data


@contextmanager
def _short(run: RunDir) -> Iterator[str]:
    """A name for the socket that fits into an address, however long the store's path is."""
    folder = os.open(run.private, os.O_PATH | os.O_DIRECTORY)
    try:
        yield f"/proc/self/fd/{folder}/{_NAME}"
    finally:
        os.close(folder)
