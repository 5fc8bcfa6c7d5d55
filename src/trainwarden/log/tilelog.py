"""Reads a published log, ours or another's: a folder or a web address with a checkpoint and tiles.

Rules
-----
* The checkpoint has to be signed by the given key, and every tile and entry to lie under its root (`checked`).
* A log that was seen before is opened with the head that was kept: it may only have grown. An older or another
  head is the evidence of a rollback or a split view, and an error.
* A partial tile may have been dropped for the full one, of which it is the beginning.
* Nothing is read without limit: a checkpoint, a tile and a bundle have a largest size.

Trust: the log's public key, and the kept head. Without one, an older state of the log verifies.
Source: https://c2sp.org/tlog-tiles.
"""

from __future__ import annotations

import zlib
from collections.abc import Callable, Iterator
from http.client import HTTPException
from pathlib import Path
from typing import TypeAlias
from urllib.error import HTTPError, URLError
from urllib.parse import quote, urlsplit
from urllib.request import HTTPRedirectHandler, Request, build_opener

from trainwarden.errors import LogError, LogTampered, UsageError
from trainwarden.log.checked import CheckedTiles
from trainwarden.log.merkle import HASH_SIZE, verify_consistency
from trainwarden.log.notes import MAX_NOTE, verify_head
from trainwarden.log.tiles import ENTRIES, HASH_TILE, MAX_ENTRY, Tile, entry_bundle, read_bundle
from trainwarden.log.vkeys import VerifierKey
from trainwarden.model import TreeHead

CHECKPOINT = "checkpoint"
MAX_FILE = HASH_TILE * (2 + MAX_ENTRY)  # the largest bundle
TIMEOUT_S = 30.0

# Gives the bytes at a path below the log's prefix, or None where there is nothing. Raises LogError when it cannot say.
Fetch: TypeAlias = Callable[[str], bytes | None]


def from_folder(folder: Path) -> Fetch:
    """Fetch from a folder on this machine."""

    def fetch(path: str) -> bytes | None:
        try:
            with open(folder / path, "rb") as f:
                return _limited(f.read(MAX_FILE + 1), path)
        except (FileNotFoundError, NotADirectoryError, IsADirectoryError):
            return None
        except OSError as e:
            raise LogError(f"cannot read {folder / path}: {e.strerror}") from e

    return fetch


class NoRedirect(HTTPRedirectHandler):
    """An answer from elsewhere is not this log's."""

    def redirect_request(self, *args: object, **named: object) -> None:
        return None


def from_url(prefix: str) -> Fetch:
    """Fetch over HTTP below `prefix`; redirects are not followed.

    Raises:
        UsageError: it is not an http or https address.
    """
    if urlsplit(prefix).scheme not in ("http", "https") or not urlsplit(prefix).netloc:
        raise UsageError(f"not a web address: {prefix[:120]!r}", hint="http://HOST/PREFIX or https://HOST/PREFIX")
    opener = build_opener(NoRedirect)

    def fetch(path: str) -> bytes | None:
        url = prefix.rstrip("/") + "/" + quote(path)
        try:
            with opener.open(Request(url, headers={"Accept-Encoding": "gzip, identity"}), timeout=TIMEOUT_S) as answer:
                data = answer.read(MAX_FILE + 1)
                missing = answer.length  # http.client gives a cut answer without a word
                packed = answer.headers.get("Content-Encoding", "") == "gzip"
        except HTTPError as e:
            if e.code in (404, 410):
                return None
            raise LogError(f"{url} answered {e.code} {e.reason}") from e
        except (URLError, HTTPException, OSError, ValueError) as e:
            raise LogError(f"cannot fetch {url}: {e}", hint="is the log's server up?") from e
        if missing and len(data) <= MAX_FILE:
            raise LogError(f"{url} was cut short: {missing} bytes are missing", hint="try again")
        return _limited(_unpacked(data, path) if packed else data, path)

    return fetch


def open_from(where: str) -> Fetch:
    """Fetch from a web address or a folder."""
    return from_url(where) if where.startswith(("http://", "https://")) else from_folder(Path(where))


class TileLog:
    """A published log at one verified head."""

    def __init__(self, head: TreeHead, fetch: Fetch) -> None:
        self.head, self._fetch = head, fetch
        self.tiles = CheckedTiles(head, self._read)

    @classmethod
    def open(cls, fetch: Fetch, key: VerifierKey, origin: str = "", seen: TreeHead | None = None) -> TileLog:
        """The log whose checkpoint `key` signed, for the origin `origin` (default: the key's name).

        Raises:
            LogError: there is no checkpoint, or it cannot be fetched.
            SignatureInvalid: another key signed it.
            LogTampered: it is malformed, of another log, or contradicts `seen`, the head that was kept.
        """
        note = fetch(CHECKPOINT)
        if note is None:
            raise LogError("there is no published log: it has no checkpoint", hint="check the address")
        if len(note) > MAX_NOTE:
            raise LogTampered(f"the checkpoint has {len(note)} bytes, at most {MAX_NOTE} are read")
        log = cls(verify_head(note, key.public, key.name), fetch)
        if log.head.origin != (origin or key.name):
            raise LogTampered(f"this is the log {log.head.origin!r}, expected {origin or key.name!r}")
        if seen is not None:
            log.check_grown_from(seen)
        return log

    def check_grown_from(self, seen: TreeHead) -> None:
        """Check that this log continues the head `seen`.

        Raises:
            LogTampered: it was rolled back, or is another view of the log; both heads are in the message.
        """
        if seen.origin != self.head.origin:
            raise LogTampered(f"this is the log {self.head.origin!r}, the head that was kept is of {seen.origin!r}")
        if seen.size > self.head.size:
            raise LogTampered(
                f"the log was rolled back: it has size {self.head.size}, root {self.head.root}; "
                f"a signed head of size {seen.size}, root {seen.root}, was seen before",
                hint="keep both heads as evidence",
            )
        try:
            proof = self.tiles.consistency_proof(seen.size)
            roots = bytes.fromhex(seen.root), bytes.fromhex(self.head.root)
            verify_consistency(seen.size, self.head.size, proof, *roots)
        except LogTampered as e:
            raise LogTampered(
                f"split view: the log does not continue the head of size {seen.size}, root {seen.root}: {e}",
                hint="two histories were signed: keep both heads and show them to the log's witnesses",
            ) from e

    def entries(self, first: int = 0) -> Iterator[tuple[int, bytes]]:
        """The entries from `first` on with their indexes. Raises LogError, LogTampered at the first that fails."""
        for bundle in range(first // HASH_TILE, -(-self.head.size // HASH_TILE)):
            for i, entry in enumerate(self.tiles.entries(bundle), bundle * HASH_TILE):
                if i >= first:
                    yield i, entry

    def entry(self, index: int) -> bytes:
        """One entry. Raises UsageError when there is none such, LogError, LogTampered when it fails."""
        if not 0 <= index < self.head.size:
            raise UsageError(f"the log has no entry {index}, it has {self.head.size}")
        return self.tiles.entries(index // HASH_TILE)[index % HASH_TILE]

    def _read(self, tile: Tile) -> bytes:
        data = self._fetch(tile.path)
        if data is None and tile.width < HASH_TILE and (full := self._fetch(tile.full().path)) is not None:
            data = _beginning(tile, full)
        if data is None:
            raise LogError(f"the published log lacks {tile.path}", hint="it is incomplete: publish it again")
        return data


def _beginning(tile: Tile, full: bytes) -> bytes:
    if tile.level == ENTRIES:
        return entry_bundle(read_bundle(full, HASH_TILE)[: tile.width])
    return full[: tile.width * HASH_SIZE]


def _unpacked(data: bytes, path: str) -> bytes:
    try:
        return zlib.decompressobj(wbits=16 + zlib.MAX_WBITS).decompress(data, MAX_FILE + 1)
    except zlib.error as e:
        raise LogTampered(f"{path} is not gzip, as its server says: {e}") from e


def _limited(data: bytes, path: str) -> bytes:
    if len(data) > MAX_FILE:
        raise LogTampered(f"{path} has more than {MAX_FILE} bytes, which no tile has")
    return data
