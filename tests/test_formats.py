"""docs/format.md is enough to read what a run leaves: small readers written from that page, and from nothing else."""

from __future__ import annotations

import base64
import hashlib
import json
import struct
from pathlib import Path

import msgspec
import torch
from blake3 import blake3
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PublicKey

from trainwarden.keys import SigningKey
from trainwarden.log.journal import LogWriter
from trainwarden.model import Detail, Gap, Stage, canonical
from trainwarden.record import snapshot
from trainwarden.record.fingerprint import stage_root, tensor_digest, value_digest
from trainwarden.record.stages import ABSENT, settings_digest
from trainwarden.supervise.details import DetailWriter, detail_path

KEY = bytes(range(32))


def digest(kind: bytes, data: bytes) -> bytes:
    return blake3(data, key=blake3(kind, key=KEY).digest()).digest(16)


def test_digests_of_values() -> None:
    t = torch.arange(6, dtype=torch.float32).reshape(2, 3)
    assert tensor_digest(KEY, t) == digest(b"float32(2, 3)", struct.pack("<6f", *range(6)))
    assert tensor_digest(KEY, t.T) == digest(b"float32(3, 2)", struct.pack("<6f", 0, 3, 1, 4, 2, 5))
    assert tensor_digest(KEY, torch.tensor(1, dtype=torch.int64)) == digest(b"int64()", struct.pack("<q", 1))
    assert value_digest(KEY, ABSENT) == digest(b"bytes(6,)", b"absent")
    group = json.dumps({"betas": [(0.5).hex(), (0.25).hex()], "lr": (0.1).hex()}).encode()
    assert settings_digest(KEY, {"lr": 0.1, "betas": (0.5, 0.25)}) == digest(b"bytes(%d,)" % len(group), group)


def test_root_of_a_stage() -> None:
    names, digests = ("a.weight", "ß"), (b"x" * 16, b"y" * 16)
    raw = b"".join(struct.pack("<I", len(n.encode())) + n.encode() + d for n, d in zip(names, digests, strict=True))
    assert stage_root(KEY, names, digests) == blake3(raw, key=KEY).hexdigest()


def test_journal_head_and_signature(tmp_path: Path) -> None:
    entries = [canonical(Gap(attempt=0, rank=n, step=3, reason="none")) for n in range(3)]
    assert entries[1] == b'{"type":"gap","attempt":0,"rank":1,"step":3,"reason":"none"}'
    key = SigningKey(b"\x07" * 32)
    log = LogWriter.create(tmp_path / "log", "trainwarden/a-run", key)
    log.append(entries[:2])
    log.append(entries[2:])
    log.close()

    data, at, found, heads = (tmp_path / "log" / "journal").read_bytes(), 0, [], []
    while at < len(data):
        kind, length = struct.unpack_from(">cI", data, at)
        body, at = data[at + 5 : at + 5 + length], at + 5 + length
        if kind == b"E":
            index, leaf = struct.unpack_from(">Q32s", body)
            assert (index, leaf) == (len(found), hashlib.sha256(b"\0" + body[40:]).digest())
            found.append(body[40:])
        else:
            assert kind == b"H"
            heads.append(body)
    assert found == entries
    assert heads[-1] == (tmp_path / "log" / "head").read_bytes()

    text, _, tail = heads[-1].decode().rpartition("\n\n")
    origin, size, root = text.split("\n")
    assert (origin, int(size)) == ("trainwarden/a-run", 3)
    a, b, c = (hashlib.sha256(b"\0" + e).digest() for e in entries)
    ab = hashlib.sha256(b"\1" + a + b).digest()
    assert base64.b64decode(root) == hashlib.sha256(b"\1" + ab + c).digest()
    mark, name, blob = tail.split()
    assert (mark, name) == ("—", origin)
    signed, public = base64.b64decode(blob), bytes.fromhex(key.public)
    assert signed[:4] == hashlib.sha256(name.encode() + b"\x0a\x01" + public).digest()[:4]
    Ed25519PublicKey.from_public_bytes(public).verify(signed[4:], text.encode() + b"\n")


def test_details(tmp_path: Path) -> None:
    writer = DetailWriter(tmp_path, 2, 1)
    detail = Detail(names=("a", "b"), digests=(b"x" * 16, b"y" * 16))
    for seq in (0, 1):
        writer.append(seq, {Stage.WEIGHTS: detail})
    writer.close()
    data, at, frames = detail_path(tmp_path, 2, 1).read_bytes(), 0, []
    while at < len(data):
        (length,) = struct.unpack_from(">I", data, at)
        frames.append(msgspec.msgpack.decode(data[at + 4 : at + 4 + length]))
        at += 4 + length
    row = {"weights": [0, b"x" * 16 + b"y" * 16]}
    assert frames == [["names", 0, ["a", "b"]], ["row", 0, row], ["row", 1, row]]
    assert detail_path(tmp_path, 2, 1).name == "a2-r1.bin"


def test_snapshot(tmp_path: Path) -> None:
    path = tmp_path / "side-00000007.safetensors"
    snapshot.write(path, {"done": 7, "rng": {"torch": torch.tensor([1, 2], dtype=torch.uint8)}, "epochs": [(1, "x")]})
    data = path.read_bytes()
    (length,) = struct.unpack_from("<Q", data)
    header = json.loads(data[8 : 8 + length])
    told = json.loads(header["__metadata__"]["state"])
    rng = {"$dict": [["torch", {"$tensor": "t0"}]]}
    assert told == {"$dict": [["done", 7], ["rng", rng], ["epochs", [{"$tuple": [1, "x"]}]]]}
    start, end = header["t0"]["data_offsets"]
    assert data[8 + length :][start:end] == b"\x01\x02"
