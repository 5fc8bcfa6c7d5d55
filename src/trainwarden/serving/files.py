"""The files of a version, each verified in full whenever it is read.

Rules
-----
* Only names of the manifest are read, and only from the version's place or the store's copy. The first whose
  bytes are the cleared ones is taken; where there is none, the error says what is wrong with each.
* Nothing is kept: to read again is to verify again.
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path, PurePosixPath
from typing import TYPE_CHECKING, Any

from trainwarden.errors import CheckpointRefused, CheckpointTampered
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
