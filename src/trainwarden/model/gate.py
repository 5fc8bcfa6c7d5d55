"""The gate: which checkpoint is which by its manifest, what it was made from, and the entries of the gate's log."""

from __future__ import annotations

from enum import StrEnum
from typing import TypeAlias

from trainwarden.model.base import Noun
from trainwarden.model.findings import Severity


class CheckpointFile(Noun):
    """One file of a checkpoint: its path relative to the checkpoint's folder (of a lone file, its name)."""

    path: str
    size: int
    digest: str  # BLAKE3
    sha256: str  # as other people's standards want it


class CheckpointManifest(Noun):
    """The files of a checkpoint in order of path. Its digest, which names the checkpoint, is the BLAKE3 of its
    canonical bytes; the store keeps them under that name."""

    files: tuple[CheckpointFile, ...]


class How(StrEnum):
    """How a checkpoint was made from others; the first five are recomputed bit for bit, the others are told."""

    AVERAGE = "average"
    MERGE = "merge"  # a weighted sum
    CAST = "cast"  # to another dtype
    CONVERT = "convert"  # the same tensors in another container
    QUANTISE = "quantise"
    FINETUNE = "finetune"


class Derived(Noun, tag="derived"):
    """An actor's word on how `digest` was made from `sources`, all of them manifests' digests.

    Signed (Ed25519) are `trainwarden/derived/v1`, a line feed, and the canonical bytes of this with `signature` left
    out. Such a word is a claim: what can be recomputed is.
    """

    digest: str
    how: How
    sources: tuple[str, ...]
    settings: dict[str, str] = {}  # such as the weights of a merge
    actor: str = ""
    key: str = ""
    wall_ns: int = 0  # as the actor's clock had it: a claim
    signature: str = ""


class CheckpointApproval(Noun, tag="checkpoint_approval"):
    """One actor's approval of one checkpoint, signed as `Derived` over `trainwarden/checkpoint-approval/v1`."""

    digest: str
    actor: str
    key: str
    wall_ns: int = 0
    signature: str = ""


class FindingClosed(Noun, tag="finding_closed"):
    """An actor's word that a finding does not matter, signed as `Derived` over `trainwarden/finding-closed/v1`."""

    run: str
    index: int  # of the finding in the run's log
    finding: str  # BLAKE3 of the finding's canonical bytes
    reason: str
    actor: str
    key: str
    wall_ns: int = 0
    signature: str = ""


Statement: TypeAlias = Derived | CheckpointApproval | FindingClosed
"""What actors sign about checkpoints; each lies in the store's gate/statements/ under its own digest."""


class Evaluated(Noun):
    """Figures that the gate's own process computed from what the seal `seal` lists, all equal to what was claimed."""

    seal: str
    figures: dict[str, float | int | str | bool] = {}


class RunSeen(Noun):
    """A run that a checkpoint stands on, as its log was when the checkpoint was cleared."""

    run: str
    key: str  # that signed it
    size: int  # entries
    root: str  # RFC 6962, of these entries
    until: dict[str, int] = {}  # attempt → steps of it that the checkpoint stands on


class GateBegun(Noun, tag="gate"):
    """First entry of a gate's log: the key of its keeper, who alone appends to it."""

    key: str
    wall_ns: int = 0


class CheckpointCleared(Noun, tag="checkpoint_cleared"):
    """A checkpoint may be served: everything that the policy demands was found."""

    digest: str  # of its manifest
    place: str  # where it lay
    policy: str  # BLAKE3 of the policy's canonical bytes
    findings: Severity  # findings from this severity on had to be closed
    runs: tuple[RunSeen, ...]
    sources: tuple[Derived, ...] = ()  # on the way back to the runs
    approvals: tuple[CheckpointApproval, ...] = ()
    closed: tuple[FindingClosed, ...] = ()
    evaluated: Evaluated | None = None
    segments: int = 0  # that matched, of all that it stands on
    wall_ns: int = 0


class ClearanceRefused(Noun, tag="clearance_refused"):
    """A checkpoint may not be served, whatever was said of it before."""

    digest: str
    place: str
    reasons: tuple[str, ...]
    wall_ns: int = 0


class Promoted(Noun, tag="promoted"):
    """From here on `name` is the checkpoint `digest`. `previous` is what it was before, "" for nothing."""

    name: str
    digest: str
    cleared: int  # index of its `CheckpointCleared`
    previous: str = ""
    by: str = ""  # account and login as the system tells them; an account is not a person
    wall_ns: int = 0


class RolledBack(Noun, tag="rolled_back"):
    """`name` is `digest` again, which it was before it became `left`."""

    name: str
    digest: str
    left: str
    reason: str = ""
    by: str = ""
    wall_ns: int = 0


GateEntry: TypeAlias = GateBegun | CheckpointCleared | ClearanceRefused | Promoted | RolledBack
"""Everything that can be a leaf of a gate's log."""
