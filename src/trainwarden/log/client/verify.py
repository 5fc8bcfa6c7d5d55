"""Checks that a log server keeps what this host says it sent: entry by entry, under the server's newest signed head.

Rules
-----
* Every receipt's leaf is made again from the run's own log and must be in the server's tree at the index that the
  receipt names; every receipt's head must be continued by the next one and by the newest.
* An alarm that was kept is a failure for good. Items that the server counts and no receipt names are one too, unless
  they are those of the request under way: receipts were removed, or the server invents items.
* What was not sent is counted and is never a pass.

Trust: the server's public key. When it is not given from outside, it is the one that this host's own files name.
"""

from __future__ import annotations

from collections.abc import Callable

import msgspec

from trainwarden.errors import LogTampered, LogUnreachable, SplitView
from trainwarden.log.client.heads import check_advance, check_included, read_head
from trainwarden.log.client.link import LogLink, Transport
from trainwarden.log.client.packing import Source, check_pack, entry_hash
from trainwarden.log.client.state import Receipt, Target, read_alarms, read_outbox, read_receipts
from trainwarden.log.client.tail import Tail
from trainwarden.model import TreeHead
from trainwarden.store import RunDir


class Kept(msgspec.Struct, frozen=True):
    """The server keeps the first `entries` of the run's `of` entries, in `items` leaves, under its head."""

    entries: int
    of: int
    items: int
    head: TreeHead


class _Counted(msgspec.Struct, frozen=True):
    """What the server's run index says (see `log.server`)."""

    host: str
    run: str
    items: int


def verify_shipped(
    folder: RunDir,
    target: Target,
    transport: Transport,
    *,
    public_key: str = "",
    progress: Callable[[int, int], None] = lambda done, of: None,
) -> Kept:
    """Check the shipping of a run to `target`; with `public_key` the run's own log must be signed by that key.

    Raises:
        LogTampered, SplitView, SignatureInvalid: server, receipts and log do not go together.
        LogUnreachable: the server does not answer, or with tiles of another head.
        LogError: the log or the receipts cannot be read.
    """
    for alarm in read_alarms(folder.shipping, target):
        raise SplitView(
            f"an alarm was kept: {alarm.sentence}",
            first=alarm.first,
            second=alarm.second,
            begins=bytes.fromhex(alarm.begins),
            proof=[bytes.fromhex(h) for h in alarm.proof],
        )
    link = LogLink(transport, target.url, target.origin)
    receipts = read_receipts(folder.shipping, target)
    newest = read_head(link.checkpoint(), target.origin, target.server_key)
    _check_heads(receipts, newest, target, link)
    _check_counted(folder, receipts, target, link)
    tail = Tail(folder.log, 0, public_key)
    try:
        items = _check_items(tail, receipts, Source(target.host, folder.id), newest, link, progress)
        tail.peek(1)
        return Kept(entries=receipts[-1].sent[-1].last + 1 if items else 0, of=tail.size, items=items, head=newest)
    finally:
        tail.close()


def _check_heads(receipts: list[Receipt], newest: TreeHead, target: Target, link: LogLink) -> None:
    before: TreeHead | None = None
    for receipt in receipts:
        head = read_head(receipt.head.encode(), target.origin, target.server_key)
        if before is not None and head.size == before.size and head.root != before.root:
            check_advance(before, head, link.tile)
        if before is None or head.size != before.size:
            check_advance(head, newest, link.tile)  # two heads that the newest continues continue each other
        before = head


def _check_counted(folder: RunDir, receipts: list[Receipt], target: Target, link: LogLink) -> None:
    try:
        rows = msgspec.json.decode(link.runs(), type=list[_Counted])
    except (msgspec.DecodeError, LogUnreachable):
        return  # it is a claim and no proof; the receipts are checked without it
    counted = max((row.items for row in rows if (row.host, row.run) == (target.host, folder.id)), default=0)
    known = receipts[-1].seq + len(receipts[-1].sent) if receipts else 0
    waiting = read_outbox(folder.shipping, target)
    under_way = len(waiting.packs) if waiting is not None and waiting.seq == known else 0
    if counted > known + under_way:
        raise LogTampered(
            f"the server counts {counted} items of this run, this host has receipts for {known}",
            hint="receipts were removed on this host, or the server invents items: compare with its log",
        )


def _check_items(
    tail: Tail,
    receipts: list[Receipt],
    source: Source,
    newest: TreeHead,
    link: LogLink,
    progress: Callable[[int, int], None],
) -> int:
    """Every item's leaf against the run's log and the server's tree; how many there are."""
    items = following = 0
    for receipt in receipts:
        progress(following, tail.size)
        for sent in receipt.sent:
            frames = tail.peek(sent.last - sent.first + 1) if sent.first <= sent.last else []
            if sent.first != following or len(frames) != sent.last - sent.first + 1:
                raise LogTampered(
                    f"item {items} was sent as entries {sent.first} to {sent.last}; this log goes on with entry "
                    f"{following} of {tail.size}",
                    hint="entries were removed from this host's log, or receipts from its shipping folder",
                )
            check_pack(sent.leaf, frames, source)
            digest = entry_hash(source.host, source.run, items, sent.object, sent.leaf)
            check_included(digest, sent.index, newest, link.tile)
            tail.take(len(frames))
            following, items = sent.last + 1, items + 1
    return items
