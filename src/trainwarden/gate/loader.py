"""Loading a checkpoint after the scan's decision: weights only, as safetensors where the file is one.

The file is copied into memory of this process before it is scanned, and what was scanned is what is loaded: a file
that is exchanged between the two is not.
"""

from __future__ import annotations

import os
from pathlib import Path
from typing import TYPE_CHECKING, Any, assert_never

from trainwarden.errors import CannotDecide, CheckpointRefused, UsageError
from trainwarden.gate.results import Clean, Refused, Undecided
from trainwarden.gate.scan.files import scan_open

if TYPE_CHECKING:
    import torch

_PIECE = 1 << 24


def load(path: Path | str, *, device: str = "cpu") -> Any:
    """The tensors and plain values of a checkpoint that a scan found clean, on `device`.

    Raises:
        CheckpointRefused: loading it could run something.
        CannotDecide: it was not understood, or holds more than `weights_only` takes.
        UsageError: it cannot be read.
    """
    fd = _copied(Path(path))
    try:
        scanned = scan_open(fd, str(path))
        match scanned.decision:
            case Clean(kind=kind):
                return _loaded(fd, kind, str(path), device)
            case Refused(objections=objections):
                first = objections[0]
                raise CheckpointRefused(
                    f"{path}: {first.opcode} {first.name} at {first.offset}: {first.why}",
                    hint=f"trainwarden scan {path} shows every objection",
                )
            case Undecided(why=why):
                raise CannotDecide(f"{path}: {why}", hint="a file that was not understood is not loaded")
            case _:
                assert_never(scanned.decision)
    finally:
        os.close(fd)


def _copied(path: Path) -> int:
    """A private copy in memory, of which only this process has the descriptor."""
    fd = os.memfd_create("checkpoint", os.MFD_CLOEXEC)
    try:
        with path.open("rb") as file:
            while piece := file.read(_PIECE):
                left = memoryview(piece)
                while left:
                    left = left[os.write(fd, left) :]
    except OSError as e:
        os.close(fd)
        raise UsageError(f"{path} cannot be read: {e.strerror}", hint="give a file") from e
    return fd


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
            hint="save its tensors alone, by state_dict()",
        ) from e
