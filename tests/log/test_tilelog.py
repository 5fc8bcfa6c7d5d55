"""Published logs: those of others verify here, and whatever is changed in one is noticed before it is handed out."""

from __future__ import annotations

import gzip
import hashlib
from collections.abc import Iterator
from functools import partial
from http.server import BaseHTTPRequestHandler, SimpleHTTPRequestHandler
from pathlib import Path

import loopback
import msgspec
import published
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from trainwarden.errors import LogError, LogTampered, SignatureInvalid, TrainWardenError, UsageError
from trainwarden.keys import SigningKey
from trainwarden.log.checked import CheckedTiles
from trainwarden.log.merkle import Tree, leaf_hash, verify_inclusion
from trainwarden.log.notes import parse_head, sign_head, verify_head
from trainwarden.log.tilelog import TileLog, from_folder, from_url, open_from
from trainwarden.log.tiles import ENTRIES, Tile, entry_bundle, tiles_for, tiles_from_hashes
from trainwarden.log.vkeys import ED25519, VerifierKey, parse_vkey
from trainwarden.model import TreeHead

KEY, ORIGIN = SigningKey(b"\x01" * 32), "trainwarden/run/x"
VKEY = VerifierKey(ORIGIN, KEY.public)


def laid_out(entries: list[bytes], note: str) -> dict[str, bytes]:
    """A log's files by path."""
    tree = Tree(map(leaf_hash, entries))
    files = {"checkpoint": note.encode()}
    for tile in tiles_for(0, len(entries)):
        first = tile.index * 256
        part = entries[first : first + tile.width]
        files[tile.path] = entry_bundle(part) if tile.level == ENTRIES else tiles_from_hashes(tree.node, tile)
    return files


def ours(size: int, key: SigningKey = KEY, origin: str = ORIGIN, word: bytes = b"") -> dict[str, bytes]:
    entries = [word + b"entry %d" % i for i in range(size)]
    return laid_out(entries, sign_head(origin, size, Tree(map(leaf_hash, entries)).root(), key).note)


FILES = ours(600)


def test_tesseras_test_log_verifies_and_our_tiles_are_its_bytes() -> None:
    heads = published.TESSERA_HEADS
    for size, note in heads.items():
        files = laid_out(published.TESSERA_ENTRIES[:size], note)
        for path in files.keys() & published.TESSERA_SHA256.keys():
            assert hashlib.sha256(files[path]).hexdigest() == published.TESSERA_SHA256[path]
        log = TileLog.open(files.get, parse_vkey(published.TESSERA_VKEY, ED25519))
        assert [entry for _, entry in log.entries()] == published.TESSERA_ENTRIES[:size]
        for old, earlier in heads.items():
            if old <= size:
                log.check_grown_from(parse_head(earlier.encode()))
                assert log.tiles.root_at(old).hex() == parse_head(earlier.encode()).root


def test_sunlights_mirrored_tree_verifies_and_our_tiles_are_its_bytes() -> None:
    head = parse_head(published.SUNLIGHT_MIRRORED.encode())
    files = laid_out([b"record %d" % i for i in range(300)], published.SUNLIGHT_MIRRORED)
    for path, digest in published.SUNLIGHT_SHA256.items():
        assert hashlib.sha256(files[path]).hexdigest() == digest
    tiles = CheckedTiles(head, lambda tile: files[tile.path])
    assert tiles.entries(1)[-1] == b"record 299"
    for i in (0, 255, 256, 299):
        proof = tiles.inclusion_proof(i)
        verify_inclusion(leaf_hash(b"record %d" % i), i, 300, proof, bytes.fromhex(head.root))


def test_all_entries_and_proofs_come_from_a_checked_log() -> None:
    log = TileLog.open(FILES.get, VKEY)
    assert [e for _, e in log.entries()] == [b"entry %d" % i for i in range(600)]
    assert next(log.entries(513)) == (513, b"entry 513")
    assert log.entry(599) == b"entry 599"
    tree = Tree(leaf_hash(b"entry %d" % i) for i in range(600))
    for i in (0, 1, 255, 256, 511, 512, 599):
        assert log.tiles.inclusion_proof(i) == tree.inclusion_proof(i)
        assert log.tiles.consistency_proof(i) == tree.consistency_proof(i)
    for wrong in (-1, 600):
        with pytest.raises(UsageError):
            log.entry(wrong)
        with pytest.raises(UsageError):
            log.tiles.inclusion_proof(wrong)
    with pytest.raises(UsageError):
        log.tiles.consistency_proof(601)


def test_the_log_of_others_is_found_where_theirs_lies() -> None:
    with pytest.raises(LogTampered, match="expected 'trainwarden/run/y'"):
        TileLog.open(FILES.get, VKEY, "trainwarden/run/y")
    with pytest.raises(SignatureInvalid):
        TileLog.open(FILES.get, VerifierKey(ORIGIN, SigningKey(b"\x02" * 32).public))
    with pytest.raises(LogError, match="no checkpoint"):
        TileLog.open({}.get, VKEY)


@pytest.mark.parametrize("path", sorted(set(FILES) - {"checkpoint"}))
def test_a_changed_bit_in_any_tile_is_noticed(path: str) -> None:
    for at in (0, len(FILES[path]) // 2, len(FILES[path]) - 1):
        changed = bytearray(FILES[path])
        changed[at] ^= 1
        log = TileLog.open({**FILES, path: bytes(changed)}.get, VKEY)
        with pytest.raises(LogTampered):
            list(log.entries())


@settings(max_examples=60, deadline=None)
@given(st.sampled_from(sorted(set(FILES) - {"checkpoint"})), st.binary(max_size=9000))
def test_any_other_bytes_for_a_tile_are_refused_in_one_way(path: str, data: bytes) -> None:
    log = TileLog.open({**FILES, path: data}.get, VKEY)
    with pytest.raises(LogTampered):
        list(log.entries())


def test_tiles_of_another_log_under_this_head_are_refused() -> None:
    other = ours(600, word=b"other ")
    log = TileLog.open({**other, "checkpoint": FILES["checkpoint"]}.get, VKEY)
    for read in (lambda: log.entry(3), lambda: log.tiles.inclusion_proof(3), lambda: log.tiles.root_at(600)):
        with pytest.raises(LogTampered, match="the tree head has"):
            read()


def test_a_dropped_partial_tile_is_the_beginning_of_the_full_one() -> None:
    files = {p: b for p, b in FILES.items() if ".p/" not in p or p == "tile/1/000.p/2"} | {
        p: b for p, b in ours(768).items() if p.endswith("/002")
    }
    assert [e for _, e in TileLog.open(files.get, VKEY).entries()][-1] == b"entry 599"
    del files["tile/0/002"]
    with pytest.raises(LogError, match=r"lacks tile/0/002\.p/88"):
        TileLog.open(files.get, VKEY).entry(599)


def test_a_rollback_names_both_heads() -> None:
    seen = verify_head(ours(601)["checkpoint"], KEY.public)
    with pytest.raises(LogTampered, match=r"rolled back.*size 600.*size 601"):
        TileLog.open(FILES.get, VKEY, seen=seen)


@pytest.mark.parametrize("size", [1, 255, 256, 300, 600])
def test_a_split_view_is_an_alarm(size: int) -> None:
    seen = verify_head(ours(size, word=b"other ")["checkpoint"], KEY.public)
    with pytest.raises(LogTampered, match="split view"):
        TileLog.open(FILES.get, VKEY, seen=seen)
    TileLog.open(FILES.get, VKEY, seen=verify_head(ours(size)["checkpoint"], KEY.public))


def test_a_kept_head_of_another_log_is_not_compared() -> None:
    with pytest.raises(LogTampered, match="is of 'b'"):
        TileLog.open(FILES.get, VKEY, seen=TreeHead(origin="b", size=1, root="00" * 32))


def test_a_tile_that_the_tree_has_not_is_not_asked_for() -> None:
    tiles = TileLog.open(FILES.get, VKEY).tiles
    for tile in (Tile(0, 2), Tile(0, 3, 1), Tile(1, 0), Tile(2, 0, 1)):
        with pytest.raises(UsageError, match="has no tile"):
            tiles.tile(tile)


def test_an_oversized_file_is_not_read_to_its_end(tmp_path: Path) -> None:
    with open(tmp_path / "checkpoint", "wb") as f:
        f.truncate(1 << 40)
    with pytest.raises(LogTampered, match="more than"):
        TileLog.open(from_folder(tmp_path), VKEY)
    (tmp_path / "checkpoint").write_bytes(b"x" * 200_000)
    with pytest.raises(LogTampered, match="200000 bytes"):
        TileLog.open(from_folder(tmp_path), VKEY)


class Quiet(SimpleHTTPRequestHandler):
    def log_message(self, *args: object) -> None:
        pass


@pytest.fixture
def served(tmp_path: Path) -> Iterator[str]:
    for path, data in FILES.items():
        (tmp_path / path).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / path).write_bytes(data)
    with loopback.serving(partial(Quiet, directory=str(tmp_path))) as url:
        yield url


def test_a_log_is_read_over_http_as_from_its_folder(served: str, tmp_path: Path) -> None:
    for where in (served, str(tmp_path)):
        log = TileLog.open(open_from(where), VKEY)
        assert log.entry(258) == b"entry 258"
    assert from_url(served)("tile/0/999") is None
    with pytest.raises(UsageError, match="not a web address"):
        from_url("ftp://x/")


class Hostile(BaseHTTPRequestHandler):
    """Answers by path with what a log's server should not."""

    def do_GET(self) -> None:
        bomb = gzip.compress(bytes(20_000_000))
        answers = {
            "/bomb": (200, {"Content-Encoding": "gzip"}, bomb),
            "/notgzip": (200, {"Content-Encoding": "gzip"}, b"plain"),
            "/gzip": (200, {"Content-Encoding": "gzip"}, gzip.compress(b"packed")),
            "/elsewhere": (302, {"Location": "file:///etc/passwd"}, b""),
            "/broken": (500, {}, b""),
            "/cut": (200, {"Content-Length": "100"}, b"cut"),
        }
        code, headers, body = answers[self.path]
        self.send_response(code)
        for name, value in headers.items():
            self.send_header(name, value)
        self.end_headers()
        self.wfile.write(body)

    def log_message(self, *args: object) -> None:
        pass


def test_a_hostile_server_is_an_error_and_nothing_else() -> None:
    with loopback.serving(Hostile) as url:
        fetch = from_url(url)
        assert fetch("gzip") == b"packed"
        for path in ("bomb", "notgzip", "elsewhere", "broken", "cut"):
            with pytest.raises((LogError, LogTampered)):
                fetch(path)
    with pytest.raises(LogError, match="cannot fetch"):
        fetch("gzip")


@settings(max_examples=60, deadline=None)
@given(st.dictionaries(st.sampled_from(sorted(FILES)), st.binary(max_size=300)))
def test_a_log_with_any_files_replaced_gives_its_entries_or_one_error(wrong: dict[str, bytes]) -> None:
    try:
        log = TileLog.open({**FILES, **wrong}.get, VKEY)
        assert [e for _, e in log.entries()] == [b"entry %d" % i for i in range(600)]
    except TrainWardenError:
        assert wrong


def test_a_head_is_a_plain_value() -> None:
    assert msgspec.structs.asdict(TileLog.open(FILES.get, VKEY).head)["size"] == 600
