"""Loading a checkpoint after the scan's decision: weights only, as safetensors where the file is one.

The file is copied into memory of this process before it is scanned, and what was scanned is what is loaded: a file
that is exchanged between the two is not.
"""

from __future__ import annotations

import os
import stat
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any, assert_never

import msgspec

from trainwarden.errors import CannotDecide, CheckpointRefused, UsageError
from trainwarden.gate.results import Clean, Refused, Scanned, Undecided
from trainwarden.gate.scan.files import scan_open

if TYPE_CHECKING:
    import torch

    from trainwarden.store import Store

_PIECE = 1 << 24


def load(path: Path | str, *, device: str = "cpu", store: Store | None = None) -> Any:
    """The tensors and plain values of a checkpoint that a scan found clean, on `device`; a folder is one of `convert`.

    What an actor allowed in `store` (`trainwarden scan --allow`) is loaded as torch does it: it may run what it says.

    Raises:
        CheckpointRefused: loading it could run something.
        CannotDecide: it was not understood, or holds more than `weights_only` takes.
        UsageError: it cannot be read.
    """
    path = Path(path)
    if path.is_dir():
        return _converted(path, device)
    with scanned_copy(path) as (fd, scanned):
        if store is not None and not isinstance(scanned.decision, Clean) and _is_allowed(store, fd):
            import torch

            return torch.load(f"/proc/self/fd/{fd}", map_location=device, weights_only=False)
        return _loaded(fd, _clean(scanned), str(path), device)


def _is_allowed(store: Store, fd: int) -> bool:
    from trainwarden.gate.allowances import allowance_of

    return allowance_of(store, digest_of(fd)) is not None


@contextmanager
def scanned_copy(path: Path) -> Iterator[tuple[int, Scanned]]:
    """A private copy of a file, open, and the decision on it.

    Raises:
        UsageError: it cannot be read.
    """
    fd = _copied(path)
    try:
        yield fd, scan_open(fd, str(path))
    finally:
        os.close(fd)


@contextmanager
def opened_clean(path: Path) -> Iterator[tuple[int, str]]:
    """A private copy of a file that a scan found clean, open, and what kind of file it is.

    Raises:
        CheckpointRefused, CannotDecide, UsageError: as `load`.
    """
    with scanned_copy(path) as (fd, scanned):
        yield fd, _clean(scanned)


def digest_of(fd: int) -> str:
    """The BLAKE3 of an open file."""
    from blake3 import blake3

    hasher, at = blake3(), 0
    while piece := os.pread(fd, _PIECE, at):
        hasher.update(piece)
        at += len(piece)
    return hasher.hexdigest()


def _clean(scanned: Scanned) -> str:
    match scanned.decision:
        case Clean(kind=kind):
            return kind
        case Refused(objections=objections):
            first = objections[0]
            raise CheckpointRefused(
                f"{scanned.path}: {first.opcode} {first.name} at {first.offset}: {first.why}",
                hint=f"trainwarden scan {scanned.path} shows every objection",
            )
        case Undecided(why=why):
            raise CannotDecide(f"{scanned.path}: {why}", hint="a file that was not understood is not loaded")
        case _:
            assert_never(scanned.decision)


def _converted(folder: Path, device: str) -> Any:
    """What `trainwarden convert` wrote, both files scanned before they are read."""
    from safetensors.torch import load_file

    from trainwarden.gate.convert.conversion import STATE, TENSORS, read_converted

    with opened_clean(folder / TENSORS) as (tensors, kind), opened_clean(folder / STATE) as (state, form):
        if (kind, form) != ("safetensors", "json"):
            raise CannotDecide(f"{folder} holds {kind} and {form}, not what convert writes", hint="name a file")
        with open(f"/proc/self/fd/{state}", "rb") as file:
            return read_converted(load_file(f"/proc/self/fd/{tensors}", device=device), file.read())


def _copied(path: Path) -> int:
    """A private copy in memory, of which only this process has the descriptor."""
    fd = os.memfd_create("checkpoint", os.MFD_CLOEXEC)
    try:
        with _opened(path) as file:
            size = os.fstat(file).st_size  # what is written behind it from now on is not read
            while (at := os.lseek(fd, 0, os.SEEK_CUR)) < size and (piece := os.pread(file, min(_PIECE, size - at), at)):
                left = memoryview(piece)
                while left:
                    left = left[os.write(fd, left) :]
    except OSError as e:
        os.close(fd)
        raise UsageError(f"{path} cannot be read: {e.strerror}", hint="give a file") from e
    return fd


@contextmanager
def _opened(path: Path) -> Iterator[int]:
    """The file, open; a pipe would keep the caller waiting, and a device has no end."""
    file = os.open(path, os.O_RDONLY | os.O_NONBLOCK | os.O_CLOEXEC)
    try:
        if not stat.S_ISREG(os.fstat(file).st_mode):
            raise OSError(0, "it is no regular file")
        yield file
    finally:
        os.close(file)


def _loaded(fd: int, kind: str, path: str, device: str) -> dict[str, torch.Tensor] | Any:
    import pickle

    import torch

    own = f"/proc/self/fd/{fd}"
    if kind == "safetensors":
        from safetensors.torch import load_file

        return load_file(own, device=device)
    if kind not in ("torch zip", "torch legacy"):
        raise CannotDecide(f"{path} is {kind}, which holds no tensors of torch", hint="give a checkpoint of torch")
    try:
        return torch.load(own, map_location=device, weights_only=True)
    except pickle.UnpicklingError as e:
        raise CannotDecide(
            f"{path} is clean, but holds more than weights: {str(e).splitlines()[0]}",
            hint=f"trainwarden convert {path} -o NEW, then load that",
        ) from e


class LoadedTensor(msgspec.Struct, frozen=True, kw_only=True):
    """A tensor of what was loaded: where it is, its kind, its sizes, and the bytes that it shows."""

    name: str
    dtype: str
    shape: tuple[int, ...]
    size: int


class Contents(msgspec.Struct, frozen=True, kw_only=True):
    """What a loaded state holds: its tensors, and how many other values."""

    tensors: tuple[LoadedTensor, ...]
    others: int


def contents(state: Any) -> Contents:
    """What a loaded state holds, named by the way to it."""
    import torch

    tensors, others = [], 0
    pending: list[tuple[str, Any]] = [("", state)]
    while pending:
        path, x = pending.pop()
        if isinstance(x, torch.Tensor):
            dtype = str(x.dtype).removeprefix("torch.")
            size = x.numel() * x.element_size()
            tensors.append(LoadedTensor(name=path, dtype=dtype, shape=tuple(x.shape), size=size))
        elif isinstance(x, dict | list | tuple):
            inner = x.items() if isinstance(x, dict) else enumerate(x)
            pending += reversed([(f"{path}.{k}" if path else str(k), v) for k, v in inner])
        else:
            others += 1
    return Contents(tensors=tuple(tensors), others=others)
