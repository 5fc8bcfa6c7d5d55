"""Holds a log server to its own signed heads. Pure: heads and tiles in, nothing out or an error.

Rules
-----
* Every head must be of the pinned origin and signed by the pinned key.
* Between two heads there must be a consistency proof, made from tiles. What the tiles say counts only as far as it is
  proven under the new head: tiles that do not lead there are a fault that may pass (`LogUnreachable`); tiles that do,
  and that give the older size another root than was signed, convict the server (`SplitView`).
* Two roots for one size convict without any tile.
* A head smaller than one seen before is refused. It may be just old; that it stays so is for the caller to count.

Trust: the pinned key and nothing else. A server that shows every client its own history is seen only when two of
their heads come together.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import TypeVar

from trainwarden.errors import LogTampered, LogUnreachable, SplitView
from trainwarden.log import merkle
from trainwarden.log.notes import verify_head
from trainwarden.log.tiles import TileReader, nodes
from trainwarden.model import TreeHead

T = TypeVar("T")


class HeadIsOlder(LogTampered):
    """The server answered with a head that is smaller than one that it signed before."""


def read_head(note: bytes, origin: str, public_key: str) -> TreeHead:
    """The head in a signed note, of the pinned origin and key.

    Raises:
        LogTampered: it is malformed or of another log.
        SignatureInvalid: another key signed it.
    """
    head = verify_head(note, public_key)
    if head.origin != origin:
        raise LogTampered(
            f"the head is of the log {head.origin!r}, expected {origin!r}", hint="check `origin` under [log]"
        )
    return head


def check_advance(old: TreeHead | None, new: TreeHead, tiles: TileReader) -> None:
    """Check that `new` continues `old`, which was seen before (RFC 9162, 2.1.4.2).

    Raises:
        SplitView: both are signed and cannot both be true.
        HeadIsOlder: `new` is smaller.
        LogUnreachable: the tiles are not those of `new`.
    """
    if old is None or old.size == 0:
        return
    if new.size < old.size:
        raise HeadIsOlder(f"the server's head has size {new.size}, it signed one of size {old.size} before")
    if new.size == old.size:
        if new.root != old.root:
            message = f"the server signed two heads of size {new.size}: roots {old.root} and {new.root}"
            raise SplitView(message, first=old.note, second=new.note)
        return
    node = nodes(tiles, new.size)
    begins = _from_tiles(lambda: merkle.range_root(node, 0, old.size))
    proof = _from_tiles(lambda: merkle.consistency_proof(node, old.size, new.size))
    root = bytes.fromhex(new.root)
    try:
        merkle.verify_consistency(old.size, new.size, proof, begins, root)
    except LogTampered as e:
        raise LogUnreachable(
            f"the server's tiles are not those of its head of size {new.size}: {e}", hint=_CACHE
        ) from e
    if begins.hex() != old.root:
        raise SplitView(
            f"the server's head of size {new.size} begins with a tree of {old.size} leaves that has root "
            f"{begins.hex()}; it signed root {old.root} for that size",
            first=old.note,
            second=new.note,
            begins=begins,
            proof=proof,
        )


def check_included(leaf: bytes, index: int, head: TreeHead, tiles: TileReader) -> None:
    """Check that the leaf hash `leaf` is at `index` under `head` (RFC 9162, 2.1.3.2).

    Raises:
        LogTampered: another leaf is there, or none can be.
        LogUnreachable: the tiles are not those of the head.
    """
    if not 0 <= index < head.size:
        raise LogTampered(f"leaf {index} cannot be under the server's head of size {head.size}")
    node = nodes(tiles, head.size)
    found = _from_tiles(lambda: node(0, index))
    proof = _from_tiles(lambda: merkle.inclusion_proof(node, index, head.size))
    try:
        merkle.verify_inclusion(found, index, head.size, proof, bytes.fromhex(head.root))
    except LogTampered as e:
        raise LogUnreachable(f"the server's tiles are not those of its head: {e}", hint=_CACHE) from e
    if found != leaf:
        raise LogTampered(
            f"leaf {index} of the server's log has hash {found.hex()}, what was sent has {leaf.hex()}",
            hint="the server keeps something else than what it was sent: keep its head as evidence",
        )


_CACHE = "they may be served by a cache that is out of date"


def _from_tiles(make: Callable[[], T]) -> T:
    try:
        return make()
    except LogTampered as e:  # a tile of the wrong length
        raise LogUnreachable(f"a tile of the log server is damaged: {e}") from e
