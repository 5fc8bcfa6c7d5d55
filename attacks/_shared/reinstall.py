"""The honest twin of every change to the environment: a package installed again over itself, with equal bytes."""

from __future__ import annotations

from trainwarden.redteam.interface import Act, Moment, Twin
from trainwarden.redteam.place import Range

FILE = "torch/nn/parallel/distributed.py"


def reinstall(place: Range) -> None:
    """The file is written again: a new inode, the same bytes and times, as pip leaves it."""
    file = place.site / FILE
    place.write(file, file.read_bytes(), keep_times=True)


REINSTALLED = Twin(
    name="a package installed over itself",
    does="a file of PyTorch is written again with equal bytes while the job runs",
    acts=(Act(Moment.STEP, reinstall),),
)
