"""The process that audits samples of a run while it goes on: paid from a budget, listened to, ended at once.

Rules
-----
* It is a process of its own in a session of its own, idle scheduling and niceness are its own first act; it follows the
  log's files. It is started when the budget pays for a start, so a run of seconds never sees it.
* What the ranks have used is asked of the kernel, of the processes that joined, and not of what they say.
* What it draws and finds becomes entries of the run. When it ends before the run does, that is a finding, and nothing
  more is audited. The run's end waits for it a moment, and then kills it.

Trust: it runs as the user who trains, like the supervisor.
"""

from __future__ import annotations

import contextlib
import os
import signal
import subprocess
import tempfile
import threading
import time
from collections.abc import Callable
from typing import IO, TypeAlias

import msgspec

from trainwarden.isolation import same_again
from trainwarden.model import (
    Confidence,
    Diverged,
    Entry,
    Finding,
    SampledAudit,
    Severity,
    UnitAudited,
    UnitsDrawn,
)
from trainwarden.store import RunDir, Store
from trainwarden.supervise import proc

DETECTOR = "sampled-audit"
START_SECONDS = 2.0  # CPU that the auditor's own start takes, about
_LOOK_SECONDS = 2.0
_GRACE = 0.5  # seconds that the end of a run waits for it
_LAST_WORDS = 300  # characters


class Used(msgspec.Struct, frozen=True, kw_only=True, tag="used"):
    """What the auditor tells of itself: CPU it has used, units that wait, and why nothing is drawn."""

    spent_ns: int
    waiting: int = 0
    problem: str = ""


class JobUsed(msgspec.Struct, frozen=True, kw_only=True):
    """What it is told: CPU time of the ranks."""

    job_cpu_ns: int


Told: TypeAlias = UnitsDrawn | UnitAudited | Diverged | Used
_decoder: msgspec.json.Decoder[Told] = msgspec.json.Decoder(Told)
Submit: TypeAlias = Callable[[Entry], object]


class Ranks:
    """CPU time of the processes that joined as ranks, those that are gone included."""

    def __init__(self) -> None:
        self._seen: dict[int, int] = {}  # pid → ns
        self._lock = threading.Lock()

    def joined(self, pid: int) -> None:
        with self._lock:
            self._seen.setdefault(pid, 0)

    def cpu_ns(self) -> int:
        """As of now; of a process that is gone, as of the last look."""
        with self._lock:
            for pid, before in self._seen.items():
                self._seen[pid] = max(before, process_cpu_ns(pid))
            return sum(self._seen.values())


def process_cpu_ns(pid: int) -> int:
    """User and system time of a process and of its children that ended, 0 when it is gone (proc_pid_stat(5))."""
    fields = proc.read(f"/proc/{pid}/stat").rpartition(")")[2].split()
    try:
        return sum(int(fields[i]) for i in (11, 12, 13, 14)) * 1_000_000_000 // proc.TICKS
    except (IndexError, ValueError):
        return 0


class Auditing:
    """Audits samples of one run beside it; `joined` for each rank, `close` once, before the log's end."""

    def __init__(
        self,
        store: Store,
        run: RunDir,
        budget: float,
        submit: Submit,
        *,
        beacon: str = "",
        finish: bool = False,
        argv: list[str] | None = None,
        start_seconds: float = START_SECONDS,
        look_seconds: float = _LOOK_SECONDS,
    ) -> None:
        self._budget, self._submit, self._finish = budget, submit, finish
        self._start_seconds, self._look_seconds = start_seconds, look_seconds
        words = ["audit", run.id, "--store", str(store.path), "--units", "--follow", "--draw", "--json"]
        words += ["--audit-budget", repr(budget), *(["--beacon", beacon] if beacon else [])]
        words += ["--finish"] if finish else []
        self._argv = argv or [*same_again(), *words]
        self._ranks = Ranks()
        self._used = Used(spent_ns=0)
        self._reason = ""
        self._process: subprocess.Popen[bytes] | None = None
        self._closing = threading.Event()
        self._any = threading.Event()  # a rank has joined
        self._thread: threading.Thread | None = None
        if budget > 0:
            self._thread = threading.Thread(target=self._work, daemon=True, name="trainwarden-auditing")
            self._thread.start()

    def joined(self, pid: int) -> None:
        """A process has joined as a rank."""
        self._ranks.joined(pid)
        self._any.set()

    def close(self) -> None:
        """End the audit, at once or, where it was asked for, when what was drawn is run; tell what it came to."""
        self._closing.set()
        self._any.set()
        if self._thread is None:
            return
        self._thread.join(None if self._finish else _GRACE)
        process = self._process
        if process is not None and process.poll() is None:
            self._kill(process)
            self._thread.join(_GRACE)
        job = self._ranks.cpu_ns()
        if job:
            self._submit(
                SampledAudit(
                    budget=self._budget,
                    job_cpu_ns=job,
                    spent_ns=self._used.spent_ns,
                    waiting=self._used.waiting,
                    reason=self._why(job),
                    wall_ns=time.time_ns(),
                )
            )

    def _why(self, job: int) -> str:
        if self._reason or self._used.problem:
            return self._reason or self._used.problem
        if self._process is None:
            paid = f"{self._budget:.3g} of {job / 1e9:.1f} CPU seconds"
            return f"the budget did not buy a unit: {paid} is less than an auditor's start takes"
        if not self._used.waiting:
            return ""
        return "the budget does not pay for more" if self._finish else "the run ended first"

    # -- the thread

    def _work(self) -> None:
        self._any.wait()
        while not self._closing.is_set() and self._budget * self._ranks.cpu_ns() < self._start_seconds * 1e9:
            self._closing.wait(self._look_seconds)
        if self._closing.is_set():
            return
        with tempfile.TemporaryFile() as said:
            try:
                process = self._process = subprocess.Popen(
                    self._argv,
                    stdin=subprocess.PIPE,
                    stdout=subprocess.PIPE,
                    stderr=said,
                    start_new_session=True,
                )
            except OSError as e:
                self._reason = f"the auditor cannot be started: {e.strerror}"
                return
            feeder = threading.Thread(target=self._feed, args=(process,), daemon=True, name="trainwarden-auditing-feed")
            feeder.start()
            with process.stdout or contextlib.nullcontext(()) as lines:
                for line in lines:
                    self._handle(line)
            code = process.wait()
            if not self._closing.is_set():
                self._ended_early(code, _last_line(said))

    def _feed(self, process: subprocess.Popen[bytes]) -> None:
        """Tell it what the job has used; the end of its stdin is the end of the run."""
        with contextlib.suppress(OSError, ValueError):
            while process.stdin is not None and process.poll() is None:
                process.stdin.write(msgspec.json.encode(JobUsed(job_cpu_ns=self._ranks.cpu_ns())) + b"\n")
                process.stdin.flush()
                if self._closing.wait(self._look_seconds):
                    break
        with contextlib.suppress(OSError):
            if process.stdin is not None:
                process.stdin.close()

    def _handle(self, line: bytes) -> None:
        try:
            told = _decoder.decode(line)
        except (msgspec.DecodeError, UnicodeDecodeError):
            return  # an error as JSON: its exit code says that it ended
        if isinstance(told, Used):
            self._used = told
        else:
            self._submit(told)

    def _ended_early(self, code: int, said: str) -> None:
        how = (f"signal {-code}" if code < 0 else f"exit code {code}") + (f": {said}" if said else "")
        self._reason = f"the auditor ended before the run did ({how}): nothing later was drawn or replayed"
        self._submit(
            Finding(
                detector=DETECTOR,
                severity=Severity.MEDIUM if code < 0 else Severity.LOW,
                confidence=Confidence.HIGH,
                seen=f"The process that audits samples ended before the run did ({how}): from here on none is checked.",
                expected="It goes on until the run ends.",
                benign=("the system was short of memory", "the sealed environment cannot be rebuilt here"),
                wall_ns=time.time_ns(),
            )
        )

    @staticmethod
    def _kill(process: subprocess.Popen[bytes]) -> None:
        with contextlib.suppress(ProcessLookupError):
            os.killpg(process.pid, signal.SIGKILL)


def _last_line(file: IO[bytes]) -> str:
    """What a process said last on its stderr, such as the line that names its error."""
    end = file.seek(0, os.SEEK_END)
    file.seek(max(0, end - 4096))
    lines = file.read().decode("utf-8", "replace").strip().splitlines()
    return lines[-1][:_LAST_WORDS] if lines else ""
