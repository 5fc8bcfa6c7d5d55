"""Puts the launch command into a mount namespace where the sealed places show the clean room; then becomes it.

    python -I -S enter.py SPEC REPORT      SPEC and REPORT are inherited file descriptors
    python -I -S enter.py --probe FOLDER   exit status 0 if this machine allows it, else the reason on stdout

Rules
-----
* Standard library only, nothing of the guarded environment: this file is run by the watcher's own Python, as a
  process that turns into the command by exec. So the process id, the standard streams, the working folder, the
  process group and the signal mask are the command's own from the start.
* The room is bound over each sealed place and made read-only; each is compared by device and inode afterwards.
  What fails is written to REPORT, and the command is not started. REPORT holds one zero byte before exec, and
  when exec went through nothing more.
* Signals are blocked until just before exec; what came in between acts then, as it would have on the command.
* Root gets a mount namespace alone; everybody else a user namespace too, in which their own user id is the only
  one that has a name. Mounts made outside later are seen inside, those made inside are not seen outside.

Sources: mount_namespaces(7), user_namespaces(7), mount(2).
"""

from __future__ import annotations

import ctypes
import json
import os
import signal
import sys

_NEWNS, _NEWUSER = 0x00020000, 0x10000000
_RDONLY, _REMOUNT, _BIND, _REC, _SLAVE = 1, 32, 4096, 16384, 1 << 19
_SAME_BITS = 2 | 4 | 8 | 1024 | 2048  # nosuid, nodev, noexec, noatime, nodiratime: as in statvfs
_ST_RELATIME, _MS_RELATIME = 4096, 1 << 21
_NOT_STARTED = 127
ENTERED = b"\0"


class Refused(Exception):
    """The kernel does not allow it, or the outcome is not what was asked for."""


def _libc() -> ctypes.CDLL:
    return ctypes.CDLL(None, use_errno=True)


def _call(what: str, result: int) -> None:
    if result != 0:
        raise Refused(f"{what}: {os.strerror(ctypes.get_errno())}")


def unshare() -> None:
    """Enter new namespaces.

    Raises:
        Refused: neither root's way nor a user namespace is allowed.
    """
    libc = _libc()
    if os.geteuid() == 0 and libc.unshare(_NEWNS) == 0:
        return
    uid, gid = os.geteuid(), os.getegid()
    _call("no user and mount namespace", libc.unshare(_NEWUSER | _NEWNS))
    try:
        _write("/proc/self/setgroups", "deny")
        _write("/proc/self/uid_map", f"{uid} {uid} 1")
        _write("/proc/self/gid_map", f"{gid} {gid} 1")
    except OSError as e:
        raise Refused(f"the user namespace cannot be set up: {e.strerror}") from e


def _write(path: str, text: str) -> None:
    fd = os.open(path, os.O_WRONLY)
    try:
        os.write(fd, text.encode())
    finally:
        os.close(fd)


def bind(source: str, target: str) -> None:
    """Show `source` at `target`, read-only.

    Raises:
        Refused: the kernel refuses, or something else is at `target` afterwards.
    """
    mount = _libc().mount
    if os.path.realpath(target) != target:
        raise Refused(f"{target} is no longer the place that was sealed: it leads to {os.path.realpath(target)}")
    _call(f"cannot bind {target}", mount(os.fsencode(source), os.fsencode(target), None, _BIND, None))
    flags = os.statvfs(target).f_flag
    kept = (flags & _SAME_BITS) | (_MS_RELATIME if flags & _ST_RELATIME else 0)
    again = mount(None, os.fsencode(target), None, _REMOUNT | _BIND | _RDONLY | kept, None)
    _call(f"cannot make {target} read-only", again)
    wanted, found = os.stat(source), os.stat(target)
    if (wanted.st_dev, wanted.st_ino) != (found.st_dev, found.st_ino):
        raise Refused(f"{target} does not show the clean room")


def _enter(binds: list[list[str]]) -> None:
    unshare()
    _call("cannot detach the mounts", _libc().mount(b"none", b"/", None, _REC | _SLAVE, None))
    for source, target in binds:
        bind(source, target)


def _become(spec: int, report: int) -> None:
    try:
        with os.fdopen(spec, "rb") as f:
            told = json.loads(f.read())
        os.set_inheritable(report, False)
        _enter(told["binds"])
        for number in (signal.SIGPIPE, signal.SIGXFSZ):  # Python ignores them, and exec would hand that down
            signal.signal(number, signal.SIG_DFL)
        if signal.getsignal(signal.SIGINT) is signal.default_int_handler:
            signal.signal(signal.SIGINT, signal.SIG_DFL)
        signal.pthread_sigmask(signal.SIG_SETMASK, told["mask"])
        os.write(report, ENTERED)
        os.execve(told["executable"], told["argv"], os.environ)
    except (Refused, OSError) as e:
        os.write(report, str(e).encode())
        os._exit(_NOT_STARTED)


def main() -> int:
    """Probe, or become the command."""
    if sys.argv[1] == "--probe":
        try:
            _enter([[sys.argv[2], sys.argv[2]]])
        except (Refused, OSError) as e:
            print(e)
            return 1
        return 0
    _become(int(sys.argv[1]), int(sys.argv[2]))
    return _NOT_STARTED


if __name__ == "__main__":
    sys.exit(main())
