"""The one digest function of recording, replay and explanation.

Rules
-----
* On the CPU, keyed BLAKE3 (https://github.com/BLAKE3-team/BLAKE3-specs, section 2.3). A tensor's digest covers its
  bytes in row-major order, under a key that is itself the keyed digest of dtype and shape; 16 bytes are kept, so a
  second preimage costs 2^128. A stage's root covers the ordered (name, digest) pairs and is kept whole (32 bytes).
* On any other device the same of 32 bytes that are computed there (`linear`): state is not moved to the host, and
  what is logged is a keyed hash of the fingerprint. Record and replay run on one kind of device (`Numerics`).
* Two digests are equal exactly when dtype, shape and every bit are: −0.0 and 0.0 differ, and NaNs differ by payload.
* The key stays with the supervisor, the ranks and the auditor. An insider inside the rank holds it; what
  contradicts such an insider is replay, not secrecy.
"""

from __future__ import annotations

import ctypes
import struct
from collections.abc import Iterable, Sequence
from typing import TYPE_CHECKING, Any

from blake3 import blake3

from trainwarden.model import DIGEST_BYTES

if TYPE_CHECKING:
    import torch

_MAX_KEPT = 1 << 14  # places of tensors, about 700 bytes each
_MOST_LISTS = 256  # of names

_subkeys: dict[tuple[bytes, Any, Any], bytes] = {}
_places: dict[tuple[bytes, int, Any, Any], tuple[memoryview | bytes, bytes]] = {}
_frames: dict[tuple[str, ...], list[bytes]] = {}
_plain_types: set[type] = set()  # filled once torch is here: this module is also used without it


def digest_bytes(key: bytes, dtype: str, shape: Iterable[int], data: bytes | bytearray | memoryview) -> bytes:
    """The digest of a tensor given as raw row-major bytes; `dtype` is torch's name without its prefix ("float32")."""
    return blake3(data, key=_subkey(key, dtype, tuple(shape))).digest(DIGEST_BYTES)


def tensor_digest(key: bytes, tensor: torch.Tensor) -> bytes:
    """The digest of a tensor's current value, computed where it lies.

    A sharded tensor (DTensor) is digested as this rank's shard.
    """
    # The common case costs a microsecond or two; a model has hundreds of tensors and a step several stages of them.
    t = tensor
    if not (type(t) in _plain_types and t.is_cpu and t.is_contiguous() and not t.is_neg()):
        t = _plain(t)
        if not t.is_cpu:
            return device_digests(key, [t])[0]
    found = _places.get((key, t.data_ptr(), t.dtype, t.shape))
    if found is None:
        if t.dtype.is_complex or t.is_quantized:
            t = _plain(t)
        found = _placed(key, t)
    memory, subkey = found
    return blake3(memory, key=subkey).digest(DIGEST_BYTES)


def tensor_digests(key: bytes, tensors: Sequence[torch.Tensor]) -> list[bytes]:
    """The digests of several tensors; those on an accelerator wait for it once and not each."""
    away = [i for i, t in enumerate(tensors) if t.device.type != "cpu"]
    if not away:
        return [tensor_digest(key, t) for t in tensors]
    found = dict(zip(away, device_digests(key, [_plain(tensors[i]) for i in away]), strict=True))
    return [found[i] if i in found else tensor_digest(key, t) for i, t in enumerate(tensors)]


def device_digests(key: bytes, tensors: Sequence[torch.Tensor]) -> list[bytes]:
    """The digests of dense tensors by their linear fingerprints: a keyed hash of dtype, shape and fingerprint."""
    from trainwarden.record import linear, shares

    sums = linear.fingerprinter(key).sums([(t, None) for t in tensors])
    return [
        blake3(shares.packed(one), key=_subkey(key, f"linear {t.dtype}", tuple(t.shape))).digest(DIGEST_BYTES)
        for t, one in zip(tensors, sums, strict=True)
    ]


def _placed(key: bytes, t: torch.Tensor) -> tuple[memoryview | bytes, bytes]:
    """A view of this process's own memory (no copy, and no numpy, which cannot hold bfloat16), and the subkey.

    Weights and moments stay where they are from step to step, so both are made once for each address, dtype and
    shape. A view owns nothing: it is only read while a tensor that has all three is held. Complex tensors are not
    remembered, since they can be conjugated without a bit of theirs being moved.
    """
    address, dtype, shape, size = t.data_ptr(), t.dtype, t.shape, t.nbytes
    subkey = _subkeys.get((key, dtype, shape))
    if subkey is None:
        subkey = _subkeys[key, dtype, shape] = _subkey(key, str(dtype).removeprefix("torch."), tuple(shape))
    memory = memoryview((ctypes.c_char * size).from_address(address)).cast("B") if size else b""
    if not dtype.is_complex:
        if len(_places) >= _MAX_KEPT:
            _places.clear()
        _places[key, address, dtype, shape] = memory, subkey
    return memory, subkey


def value_digest(key: bytes, data: bytes) -> bytes:
    """The digest of bytes that are not a tensor (generator states, settings)."""
    return digest_bytes(key, "bytes", (len(data),), data)


def row_digest(dtype: str, shape: tuple[int, ...], data: bytes | memoryview) -> bytes:
    """The digest of a sample's tensor, without a key: 4 bytes of its type and shape, 12 of its content."""
    return row_tag(dtype, shape) + row_content(data)


def row_tag(dtype: str, shape: tuple[int, ...]) -> bytes:
    """The part that stands for type ("torch.float32") and shape."""
    return blake3(f"{dtype}{shape}".encode()).digest(4)


def row_content(data: bytes | memoryview) -> bytes:
    """The part that stands for the content."""
    return blake3(data).digest(12)


def stage_root(key: bytes, names: Iterable[str], digests: Iterable[bytes]) -> str:
    """The root over a stage's ordered (name, digest) pairs, as 64 hex digits."""
    names, digests = tuple(names), tuple(digests)
    if len(names) != len(digests):
        raise ValueError(f"{len(digests)} digests for {len(names)} names")
    parts = [b""] * (2 * len(names))
    parts[::2], parts[1::2] = _frames.get(names) or _framed(names), digests
    return blake3(b"".join(parts), key=key).hexdigest()


def _framed(names: tuple[str, ...]) -> list[bytes]:
    """Each name with its length before it. The lists of names of a step are those of the step before."""
    raw = [name.encode("utf-8", "surrogateescape") for name in names]
    if len(_frames) >= _MOST_LISTS:
        _frames.clear()
    _frames[names] = framed = [struct.pack("<I", len(name)) + name for name in raw]
    return framed


def _subkey(key: bytes, dtype: str, shape: tuple[int, ...]) -> bytes:
    """A key of its own for every dtype and shape, so that equal bytes of another kind have another digest."""
    return blake3(f"{dtype}{shape}".encode(), key=key).digest()


def own_part(tensor: torch.Tensor) -> torch.Tensor:
    """This rank's shard of a sharded tensor (DTensor), the tensor itself otherwise; it shares their memory."""
    return tensor.to_local() if hasattr(tensor, "to_local") else tensor


def _plain(tensor: torch.Tensor) -> torch.Tensor:
    """A dense, contiguous tensor with the same value on the same device; the tensor itself when it already is one."""
    import torch

    _plain_types.update((torch.Tensor, torch.nn.Parameter))
    t = own_part(tensor.detach())
    if t.layout is not torch.strided:
        t = t.to_dense()
    if t.is_quantized:
        t = t.int_repr()
    if t.is_conj() or t.is_neg():
        t = t.resolve_conj().resolve_neg()
    return t if t.is_contiguous() else t.contiguous()
