"""An actor's decision that a file which a scan did not find clean may be loaded."""

from __future__ import annotations

from trainwarden.model.base import Noun


class FileAllowed(Noun):
    """One actor's decision that the file of this digest may be loaded although a scan refused or did not decide it.

    Signed (Ed25519) are `trainwarden/file-allowed/v1`, a line feed, and the canonical bytes of this with `signature`
    left out.
    """

    digest: str  # BLAKE3 of the file
    path: str  # where it lay
    decision: str  # what the scan came to: "refused" or "undecided"
    found: tuple[str, ...]  # its objections or doubts, as the actor was shown them
    why: str
    actor: str
    key: str
    wall_ns: int = 0  # as the actor's clock had it: a claim
    signature: str = ""
