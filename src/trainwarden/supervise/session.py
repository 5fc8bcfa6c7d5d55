"""One connection of one process: every message is checked, then becomes entries of the log.

Rules
-----
* A rank is not trusted. Its process id is the kernel's (SO_PEERCRED), and only processes below the supervisor
  are heard. It speaks for the rank that it joined as and for no other; sequence numbers only rise; details
  have the names and sizes that the record says. Anything else closes the connection, which is a gap.
* What it says about itself is logged as a claim. Files that it names are read by the supervisor.
* `Acked` is sent from a thread of its own, so that a rank that does not read cannot hold up the log.
"""

from __future__ import annotations

import time
from collections import OrderedDict
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Protocol

import msgspec

from trainwarden import codeform, wire
from trainwarden.model import (
    Detail,
    Gap,
    Note,
    ProcessExited,
    ProcessStarted,
    Stage,
    StepRecord,
    Writer,
    canonical,
)
from trainwarden.supervise import bounds, suspicions
from trainwarden.supervise.files import FileDesk, SavedFile
from trainwarden.supervise.ledger import Ledger
from trainwarden.supervise.outbox import Outbox
from trainwarden.supervise.presence import Presence
from trainwarden.supervise.process import Exit, Reaper, descends_from
from trainwarden.supervise.rank import Rank, check_record
from trainwarden.supervise.roster import Roster
from trainwarden.supervise.senders import Sent

MAX_NOTE = 65_536  # bytes of what a rank may have logged at once
_PEER_GONE = ("ConnectionResetError", "BrokenPipeError")
_KEPT_WEIGHTS = 4  # records whose weights' digests a saved file can still be compared with


class Guard(Protocol):
    """Says whether a process may start: an empty reason is yes."""

    def may_start(self) -> str: ...


@dataclass(frozen=True)
class Shared:
    """What all sessions of a run share."""

    ledger: Ledger
    files: FileDesk
    roster: Roster
    reaper: Reaper
    guard: Guard
    joined: Callable[[int, int], wire.Joined]  # attempt, rank → the answer
    keep_env: Callable[[dict[str, str]], str]  # environment variables → digest
    stopping: Callable[[], int]
    supervisor_pid: int
    code: Callable[[int, int, int, wire.Code], None] = lambda attempt, rank, step, message: None
    sums: Callable[[int, int, int, wire.Sums], None] = lambda attempt, rank, step, message: None
    inputs: Callable[[int, int, int, wire.Pass | wire.Given], None] = lambda attempt, rank, step, message: None
    process: Callable[[int, int, int], None] = lambda attempt, rank, pid: None  # a rank has joined
    presence: Presence = field(default_factory=Presence)
    sent: Callable[[int, int], Sent | str] = lambda pid, signal: ""  # who sent a process a signal, or why not known
    marked: Callable[[Note], Note] = lambda note: note  # fills in what the watcher alone knows
    updated: Callable[[int, int, int, wire.Updated], None] = lambda attempt, rank, step, message: None
    left: Callable[[int, int], None] = lambda attempt, rank: None  # a rank has said goodbye
    shares: Callable[[StepRecord], StepRecord] = lambda record: record  # of sharded weights, masked for the log


class Session:
    """A `wire.Handler` for one connection."""

    def __init__(self, connection: wire.Connection, shared: Shared) -> None:
        self._connection = connection
        self._shared = shared
        self._peer = connection.peer_pid()
        # Asked once, while it lives: what a rank said before it was killed may be read when it is gone.
        self._belongs = descends_from(self._peer, shared.supervisor_pid)
        self._rank: Rank | None = None
        self._acks: Outbox | None = None
        self._weights: OrderedDict[int, Detail] = OrderedDict()

    def message(self, message: wire.Message) -> wire.Message | None:
        """Handle one message; a ValueError closes the connection."""
        if not self._belongs:
            raise ValueError(f"process {self._peer} does not belong to this run")
        match message:
            case wire.Start():
                self._check_pid(message.pid)
                reason = self._shared.guard.may_start()
                return wire.Refuse(reason=reason) if reason else wire.Go()
            case wire.Join():
                return self._join(message)
            case wire.Loaded():
                return wire.Known(step=self._loaded(bounds.path(message.path)))
            case wire.Opened():
                rank = self._rank
                place = (rank.attempt, rank.rank) if rank else (-1, -1)
                self._shared.files.opened(*place, bounds.path(message.path))
            case wire.Step():
                self._step(self._joined_rank(message), message)
            case wire.Code():
                rank = self._joined_rank(message)
                rank.looked, rank.told_code = max(rank.looked, bounds.count(message.step, "step")), True
                self._shared.code(rank.attempt, rank.rank, self._base(rank) + message.step, message)
            case wire.Pass() | wire.Given():
                rank = self._joined_rank(message)
                self._shared.inputs(rank.attempt, rank.rank, self._base(rank) + bounds.input_step(message), message)
            case wire.Updated():
                rank = self._joined_rank(message)
                bounds.count(message.optimizer, "optimizer")
                self._shared.updated(
                    rank.attempt, rank.rank, self._base(rank) + bounds.count(message.step, "step"), message
                )
            case wire.Saved():
                self._saved(self._joined_rank(message), message)
            case wire.Missed():
                rank = self._joined_rank(message)
                rank.told_code = rank.told_code or message.reason.startswith("code: ")  # it tried, and says why not
                self._gap(rank, bounds.count(message.step, "step"), message.reason[: bounds.MAX_TEXT])
            case wire.Stacks():
                rank = self._joined_rank(message)
                self._shared.presence.stacks(rank.attempt, rank.rank, message)
            case wire.Told():
                self._told(self._joined_rank(message), message.note)
            case wire.Sums():
                rank = self._joined_rank(message)
                bounds.count(message.step, "step")
                self._shared.sums(rank.attempt, rank.rank, self._base(rank) + message.step, message)
            case wire.Bye():
                return self._bye(self._joined_rank(message), message)
            case _:
                raise ValueError(f"{type(message).__name__} is not for a rank to send")
        return None

    def closed(self, error: str) -> None:
        """The connection ended; without a goodbye that is a gap."""
        if self._acks is not None:
            self._acks.close()
        rank = self._rank
        if rank is None:
            if error and "does not belong" in error:
                self._shared.ledger.submit(suspicions.stranger(error))
            return
        # A process that is killed with unread answers resets the connection; its exit is told as what it is.
        if error and not rank.goodbye and not error.startswith(_PEER_GONE):
            self._gap(rank, rank.records, f"the connection was closed: {error}"[: bounds.MAX_TEXT])

    # -- messages

    def _check_pid(self, claimed: int) -> None:
        if not descends_from(claimed, self._peer):
            raise ValueError(f"claims to be process {claimed}, the kernel says {self._peer}")

    def _join(self, message: wire.Join) -> wire.Joined:
        self._check_pid(message.pid)
        if self._rank is not None:
            raise ValueError(f"joined twice, first as rank {self._rank.rank}, now as rank {message.rank}")
        if not 0 <= message.rank < message.world <= bounds.MAX_WORLD:
            raise ValueError(f"rank {message.rank} of {message.world}")
        shared = self._shared
        attempt, twin = shared.roster.join(message.rank, message.pid)
        rank = self._rank = Rank(attempt, message.rank, message.world, message.pid)
        acks = self._acks = Outbox(self._connection)
        if twin:
            shared.ledger.submit(suspicions.twin(rank, twin))
        shared.ledger.submit(
            ProcessStarted(
                attempt=attempt,
                rank=message.rank,
                world=message.world,
                pid=message.pid,
                argv=message.argv,
                cwd=message.cwd,
                executable=message.executable,
                env_digest=shared.keep_env(message.env),
                numerics=message.numerics,
                wall_ns=time.time_ns(),
            )
        )
        shared.reaper.watch(message.pid, lambda ended: self._exited(rank, ended))
        shared.process(attempt, message.rank, message.pid)
        shared.presence.joined(attempt, message.rank, message.world, message.pid, acks.look)
        answer = shared.joined(attempt, message.rank)
        rank.code_every, rank.key = answer.code_every, answer.key
        return answer

    def _loaded(self, path: str) -> int:
        rank, roster = self._rank, self._shared.roster
        attempt, number = (rank.attempt, rank.rank) if rank else (-1, -1)
        step = self._shared.files.loaded(attempt, number, path)
        if rank is None:
            roster.loaded_before_join(self._peer, step)
        else:
            roster.loaded(rank.attempt, step)
        return step

    def _step(self, rank: Rank, message: wire.Step) -> None:
        record = message.record
        check_record(rank, record, message.details)
        if not rank.begun:
            rank.base = self._shared.roster.begin(rank.attempt)
            rank.begun = True
        rank.seq = record.seq
        rank.records += 1
        rank.told_code = False
        if codeform.due(rank.key, record.step, rank.code_every) and rank.looked < record.step:
            rank.looked = record.step
            self._gap(rank, record.step, "the rank did not tell of the code in its memory when it was due")
        weights = message.details.get(Stage.WEIGHTS)
        if weights is not None:
            self._weights[record.seq] = weights
            while len(self._weights) > _KEPT_WEIGHTS:
                self._weights.popitem(last=False)
        placed = self._shared.shares(msgspec.structs.replace(record, step=rank.base + record.step))
        rank.reached = max(rank.reached, placed.step + 1)
        self._shared.presence.moved(rank.attempt, rank.rank, rank.reached, record.wall_ns)
        acks = self._acks
        done = (lambda _: acks.durable(record.seq)) if acks else None
        self._shared.ledger.submit(placed, message.details, done)

    def _saved(self, rank: Rank, message: wire.Saved) -> None:
        self._shared.files.saved(
            SavedFile(
                attempt=rank.attempt,
                rank=rank.rank,
                step=self._base(rank) + bounds.count(message.step, "step"),
                path=bounds.path(message.path),
                format=message.format[:32],
                weights=self._weights.get(message.weights_seq),
                renamed_from=bounds.path(message.renamed_from) if message.renamed_from else "",
                sidecar=message.sidecar[: bounds.MAX_TEXT],
                reached=rank.reached,
                identity=message.identity,
            )
        )

    def _told(self, rank: Rank, note: Note) -> None:
        """A note is logged as this rank's own, at its place in the job."""
        step = self._base(rank) + bounds.count(note.step, "step")
        placed = msgspec.structs.replace(note, attempt=rank.attempt, rank=rank.rank, step=step)
        if len(canonical(placed)) > MAX_NOTE:
            raise ValueError(f"a note above the limit of {MAX_NOTE} bytes")
        self._shared.ledger.submit(self._shared.marked(placed))

    def _bye(self, rank: Rank, message: wire.Bye) -> wire.Go:
        """Answered when everything of this rank is durable; when it cannot be, the rank need not wait."""
        self._shared.files.drain()
        if message.records != rank.records:
            reason = f"the rank says that it sent {message.records} records, {rank.records} arrived"
            self._gap(rank, rank.records, reason)
        if rank.code_every > 0 and not rank.told_code:
            self._shared.ledger.submit(suspicions.silenced(rank))
        if message.unrecorded > 0:
            self._shared.ledger.submit(suspicions.unrecorded(rank, message.unrecorded))
        rank.goodbye = True
        self._shared.presence.left(rank.attempt, rank.rank, rank.pid)
        self._shared.left(rank.attempt, rank.rank)
        if not self._shared.ledger.flush():
            raise ValueError("the log cannot be written: the goodbye cannot be acknowledged")
        return wire.Go()

    def _exited(self, rank: Rank, ended: Exit) -> None:
        reason = "" if ended.known else "the exit status belongs to its parent and was not seen"
        failed = not rank.goodbye or (ended.known and ended.code != 0)
        self._shared.roster.left(rank.rank, rank.pid, rank.attempt, failed=failed)
        self._shared.presence.left(rank.attempt, rank.rank, rank.pid)
        sender, told_by, untold = self._sender(rank, ended)
        self._shared.ledger.submit(
            ProcessExited(
                attempt=rank.attempt,
                rank=rank.rank,
                pid=rank.pid,
                code=ended.code,
                known=ended.known,
                reason=reason,
                goodbye=rank.goodbye,
                stopping=self._shared.stopping(),
                wall_ns=time.time_ns(),
                sender=sender,
                told_by=told_by,
                untold=untold,
            )
        )

    def _sender(self, rank: Rank, ended: Exit) -> tuple[Writer | None, str, str]:
        """Who sent the signal that ended a rank, what told so, or why nobody is known."""
        if rank.goodbye or (ended.known and ended.code >= 0):
            return None, "", ""
        told = self._shared.sent(rank.pid, -ended.code if ended.known else 0)
        return (None, "", told) if isinstance(told, str) else (told.sender, told.by, "")

    # -- helpers

    def _joined_rank(self, message: wire.Message) -> Rank:
        if self._rank is None:
            raise ValueError(f"{type(message).__name__} before Join")
        return self._rank

    def _base(self, rank: Rank) -> int:
        return rank.base if rank.begun else self._shared.roster.base(rank.attempt)

    def _gap(self, rank: Rank, step: int, reason: str) -> None:
        gap = Gap(attempt=rank.attempt, rank=rank.rank, step=self._base(rank) + step, reason=reason)
        self._shared.ledger.submit(gap)
