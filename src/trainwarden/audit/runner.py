"""Runs a recorded attempt again in clean processes on this machine and hands over what they report.

Rules
-----
* Every rank is started from its `ProcessStarted` entry, with interpreter, code, data and environment variables
  taken from the room and the workspace; nothing of the suspect's environment is on any path.
* The recorded run and rank numbers, world size, arguments and user variables are presented as they were.
* A replay writes only below its workspace: `record.elsewhere` leads its writes there, its temporary folder goes with
  it, and trackers that report over a network are told that there is none.
* Its processes are its own session and are ended with it.
"""

from __future__ import annotations

import ctypes
import os
import secrets
import signal
import socket
import subprocess
import tempfile
import threading
import time
from collections.abc import Callable, Mapping, Sequence
from contextvars import ContextVar
from pathlib import Path
from typing import Protocol

import msgspec

import trainwarden
from trainwarden import wire
from trainwarden.audit.compare import Seen
from trainwarden.audit.plan import REPLAYER, Plan, encode
from trainwarden.audit.resuming import RESUME_ENV
from trainwarden.model import Numerics, ProcessStarted
from trainwarden.priority import give_way
from trainwarden.record.bootstrap import ELSEWHERE_ENV
from trainwarden.record.entropy import FILE_ENV as ENTROPY_ENV
from trainwarden.seal.command import is_python
from trainwarden.seal.room import Workspace

MOST_GAPS = 100  # a replay that tells of more is going round in circles
STALL_SECONDS = 300.0
NICE: ContextVar[int] = ContextVar("NICE", default=0)
"""How much lower the priority is of the replays that this thread starts, see nice(2), or has running.
Whoever holds the log of a run that goes on must not be niced itself: it would hold up the others while it waits for a
processor.
"""
OFFLINE = {"WANDB_MODE": "offline", "NEPTUNE_MODE": "offline", "CLEARML_OFFLINE_MODE": "1", "COMET_START_ONLINE": "0"}
"""Variables by which trackers keep what they are told to themselves."""
_SHARED_TEMP = ("/tmp", "/var/tmp", "/usr/tmp")
SPAWNED = "--multiprocessing-fork"  # in the arguments of a process that multiprocessing spawned
_LIBC = ctypes.CDLL(None)
_PR_SET_PDEATHSIG = 1
_SOURCE = str(Path(trainwarden.__file__).parents[1])
_INJECT = str(Path(trainwarden.__file__).parent / "record" / "inject")


class Rank(msgspec.Struct, frozen=True, kw_only=True):
    """One rank to start again."""

    started: ProcessStarted
    env: dict[str, str]
    plan: Plan
    arguments: tuple[str, ...] = ()  # added to the recorded ones, with places of the workspace
    resume: str = ""  # of the workspace: what a framework is given to resume from
    entropy: str = ""  # file of what the operating system seeded Python's and numpy's generators with
    recorder: str = REPLAYER


class Saving(msgspec.Struct, frozen=True, kw_only=True):
    """A state file that a replaying rank wrote: where, after how many of its own steps, and the name it had before."""

    rank: int
    path: Path
    done: int
    format: str
    renamed_from: str = ""


class Ended(msgspec.Struct, frozen=True, kw_only=True):
    """How a replay ended; `problems` empty means in order. `unfit`: those for which nothing it showed is a verdict."""

    problems: tuple[str, ...]
    unfit: tuple[str, ...]
    loaded: tuple[str, ...]
    opened: tuple[str, ...]
    seconds: float


class Pace(Protocol):
    """Lets the ranks of a replay go on, and hears at once what else `Ended` says; called from several threads."""

    def further(self, rank: int, plan: Plan) -> Plan | None:
        """A rank has run its plan: one that goes on, when there is more to run; None when there will be none."""

    @property
    def waits(self) -> bool:
        """Is a rank waiting for more to run?"""

    def opened(self, path: str) -> None:
        """A rank has read this file."""

    def unfit(self, reason: str) -> None:
        """Nothing that this replay shows is a verdict."""

    def end(self) -> None:
        """The ranks are ended: whoever waits is let go."""


class _Stage:
    """The server's side of one replay."""

    def __init__(self, on_step: Callable[[Seen], None], on_saved: Callable[[Saving], None]) -> None:
        self.on_step, self.on_saved = on_step, on_saved
        self.lock = threading.Lock()
        self.problems: list[str] = []
        self.unfit: list[str] = []
        self.opened: set[str] = set()
        self.loaded: list[str] = []
        self.gaps = 0
        self.alive = time.monotonic()


class _Handler:
    """Answers one replaying process."""

    def __init__(
        self, stage: _Stage, ranks: Mapping[int, Rank], key: bytes, folder: Path, every: int, pace: Pace | None = None
    ) -> None:
        self._stage, self._ranks, self._key, self._folder, self._every = stage, ranks, key, folder, every
        self._pace = pace
        self._plan = Plan()
        self._rank = -1
        self._late = any(SPAWNED in r.started.argv for r in ranks.values())

    def message(self, message: wire.Message) -> wire.Message | None:
        if isinstance(message, wire.NextUnit):
            return self._further()
        with self._stage.lock:
            self._stage.alive = time.monotonic()
            match message:
                case wire.Start():
                    return wire.Go()
                case wire.Join():
                    return self._join(message)
                case wire.Step():
                    self._stage.on_step(Seen(record=message.record, details=message.details))
                case wire.Saved():
                    saved = Saving(
                        rank=self._rank,
                        path=Path(message.path),
                        done=message.step,
                        format=message.format,
                        renamed_from=message.renamed_from,
                    )
                    self._stage.on_saved(saved)
                case wire.Loaded():
                    self._stage.loaded.append(message.path)
                    return wire.Known(step=-1)
                case wire.Opened():
                    self._stage.opened.add(message.path)
                    if self._pace is not None:
                        self._pace.opened(message.path)
                case wire.Missed():
                    self._stage.gaps += 1
                    if self._stage.gaps <= MOST_GAPS:
                        self._stage.problems.append(f"rank {self._rank}: {message.reason}")
                case wire.Bye():
                    return wire.Go()
                case _:
                    pass
        return None

    def _join(self, message: wire.Join) -> wire.Message:
        rank = self._ranks.get(message.rank)
        if rank is None:
            raise ValueError(f"a rank {message.rank} that was never recorded")
        self._rank = message.rank
        recorded, here = rank.started.numerics, message.numerics
        if recorded != here:
            self._stage.unfit.append(numerics_problem(message.rank, recorded, here))
            if self._pace is not None:
                self._pace.unfit(self._stage.unfit[-1])
        self._plan = msgspec.structs.replace(rank.plan, entropy=rank.entropy if self._late else "")
        return wire.Joined(
            attempt=rank.started.attempt,
            key=self._key,
            run_dir=str(self._folder),
            activations_every=self._every,
            snapshot_every=0,
            plan=encode(self._plan),
        )

    def _further(self) -> wire.NewUnit:
        """Not under the stage's lock: the others go on while this rank waits."""
        plan = self._pace.further(self._rank, self._plan) if self._pace is not None else None
        with self._stage.lock:
            self._stage.alive = time.monotonic()
        if plan is None:
            return wire.NewUnit()
        self._plan = plan
        return wire.NewUnit(plan=encode(plan))

    def closed(self, error: str) -> None:
        if error:
            with self._stage.lock:
                self._stage.problems.append(f"rank {self._rank}: {error}")


def run(
    ranks: Sequence[Rank],
    space: Workspace,
    key: bytes,
    activations_every: int,
    on_step: Callable[[Seen], None],
    on_saved: Callable[[Saving], None],
    stop: Callable[[], bool],
    pace: Pace | None = None,
) -> Ended:
    """Start the ranks in the workspace and follow them until they end, `stop()` says so, or they stall.

    The callbacks are called one at a time, from other threads. `pace` answers ranks whose plans say `follow`.
    """
    begin = time.monotonic()
    stage = _Stage(on_step, on_saved)
    by_rank = {r.started.rank: r for r in ranks}
    with tempfile.TemporaryDirectory(prefix="tw-", ignore_cleanup_errors=True) as folder:
        server = wire.Server(
            Path(folder) / "s",
            lambda _: _Handler(stage, by_rank, key, space.scratch / "replay", activations_every, pace),
        )
        processes = start(to_start(ranks, space), space, str(server.path))
        try:
            _follow(processes, stage, stop, pace)
        finally:
            end(processes)
            if pace is not None:
                pace.end()
            server.close(drain_seconds=5, arrived_seconds=5)
    unfit = tuple(dict.fromkeys(stage.unfit))
    problems = [*unfit, *dict.fromkeys(stage.problems)]
    if not stop():
        problems += exits(processes, space)
    return Ended(
        problems=tuple(problems),
        unfit=unfit,
        loaded=tuple(stage.loaded),
        opened=tuple(sorted(stage.opened)),
        seconds=time.monotonic() - begin,
    )


def to_start(ranks: Sequence[Rank], space: Workspace) -> Sequence[Rank]:
    """What to start for these ranks: each by itself, or the sealed Python command where that spawned them.

    A process of `multiprocessing` is told by its parent what to run, over a pipe; only the parent can start it again.
    """
    seal = space.room.seal
    if not any(SPAWNED in r.started.argv for r in ranks) or not is_python(seal.argv[0]):
        return ranks
    started = msgspec.structs.replace(ranks[0].started, argv=seal.argv, cwd=seal.cwd)
    return [msgspec.structs.replace(ranks[0], started=started, entropy="")]


def start(ranks: Sequence[Rank], space: Workspace, address: str) -> list[tuple[Rank, subprocess.Popen[bytes]]]:
    """Start these ranks' processes; they speak to the server at `address`."""
    port = _free_port()
    processes = []
    for rank in ranks:
        started = rank.started
        env = space.environ(rank.env)
        env |= _apart(rank, env, space, address)
        env[wire.SOCKET_ENV] = address
        env[wire.REDUCTION_ENV] = space.room.seal.comparison.reduction
        env["TRAINWARDEN_SOURCE"] = _SOURCE
        env["TRAINWARDEN_RECORDER"] = rank.recorder
        if rank.resume:
            env[RESUME_ENV] = rank.resume
        if rank.entropy:
            env[ENTROPY_ENV] = rank.entropy
        env["PYTHONPATH"] = os.pathsep.join([_INJECT, *filter(None, [env.get("PYTHONPATH", "")])])
        if "MASTER_PORT" in env:
            # The launcher that kept the rendezvous is not here: rank 0 keeps it.
            env |= {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(port), "TORCHELASTIC_USE_AGENT_STORE": "False"}
        cwd = Path(space.map_path(started.cwd))
        cwd.mkdir(parents=True, exist_ok=True)
        words = [*(space.map_argument(w) for w in started.argv[1:]), *rank.arguments]
        with output_file(space, started.rank).open("wb") as output:
            process = subprocess.Popen(
                [str(space.room.python), *words],
                cwd=cwd,
                env=env,
                stdin=subprocess.DEVNULL,
                stdout=output,
                stderr=subprocess.STDOUT,
                start_new_session=True,
                preexec_fn=_die_with_us,
            )
        if NICE.get():
            give_way(process.pid, NICE.get())
        processes.append((rank, process))
    return processes


def _apart(rank: Rank, env: Mapping[str, str], space: Workspace, address: str) -> dict[str, str]:
    """The variables that keep a rank's results to its workspace, and to the folder of the server's address.

    Temporary files lie there since the names of sockets must be short.
    """
    temp = Path(address).parent / "tmp"
    temp.mkdir(exist_ok=True)
    was = env.get("TMPDIR", "").rstrip("/")
    if was and was not in _SHARED_TEMP and Path(was).is_dir():  # the job's own: its inputs may lie there
        for entry in Path(was).iterdir():
            if not os.path.lexists(temp / entry.name) and not Path(address).is_relative_to(entry):
                (temp / entry.name).symlink_to(entry)
    own = [space.scratch, Path(address).parent, *([Path(rank.plan.capture).parent] if rank.plan.capture else [])]
    told = {"TMPDIR": str(temp), ELSEWHERE_ENV: os.pathsep.join(map(str, own))}
    if env.get("MLFLOW_TRACKING_URI"):
        told["MLFLOW_TRACKING_URI"] = f"file://{space.scratch}/mlruns"
    return told | OFFLINE


def _die_with_us() -> None:
    """In the child: it is killed when the thread that started it ends, however that comes (prctl(2))."""
    _LIBC.prctl(_PR_SET_PDEATHSIG, signal.SIGKILL, 0, 0, 0)


def output_file(space: Workspace, rank: int) -> Path:
    """Where a replaying rank's output goes."""
    return space.scratch / f"output-rank{rank}.txt"


def _follow(
    processes: Sequence[tuple[Rank, subprocess.Popen[bytes]]],
    stage: _Stage,
    stop: Callable[[], bool],
    pace: Pace | None = None,
) -> None:
    gone_at, nice = None, NICE.get()
    while any(p.poll() is None for _, p in processes):
        if stop():
            return
        now = time.monotonic()
        if pace is not None and pace.waits:
            stage.alive = now
        if NICE.get() > nice:
            nice = NICE.get()
            for _, process in processes:
                give_way(process.pid, nice)
        failed = [p for _, p in processes if p.poll() not in (None, 0)]
        if failed and gone_at is None:
            gone_at = now
        if gone_at is not None and now - gone_at > 5:
            return  # its peers would wait for it until their own timeout
        if stage.gaps > MOST_GAPS:
            stage.problems.append(f"the replay was ended after {MOST_GAPS} gaps")
            return
        if now - stage.alive > STALL_SECONDS:
            stage.problems.append(f"the replay stood still for {STALL_SECONDS:.0f} s")
            return
        time.sleep(0.02)


def end(processes: Sequence[tuple[Rank, subprocess.Popen[bytes]]]) -> None:
    """Kill what still runs of them, and collect all."""
    for _, process in processes:
        if process.poll() is None:
            try:
                os.killpg(process.pid, signal.SIGKILL)
            except ProcessLookupError:
                pass
    for _, process in processes:
        process.wait()


def exits(processes: Sequence[tuple[Rank, subprocess.Popen[bytes]]], space: Workspace) -> list[str]:
    """What went wrong with processes that did not end in order."""
    problems = []
    for rank, process in processes:
        number = rank.started.rank
        # A crash says goodbye too: Python's exit handlers run after the traceback.
        if process.returncode not in (0, -signal.SIGKILL):
            text = output_file(space, number).read_text(encoding="utf-8", errors="replace").strip()
            last = text.splitlines()[-1][:300] if text else "no output"
            problems.append(f"rank {number} ended with status {process.returncode}: {last}")
    return problems


def numerics_problem(rank: int, recorded: Numerics, here: Numerics) -> str:
    """Why a replay under other numerics is none."""
    was, now = msgspec.to_builtins(recorded), msgspec.to_builtins(here)
    parts = [f"{k} {was.get(k)!r} recorded, {now.get(k)!r} here" for k in {**was, **now} if was.get(k) != now.get(k)]
    return f"rank {rank}: an exact replay needs the recorded numerics: {', '.join(sorted(parts))}"


def _free_port() -> int:
    for _ in range(100):
        port = 20000 + secrets.randbelow(12000)
        with socket.socket() as s:
            try:
                s.bind(("127.0.0.1", port))
            except OSError:
                continue
            return port
    raise OSError("no free port on loopback")
