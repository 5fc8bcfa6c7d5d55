"""A conversion: the old file scanned, read, written anew, read back and compared; the old file stays as it is.

Rules
-----
* The new folder appears whole or not at all, and only after what was written has been read back from disk and compared
  with what the old file held: kinds, values, order, each storage's bytes, each view, each sharing.
* `conversion.json` names both sides by digest: the edge of a lineage, for whoever records it.

Trust: torch's own readers of storages, which both sides go through, and the scan for what may be read at all.
"""

from __future__ import annotations

import hashlib
import json
import os
import shutil
import tempfile
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final

import msgspec

from trainwarden.errors import CannotDecide, UsageError
from trainwarden.gate.convert.decode import Decoder
from trainwarden.gate.convert.encode import Encoder
from trainwarden.gate.convert.objects import read_pickle, read_torch
from trainwarden.gate.convert.same import Comparison
from trainwarden.gate.loader import opened_clean

if TYPE_CHECKING:
    import torch

FORMAT: Final = "trainwarden-conversion/1"
STATE_FORMAT: Final = "trainwarden-state/1"
TENSORS, STATE, EDGE = "model.safetensors", "state.json", "conversion.json"
_PIECE: Final = 1 << 24


class NamedFile(msgspec.Struct, frozen=True, kw_only=True):
    """A file by its content; `digest` is its BLAKE3."""

    path: str
    size: int
    digest: str
    sha256: str


class Conversion(msgspec.Struct, frozen=True, kw_only=True):
    """One old file, the files made of it, and how much was compared after writing."""

    format: str = FORMAT
    kind: str  # what the old file is, as a scan names it
    source: NamedFile
    targets: tuple[NamedFile, ...]
    tensors_equal: int
    bytes_equal: int


def convert(old: Path, new: Path) -> Conversion:
    """Write the state of the checkpoint `old` into the folder `new`, and prove that it is the same.

    Raises:
        CheckpointRefused: loading `old` could run something.
        CannotDecide: it was not understood, holds what has no form here, or what was written differs.
        UsageError: `old` cannot be read, or `new` exists.
    """
    if os.path.lexists(new):
        raise UsageError(f"{new} exists", hint="name a folder that does not: nothing is written over")
    with opened_clean(old) as (fd, kind):
        own = Path(f"/proc/self/fd/{fd}")
        state = _read(own, kind, old)
        source = named(own, old.name)
    folder = Path(tempfile.mkdtemp(prefix=f".{new.name}.", dir=_parent(new)))
    try:
        _write(folder, state)
        compared = _compared(folder, state, old)
        done = Conversion(
            kind=kind,
            source=source,
            targets=tuple(named(folder / n, n) for n in (TENSORS, STATE)),
            tensors_equal=compared.tensors,
            bytes_equal=compared.bytes,
        )
        _put(folder / EDGE, msgspec.json.format(msgspec.json.encode(done), indent=1))
        folder.chmod(0o755)
        folder.rename(new)
    except BaseException:
        shutil.rmtree(folder, ignore_errors=True)
        raise
    return done


def read_converted(tensors: dict[str, torch.Tensor], state: bytes) -> Any:
    """The state that a conversion wrote.

    Raises:
        CannotDecide: it is none.
    """
    try:
        told = json.loads(state)
    except (ValueError, RecursionError) as e:
        raise CannotDecide(f"{STATE} is no JSON: {e}") from e
    if not isinstance(told, dict) or told.get("format") != STATE_FORMAT:
        raise CannotDecide(f"{STATE} is not of the form {STATE_FORMAT}")
    return Decoder(tensors).state(told["state"])


def read_edge(data: bytes) -> Conversion:
    """What a `conversion.json` says: a claim, until the conversion is made again.

    Raises:
        CannotDecide: it is none.
    """
    try:
        return msgspec.json.decode(data, type=Conversion)
    except msgspec.DecodeError as e:
        raise CannotDecide(f"{EDGE} does not tell of a conversion: {e}") from e


def named(path: Path, name: str) -> NamedFile:
    """What a file is by its content, called `name`."""
    from blake3 import blake3

    ours, theirs, size = blake3(), hashlib.sha256(), 0
    with path.open("rb") as file:
        while piece := file.read(_PIECE):
            ours.update(piece)
            theirs.update(piece)
            size += len(piece)
    return NamedFile(path=name, size=size, digest=ours.hexdigest(), sha256=theirs.hexdigest())


def _parent(new: Path) -> Path:
    parent = new.absolute().parent
    if not parent.is_dir():
        raise UsageError(f"{parent} is no folder", hint="make it first")
    return parent


def _read(own: Path, kind: str, old: Path) -> object:
    if kind in ("torch zip", "torch legacy"):
        return read_torch(str(own))
    if kind != "pickle":
        why = "it is safe to load as it is" if kind == "safetensors" else "only pickles and torch's files are converted"
        raise CannotDecide(f"{old} is {kind}: {why}", hint="give a checkpoint of torch, or a pickle")
    with own.open("rb") as file:
        state = read_pickle(file)
        if file.read(1):
            raise CannotDecide(f"{old} holds several pickles", hint="convert a file of one")
    return state


def _write(folder: Path, state: object) -> None:
    from safetensors.torch import save_file

    encoder = Encoder()
    try:
        tree = encoder.value(state)
        text = json.dumps({"format": STATE_FORMAT, "state": tree}, allow_nan=False, indent=1)
    except RecursionError as e:
        raise CannotDecide("the state is nested too deeply to be written as JSON") from e
    save_file(encoder.tensors, folder / TENSORS, metadata={"format": "pt"})
    with (folder / TENSORS).open("rb") as file:
        os.fsync(file.fileno())
    _put(folder / STATE, text.encode())


def _compared(folder: Path, state: object, old: Path) -> Comparison:
    from safetensors.torch import load_file

    again = read_converted(load_file(folder / TENSORS), (folder / STATE).read_bytes())
    compared = Comparison()
    if differs := compared.difference(state, again):
        raise CannotDecide(
            f"what was written of {old} is not what it holds: {differs.lstrip('.')}",
            hint="nothing was kept: please report this",
        )
    return compared


def _put(path: Path, data: bytes) -> None:
    with path.open("wb") as file:
        file.write(data)
        file.flush()
        os.fsync(file.fileno())
