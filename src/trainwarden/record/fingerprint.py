"""The one digest function of recording, replay and explanation.

Rules
-----
* Keyed BLAKE3 (https://github.com/BLAKE3-team/BLAKE3-specs, section 2.3). A tensor's digest covers its bytes in
  row-major order, under a key that is itself the keyed digest of dtype and shape; 16 bytes are kept, so a second
  preimage costs 2^128. A stage's root covers the ordered (name, digest) pairs and is kept whole (32 bytes).
* Two digests are equal exactly when dtype, shape and every bit are: −0.0 and 0.0 differ, and NaNs differ by payload.
* The key stays with the supervisor, the ranks and the auditor. An insider inside the rank holds it; what
  contradicts such an insider is replay, not secrecy.
"""

from __future__ import annotations

import ctypes
import struct
from collections.abc import Iterable
from typing import TYPE_CHECKING, Any

from blake3 import blake3

from trainwarden.model import DIGEST_BYTES

if TYPE_CHECKING:
    import torch

_MAX_KEPT = 1 << 16

_subkeys: dict[tuple[bytes, Any, Any], bytes] = {}
_views: dict[tuple[int, int], memoryview | bytes] = {}
_frames: dict[str, bytes] = {}
_plain_types: set[type] = set()  # filled once torch is here: this module is also used without it


def digest_bytes(key: bytes, dtype: str, shape: Iterable[int], data: bytes | bytearray | memoryview) -> bytes:
    """The digest of a tensor given as raw row-major bytes; `dtype` is torch's name without its prefix ("float32")."""
    return blake3(data, key=_subkey(key, dtype, tuple(shape))).digest(DIGEST_BYTES)


def tensor_digest(key: bytes, tensor: torch.Tensor) -> bytes:
    """The digest of a tensor's current value (CPU tensors in place, others through a copy to the host).

    A sharded tensor (DTensor) is digested as this rank's shard.
    """
    # The common case costs a microsecond or two; a model has hundreds of tensors and a step several stages of them.
    plain = type(tensor) in _plain_types and tensor.is_cpu and tensor.is_contiguous()
    t = tensor if plain and not (tensor.dtype.is_complex or tensor.is_neg()) else _plain(tensor)
    subkey = _subkeys.get((key, t.dtype, t.shape))
    if subkey is None:
        subkey = _subkey(key, str(t.dtype).removeprefix("torch."), tuple(t.shape))
        _subkeys[key, t.dtype, t.shape] = subkey
    return blake3(_memory(t.data_ptr(), t.nbytes), key=subkey).digest(DIGEST_BYTES)


def _memory(address: int, size: int) -> memoryview | bytes:
    """A view of this process's own memory: no copy, and no numpy, which cannot hold bfloat16."""
    view = _views.get((address, size))
    if view is None:
        # Weights and moments stay where they are from step to step, so their views are made once. A view owns
        # nothing: it is only read while a tensor that has this address is held.
        if len(_views) >= _MAX_KEPT:
            _views.clear()
        view = memoryview((ctypes.c_char * size).from_address(address)).cast("B") if size else b""
        _views[address, size] = view
    return view


def value_digest(key: bytes, data: bytes) -> bytes:
    """The digest of bytes that are not a tensor (generator states, settings)."""
    return digest_bytes(key, "bytes", (len(data),), data)


def stage_root(key: bytes, names: Iterable[str], digests: Iterable[bytes]) -> str:
    """The root over a stage's ordered (name, digest) pairs, as 64 hex digits."""
    parts = []
    for name, digest in zip(names, digests, strict=True):
        parts += [_frames.get(name) or _framed(name), digest]
    return blake3(b"".join(parts), key=key).hexdigest()


def _framed(name: str) -> bytes:
    raw = name.encode("utf-8", "surrogateescape")
    if len(_frames) >= _MAX_KEPT:
        _frames.clear()
    _frames[name] = framed = struct.pack("<I", len(raw)) + raw
    return framed


def _subkey(key: bytes, dtype: str, shape: tuple[int, ...]) -> bytes:
    """A key of its own for every dtype and shape, so that equal bytes of another kind have another digest."""
    return blake3(f"{dtype}{shape}".encode(), key=key).digest()


def _plain(tensor: torch.Tensor) -> torch.Tensor:
    """A dense, contiguous CPU tensor with the same value; the tensor itself when it already is one."""
    import torch

    _plain_types.update((torch.Tensor, torch.nn.Parameter))
    t = tensor.detach()
    if hasattr(t, "to_local"):
        t = t.to_local()
    if t.layout is not torch.strided:
        t = t.to_dense()
    if t.is_quantized:
        t = t.int_repr()
    if t.device.type != "cpu":
        t = t.cpu()
    if t.is_conj() or t.is_neg():
        t = t.resolve_conj().resolve_neg()
    return t if t.is_contiguous() else t.contiguous()
