"""The ranks' processes as /proc shows them: native code, interpreter and environment, against the seal.

Rules
-----
* Looked at from outside when a rank joins and every `INTERVAL` seconds while it lives. A library that is loaded
  and unloaded in between is not seen; nor is what a process does to the memory that a library lies in.
* Every file mapped as code is sealed, or one that this watcher runs itself, or a system library that has not
  changed since the seal (by its ctime, which no system call sets). Anything else is a deviation.
* Libraries that a compiler made while training (torch.compile, Triton, C++ extensions) are told as such: they are
  not in the seal, and nobody has compared them with anything.
* Memory that is writable and executable is counted and no deviation: oneDNN makes some in every torch process.
* Of the environment, what decides which code is loaded (`LD_*`, `PYTHON*`, a few names besides) is compared, as it was
  at exec. A process can write over that memory.
"""

from __future__ import annotations

import os
import queue
import re
import threading
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path

import msgspec

import trainwarden
from trainwarden.errors import TrainWardenError
from trainwarden.isolation import is_isolated
from trainwarden.model import Deviation, FileEntry, Gap, ProcessSeen, Seal
from trainwarden.store import Store
from trainwarden.supervise.ledger import Ledger

INTERVAL = 5.0
MOST_TOLD = 64
MOST_KEPT = 64 << 20  # bytes of an unsealed library that are kept as evidence
_SYSTEM = ("/lib/", "/lib32/", "/lib64/", "/usr/lib/", "/usr/lib32/", "/usr/lib64/", "/usr/libexec/", "/usr/local/lib/",
           "/usr/local/cuda", "/etc/alternatives/")  # fmt: skip
_GENERATED = re.compile(r"/torchinductor_[^/]*/|/\.triton/cache/|/torch_extensions/|/torch_compile[^/]*/")
_PERMISSIONS_END = 40  # two 64-bit addresses in hexadecimal, which has no x, come before
_VARIABLE = re.compile(
    r"(LD_|PYTHON)\w*|GCONV_PATH|OMP_TOOL_LIBRARIES|CUDA_INJECTION64_PATH|NCCL_(NET|TUNER|PROFILER)_PLUGIN"
    r"|OPENSSL_(CONF|MODULES|ENGINES)|TORCH_DEVICE_BACKEND_AUTOLOAD"
)
_OWN_PACKAGES = os.path.dirname(os.path.dirname(os.path.realpath(msgspec.__file__))) + os.sep  # of our private copy
_INJECT = str(Path(trainwarden.__file__).parent / "record" / "inject")


class Mapped(msgspec.Struct, frozen=True):
    """A file mapped as code: path as the kernel tells it, device and inode."""

    path: str
    device: str
    inode: int
    deleted: str = ""  # "deleted" when the file has no name any more


class Maps(msgspec.Struct, frozen=True):
    """The executable part of /proc/PID/maps."""

    files: tuple[Mapped, ...]
    writable: int  # bytes without a file that are writable and executable


def parse_maps(text: str) -> Maps:
    """Read /proc/PID/maps (proc_pid_maps(5)); lines that are none are left out."""
    files: dict[tuple[str, str, int], Mapped] = {}
    writable = 0
    for line in text.splitlines():
        if "x" not in line[:_PERMISSIONS_END]:
            continue  # most lines, told apart cheaply: this is done for every rank every few seconds
        words = line.split(None, 5)
        if len(words) < 5 or len(words[1]) < 4 or words[1][2] != "x":
            continue
        path = words[5] if len(words) > 5 else ""
        if not path.startswith("/"):
            if words[1][1] == "w" and path in ("", "[heap]", "[stack]"):
                writable += _length(words[0])
            continue
        name = path.removesuffix(" (deleted)")
        if words[4].isdecimal():
            inode = int(words[4])
            files[name, words[3], inode] = Mapped(name, words[3], inode, "deleted" if name != path else "")
    return Maps(tuple(files.values()), writable)


def _length(range_: str) -> int:
    first, _, last = range_.partition("-")
    try:
        return max(0, int(last, 16) - int(first, 16))
    except ValueError:
        return 0


def parse_environ(data: bytes) -> dict[str, str]:
    """Read /proc/PID/environ; of a name given twice the first counts, as for getenv(3)."""
    found: dict[str, str] = {}
    for part in data.split(b"\0"):
        name, equals, value = part.partition(b"=")
        if equals:
            found.setdefault(os.fsdecode(name), os.fsdecode(value))
    return found


def environment_deviations(sealed: Mapping[str, str], found: Mapping[str, str]) -> list[Deviation]:
    """Variables that decide which code is loaded and are not as sealed; the recorder's own folder left out."""
    names = {n for n in sealed.keys() | found.keys() if _VARIABLE.fullmatch(n)}
    deviations = []
    for name in sorted(names):
        before, now = sealed.get(name, ""), found.get(name, "")
        if name == "PYTHONPATH":
            before, now = _without_ours(before), _without_ours(now)
        if before != now:
            shown = Deviation(kind="environment", name=_text(name), expected=_text(before), found=_text(now))
            deviations.append(shown)
    return deviations


def _without_ours(path: str) -> str:
    return os.pathsep.join(p for p in path.split(os.pathsep) if p and not os.path.abspath(p).endswith(_INJECT))


def _text(value: str) -> str:
    return value.encode("utf-8", "backslashreplace").decode()[:1000]


@dataclass
class _Process:
    attempt: int
    rank: int
    pid: int
    began: str  # the kernel's start time: a process id alone may be another's by now
    told: set[tuple[str, str]] = field(default_factory=set)


@dataclass(frozen=True)
class _First:
    """What was read when the rank joined."""

    maps: str
    environ: bytes
    interpreter: str


class ProcessDesk:
    """Looks at every rank's process; `files` gives the sealed files by path when the first rank joins."""

    def __init__(
        self,
        store: Store,
        ledger: Ledger,
        seal: Seal,
        files: Callable[[], Mapping[str, FileEntry]],
        variables: Mapping[str, str] | None = None,
        interval: float = INTERVAL,
    ) -> None:
        self._store, self._ledger, self._seal, self._read_files, self._interval = store, ledger, seal, files, interval
        self._variables = seal.env_vars if variables is None else variables  # as the command was given them
        self._files: Mapping[str, FileEntry] = {}
        self._real: frozenset[str] = frozenset()
        self._own: frozenset[tuple[str, int]] = frozenset()
        self._processes: dict[int, _Process] = {}
        self._queue: queue.Queue[tuple[_Process, _First] | None] = queue.Queue()
        self._thread = threading.Thread(target=self._work, daemon=True, name="trainwarden-processes")
        self._thread.start()

    def joined(self, attempt: int, rank: int, pid: int) -> None:
        """A rank joined: read what its process is now, at once; it is judged, and looked at again, in our thread."""
        if not self._seal.environment.files:
            return
        process = _Process(attempt, rank, pid, _began(pid))
        try:
            first = _First(
                maps=_read_maps(pid),
                environ=Path(f"/proc/{pid}/environ").read_bytes(),
                interpreter=os.readlink(f"/proc/{pid}/exe"),
            )
        except OSError as e:
            self._gap(process, f"the process could not be looked at from outside: {e}")
            return
        self._queue.put((process, first))

    def close(self) -> None:
        self._queue.put(None)
        self._thread.join(30.0)

    def _work(self) -> None:
        while True:
            try:
                item = self._queue.get(timeout=self._interval if self._processes else None)
            except queue.Empty:
                for process in list(self._processes.values()):
                    self._look_again(process)
                continue
            if item is None:
                return
            process, first = item
            self._processes[process.pid] = process
            try:
                self._begin(process, first)
            except TrainWardenError as e:
                self._gap(process, f"the process could not be compared with the seal: {e}")

    def _begin(self, process: _Process, first: _First) -> None:
        if not self._files:
            self._learn()
        found = environment_deviations(self._variables, parse_environ(first.environ))
        if not self._is_sealed(first.interpreter):
            name = _text(first.interpreter)
            found.append(Deviation(kind="interpreter", name=name, expected=self._seal.interpreter))
        self._judge(process, parse_maps(first.maps), found)

    def _look_again(self, process: _Process) -> None:
        try:
            maps = parse_maps(_read_maps(process.pid))
        except OSError:
            maps = Maps((), 0)
        if not maps.files or _began(process.pid) != process.began:  # it has ended
            self._processes.pop(process.pid, None)
            return
        self._judge(process, maps, [])

    def _learn(self) -> None:
        self._files = self._read_files()
        runs = (p for p, e in self._files.items() if e.mode & 0o111 or ".so" in os.path.basename(p) or e.link)
        self._real = frozenset(map(os.path.realpath, runs))
        own = parse_maps(_read_maps(os.getpid()))
        self._own = frozenset((m.device, m.inode) for m in own.files)

    def _judge(self, process: _Process, maps: Maps, first: list[Deviation]) -> None:
        """Log what is new of this process; the first look is logged in any case."""
        known = {m: self._place(m) for m in maps.files}
        found = [
            *first,
            *(self._deviation(m, place) for m, place in known.items() if place not in ("sealed", "system")),
        ]
        new = [d for d in found if (d.kind, d.name) not in process.told]
        if not new and process.told:
            return
        process.told |= {("", ""), *((d.kind, d.name) for d in new)}
        self._ledger.submit(
            ProcessSeen(
                attempt=process.attempt,
                rank=process.rank,
                pid=process.pid,
                libraries=len(known),
                sealed=sum(p == "sealed" for p in known.values()),
                system=sum(p == "system" for p in known.values()),
                writable=maps.writable,
                deviations=tuple(map(self._kept, new[:MOST_TOLD])),
                wall_ns=time.time_ns(),
            )
        )

    def _is_sealed(self, path: str) -> bool:
        return path in self._files or path in self._real

    def _place(self, mapped: Mapped) -> str:
        """Where a file mapped as code belongs: "sealed", "system", or the kind of deviation that it is."""
        if mapped.deleted:
            return "deleted"
        if self._is_sealed(mapped.path) or (mapped.device, mapped.inode) in self._own:
            return "sealed"
        if is_isolated() and mapped.path.startswith(_OWN_PACKAGES):
            return "sealed"
        if mapped.path.startswith(_SYSTEM):
            try:
                return "system" if os.stat(mapped.path).st_ctime_ns < self._seal.created_ns else "changed"
            except OSError:
                return "deleted"
        return "generated" if _GENERATED.search(mapped.path) else "library"

    def _deviation(self, mapped: Mapped, place: str) -> Deviation:
        return Deviation(kind="system" if place == "changed" else place, name=_text(mapped.path))

    def _kept(self, deviation: Deviation) -> Deviation:
        """The deviation with the digest of its file, whose bytes are kept."""
        if deviation.kind not in ("library", "system", "interpreter"):
            return deviation
        try:
            size = os.stat(deviation.name).st_size
            if size > MOST_KEPT:
                return msgspec.structs.replace(deviation, bytes=size)
            digest = self._store.put_file(Path(deviation.name))
        except (OSError, TrainWardenError):
            return deviation
        return msgspec.structs.replace(deviation, found=digest, bytes=size)

    def _gap(self, process: _Process, reason: str) -> None:
        self._ledger.submit(Gap(attempt=process.attempt, rank=process.rank, step=-1, reason=reason[:2000]))


def _read_maps(pid: int) -> str:
    return Path(f"/proc/{pid}/maps").read_text(encoding="utf-8", errors="surrogateescape")


def _began(pid: int) -> str:
    """The start time of a process in the kernel's ticks (field 22 of /proc/PID/stat), "" when it is gone."""
    try:
        with open(f"/proc/{pid}/stat", encoding="utf-8", errors="replace") as f:
            return f.read().rpartition(")")[2].split()[19]
    except (OSError, IndexError):
        return ""
