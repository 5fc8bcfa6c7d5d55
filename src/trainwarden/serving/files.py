"""The files of a version, each verified in full whenever it is read.

Rules
-----
* Only names of the manifest are read, and only from the version's place or the store's copy. The first whose
  bytes are the cleared ones is taken; where there is none, the error says what is wrong with each.
* Nothing is kept: to read again is to verify again.
"""

from __future__ import annotations

import json
import os
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path, PurePosixPath
from tempfile import TemporaryDirectory
from typing import TYPE_CHECKING, Any

from trainwarden.durable import hint_for, write_all
from trainwarden.errors import CheckpointRefused, CheckpointTampered, UsageError
from trainwarden.model import CheckpointFile
from trainwarden.serving.offers import Version
from trainwarden.serving.reading import read_verified
from trainwarden.serving.tensors import tensors

if TYPE_CHECKING:
    import torch


class Files:
    """Reads the files of one version; `names` are those of its manifest."""

    def __init__(self, version: Version) -> None:
        self.digest = version.digest
        self._files = {file.path: file for file in version.manifest.files}
        self._version = version

    @property
    def names(self) -> tuple[str, ...]:
        return tuple(self._files)

    def read(self, name: str) -> memoryview:
        """The bytes of the file `name`, in memory that only this process has.

        Raises:
            CheckpointTampered: there is no such file, or no place has the bytes that were cleared.
        """
        file = self._files.get(name)
        if file is None:
            raise CheckpointTampered(
                f"{self.digest[:12]} has no file {name!r}, cleared were {', '.join(self._files) or 'none'}",
                hint="a file that is not in the manifest is not read, whatever lies in the folder",
            )
        troubles: list[CheckpointTampered] = []
        for path in self.paths(file):
            try:
                return read_verified(path, file)
            except CheckpointTampered as e:
                troubles.append(e)
        hint = troubles[0].hint if troubles else "its manifest is not one that `trainwarden clear` makes"
        raise CheckpointTampered("; ".join(map(str, troubles)) or f"{name} leads out of its checkpoint", hint=hint)

    def tensors(self, name: str) -> dict[str, torch.Tensor]:
        """The tensors of the safetensors file `name`.

        Raises:
            CheckpointTampered: as `read`.
            CheckpointRefused: it is not a safetensors file.
        """
        return tensors(self.read(name), name)

    def json(self, name: str) -> Any:
        """What the JSON file `name` says.

        Raises:
            CheckpointTampered: as `read`.
            CheckpointRefused: it is not JSON.
        """
        try:
            return json.loads(bytes(self.read(name)))
        except (ValueError, RecursionError) as e:
            raise CheckpointRefused(f"{name} is not JSON: {e}", hint="clear what the server can read") from e

    @contextmanager
    def folder(self, inside: Path | None = None) -> Iterator[Path]:
        """Verified copies of all files in a new folder that only this user can read, for what reads a folder itself.

        They are gone afterwards; what is mapped from them stays, under no name that somebody could write to. `inside`
        is where the folder is made (default: memory, where the system has /dev/shm).

        Raises:
            CheckpointTampered: as `read`.
            UsageError: there is no room for them.
        """
        shm = Path("/dev/shm")
        with self._room():
            made = TemporaryDirectory(prefix="trainwarden-", dir=inside or (shm if shm.is_dir() else None))
        with made:
            with self._room():
                for name in self._files:
                    self._copy(name, Path(made.name) / name)
            yield Path(made.name)

    def _copy(self, name: str, path: Path) -> None:
        data = self.read(name)
        path.parent.mkdir(parents=True, exist_ok=True)
        fd = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC, 0o400)
        with os.fdopen(fd, "wb", buffering=0):
            write_all(fd, data)

    @contextmanager
    def _room(self) -> Iterator[None]:
        try:
            yield
        except OSError as e:
            raise UsageError(f"cannot keep copies of {self.digest[:12]}: {e.strerror or e}", hint=hint_for(e)) from e

    def paths(self, file: CheckpointFile) -> Sequence[Path]:
        """Where the bytes of `file` may lie, in the order in which they are tried."""
        name = PurePosixPath(file.path)
        if name.is_absolute() or ".." in name.parts:
            return ()
        place = Path(self._version.place)
        lone = len(self._files) == 1 and place.name == file.path
        found = ([place] if lone else []) + [place / name]
        if self._version.objects:
            found.append(Path(self._version.objects) / file.digest[:2] / file.digest[2:])
        return found
