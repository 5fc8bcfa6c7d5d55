"""`trainwarden audit RUN --units`: the sampled audit of a run, after its end or, with `--follow`, beside it.

With `--follow --draw` it is the process that `trainwarden run` keeps beside a run: it tells entries as lines of JSON,
hears on stdin what CPU time the ranks have used, and ends when stdin does. Without `--draw` it runs, perhaps on
another host, what that process has drawn.
"""

from __future__ import annotations

import argparse
import itertools
import os
import resource
import threading
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path
from typing import assert_never

import msgspec

from trainwarden.audit.recorded import earlier_entries
from trainwarden.commands.common import CLEAN, FINDING, UNDECIDED, consoles, open_store, print_json
from trainwarden.commands.opening import opened
from trainwarden.config import share_of
from trainwarden.errors import LogError, UsageError
from trainwarden.log.reader import LogReader
from trainwarden.model import Entry, ProcessStarted, Sealed, StepRecord, UnitAudited, UnitResult, decode_entry
from trainwarden.priority import give_way
from trainwarden.supervise import proc

_NICE = 19
_LOOKED_AT = 64  # ranks whose memory is looked at


class Clocks:
    """CPU seconds of the job, as told or as claimed by its records, and of this process with its replays."""

    def __init__(self, living: Callable[[], int]) -> None:
        self._living = living
        self.job_ns = 0

    def job(self) -> float:
        return self.job_ns / 1e9

    def spent(self) -> float:
        used = [resource.getrusage(who) for who in (resource.RUSAGE_SELF, resource.RUSAGE_CHILDREN)]
        return sum(u.ru_utime + u.ru_stime for u in used) + self._living() / 1e9


def run_units(args: argparse.Namespace) -> int:
    """Audit units; 0 all that were run matched, 1 a difference, 2 undecided or none was run."""
    return _follow(args) if args.follow else _ended(args)


def _ended(args: argparse.Namespace) -> int:
    from trainwarden.audit.randomness import source_for
    from trainwarden.audit.unitrun import UnitRunner
    from trainwarden.audit.units import UnitAudit

    results, _ = consoles(args)
    found: list[UnitAudited] = []
    with opened(args) as run:
        runner = UnitRunner(run.room)
        clocks = Clocks(lambda: runner.cpu_ns)
        clocks.job_ns = sum(e.cpu_ns for e in run.case.entries if isinstance(e, StepRecord))

        def tell(entry: Entry) -> None:
            run.append(entry)
            if isinstance(entry, UnitAudited):
                found.append(entry)
                if not args.json:
                    results.print(sentence(entry))

        audit = UnitAudit(
            run.store,
            run.recorded.folder,
            run.recorded.seal,
            runner,
            source_for(run.recorded.folder.shipping, args.beacon),
            clocks,
            share_of(args.audit_budget, "--audit-budget"),
            tell,
            earlier=earlier_entries(run.store, run.case.sealed.parent),
        )
        try:
            while audit.turn(hurry=True) == 0:
                pass
            waiting = audit.waiting
        finally:
            audit.close()
    if args.json:
        print_json({"run": run.case.run, "units": found, "waiting": waiting, "problem": audit.problem})
    else:
        results.print(_summary(found, waiting, audit.problem))
    return _code(found)


def _code(found: list[UnitAudited]) -> int:
    if any(u.result in (UnitResult.DIVERGED, UnitResult.DIFFERS) for u in found):
        return FINDING
    return UNDECIDED if not found or any(u.result is UnitResult.UNDECIDED for u in found) else CLEAN


def _summary(found: list[UnitAudited], waiting: int, problem: str) -> str:
    if not found and not waiting:
        raised = "none was drawn at this budget; a larger --audit-budget buys some, and without --units all is replayed"
        return "no unit was audited: " + (problem or raised)
    counts = [f"{n} {r.value}" for r in UnitResult if (n := sum(u.result is r for u in found))]
    rest = f", {waiting} drawn and not run: the budget does not pay for them" if waiting else ""
    return f"{', '.join(counts) or 'none run'} of {len(found) + waiting} units{rest}"


def sentence(told: UnitAudited) -> str:
    """What came of a unit in one line, as rich's markup."""
    from rich.markup import escape

    where = (
        f"step {told.step}, rank {told.rank} ({told.kind.value}, {told.processes} process{'es' * (told.processes > 1)})"
    )
    match told.result:
        case UnitResult.MATCHED:
            return f"[green]matched[/]    {where}: {', '.join(s.value for s in told.stages)}, bit for bit"
        case UnitResult.DIVERGED | UnitResult.DIFFERS:
            at = f" at step {told.at.step}, rank {told.at.rank}, {told.at.words}" if told.at else ""
            return f"[bold red]{told.result.value}[/]   {where}: it differs{escape(at)}"
        case UnitResult.UNDECIDED:
            return f"[yellow]undecided[/]  {where}: {escape('; '.join(told.reasons))}"
        case _:
            assert_never(told.result)


# --------------------------------------------------------------------------- beside a run


def _follow(args: argparse.Namespace) -> int:
    from trainwarden.audit.randomness import source_for
    from trainwarden.audit.unitrun import UnitRunner
    from trainwarden.audit.units import UnitAudit
    from trainwarden.seal.room import build_room
    from trainwarden.seal.seal import read_seal
    from trainwarden.supervise.auditing import Used

    _stand_back()
    store = open_store(args)
    folder = store.run(args.run_name)
    first = _first(folder.log)
    seal = read_seal(folder.seal_file, first.key)
    if seal.digest != first.seal:
        raise UsageError(f"the log was begun for seal {first.seal}, seal.json holds {seal.digest}")
    ended = threading.Event()
    runner = UnitRunner(lambda: build_room(store, seal), lambda: ended.is_set() and not args.finish)
    clocks = Clocks(lambda: runner.cpu_ns)
    threading.Thread(target=_listen, args=(clocks, ended), daemon=True).start()

    def tell(entry: Entry | Used) -> None:
        with suppress(OSError):  # whoever reads is gone, and stdin has ended or will
            os.write(1, msgspec.json.encode(entry) + b"\n")

    audit = UnitAudit(
        store,
        folder,
        seal,
        runner,
        source_for(folder.shipping, args.beacon),
        clocks,
        share_of(args.audit_budget, "--audit-budget"),
        tell,
        earlier=earlier_entries(store, first.parent),
        draws=args.draw,
        may_start=Beside(folder.log).why_not if args.draw else lambda processes: "",
    )
    try:
        while True:
            over = ended.is_set()
            if not args.draw:
                clocks.job_ns = audit.claimed_ns  # nobody tells
            pause = audit.turn(hurry=over)
            tell(Used(spent_ns=int(clocks.spent() * 1e9), waiting=audit.waiting, problem=audit.problem))
            if over and (pause or not args.finish):
                return CLEAN
            if pause:
                ended.wait(pause)
    finally:
        audit.close()


def _stand_back() -> None:
    """Run only when nothing else wants to; training comes first."""
    import signal

    signal.pthread_sigmask(signal.SIG_SETMASK, ())  # the supervisor blocks them where it starts us
    give_way(os.getpid(), _NICE)
    with suppress(OSError):
        os.sched_setscheduler(0, os.SCHED_IDLE, os.sched_param(0))
    with suppress(OSError):  # where memory runs out, this process and its replays go first
        Path("/proc/self/oom_score_adj").write_text("1000")


class Beside:
    """Why a replay may not run beside training now: it would share an accelerator, or crowd the ranks out of memory."""

    def __init__(self, log: Path) -> None:
        self._log = log
        self._started: list[ProcessStarted] = []

    def why_not(self, processes: int) -> str:
        """The reason, "" when so many more processes of the size of the ranks may be started."""
        if not self._started:
            with LogReader.open(self._log) as reader:
                entries = (decode_entry(leaf) for _, leaf in reader.entries())
                starts = (e for e in entries if isinstance(e, ProcessStarted))
                self._started = list(itertools.islice(starts, _LOOKED_AT))
        if any(s.numerics.accelerator for s in self._started):
            return "the ranks use an accelerator, which replays beside them would share: audit from another host"
        need = processes * max((peak_memory(s.pid) for s in self._started), default=0)
        free = free_memory()
        if need * 1.25 > free:
            return f"{processes} processes like the ranks need {need >> 20} MiB of memory, {free >> 20} MiB are free"
        return ""


def peak_memory(pid: int) -> int:
    """The most bytes that a process held in memory, 0 when it is gone (proc_pid_status(5))."""
    return _kib(proc.read(f"/proc/{pid}/status"), "VmHWM")


def free_memory() -> int:
    """Bytes that can be had without swapping (proc_meminfo(5))."""
    return _kib(proc.read("/proc/meminfo"), "MemAvailable")


def _kib(text: str, name: str) -> int:
    for line in text.splitlines():
        if line.startswith(f"{name}:"):
            return int(line.split()[1]) * 1024
    return 0


def _listen(clocks: Clocks, ended: threading.Event) -> None:
    """What the ranks have used, line by line; the end of stdin is the end of the run."""
    from trainwarden.supervise.auditing import JobUsed

    # Unbuffered: a thread that waits with the lock of a buffer aborts the process when that ends for another reason.
    with open(0, "rb", buffering=0, closefd=False) as lines:
        for line in lines:
            with suppress(msgspec.DecodeError, UnicodeDecodeError):
                clocks.job_ns = max(clocks.job_ns, msgspec.json.decode(line, type=JobUsed).job_cpu_ns)
    ended.set()


def _first(log: Path) -> Sealed:
    with LogReader.open(log) as reader:
        for _, leaf in reader.entries():
            entry = decode_entry(leaf)
            if isinstance(entry, Sealed):
                return entry
            break
    raise LogError("the log does not begin with a seal", hint="wait until the run has begun")
