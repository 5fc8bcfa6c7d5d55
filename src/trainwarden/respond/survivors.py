"""Processes of a run that outlived its watcher: found, told in the plan, ended before anything is moved.

A watcher that was killed leaves launcher and ranks behind, and a launcher that was killed its ranks. They train on,
unrecorded, write checkpoints, and restart one another. All of them inherited the address of the watcher's socket, which
is kept with the run and which no other run has.

Trust: what `/proc` shows of processes of the same user. A process that took the address out of its variables is not
found; what it writes later is a file that the log does not know.
"""

from __future__ import annotations

import os
import select
import signal
import socket
import time
from collections.abc import Iterable, Iterator

import msgspec

from trainwarden.errors import CannotDecide
from trainwarden.store import RunDir
from trainwarden.supervise.private import read_socket
from trainwarden.wire import SOCKET_ENV

_ROUNDS = ((signal.SIGTERM, 5.0), (signal.SIGKILL, 2.0), (signal.SIGKILL, 2.0))  # what they start meanwhile as well


class Survivor(msgspec.Struct, frozen=True, kw_only=True):
    """A process of a run that is over for us."""

    pid: int
    words: str  # its command line


def survivors(run: RunDir) -> tuple[Survivor, ...]:
    """Processes of a run that still run, though nobody listens to them any more."""
    return tuple(Survivor(pid=pid, words=_words(pid)) for pid in _below(run))


def end_survivors(run: RunDir) -> tuple[Survivor, ...]:
    """End them: asked first, then killed. Those that were there.

    Raises:
        CannotDecide: one of them cannot be ended.
    """
    found = survivors(run)
    for number, grace in _ROUNDS if found else ():
        _send(_below(run), number, grace)
    if left := survivors(run):
        raise CannotDecide(f"process {left[0].pid} of run {run.id} still trains", hint="end it, then recover again")
    return found


def _below(run: RunDir) -> Iterator[int]:
    address = read_socket(run.private)
    if not address or _answers(address):
        return
    variable = f"{SOCKET_ENV}={address}".encode()
    for name in os.listdir("/proc"):
        if name.isdigit() and variable in _read(name, "environ").split(b"\0"):
            yield int(name)


def _answers(address: str) -> bool:
    """Does a watcher listen there? Then the run goes on."""
    with socket.socket(socket.AF_UNIX, socket.SOCK_STREAM) as probe:
        try:
            probe.connect(address)
        except OSError:
            return False
    return True


def _send(pids: Iterable[int], number: signal.Signals, grace: float) -> None:
    """Signal processes by descriptors that their ids cannot be reused under, and wait for their ends."""
    held = [fd for pid in pids if (fd := _opened(pid)) >= 0]
    try:
        for fd in held:
            try:
                signal.pidfd_send_signal(fd, number)
            except OSError:
                pass  # it has ended already
        deadline = time.monotonic() + grace
        for fd in held:
            select.select([fd], [], [], max(0.0, deadline - time.monotonic()))
    finally:
        for fd in held:
            os.close(fd)


def _opened(pid: int) -> int:
    try:
        return os.pidfd_open(pid)
    except OSError:
        return -1


def _words(pid: int) -> str:
    return os.fsdecode(_read(str(pid), "cmdline").replace(b"\0", b" ")).strip()[:200]


def _read(pid: str, name: str) -> bytes:
    """A zombie's variables are empty, so it is no survivor."""
    try:
        with open(f"/proc/{pid}/{name}", "rb") as f:
            return f.read()
    except OSError:
        return b""
