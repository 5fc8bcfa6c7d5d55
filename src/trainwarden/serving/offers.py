"""What may be served under a name, and where that is asked. Pure but for the seam.

Rules
-----
* A version is named by the digest of its manifest, and its files by theirs. Places are hints: bytes from wherever they
  come count only if they have the digest.
* What stands open against a version is carried with it; which one to serve is for `Service` to choose.
* An offer has as many versions, the newest first, as are needed to have some to fall back to. There may be older ones.
"""

from __future__ import annotations

from collections.abc import Collection, Iterable
from typing import Protocol

import msgspec

from trainwarden.model import CheckpointManifest


class Version(msgspec.Struct, frozen=True, kw_only=True):
    """One promoted checkpoint; `open` says what is against serving it, () for nothing."""

    digest: str
    manifest: CheckpointManifest
    place: str  # a folder, or the file itself where it is only one
    objects: str = ""  # the store's folder of objects, which may have copies; "" for none
    runs: frozenset[str] = frozenset()  # that it stands on
    open: tuple[str, ...] = ()


class Offer(msgspec.Struct, frozen=True, kw_only=True):
    """Versions of a name, the one to be served first, and the stamp of the logs from before they were read."""

    versions: tuple[Version, ...]
    stamp: object
    size: int = 0  # entries of the gate's log
    trouble: str = ""  # why the gate's log says nothing new: the versions are those of the last good look
    more: bool = False  # older ones were not looked at


def worth_holding(versions: Iterable[Version]) -> list[Version]:
    """Those with nothing open, in the order in which they are worth being held in memory.

    The newest first. Then the one that stands on the fewest of its runs: what is found against a run is against all
    that stands on it, and most of a name's newest versions stand on the same. Then the others, the newest first.
    """
    free = [version for version in versions if not version.open]
    if len(free) < 2:
        return free
    newest, *others = free
    apart = min(others, key=lambda version: len(version.runs & newest.runs))
    return [newest, apart, *(version for version in others if version is not apart)]


class Catalogue(Protocol):
    """Where it is asked what may be served."""

    def stamp(self) -> object:
        """Something that is different once an answer of `look` may be; it is asked for at every request."""
        ...

    def look(self, passed_over: Collection[str] = ()) -> Offer:
        """What may be served now; `passed_over` are digests that cannot be served, so that others are needed.

        Raises:
            TrainWardenError: it cannot be known: the log does not answer, does not verify, or went back.
        """
        ...
