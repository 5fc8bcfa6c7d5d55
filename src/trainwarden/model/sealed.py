"""What was approved: manifests, seals, approvals."""

from __future__ import annotations

from trainwarden.model.base import Noun


class FileEntry(Noun):
    """One sealed file: path relative to its manifest's root (or absolute), BLAKE3 digest, size in bytes."""

    path: str
    digest: str
    size: int
    mode: int = 0o644
    link: str = ""  # target, when the entry is a symbolic link (digest is then that of the target text)
    inert: bool = False  # a .pyc that Python ignores: its header does not fit the source beside it


class ManifestRef(Noun):
    """A manifest kept in the object store: what it covers and the digest that names it."""

    kind: str  # "code" | "environment" | "data"
    digest: str  # of the manifest's canonical bytes; also its name in the object store
    files: int
    bytes: int
    roots: tuple[str, ...] = ()  # absolute folders that the entries' paths are relative to, in the manifest's order


class Manifest(Noun):
    """A list of files. `roots[i]` is the absolute folder of the entries in `trees[i]`."""

    kind: str
    roots: tuple[str, ...]
    trees: tuple[tuple[FileEntry, ...], ...]


class Numerics(Noun):
    """What decides the last bits of a result on this machine; an exact replay on another one is refused."""

    machine: str = ""
    cpu: str = ""
    isa: str = ""
    threads: int = 0
    torch: str = ""
    python: str = ""
    accelerator: str = ""


ORDERED = "ordered"
"""The reduction in rank order with parts signed by their senders."""


class ComparisonPolicy(Noun):
    """How a replay is compared, fixed before the run. Exact is the default; a tolerance is the attacker's budget."""

    exact: bool = True
    activations_every: int = 16  # steps between sampled activations on average, chosen by a keyed PRF; 0 = never
    reduction: str = "default"  # how DDP's gradients are added over ranks: "default" (its own way) or `ORDERED`


class Signature(Noun):
    """An Ed25519 signature (RFC 8032) by `key` (hex public key) over the canonical bytes of what it approves."""

    key: str
    signature: str
    actor: str = ""


class ApprovalPolicy(Noun):
    """How many of which actors must approve a seal; `registrar` signed the log that says which keys are theirs."""

    approvals: int = 0  # 0: none is needed
    approvers: tuple[str, ...] = ()
    registrar: str = ""


class Seal(Noun):
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


class SignedSeal(Noun):
    """A seal with the signatures of its approvers; `digest` is the BLAKE3 of the seal's canonical bytes."""

    seal: Seal
    digest: str
    signatures: tuple[Signature, ...] = ()


class Approval(Noun):
    """One actor's approval of one seal. Signed (Ed25519) are `trainwarden/approval/v1`, a line feed, and the canonical
    bytes of this with `signature` left out."""

    seal: str
    actor: str
    key: str
    wall_ns: int = 0  # as the approver's clock had it: a claim
    signature: str = ""
