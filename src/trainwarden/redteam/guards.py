"""What keeps an attack inside of its copy: paths, processes and sockets.

Rules
-----
* A path counts as inside when what the file system finds behind it is: links are followed, those of the last component
  too, and `..` is resolved before anything is opened.
* A process may be signalled when it descends from one that the range started, looked at through a pidfd: the process
  that was checked is the one that is hit.
* A socket may only be opened to or at a loopback address, given as a number or as "localhost".

Each raises `OutsideRange`. Trust: nobody else changes the copy meanwhile.
"""

from __future__ import annotations

import ipaddress
import os
import signal
from collections.abc import Collection
from pathlib import Path

from trainwarden.errors import TrainWardenError


class OutsideRange(TrainWardenError):
    """An attack would have acted outside of its copy; nothing was done."""


def inside(folder: Path, path: Path) -> Path:
    """`path`, absolute and with its links followed. Raises OutsideRange when it is not below `folder`."""
    real, root = Path(os.path.realpath(path)), Path(os.path.realpath(folder))
    if real == root or not real.is_relative_to(root):
        raise OutsideRange(
            f"{path} leads to {real}, which is not below the copy {root}",
            hint="an attack acts only on the range's own job, env, home, data and store; make a copy there first",
        )
    return real


def linked_elsewhere(folder: Path, *others: Path) -> list[Path]:
    """The links in a tree that lead out of it, and not to one of the others."""
    found, known = [], [os.path.realpath(f) for f in (folder, *others)]
    for base, folders, files in os.walk(folder):
        links = [Path(base, n) for n in (*folders, *files) if os.path.islink(os.path.join(base, n))]
        found += [p for p in links if not any(Path(os.path.realpath(p)).is_relative_to(k) for k in known)]
    return found


def descends(pid: int, roots: Collection[int]) -> bool:
    """Does a process come from one of these, or is it one?"""
    while pid > 1:
        if pid in roots:
            return True
        try:
            status = Path(f"/proc/{pid}/stat").read_text(encoding="utf-8", errors="replace")
            pid = int(status.rpartition(")")[2].split()[1])
        except (OSError, IndexError, ValueError):
            return False
    return False


def send(pid: int, number: signal.Signals, roots: Collection[int]) -> None:
    """Signal a process that descends from one of `roots`; nothing happens when it is gone already.

    Raises:
        OutsideRange: it does not descend from them.
    """
    try:
        fd = os.pidfd_open(pid)
    except ProcessLookupError:
        return
    try:
        if not descends(pid, roots):
            raise OutsideRange(
                f"process {pid} was not started below the range ({', '.join(map(str, roots)) or 'nothing runs there'})",
                hint="an attack signals only processes of the copied job and those that it started itself",
            )
        signal.pidfd_send_signal(fd, number)
    except ProcessLookupError:
        pass
    finally:
        os.close(fd)


def loopback(host: str) -> str:
    """The address behind `host`. Raises OutsideRange when it is not this machine's loopback."""
    try:
        address = ipaddress.ip_address("127.0.0.1" if host == "localhost" else host)
    except ValueError:
        address = None
    if address is None or not address.is_loopback:
        raise OutsideRange(
            f"{host} is not a loopback address", hint="an attack talks to 127.0.0.0/8, ::1 or localhost alone"
        )
    return str(address)
