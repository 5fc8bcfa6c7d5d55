"""The nouns of TrainWarden: frozen records that every other module reads and none changes.

Rules
-----
* Pure data. No clock, file system, network or torch in this module.
* A `StepRecord` is a *claim* by a possibly hostile rank. A `Finding` is a *suspicion*. Only a `Verdict`
  from replay is *evidence*. Code that consumes verdicts uses `match` and `assert_never`.
* What was not seen is said: a `StageDigest` without a root carries the reason in `unseen`.
* Times are integer nanoseconds since the Unix epoch; digests are lower-case hex.
"""

from __future__ import annotations

from trainwarden.model.actors import (
    Actor,
    ActorEnrolled,
    ActorKind,
    KeyRevoked,
    KeyRotated,
    PolicySet,
    RegistryBegun,
    RegistryEntry,
)
from trainwarden.model.base import (
    STAGES,
    Noun,
    Stage,
)
from trainwarden.model.checkpoints import (
    Checkpoint,
    Standing,
)
from trainwarden.model.entries import (
    UNREADABLE,
    Entry,
    Leaf,
    LoggedEntry,
    RecordBatch,
    Sealed,
    TreeHead,
    canonical,
    decode_entry,
    decode_leaf,
    decode_registry_entry,
)
from trainwarden.model.findings import (
    Confidence,
    Finding,
    Severity,
)
from trainwarden.model.happenings import (
    Approved,
    CheckpointLoaded,
    CheckpointSaved,
    CleanRoom,
    CodeDifference,
    CodeSeen,
    DataOpened,
    Deviation,
    FileChanged,
    ProcessExited,
    ProcessSeen,
    ProcessStarted,
    RunEnded,
    Writer,
)
from trainwarden.model.notes import (
    ModelSeen,
    Note,
    PartDiffers,
    PrecisionSeen,
    ReductionKey,
)
from trainwarden.model.reductions import (
    ReductionFault,
    ReductionSeen,
)
from trainwarden.model.responses import (
    Quarantined,
    Recovered,
    Restored,
)
from trainwarden.model.sealed import (
    Approval,
    ApprovalPolicy,
    ComparisonPolicy,
    FileEntry,
    Manifest,
    ManifestRef,
    Numerics,
    Seal,
    Signature,
    SignedSeal,
)
from trainwarden.model.steps import (
    BUFFERS,
    DIGEST_BYTES,
    Detail,
    Gap,
    StageDigest,
    StepRecord,
    cut_digests,
)
from trainwarden.model.verdicts import (
    Coverage,
    Diverged,
    Explanation,
    Hypothesis,
    Inconclusive,
    Location,
    Matched,
    Outcome,
    Segment,
    Verdict,
)

__all__ = [
    "Actor",
    "ActorEnrolled",
    "ActorKind",
    "Approval",
    "ApprovalPolicy",
    "Approved",
    "BUFFERS",
    "Checkpoint",
    "CheckpointLoaded",
    "CheckpointSaved",
    "CleanRoom",
    "CodeDifference",
    "CodeSeen",
    "ComparisonPolicy",
    "Confidence",
    "Coverage",
    "DIGEST_BYTES",
    "DataOpened",
    "Detail",
    "Deviation",
    "Diverged",
    "Entry",
    "Explanation",
    "FileChanged",
    "FileEntry",
    "Finding",
    "Gap",
    "Hypothesis",
    "Inconclusive",
    "KeyRevoked",
    "KeyRotated",
    "Leaf",
    "Location",
    "LoggedEntry",
    "Manifest",
    "ManifestRef",
    "Matched",
    "ModelSeen",
    "Note",
    "Noun",
    "Numerics",
    "Outcome",
    "PartDiffers",
    "PolicySet",
    "PrecisionSeen",
    "ProcessExited",
    "ProcessSeen",
    "ProcessStarted",
    "Quarantined",
    "RecordBatch",
    "Recovered",
    "ReductionFault",
    "ReductionKey",
    "ReductionSeen",
    "RegistryBegun",
    "RegistryEntry",
    "Restored",
    "RunEnded",
    "STAGES",
    "Seal",
    "Sealed",
    "Segment",
    "Severity",
    "Signature",
    "SignedSeal",
    "Stage",
    "StageDigest",
    "Standing",
    "StepRecord",
    "TreeHead",
    "UNREADABLE",
    "Verdict",
    "Writer",
    "canonical",
    "cut_digests",
    "decode_entry",
    "decode_leaf",
    "decode_registry_entry",
]
