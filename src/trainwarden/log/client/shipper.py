"""Ships a run's log to a log server, step by step, while it is written and after.

Rules
-----
* One request is under way at a time. It is durable before it is sent, is sent again until its answer was checked, and
  only then comes the next: every entry arrives once, in order, whatever fails in between.
* An answer counts when it names every item, its head is of the pinned origin and key, continues the head before, and
  every item's leaf is proven under it at the index that was told. Anything else is a fault and the request is
  repeated, with growing pauses.
* What contradicts itself is an alarm, told once: two heads that cannot both be true (kept with both notes), another
  entry under our number, a log that lost what it acknowledged. After it the shipping goes on trying.
* Unsent bytes over the limit of the spool are a `Gap`, told once until it is caught up. Nothing is dropped: the run's
  own log keeps every entry.

Trust: the host's key file and the pinned key of the server. The clock paces and decides nothing.
"""

from __future__ import annotations

import random
import secrets
import time
from collections.abc import Callable
from typing import TypeAlias

import msgspec

from trainwarden.errors import (
    LogError,
    LogTampered,
    LogUnreachable,
    RequestRefused,
    SignatureInvalid,
    SplitView,
    TrainWardenError,
)
from trainwarden.keys import SigningKey
from trainwarden.log.client.heads import HeadIsOlder, check_advance, check_included, read_head
from trainwarden.log.client.link import LogLink, Reply
from trainwarden.log.client.packing import Pack, Source, entry_hash, object_digest, pack, waits
from trainwarden.log.client.state import Alarm, Outbox, Receipt, Sent, ShippingState
from trainwarden.log.client.tail import Tail
from trainwarden.log.frames import EntryFrame
from trainwarden.log.notes import parse_head
from trainwarden.log.protocol import Append, Appended, Refusal, sign_append
from trainwarden.model import Confidence, Finding, Gap, Severity

SPLIT_VIEW, SHIPPING = "split-view", "shipping"  # the ids of the findings
_FIRST_PAUSE, _LONGEST_PAUSE, _LONGEST_RETRY_AFTER = 0.5, 60.0, 300.0
_PATIENCE = 3  # answers in a row that go back before an alarm
_LOOK_EVERY = 0.5
_BODY = 8 * 1024 * 1024


class Told(msgspec.Struct, frozen=True, kw_only=True, tag="told"):
    """Something about the shipping that is no finding."""

    sentence: str
    hint: str = ""


class Shipped(msgspec.Struct, frozen=True, kw_only=True, tag="shipped"):
    """How far the shipping has come: entries that the server keeps, and durable entries in all."""

    entries: int
    of: int


Event: TypeAlias = Told | Shipped | Finding | Gap


class Limits(msgspec.Struct, frozen=True, kw_only=True):
    """How much goes into a request and how much may wait."""

    records: int = 4096
    batches: int = 4  # full ones in a request when so many wait: an answer costs both sides several fsyncs
    seconds: float = 5.0
    items: int = 256
    spool: int = 1024 * 1024 * 1024


class Shipper:
    """Ships one run; `step` does one thing and says how long there is nothing to do."""

    def __init__(
        self,
        tail: Tail,
        state: ShippingState,
        link: LogLink,
        key: SigningKey,
        run: str,
        tell: Callable[[Event], None],
        limits: Limits | None = None,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self._tail, self._state, self._link, self._key = tail, state, link, key
        self._source = Source(state.target.host, run)
        self._tell, self._limits, self._clock = tell, limits or Limits(), clock
        self._head = parse_head(state.head.encode()) if state.head else None
        self._outbox = state.outbox()
        self._since: float | None = None  # when the oldest record that waits for its batch was first seen
        self._failures = self._wrong = 0
        self._trouble = self._hint = ""
        self._full = False
        self._raised: set[str] = set()

    @property
    def done(self) -> bool:
        """Whether every durable entry, as of the last look, is in the server's log."""
        return self._state.index >= self._tail.size and self._outbox is None and self._tail.head is not None

    @property
    def progress(self) -> Shipped:
        """How far it has come."""
        return Shipped(entries=self._state.index, of=self._tail.size)

    def step(self, *, hurry: bool = False) -> float:
        """Send the next request if there is one (with `hurry`, without waiting for more records).

        Returns:
            Seconds to wait before the next step; 0 when there may be more to do at once.

        Raises:
            LogTampered, SignatureInvalid: the run's own log contradicts its head; nothing more of it is sent.
            LogError: the run's log or the state cannot be read or written.
        """
        try:
            frames = self._tail.peek(self._limits.batches * self._limits.records if self._outbox is None else 1)
            self._watch_spool()
            if self._outbox is None and not self._begin(frames, hurry):
                return _LOOK_EVERY
        except (LogTampered, SignatureInvalid):
            raise
        except LogError as e:
            return self._failed(e)
        return self._send(self._outbox) if self._outbox is not None else _LOOK_EVERY

    # -- what to send

    def _begin(self, frames: list[EntryFrame], hurry: bool) -> bool:
        """Make the next request durable, of what is due."""
        due = self._due(frames, hurry)
        if not due:
            return False
        head = self._tail.head.note if self._tail.head is not None else ""
        packs: list[Pack] = []
        size = 0
        for made in pack(due, self._source, head, self._limits.records):
            size += len(made.item.leaf) + len(made.item.object)
            if packs and (len(packs) >= self._limits.items or size > _BODY):
                break
            packs.append(made)
        self._outbox = self._state.begin(tuple(packs))
        self._tail.take(packs[-1].last - due[0].index + 1)
        self._since = None
        return True

    def _due(self, frames: list[EntryFrame], hurry: bool) -> list[EntryFrame]:
        """All of them when they waited long enough, else full batches and those up to the last that cannot wait."""
        if not frames:
            self._since = None
            return []
        now = self._clock()
        self._since = now if self._since is None else min(self._since, now)  # a clock may be put back
        if hurry or now - self._since >= self._limits.seconds:
            return frames
        full = len(frames) // self._limits.records * self._limits.records
        urgent = next((i for i in range(len(frames), full, -1) if not waits(frames[i - 1].data)), 0)
        return frames[: max(full, urgent)]

    def _watch_spool(self) -> None:
        behind = self._tail.end - self._state.end
        if not self._full and behind > self._limits.spool:
            self._full = True
            self._tell(
                Gap(
                    attempt=-1,
                    rank=-1,
                    step=-1,
                    reason=(
                        f"{behind} bytes of the log wait for the log server {self._state.target.origin}, the spool "
                        f"holds {self._limits.spool}: entries from {self._state.index} on are kept on this host only"
                    ),
                )
            )
        elif self._full and self._state.index >= self._tail.size:
            self._full = False
            self._tell(Told(sentence="The log server has caught up: the spool is empty again."))

    # -- sending

    def _send(self, outbox: Outbox) -> float:
        append = Append(
            host=self._source.host,
            run=self._source.run,
            first=outbox.seq,
            items=tuple(p.item for p in outbox.packs),
            sent_ns=time.time_ns(),
            nonce=secrets.token_hex(8),
        )
        try:
            body, signature = sign_append(append, self._state.target.origin, self._key)
            reply = self._link.append(body, signature)
            if reply.status != 200:
                return self._refused(reply, outbox)
            receipt = self._checked(reply.body, outbox)
            self._state.settle(receipt)
        except SplitView as e:
            return self._split(e)
        except HeadIsOlder as e:
            return self._went_back(str(e))
        except (LogTampered, SignatureInvalid) as e:
            return self._does_not_hold(e)
        except LogError as e:  # no answer, a refusal of our own making, or the state cannot be written
            self._link.forget()
            return self._failed(e)
        self._outbox, self._head = None, parse_head(receipt.head.encode())
        self._recovered()
        self._watch_spool()
        self._tell(self.progress)
        return 0.0

    def _checked(self, body: bytes, outbox: Outbox) -> Receipt:
        """The receipt of an answer that holds. Raises what is wrong with it."""
        try:
            answer = msgspec.msgpack.decode(body, type=Appended)
        except (msgspec.DecodeError, UnicodeDecodeError) as e:
            raise LogUnreachable(f"the log server's answer cannot be read: {e}", hint="is it a log server?") from None
        after = outbox.seq + len(outbox.packs)
        if len(answer.indexes) != len(outbox.packs) or answer.acknowledged < after:
            raise LogTampered(
                f"the answer names {len(answer.indexes)} items and goes on with {answer.acknowledged}; sent were "
                f"{len(outbox.packs)}, it should go on with {after}"
            )
        head = read_head(answer.head.encode(), self._state.target.origin, self._state.target.server_key)
        check_advance(self._head, head, self._link.tile)
        sent = []
        for seq, (p, index) in enumerate(zip(outbox.packs, answer.indexes, strict=True), outbox.seq):
            bound = object_digest(p.item)
            leaf = entry_hash(self._source.host, self._source.run, seq, bound, p.item.leaf)
            check_included(leaf, index, head, self._link.tile)
            sent.append(Sent(p.first, p.last, p.end, index, bound, p.item.leaf))
        return Receipt(outbox.seq, tuple(sent), head.note)

    # -- what goes wrong

    def _refused(self, reply: Reply, outbox: Outbox) -> float:
        try:
            refusal = msgspec.json.decode(reply.body, type=Refusal)
        except (msgspec.DecodeError, UnicodeDecodeError):
            refusal = Refusal(error=f"status {reply.status} without a reason")
        if reply.status == 409 and refusal.logged:
            self._raise(
                f"The log server keeps another entry under item {outbox.seq} of this run: {refusal.error}",
                "What was sent once is sent again with the same bytes.",
                ("the run's shipping state was put back to an older one", "another host uses this host's name"),
            )
        elif reply.status == 409 and 0 <= refusal.expected < outbox.seq:
            return self._went_back(
                f"the server goes on with item {refusal.expected}; it acknowledged {outbox.seq} before"
            )
        error = RequestRefused(
            f"the log server refuses ({reply.status}): {refusal.error[:500]}", hint=refusal.hint[:500]
        )
        after = reply.headers.get("retry-after", "")
        return self._failed(error, float(after) if after.isdigit() and len(after) < 9 else 0.0)

    def _split(self, error: SplitView) -> float:
        kept = Alarm(
            kind=SPLIT_VIEW,
            sentence=str(error),
            first=error.first,
            second=error.second,
            begins=error.begins.hex(),
            proof=tuple(h.hex() for h in error.proof),
            wall_ns=time.time_ns(),
        )
        if SPLIT_VIEW not in self._raised:
            self._state.alarm(kept)
            self._raised.add(SPLIT_VIEW)
            self._tell(
                Finding(
                    detector=SPLIT_VIEW,
                    severity=Severity.HIGH,
                    confidence=Confidence.HIGH,
                    seen=f"{_sentence(str(error))} First head: {error.first!r}. Second head: {error.second!r}.",
                    expected="A log only grows, and everybody is shown the same one.",
                    wall_ns=kept.wall_ns,
                )
            )
        self._link.forget()
        return self._failed(error)

    def _went_back(self, what: str) -> float:
        """The server answers from an older state: harmless once, an alarm when it stays so."""
        self._wrong += 1
        if self._wrong >= _PATIENCE:
            head = self._head.note if self._head is not None else ""
            self._raise(
                f"The log server has gone back behind what it acknowledged: {what}. Its head before: {head!r}.",
                "A log server keeps what it acknowledged.",
                ("the server was restored from a backup",),
            )
        return self._failed(LogTampered(f"the log server went back: {what}", hint="ask who runs it what happened"))

    def _does_not_hold(self, error: TrainWardenError) -> float:
        """An answer that is none to this request, harmless once, an alarm when it stays so."""
        self._link.forget()
        self._wrong += 1
        if self._wrong >= _PATIENCE:
            self._raise(
                f"The log server's answers do not hold: {error}.",
                "Every answer is signed by the pinned key and proves what it says.",
                ("the server has a new key", "the address is now another server's"),
            )
        return self._failed(error)

    def _raise(self, seen: str, expected: str, benign: tuple[str, ...]) -> None:
        if expected in self._raised:
            return
        self._raised.add(expected)
        self._tell(
            Finding(
                detector=SHIPPING,
                severity=Severity.HIGH,
                confidence=Confidence.HIGH,
                seen=seen,
                expected=expected,
                benign=benign,
                wall_ns=time.time_ns(),
            )
        )

    def _failed(self, error: TrainWardenError, at_least: float = 0.0) -> float:
        """Tell the first of several failures; the seconds to pause before the next try."""
        self._failures += 1
        if not self._trouble:
            self._tell(Told(sentence=f"The log is not being sent: {error}", hint=error.hint))
        self._trouble, self._hint = str(error), error.hint
        pause = min(_LONGEST_PAUSE, _FIRST_PAUSE * 2.0 ** min(self._failures - 1, 10))
        return max(pause * random.uniform(0.5, 1.0), min(at_least, _LONGEST_RETRY_AFTER))

    @property
    def trouble(self) -> str:
        """Why the last request had no answer that counts, "" when it had."""
        return self._trouble

    @property
    def hint(self) -> str:
        """What can be done about the trouble, "" when nothing is known."""
        return self._hint if self._trouble else ""

    def _recovered(self) -> None:
        self._failures = self._wrong = 0
        if self._trouble:
            self._trouble = ""
            self._tell(Told(sentence="The log is being sent again."))


def _sentence(text: str) -> str:
    return text[:1].upper() + text[1:].rstrip(".") + "."
