"""The order-fixed reduction, where the seal asks for it: each rank adds its share in rank order, and senders sign.

Rules
-----
* A bucket is multiplied by 1/N as DDP does and goes by all-to-all: rank d gets part d of every rank, adds them in rank
  order, and an all-gather brings the sums together. The bytes sent are those of a ring. Every element is added in one
  order, whatever bucket it lies in, so that a replay need not know the buckets.
* Before anything is sent its sender takes a digest of every part, and signs the list of a whole backward pass at once.
  A receiver compares what arrived with what was signed for it, and tells sender and receiver where they differ. It
  adds what arrived all the same: the recorder never stops training.
* The signing key lives and dies with the process. The watcher is told the public key when the process joins; ranks
  exchange theirs at the first reduction, and the detector compares what each was given with what each has told.
* Every rank must use it: the collectives differ from those of DDP. It is chosen by the seal, through the environment.
* A sender can still sign what it should not have computed, and an insider in a rank holds that rank's key. What a
  receiver says of a sender is a claim by the receiver: the pair is named, and the replay decides.

Source: RFC 8032 (Ed25519).
"""

from __future__ import annotations

import functools
import struct
from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import torch
import torch.distributed as dist
from blake3 import blake3
from cryptography.exceptions import InvalidSignature
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey, Ed25519PublicKey

from trainwarden.model import DIGEST_BYTES
from trainwarden.record.fingerprint import tensor_digest

_SIGNATURE = 64
_PUBLIC = 32
_KEY = blake3(b"trainwarden ordered reduction: digests of parts").digest()  # public: all hosts take the same digests
_gather: Callable[..., Any] = getattr(dist, "all_gather_single", None) or dist.all_gather_into_tensor


class Signer:
    """This process's key."""

    def __init__(self) -> None:
        self._private = Ed25519PrivateKey.generate()
        self.public = self._private.public_key().public_bytes_raw()

    def sign(self, statement: bytes) -> bytes:
        return self._private.sign(statement)


class Difference(NamedTuple):
    """A part that is not what its sender signed for this receiver; of kind "signature" no signature holds."""

    kind: str
    sender: int  # rank of the job
    parameters: tuple[torch.Tensor, ...] = ()
    signed: bytes = b""
    arrived: bytes = b""


class _Space:
    """The buffers of one bucket, kept from step to step."""

    def __init__(self, buffer: torch.Tensor, world: int) -> None:
        self.part = -(-buffer.numel() // world)
        size = self.part * world
        self.padded = None if size == buffer.numel() else buffer.new_zeros(size)
        self.arrived = buffer.new_empty(size)
        self.sum = buffer.new_empty(self.part)


class _Sent(NamedTuple):
    """A bucket under way."""

    bucket: Any
    future: torch.futures.Future[torch.Tensor]
    buffer: torch.Tensor
    space: _Space
    digests: list[bytes]
    work: Any


class OrderedReduction:
    """Reduces the buckets of one DDP module; `tell` is called for every difference, `keys` once with all public keys.

    `guarded` runs what may fail without harm to training and returns None when it did.
    """

    def __init__(
        self,
        group: Any,
        signer: Signer,
        guarded: Callable[[Callable[[], Any]], Any],
        tell: Callable[[Difference], None],
        keys: Callable[[Sequence[bytes]], None],
    ) -> None:
        self._signer, self._guarded, self._tell, self._keys_seen = signer, guarded, tell, keys
        self._ranks = dist.get_process_group_ranks(group)
        self._me = dist.get_rank(group)
        self._world = len(self._ranks)
        self._spaces: dict[tuple[int, int, torch.dtype, torch.device], _Space] = {}
        self._under_way: list[_Sent] = []
        self._keys: list[Ed25519PublicKey] = []
        self._count = 0

    def __call__(self, group: Any, bucket: Any) -> torch.futures.Future[torch.Tensor]:
        self._under_way.append(self._send(group, bucket))
        future = self._under_way[-1].future
        if bucket.is_last():
            sent, self._under_way = self._under_way, []
            self._finish(group, sent)
        return future

    def _send(self, group: Any, bucket: Any) -> _Sent:
        buffer = bucket.buffer()
        place = bucket.index(), buffer.numel(), buffer.dtype, buffer.device
        space = self._spaces.get(place)
        if space is None:
            if len(self._spaces) > 4096:
                self._spaces.clear()  # buckets are rebuilt once, not again and again
            space = self._spaces[place] = _Space(buffer, self._world)
        buffer.mul_(1.0 / self._world)
        out = buffer
        if space.padded is not None:
            out = space.padded
            out[: buffer.numel()].copy_(buffer)
        digests = self._guarded(lambda: [tensor_digest(_KEY, part) for part in out.split(space.part)]) or []
        work = dist.all_to_all_single(space.arrived, out, group=group, async_op=True)
        return _Sent(bucket, torch.futures.Future(), buffer, space, digests, work)

    def _finish(self, group: Any, sent: list[_Sent]) -> None:
        """What ranks say that they sent, then the sums and their gathering, in the same order everywhere."""
        for one in sent:
            one.work.wait()
        self._compare(sent, self._statements(group, sent))
        self._count += 1
        works = []
        for one in sent:
            parts = one.space.arrived.split(one.space.part)
            one.space.sum.copy_(parts[0])
            for part in parts[1:]:
                one.space.sum.add_(part)
            into = one.buffer if one.space.padded is None else one.space.padded
            works.append(_gather(into, one.space.sum, group=group, async_op=True))
        for one, work in zip(sent, works, strict=True):
            work.wait()
            if one.space.padded is not None:
                one.buffer.copy_(one.space.padded[: one.buffer.numel()])
            one.future.set_result(one.buffer)

    # -- who signed what

    def _statements(self, group: Any, sent: list[_Sent]) -> list[tuple[bytes, bytes]]:
        """Every rank's list of digests and its signature, exchanged beside the data."""
        if not self._keys:
            public = self._exchange(group, sent[0].buffer.device, self._signer.public)
            self._keys = [Ed25519PublicKey.from_public_bytes(key) for key in public]
            self._guarded(lambda: self._keys_seen(public))
        size = DIGEST_BYTES * self._world * len(sent)
        digests = b"".join(d for one in sent for d in one.digests)
        mine = digests if len(digests) == size else bytes(size)
        signature = self._guarded(lambda: self._signer.sign(self._statement(self._me, mine))) or bytes(_SIGNATURE)
        told = self._exchange(group, sent[0].buffer.device, signature + mine)
        return [(data[:_SIGNATURE], data[_SIGNATURE:]) for data in told]

    def _exchange(self, group: Any, device: torch.device, data: bytes) -> list[bytes]:
        mine = torch.frombuffer(bytearray(data), dtype=torch.uint8).to(device)
        all_ = torch.empty(len(data) * self._world, dtype=torch.uint8, device=device)
        _gather(all_, mine, group=group)
        flat = all_.cpu().numpy().tobytes()
        return [flat[i : i + len(data)] for i in range(0, len(flat), len(data))]

    def _statement(self, sender: int, digests: bytes) -> bytes:
        head = struct.pack(">QII", self._count, self._ranks[sender], self._world)
        return b"trainwarden/reduction/v1\n" + head + digests

    def _compare(self, sent: list[_Sent], told: list[tuple[bytes, bytes]]) -> None:
        for sender, (signature, digests) in enumerate(told):
            if sender != self._me:
                self._guarded(functools.partial(self._compare_one, sent, sender, signature, digests))

    def _compare_one(self, sent: list[_Sent], sender: int, signature: bytes, digests: bytes) -> None:
        try:
            self._keys[sender].verify(signature, self._statement(sender, digests))
        except InvalidSignature:
            self._tell(Difference("signature", self._ranks[sender]))
            return
        for number, one in enumerate(sent):
            at = DIGEST_BYTES * (number * self._world + self._me)
            signed = digests[at : at + DIGEST_BYTES]
            arrived = tensor_digest(_KEY, one.space.arrived.split(one.space.part)[sender])
            if arrived != signed:
                names = tuple(_within(one, self._me))
                self._tell(Difference("part", self._ranks[sender], names, signed, arrived))


def _within(one: _Sent, receiver: int) -> list[torch.Tensor]:
    """The tensors that a receiver's part of a bucket covers."""
    first, found, at = receiver * one.space.part, [], 0
    for p in one.bucket.parameters():
        if at < first + one.space.part and at + p.numel() > first:
            found.append(p)
        at += p.numel()
    return found
