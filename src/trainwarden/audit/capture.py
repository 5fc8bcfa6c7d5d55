"""Captures: the clean values of one step of one rank, as a replay from sealed inputs wrote them to a folder.

Rules
-----
* A capture is trusted as far as the replay that wrote it; no value in it comes from the recorded (suspect) side.
* A file that is missing means that the stage was not captured: its mapping is empty, and hypotheses that need
  it are reported as not tried.
* Tensors are read on first use and kept, and must not be written to.
"""

from __future__ import annotations

from collections.abc import Mapping
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Any

import msgspec

from trainwarden.errors import CannotDecide
from trainwarden.model import Stage

if TYPE_CHECKING:
    from torch import Tensor

META = "meta.json"
_FILES = {
    Stage.BATCH: "batch",
    Stage.RNG: "rng",
    Stage.LOCAL_GRADIENTS: "local_gradients",
    Stage.REDUCED_GRADIENTS: "reduced_gradients",
}
_PREFIXES = {Stage.WEIGHTS: "weights/", Stage.OPTIMIZER_STATE: "state/"}


class Sought(msgspec.Struct, frozen=True, kw_only=True):
    """What came of the search for an unrecorded edit (`seeking`): the `change` as JSON, empty when none was found."""

    tensor: str = ""
    said: str = ""
    change: str = ""
    tried: int = 0
    limits: str = ""


class CaptureMeta(msgspec.Struct, frozen=True, kw_only=True):
    """`meta.json`: which step and rank, the optimizer, and its parameter groups (`params` lists names)."""

    step: int
    rank: int
    world: int
    optimizer: int = 0
    optimizer_class: str = ""
    names: tuple[str, ...] = ()
    groups: tuple[dict[str, Any], ...] = ()
    loss: float | None = None
    losses: tuple[tuple[int, int, float], ...] = ()  # reduction, index ignored, smoothing of each cross entropy
    sought: Sought | None = None


class Capture:
    """One rank's folder, read on demand."""

    def __init__(self, folder: Path, meta: CaptureMeta) -> None:
        self.folder = folder
        self.meta = meta
        self._sections: dict[str, dict[str, Tensor]] = {}

    def clean(self, stage: Stage) -> Mapping[str, Tensor]:
        """The clean tensors of a stage as the step left them, by the names of the record's detail.

        Raises:
            CannotDecide: the file exists and cannot be read.
        """
        if stage in _FILES:
            return self._section(_FILES[stage])
        if stage in _PREFIXES:
            return self._part(self._after, stage)
        return {}

    def before(self, stage: Stage) -> Mapping[str, Tensor]:
        """Weights or optimizer state as the step found them.

        Raises:
            CannotDecide: the file exists and cannot be read.
        """
        return self._part(self._before, stage) if stage in _PREFIXES else {}

    def file(self, stage: Stage) -> Path | None:
        """The safetensors file that holds a stage under its own names, for those that have one."""
        path = self.folder / f"{_FILES[stage]}.safetensors" if stage in _FILES else None
        return path if path is not None and path.exists() else None

    @property
    def losses(self) -> Mapping[str, Tensor]:
        """What each cross entropy was given: "0.input", "0.target", "1.input", …; empty if not captured.

        Raises:
            CannotDecide: the file exists and cannot be read.
        """
        return self._section("loss")

    @property
    def samples(self) -> Mapping[str, Tensor]:
        """The sealed data set by tensor of a sample ("0", "1", …), one row for each index; empty if not captured.

        Raises:
            CannotDecide: the file exists and cannot be read.
        """
        return self._section("samples")

    @cached_property
    def _before(self) -> dict[str, Tensor]:
        return self._section("before")

    @cached_property
    def _after(self) -> dict[str, Tensor]:
        return self._section("after")

    def _part(self, section: Mapping[str, Tensor], stage: Stage) -> dict[str, Tensor]:
        prefix = _PREFIXES[stage]
        return {name.removeprefix(prefix): t for name, t in section.items() if name.startswith(prefix)}

    def _section(self, name: str) -> dict[str, Tensor]:
        if name not in self._sections:
            self._sections[name] = _load(self.folder / f"{name}.safetensors")
        return self._sections[name]


def _load(path: Path) -> dict[str, Tensor]:
    if not path.exists():
        return {}
    from safetensors import SafetensorError
    from safetensors.torch import load_file

    try:
        tensors: dict[str, Tensor] = load_file(path)
    except (OSError, SafetensorError) as e:
        raise CannotDecide(f"cannot read the capture {path}: {e}", hint="replay the step again") from e
    return tensors


def open_capture(folder: Path) -> Capture:
    """Open the capture of one rank.

    Raises:
        CannotDecide: `meta.json` is missing or not what it should be.
    """
    path = folder / META
    try:
        meta = msgspec.json.decode(path.read_bytes(), type=CaptureMeta)
    except (OSError, msgspec.DecodeError) as e:
        raise CannotDecide(f"cannot read the capture {path}: {e}", hint="replay the step again") from e
    return Capture(folder, meta)


def open_captures(folder: Path) -> dict[int, Capture]:
    """Every rank's capture below `folder` (`rank-0`, `rank-1`, …), by rank.

    Raises:
        CannotDecide: there is none, or one of them cannot be read.
    """
    captures = [open_capture(path) for path in sorted(folder.glob("rank-*"))]
    if not captures:
        raise CannotDecide(f"no capture in {folder}", hint="replay the step again")
    return {c.meta.rank: c for c in sorted(captures, key=lambda c: c.meta.rank)}
