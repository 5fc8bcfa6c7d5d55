"""What may be served under a name, and where that is asked. Pure but for the seam.

Rules
-----
* A version is named by the digest of its manifest, and its files by theirs. Places are hints: bytes from wherever they
  come count only if they have the digest.
* What stands open against a version is carried with it; which one to serve is for `Service` to choose.
"""

from __future__ import annotations

from typing import Protocol

import msgspec

from trainwarden.model import CheckpointManifest


class Version(msgspec.Struct, frozen=True, kw_only=True):
    """One promoted checkpoint; `open` says what is against serving it, () for nothing."""

    digest: str
    manifest: CheckpointManifest
    place: str  # a folder, or the file itself where it is only one
    objects: str = ""  # the store's folder of objects, which may have copies; "" for none
    open: tuple[str, ...] = ()


class Offer(msgspec.Struct, frozen=True, kw_only=True):
    """All versions of a name, the one to be served first, and the stamp of the logs from before they were read."""

    versions: tuple[Version, ...]
    stamp: object
    size: int = 0  # entries of the gate's log
    trouble: str = ""  # why the gate's log says nothing new: the versions are those of the last good look


class Catalogue(Protocol):
    """Where it is asked what may be served."""

    def stamp(self) -> object:
        """Something that is different once an answer of `look` may be; it is asked for at every request."""
        ...

    def look(self) -> Offer:
        """What may be served now.

        Raises:
            TrainWardenError: it cannot be known: the log does not answer, does not verify, or went back.
        """
        ...
