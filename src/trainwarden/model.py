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

import struct
from enum import StrEnum
from typing import Any, TypeAlias, TypeVar

import msgspec


class Stage(StrEnum):
    """The stages of one optimizer step, in the order in which a step computes them."""

    BATCH = "batch"
    RNG = "rng"
    ACTIVATIONS = "activations"
    LOCAL_GRADIENTS = "local_gradients"
    REDUCED_GRADIENTS = "reduced_gradients"
    HYPERPARAMETERS = "hyperparameters"
    OPTIMIZER_STATE = "optimizer_state"
    WEIGHTS = "weights"
    CHECKPOINT = "checkpoint"


STAGES: tuple[Stage, ...] = tuple(Stage)


class _Noun(msgspec.Struct, frozen=True, kw_only=True, omit_defaults=True):
    pass


# --------------------------------------------------------------------------- seal


class FileEntry(_Noun):
    """One sealed file: path relative to its manifest's root (or absolute), BLAKE3 digest, size in bytes."""

    path: str
    digest: str
    size: int
    mode: int = 0o644
    link: str = ""  # target, when the entry is a symbolic link (digest is then that of the target text)
    inert: bool = False  # a .pyc that Python ignores: its header does not fit the source beside it


class ManifestRef(_Noun):
    """A manifest kept in the object store: what it covers and the digest that names it."""

    kind: str  # "code" | "environment" | "data"
    digest: str  # of the manifest's canonical bytes; also its name in the object store
    files: int
    bytes: int
    roots: tuple[str, ...] = ()  # absolute folders that the entries' paths are relative to, in the manifest's order


class Manifest(_Noun):
    """A list of files. `roots[i]` is the absolute folder of the entries in `trees[i]`."""

    kind: str
    roots: tuple[str, ...]
    trees: tuple[tuple[FileEntry, ...], ...]


class Numerics(_Noun):
    """What decides the last bits of a result on this machine; an exact replay on another one is refused."""

    machine: str = ""
    cpu: str = ""
    isa: str = ""
    threads: int = 0
    torch: str = ""
    python: str = ""
    accelerator: str = ""


class ComparisonPolicy(_Noun):
    """How a replay is compared, fixed before the run. Exact is the default; a tolerance is the attacker's budget."""

    exact: bool = True
    activations_every: int = 16  # steps between sampled activations on average, chosen by a keyed PRF; 0 = never


class Signature(_Noun):
    """An Ed25519 signature (RFC 8032) by `key` (hex public key) over the canonical bytes of what it approves."""

    key: str
    signature: str
    actor: str = ""


class ApprovalPolicy(_Noun):
    """How many of which actors must approve a seal; `registrar` signed the log that says which keys are theirs."""

    approvals: int = 0  # 0: none is needed
    approvers: tuple[str, ...] = ()
    registrar: str = ""


class Seal(_Noun):
    """The approved inputs of a run, by digest."""

    created_ns: int
    argv: tuple[str, ...]
    cwd: str
    interpreter: str  # absolute path of the Python that the command runs
    code: ManifestRef
    environment: ManifestRef
    data: ManifestRef
    env_vars: dict[str, str] = {}
    git_commit: str = ""
    git_dirty: str = ""  # digest of `git diff HEAD` in the object store, or ""
    seeds: dict[str, int] = {}
    start_checkpoint: str = ""
    world: int = 0  # 0: not stated by the command
    comparison: ComparisonPolicy = ComparisonPolicy()
    numerics: Numerics = Numerics()
    approval: ApprovalPolicy = ApprovalPolicy()


class SignedSeal(_Noun):
    """A seal with the signatures of its approvers; `digest` is the BLAKE3 of the seal's canonical bytes."""

    seal: Seal
    digest: str
    signatures: tuple[Signature, ...] = ()


class Approval(_Noun):
    """One actor's approval of one seal. Signed (Ed25519) are `trainwarden/approval/v1`, a line feed, and the canonical
    bytes of this with `signature` left out."""

    seal: str
    actor: str
    key: str
    wall_ns: int = 0  # as the approver's clock had it: a claim
    signature: str = ""


# --------------------------------------------------------------------------- actors


class ActorKind(StrEnum):
    PERSON = "person"
    AGENT = "agent"
    SERVICE = "service"


class Actor(_Noun):
    """Somebody or something that signs: a person, an AI agent or a service, and its present public key."""

    name: str
    kind: ActorKind
    key: str


class RegistryBegun(_Noun, tag="registry"):
    """First entry of a log of actors: the key of the registrar, who alone appends to it."""

    key: str
    wall_ns: int = 0


class ActorEnrolled(_Noun, tag="enrolled"):
    """An actor and its first key. That the key is theirs is the registrar's word."""

    name: str
    kind: ActorKind
    key: str
    wall_ns: int = 0


class KeyRotated(_Noun, tag="rotated"):
    """An actor's key gives way to a new one. Both sign `trainwarden/rotation/v1`, a line feed, and the canonical
    bytes of this with `by_old`, `by_new` and `wall_ns` left out."""

    name: str
    old: str
    new: str
    by_old: str = ""
    by_new: str = ""
    wall_ns: int = 0


class KeyRevoked(_Noun, tag="revoked"):
    """An actor's key counts no more, from this entry on; what it signed since `since_ns` is not believed either."""

    name: str
    key: str
    reason: str
    since_ns: int
    wall_ns: int = 0


class PolicySet(_Noun, tag="policy_set"):
    """The least that every seal in this store demands: at least so many approvals, by none but these."""

    approvals: int
    approvers: tuple[str, ...]
    wall_ns: int = 0


RegistryEntry: TypeAlias = RegistryBegun | ActorEnrolled | KeyRotated | KeyRevoked | PolicySet
"""Everything that can be a leaf of the log of actors."""


# --------------------------------------------------------------------------- records


class StageDigest(_Noun, gc=False):  # like StepRecord: many, and in no cycle, so the collector need not walk them
    """Commitment to one stage. `root` is empty when the stage could not be seen; `unseen` then says why."""

    root: str = ""
    tensors: int = 0
    unseen: str = ""


BUFFERS = "buffer/"
"""How the names of buffers begin in the stage `weights`."""


class StepRecord(_Noun, tag="step", gc=False):
    """One rank's claim about one optimizer step.

    `step` counts optimizer steps of the job from its very start, across restarts. `optimizer` tells several
    optimizers of one step apart. `hyper` holds the parameter groups' settings in the clear.
    """

    attempt: int
    rank: int
    world: int
    step: int
    optimizer: int
    seq: int
    stages: dict[Stage, StageDigest]
    loss: float | None = None
    hyper: tuple[dict[str, Any], ...] = ()
    skipped: bool = False  # the gradient scaler refused the step
    micro_batches: int = 0
    wall_ns: int = 0
    duration_ns: int = 0  # wall time since this rank's previous record
    cpu_ns: int = 0  # CPU time of this process over the same interval
    recorder_ns: int = 0  # wall time the recorder itself spent in it
    before: str = ""  # root over the weights as the step's first forward found them, "" = not looked at
    found: dict[str, str] = {}  # the first of those that no longer were as last recorded: name → digest
    left: str = ""  # root over the weights without buffers, "" = the stage `weights` holds none

    @property
    def parameters(self) -> str:
        """The root over the weights that the optimizer moves, buffers left out; "" when they were not seen."""
        weights = self.stages.get(Stage.WEIGHTS)
        return self.left or (weights.root if weights else "")


DIGEST_BYTES = 16  # of a tensor's digest


class Detail(_Noun):
    """The per-tensor digests under a `StageDigest.root`, kept locally beside the log."""

    names: tuple[str, ...]
    digests: tuple[bytes, ...]


def cut_digests(data: bytes, count: int) -> tuple[bytes, ...]:
    """`count` tensor digests out of bytes that hold them end to end.

    Raises:
        ValueError: the bytes do not hold just as many.
    """
    if len(data) != count * DIGEST_BYTES:
        raise ValueError(f"{len(data)} bytes of digests for {count} names")
    return struct.unpack(f"{DIGEST_BYTES}s" * count, data)


class Gap(_Noun, tag="gap"):
    """Something that should have been recorded was not. A gap is a finding, never a pass."""

    attempt: int
    rank: int
    step: int
    reason: str


class ProcessStarted(_Noun, tag="process"):
    """A rank came to life: everything needed to start it again elsewhere, private values left out."""

    attempt: int
    rank: int
    world: int
    pid: int
    argv: tuple[str, ...]  # sys.orig_argv
    cwd: str
    executable: str
    env_digest: str  # of the environment variables; their values stay in the run's private folder
    numerics: Numerics
    wall_ns: int = 0


class CheckpointSaved(_Noun, tag="checkpoint_saved"):
    """A file of model or training state written by a rank, hashed as a file by the supervisor."""

    attempt: int
    rank: int
    step: int  # optimizer steps done when it was written
    path: str
    digest: str
    size: int
    format: str  # "safetensors" | "torch" | "other"
    weights: str = ""  # "matches": every recorded weight digest is in the file; "differs: …"; "" = not checked
    sidecar: str = ""  # digest of the recorder's own complement (RNG, loader position) in the object store
    renamed_from: str = ""  # where it stood before, when this is a rename of a file told of earlier
    reached: int = -1  # steps of this rank that had arrived when it told of the file, −1 = not noted


class CheckpointLoaded(_Noun, tag="checkpoint_loaded"):
    """A file of state read by a rank; `known_step` is the step it was recorded at, −1 when the log does not know it."""

    attempt: int
    rank: int
    path: str
    digest: str
    known_step: int = -1


class DataOpened(_Noun, tag="data_opened"):
    """A data file that a rank opened and the seal did not list. `changed_ns`: when its inode last changed."""

    attempt: int
    rank: int
    path: str
    digest: str
    size: int
    changed_ns: int = 0


class ProcessExited(_Noun, tag="exit"):
    """A rank or the launch command ended: `code` is its exit status, negative for a signal."""

    attempt: int
    rank: int  # −1: the launch command itself
    pid: int
    code: int
    reason: str = ""
    wall_ns: int = 0
    known: bool = True  # False: the status went to another parent; `code` is then −1 and says nothing
    goodbye: bool = False  # the rank said that it ends in order
    stopping: int = 0  # the signal with which the run was being stopped from outside when it ended, 0 for none


class Writer(_Noun):
    """The process that the kernel named when a file was changed. −1 and "" where it was gone before it was looked at.

    A process is not a person: `login_uid` is who logged in, `uid` as whom it ran when it wrote.
    """

    pid: int
    uid: int = -1
    login_uid: int = -1
    program: str = ""
    argv: tuple[str, ...] = ()


class FileChanged(_Noun, tag="file_changed"):
    """A sealed file that is no longer what was sealed; the changed bytes are kept in quarantine."""

    path: str
    kind: str  # "environment" | "code" | "data"
    sealed: str  # digest in the seal, "" when the file is new
    found: str  # digest now, "" when the file is gone
    wall_ns: int = 0
    uid: int = -1  # the file's owner
    mtime_ns: int = 0
    writer: Writer | None = None
    untold: str = ""  # why there is no writer


class Approved(_Noun, tag="approved"):
    """The approvals with which the run began; `actors` is the size of the log of actors that they were judged by."""

    seal: str
    approvals: tuple[Approval, ...]
    actors: int = 0
    wall_ns: int = 0


class CleanRoom(_Noun, tag="clean_room"):
    """The command runs in an environment rebuilt from the store, read-only, and not in the shared one."""

    kind: str  # "namespace": shown over the sealed places; "copy": beside them
    path: str
    covered: tuple[str, ...]  # sealed places that the command sees from the room
    left: tuple[str, ...] = ()  # sealed folders that it still sees as they are on the shared disk
    reason: str = ""  # why it is a copy
    wall_ns: int = 0


class CodeDifference(_Noun):
    """A function in a rank's memory that sealed source does not account for, and the names it was found under.

    `kind`: "unsealed" (of a file that the seal does not list), "planted" (such code under a sealed module's name),
    "altered" (of a sealed file that does not say so), "generated" (of no file), "defaults", "globals" (of another
    module), "replaced" (no function any more), "moved" (sealed code in another's place).
    """

    kind: str
    slots: tuple[str, ...]  # the first few of the names
    places: int  # how many names
    function: str = ""
    file: str = ""
    line: int = 0
    sealed_file: str = ""  # where the function that belongs there is defined
    sealed_line: int = 0
    at: str = ""  # the first instruction, default or part that differs
    sealed: str = ""  # its text in sealed source
    live: str = ""  # and in memory


class CodeSeen(_Noun, tag="code_seen"):
    """The code in a rank's memory, compared by the supervisor with what sealed source compiles to."""

    attempt: int
    rank: int
    step: int
    root: str  # BLAKE3 over every name and the functions that it holds
    names: int
    functions: int
    unchecked: int  # names whose code is made at run time or has no file: not compared
    differences: tuple[CodeDifference, ...] = ()  # what this look found new
    more: int = 0  # differences beyond those listed
    wall_ns: int = 0


class Deviation(_Noun):
    """Something about a process that the seal does not account for.

    `kind`: "library", "generated" (a library that a compiler made while training), "deleted", "system" (a system
    library changed after the seal), "environment", "interpreter".
    """

    kind: str
    name: str  # path or variable
    expected: str = ""
    found: str = ""  # digest of the file, or the value
    bytes: int = 0


class ProcessSeen(_Noun, tag="process_seen"):
    """A rank's process as /proc shows it: its mapped native code, interpreter and environment, against the seal."""

    attempt: int
    rank: int
    pid: int
    libraries: int  # files mapped as code
    sealed: int  # of these, sealed
    system: int  # of these, system libraries older than the seal, which it does not list
    writable: int = 0  # bytes of memory without a file that is writable and executable; compilers make it, oneDNN too
    deviations: tuple[Deviation, ...] = ()  # what this look found new
    wall_ns: int = 0


class RunEnded(_Noun, tag="run_ended"):
    """The launch command's end as the supervisor saw it, with the number of records logged."""

    code: int
    records: int
    wall_ns: int


# --------------------------------------------------------------------------- findings and verdicts


class Severity(StrEnum):
    INFO = "info"
    LOW = "low"
    MEDIUM = "medium"
    HIGH = "high"


class Confidence(StrEnum):
    LOW = "low"
    MEDIUM = "medium"
    HIGH = "high"


class Finding(_Noun, tag="finding"):
    """A suspicion raised by one detector. It accuses nobody and proves nothing by itself."""

    detector: str
    severity: Severity
    confidence: Confidence
    seen: str  # one plain sentence: what was seen
    expected: str  # one plain sentence: what was expected
    step: int = -1
    attempt: int = -1
    ranks: tuple[int, ...] = ()
    stage: Stage | None = None
    tensor: str = ""
    evidence: tuple[int, ...] = ()  # log indexes
    benign: tuple[str, ...] = ()  # benign explanations not yet excluded
    wall_ns: int = 0


class Segment(_Noun):
    """Steps `first … last` (both included) of one attempt, between two checkpoints or ends."""

    attempt: int
    first: int
    last: int
    run: str = ""  # set only in the lineage of a later run; "" = the run whose log this is


class Location(_Noun):
    """Where a replay first differs from the record."""

    step: int
    rank: int
    stage: Stage
    tensor: str = ""
    optimizer: int = 0
    recorded: str = ""  # digest
    replayed: str = ""  # digest
    tensors: tuple[str, ...] = ()  # every tensor of that stage that differs
    before: bool = False  # the weights as the step's first forward found them: they were edited before it

    @property
    def subject(self) -> str:
        """The stage in words."""
        return "weights changed before the step" if self.before else self.stage.replace("_", " ")

    @property
    def words(self) -> str:
        """The stage and its tensor in words."""
        if self.before and self.tensor:
            return f"weights of {self.tensor}, changed before the step"
        return f"{self.subject} of {self.tensor}" if self.tensor else self.subject

    @property
    def order(self) -> int:
        """Where in the step it lies: the stage's place among `STAGES`, −1 for what lay before the step."""
        return -1 if self.before else STAGES.index(self.stage)


class Coverage(_Noun):
    """What a comparison looked at: digests compared, and stages that could not be compared with the reason."""

    records: int = 0
    digests: int = 0
    unseen: dict[str, str] = {}  # stage → why it was not compared


class Matched(_Noun, tag="matched"):
    """The replay of this segment from sealed inputs reproduced every recorded digest bit for bit."""

    segment: Segment
    coverage: Coverage
    mode: str = ""  # "start" | "resume" | "substitution"
    seconds: float = 0.0
    files: tuple[str, ...] = ()  # recorded digests of the checkpoint files that the replay wrote again


class Diverged(_Noun, tag="diverged"):
    """The replay of this segment from sealed inputs differs from the record at `at`."""

    segment: Segment
    at: Location
    coverage: Coverage
    mode: str = ""
    seconds: float = 0.0


class Inconclusive(_Noun, tag="inconclusive"):
    """The segment could not be decided; never read as a pass."""

    segment: Segment
    reasons: tuple[str, ...]
    mode: str = ""
    seconds: float = 0.0


Verdict: TypeAlias = Matched | Diverged | Inconclusive


class Outcome(StrEnum):
    """How a hypothesis fared: reproduced the tampered digest, did not, or could not be tried."""

    REPRODUCED = "reproduced"
    EXCLUDED = "excluded"
    NOT_TRIED = "not tried"


class Hypothesis(_Noun):
    """One tried cause of a divergence and its result."""

    name: str
    sentence: str
    outcome: Outcome
    parameters: dict[str, Any] = {}
    tried: int = 1  # how many settings were tried under this name
    digest: str = ""  # the closest digest produced, when one was
    reason: str = ""  # why it was not tried


class Explanation(_Noun, tag="explanation"):
    """What reproduced the diverging step. `cause` is None when none of the hypotheses did."""

    at: Location
    hypotheses: tuple[Hypothesis, ...]
    cause: str | None  # name of the hypothesis that reproduced the digest bit for bit
    file: str = ""  # the tampered file that reproduces it, when one was in quarantine
    seconds: float = 0.0


# --------------------------------------------------------------------------- checkpoints


class Standing(StrEnum):
    """What is known of a checkpoint: cleared needs *every* segment back to the seal to be Matched."""

    CLEARED = "cleared"
    TAINTED = "tainted"
    UNAUDITED = "unaudited"
    UNDECIDED = "undecided"


class Checkpoint(_Noun):
    """A step's checkpoint: its files, the segments it stands on (oldest first), and its standing."""

    step: int
    attempt: int
    files: tuple[CheckpointSaved, ...]
    lineage: tuple[Segment, ...]
    standing: Standing
    reason: str = ""


class Recovered(_Noun, tag="recovered"):
    """A run was taken back to `from_step` and resumed as run `new_run` in the sealed environment."""

    from_step: int
    new_run: str
    checkpoint: str
    wall_ns: int = 0


class Quarantined(_Noun, tag="quarantined"):
    """An artefact moved out of the way, by digest; nothing is ever deleted."""

    path: str
    digest: str
    reason: str
    wall_ns: int = 0


class Restored(_Noun, tag="restored"):
    """A file put back from the store: as it was sealed, or as a cleared checkpoint had it."""

    path: str
    digest: str
    wall_ns: int = 0


class Sealed(_Noun, tag="sealed"):
    """First entry of every log: the seal by digest and the key that signed it."""

    run: str
    seal: str
    key: str
    parent: str = ""  # run this one recovers, if any
    wall_ns: int = 0


Entry: TypeAlias = (
    Sealed | ProcessStarted | StepRecord | Gap | CheckpointSaved | CheckpointLoaded | DataOpened
    | ProcessExited | FileChanged | CodeSeen | ProcessSeen | CleanRoom | Approved | Finding | Matched | Diverged
    | Inconclusive | Explanation | Quarantined | Restored | Recovered | RunEnded
)  # fmt: skip
"""Everything that can be a leaf of the log. Each has its own `type` tag."""


class TreeHead(_Noun):
    """A signed statement of the log's size and RFC 6962 root."""

    origin: str
    size: int
    root: str  # hex SHA-256
    note: str = ""  # the signed note (C2SP signed-note) that carries it


# --------------------------------------------------------------------------- leaves of a log server


class RecordBatch(_Noun, tag="records"):
    """The one leaf that binds a Parquet file of step records: entries `first` to `last` of a host's log of a run."""

    host: str
    run: str
    first: int  # log indexes on the host; every entry from first to last is in the file
    last: int
    count: int
    leaves: str  # RFC 6962 root over the leaf hashes that these entries have in the host's log
    sha256: str  # of the Parquet file
    size: int  # of the Parquet file, in bytes
    head: str = ""  # the signed tree head of the host's log that covers them


class LoggedEntry(_Noun, tag="entry"):
    """Entry `index` of a host's log of a run; a large one travels as the leaf's object, or stays on the host."""

    host: str
    run: str
    index: int
    leaf: str  # its RFC 6962 leaf hash in the host's log
    size: int  # in bytes
    entry: str = ""  # its bytes as text; "" when it is too large for a leaf


Leaf: TypeAlias = RecordBatch | LoggedEntry
"""Everything that a host sends to a log server."""


_encoder = msgspec.json.Encoder(order="deterministic")
_entry_decoder: msgspec.json.Decoder[Entry] = msgspec.json.Decoder(Entry)
_leaf_decoder: msgspec.json.Decoder[Leaf] = msgspec.json.Decoder(Leaf)
_registry_decoder: msgspec.json.Decoder[RegistryEntry] = msgspec.json.Decoder(RegistryEntry)


T = TypeVar("T")

UNREADABLE = (msgspec.DecodeError, UnicodeDecodeError, RecursionError)
"""What decoding hostile bytes raises; the last where they are nested without end."""


def canonical(noun: msgspec.Struct) -> bytes:
    """The one byte form of a noun that digests and signatures are made over: JSON, fields as defined, maps sorted."""
    return _encoder.encode(noun)


def decode_entry(data: bytes) -> Entry:
    """Parse the bytes of a log leaf.

    Raises:
        msgspec.DecodeError, msgspec.ValidationError: the bytes are not an entry.
    """
    return _decoded(_entry_decoder, data)


def decode_leaf(data: bytes) -> Leaf:
    """Parse the bytes of a leaf of a log server.

    Raises:
        msgspec.DecodeError, msgspec.ValidationError: the bytes are not such a leaf.
    """
    return _decoded(_leaf_decoder, data)


def decode_registry_entry(data: bytes) -> RegistryEntry:
    """Parse the bytes of a leaf of the log of actors.

    Raises:
        msgspec.DecodeError, msgspec.ValidationError: the bytes are not such an entry.
    """
    return _decoded(_registry_decoder, data)


def _decoded(decoder: msgspec.json.Decoder[T], data: bytes) -> T:
    try:
        return decoder.decode(data)
    except RecursionError as e:
        raise msgspec.DecodeError("nested too deeply") from e
