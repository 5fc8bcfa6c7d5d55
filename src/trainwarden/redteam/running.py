"""Carries out a variant in a range: the job under guard, the acts at their moments, then audit, explanation, verify.

Steps are seen where the job prints them (the workload's `step` pattern), so the same acts work on a run that nobody
guards. Everything that is judged comes from the run's own log and from the payload's marks.
"""

from __future__ import annotations

import json
import re
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field

from trainwarden.casefile import read_entries
from trainwarden.errors import CannotDecide
from trainwarden.model import Entry
from trainwarden.redteam.interface import Act, Moment
from trainwarden.redteam.outcome import Found, Marked
from trainwarden.redteam.place import Range
from trainwarden.store import Store

_TOLD = re.compile(r"trainwarden: \w+ · ([\w-]+): (.*)")
OWNER = "owner"  # the actor who approves seals in a range


@dataclass
class Ran:
    """What one or two guarded runs of a job did. `log` is everything that was said on stderr."""

    runs: list[str] = field(default_factory=list)
    code: int = 0
    seconds: float = 0.0
    said: list[str] = field(default_factory=list)
    told: list[tuple[float, str, str]] = field(
        default_factory=list
    )  # findings on the terminal: when, detector, sentence
    printed: int = 0  # lines that told a step
    acted: list[float] = field(default_factory=list)  # wall times of acts after PREPARE
    refused: str = ""  # why TrainWarden did not start the job
    entries: dict[str, Sequence[Entry]] = field(default_factory=dict)  # by run, verdicts added later included
    audit: dict[str, str] = field(default_factory=dict)  # run → worst verdict
    checks: dict[str, object] = field(default_factory=dict)  # verify's checks, by run
    gate: list[Found] = field(default_factory=list)  # what the gate has against what is to be served

    @property
    def all_entries(self) -> list[Entry]:
        """The entries of all runs, in order."""
        return [e for run in self.runs for e in self.entries.get(run, ())]


def carry_out(
    place: Range,
    acts: Sequence[Act],
    *,
    options: Sequence[str] = (),
    approved: bool = False,
    again: bool = False,
    guarded: bool = True,
    limit: float | None = None,
    tell: Callable[[int], None] = lambda step: None,
) -> Ran:
    """Run the workload in a fresh copy with these acts; `tell` hears of every step. Unguarded, nothing is recorded.

    After `limit` seconds the command is ended; acts after the end are then not carried out.

    Raises:
        OutsideRange: an act would have left the copy; the job was ended.
        CannotDecide: the seal could not be approved.
    """
    place.fresh()
    ran = Ran()
    _at(place, ran, acts, Moment.PREPARE)
    command = place.words(place.workload.command)
    if approved:
        _approve(place, command)
    _at(place, ran, acts, Moment.START)
    begin = time.monotonic()
    watched = _watched(options) if guarded else []
    if limit is not None:
        watched = ["timeout", "--kill-after=5", str(limit), *watched]
    _run(place, ran, [*watched, *command], acts, tell)
    if again:
        _at(place, ran, acts, Moment.BETWEEN)
        _run(place, ran, [*watched, *command, *_resume(place)], (), tell)
    ran.seconds = round(time.monotonic() - begin, 2)
    if limit is None or ran.seconds < limit:
        _at(place, ran, acts, Moment.END)
    read(place, ran)
    return ran


def _at(place: Range, ran: Ran, acts: Sequence[Act], moment: Moment) -> None:
    for act in acts:
        if act.moment is moment:
            if moment is not Moment.PREPARE:
                ran.acted.append(time.time())
            act.do(place)


def _resume(place: Range) -> list[str]:
    newest = place.checkpoints[-1:] or [place.job]
    return [word.replace("{checkpoint}", str(newest[0])) for word in place.workload.resume]


def _watched(options: Sequence[str]) -> list[str]:
    return [sys.executable, "-m", "trainwarden.cli", "run", *options, "--"]


def _run(place: Range, ran: Ran, argv: Sequence[str], acts: Sequence[Act], tell: Callable[[int], None]) -> None:
    """The job, acts at their steps."""
    process = place.start(argv, stdin=subprocess.DEVNULL, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)
    pending = sorted(((_step(place, a), a) for a in acts if a.moment is Moment.STEP), key=lambda p: p[0])
    pattern = re.compile(place.workload.step)
    listener = threading.Thread(target=_listen, args=(place, ran, process), daemon=True)
    listener.start()
    try:
        while pending and pending[0][0] <= 0:
            _act(place, ran, pending.pop(0)[1])
        for line in process.stdout or ():
            if not (found := pattern.search(line)):
                continue
            ran.printed += 1
            tell(int(found[1]))
            while pending and int(found[1]) >= pending[0][0]:
                _act(place, ran, pending.pop(0)[1])
        ran.code = process.wait()
    finally:
        place.end(process)
    listener.join()
    if ran.code == 1 and not place.runs:
        ran.refused = next((w for w in ran.said if w.startswith("error: ")), "").removeprefix("error: ")


def _step(place: Range, act: Act) -> int:
    return place.workload.first + act.step - (place.workload.lead if act.ahead else 0)


def _act(place: Range, ran: Ran, act: Act) -> None:
    ran.acted.append(time.time())
    act.do(place)


def _listen(place: Range, ran: Ran, process: subprocess.Popen[str]) -> None:
    for line in process.stderr or ():
        ran.said.append(line.rstrip("\n"))
        if found := _TOLD.match(line):
            ran.told.append((time.time(), found[1], found[2].strip()))
        if " as run " in line:
            run = line.partition(" as run ")[2].split()[0]
            ran.runs.append(run)
            place.runs.append(run)


def _approve(place: Range, command: Sequence[str]) -> None:
    """Have the job's seal approved by the range's own actor."""
    config = place.job / "trainwarden.toml"
    own = config.read_text() if config.exists() else ""
    config.write_text(f'{own}\n[seal]\napprovals = 1\napprovers = ["{OWNER}"]\n')
    if OWNER not in place.warden("keys", "list").stdout:
        place.warden("keys", "new", OWNER, "--kind", "person")
    sealed = place.warden("seal", "--", *command)
    digest = (sealed.stdout.split() or [""])[0]
    done = place.warden("approve", digest, "--as", OWNER)
    if done.returncode != 0:
        raise CannotDecide(f"the seal of the honest job was not approved: {(sealed.stderr + done.stderr)[-300:]}")


# ------------------------------------------------------------------------- afterwards


def read(place: Range, ran: Ran) -> None:
    """Read the runs' logs again, with what was added since; of a log that an insider damaged, as far as it goes."""
    store = Store.open(place.store, create=True)
    try:
        for run in ran.runs:
            ran.entries[run] = read_entries(store.run(run))[0]
    finally:
        store.close()


def audited(place: Range, ran: Ran) -> None:
    """Audit every run up to the first difference, and explain it. The insider's strike is gone by then."""
    place.strike.unlink(missing_ok=True)
    for run in ran.runs:
        done = place.warden("audit", run, "--first", "--json")
        verdicts = (
            json.loads(done.stdout.splitlines()[-1])["verdicts"] if done.returncode in (0, 1, 2) and done.stdout else []
        )
        kinds = {v["type"] for v in verdicts}
        worst = next((k for k in ("diverged", "inconclusive", "matched") if k in kinds), "failed")
        ran.audit[run] = worst
        if worst == "failed":
            ran.said.append(f"audit: {done.stderr.strip()[-300:]}")
        if worst == "diverged":
            place.warden("explain", run, "--json")
            break
    read(place, ran)


def verified(place: Range, ran: Ran) -> None:
    """Verify every run offline."""
    for run in ran.runs:
        done = place.warden("verify", run, "--json")
        try:
            ran.checks[run] = json.loads(done.stdout.splitlines()[-1])
        except (IndexError, ValueError):
            ran.checks[run] = {"error": done.stderr.strip()[-300:]}


def marks(place: Range) -> list[Marked]:
    """What payloads marked, in the order of steps: lines of `rank step wall_ns tensor`."""
    found = []
    for path in sorted(place.marks.glob("*.rank*")):
        for line in path.read_text(encoding="utf-8").splitlines():
            rank, step, wall, *tensor = line.split()
            found.append(Marked(rank=int(rank), step=int(step), wall_ns=int(wall), tensor=" ".join(tensor)))
    return sorted(found, key=lambda m: (m.step, m.rank, m.wall_ns))
