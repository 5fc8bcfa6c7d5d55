"""Acts on the checkpoints of the copied job, and the honest twin of changing them."""

from __future__ import annotations

import io
import zipfile
from collections.abc import Callable
from pathlib import Path

from trainwarden.redteam.interface import Act, Moment, Twin
from trainwarden.redteam.place import Range


def flip_last_bit(place: Range, file: Path) -> None:
    """One bit of the last number in a file of tensors, harmless to every parser; its times are put back."""
    place.edit(file, lambda data: data[:-1] + bytes([data[-1] ^ 1]), keep_times=True)


def pickle_changed(data: bytes, change: Callable[[bytes], bytes]) -> bytes:
    """A file of torch.save with another pickle: a zip archive, whose tensors stay what they are."""
    out = io.BytesIO()
    with zipfile.ZipFile(io.BytesIO(data)) as old, zipfile.ZipFile(out, "w") as new:
        for entry in old.infolist():
            content = old.read(entry)
            new.writestr(entry.filename, change(content) if entry.filename.endswith("/data.pkl") else content)
    return out.getvalue()


def put_back(place: Range) -> None:
    """The newest checkpoint is copied away and back: new files, the same bytes."""
    newest = place.newest
    aside = place.copy(newest, place.tmp / newest.name)
    place.copy(aside, newest)


PUT_BACK = Twin(
    name="a checkpoint from the backup",
    does="the newest checkpoint is copied away and put back with the same bytes",
    acts=(Act(Moment.STEP, put_back),),
    needs=("restarts",),
)
