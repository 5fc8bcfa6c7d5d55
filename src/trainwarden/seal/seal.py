"""Making, writing and reading a seal: the approved inputs of a run, by digest, signed.

Rules
-----
* Every file of environment and code is copied into the store as it is hashed, and of data as much as
  `[seal] keep_data_mb` allows, so that a clean room can be rebuilt from the seal alone.
* What is signed is the seal's canonical JSON; it names the manifests by digest, they name the files.
* Of the environment variables only those that decide results are kept, and none that looks like a secret.

Trust: whoever signs approves what is on disk at that moment, malicious or not. The log shows who signed.
"""

from __future__ import annotations

import os
import re
import time
from pathlib import Path

import msgspec
from blake3 import blake3

from trainwarden.config import Config
from trainwarden.durable import hint_for, write_atomically
from trainwarden.errors import SealBroken, SignatureInvalid, StoreError, UsageError
from trainwarden.keys import SigningKey, verify_signature
from trainwarden.model import (
    UNREADABLE,
    ApprovalPolicy,
    ComparisonPolicy,
    FileEntry,
    ManifestRef,
    Seal,
    SignedSeal,
    canonical,
)
from trainwarden.seal.cache import Digest, DigestCache, Item, Progress, digest_files, read_digest
from trainwarden.seal.check import cache_of, check_seal
from trainwarden.seal.command import LaunchCommand
from trainwarden.seal.interpreter import ask_interpreter
from trainwarden.seal.latent import pycache_prefix
from trainwarden.seal.manifest import make_manifest, manifest_ref, path_text
from trainwarden.seal.numerics import numerics_of
from trainwarden.seal.pyc import fits_source, source_of
from trainwarden.seal.scan import (
    SINGLES,
    Boundaries,
    Trees,
    code_roots,
    environment_roots,
    git,
    scan_code,
    scan_data,
    scan_environment,
)
from trainwarden.store import Store

__all__ = ["check_seal", "read_seal", "relevant_env", "seal_command", "write_seal"]

_ENV = re.compile(
    r"(PYTHON|OMP_|MKL_|TORCH|PYTORCH_|NCCL_|GLOO_|CUDA_|CUBLAS_|CUDNN_|NVIDIA_TF32|LD_|HF_|TOKENIZERS_|ATEN_|DNNL_"
    r"|GCONV_PATH$|OPENSSL_|ONEDNN_|KMP_|OPENBLAS_|VECLIB_|NUMEXPR_|TRITON_|ACCELERATE_|MASTER_|WORLD_SIZE$|TZ$|LANG$|LC_).*"
)
_SECRET = re.compile(r"(^|_)(TOKENS?|SECRETS?|PASSWORDS?|PASSWD|KEYS?|CREDENTIALS?|AUTH)($|_)")

AGAIN = "name a seal.json, or make a seal: trainwarden seal -- CMD"
_EVIDENCE = "it was changed after it was signed: keep it as evidence, and restore a good copy"


def seal_command(
    store: Store,
    command: LaunchCommand,
    config: Config,
    key: SigningKey,
    progress: Progress | None = None,
    start_checkpoint: str = "",
    approval: ApprovalPolicy | None = None,
) -> SignedSeal:
    """Seal a launch command's environment, code and data as they are now, and sign that.

    Raises:
        UsageError: something that belongs to the seal cannot be read, or there is too much code.
        StoreError: the store cannot be written.
    """
    interpreter = ask_interpreter(command.interpreter, command.cwd, command.env)
    bounds = Boundaries(frozenset({str(store.path), *environment_roots(interpreter)}))
    code = scan_code(code_roots(command, config), bounds, command.outputs, command.script)
    environment = scan_environment(interpreter, command, code, bounds)
    data = scan_data(command, config, code, tuple(environment), bounds)
    kinds = {"environment": environment, "code": code, "data": data}
    prefix = pycache_prefix(command.argv, command.env, command.cwd)
    refs = _put_trees(store, kinds, config.seal.keep_data_mb * 1_000_000, progress, prefix)
    commit, dirty = _git_state(store, next(iter(code)))
    store.sync()
    seal = Seal(
        created_ns=time.time_ns(),
        argv=command.argv,
        cwd=command.cwd,
        interpreter=interpreter.executable,
        code=refs["code"],
        environment=refs["environment"],
        data=refs["data"],
        env_vars=relevant_env(command.env),
        git_commit=commit,
        git_dirty=dirty,
        seeds=command.seeds,
        start_checkpoint=start_checkpoint,
        world=command.world,
        comparison=ComparisonPolicy(activations_every=config.record.activations_every),
        numerics=numerics_of(interpreter, command.env),
        approval=approval or ApprovalPolicy(),
    )
    return sign_seal(seal, key)


def sign_seal(seal: Seal, key: SigningKey) -> SignedSeal:
    """Sign a seal's canonical bytes."""
    data = canonical(seal)
    return SignedSeal(seal=seal, digest=blake3(data).hexdigest(), signatures=(key.sign(data),))


def relevant_env(env: dict[str, str]) -> dict[str, str]:
    """The environment variables that decide results.

    Raises:
        UsageError: one of them is not UTF-8.
    """
    kept = {k: v for k, v in sorted(env.items()) if _ENV.fullmatch(k) and not _SECRET.search(k)}
    for name, value in kept.items():
        try:
            (name + value).encode()
        except UnicodeEncodeError:
            raise UsageError(f"the environment variable {name!r} is not valid UTF-8", hint="unset it") from None
    return kept


def write_seal(path: Path, seal: SignedSeal) -> None:
    """Write a signed seal, whole or not at all.

    Raises:
        StoreError: it cannot be written.
    """
    try:
        write_atomically(path, canonical(seal))
    except OSError as e:
        raise StoreError(f"cannot write the seal {path}: {e.strerror}", hint=hint_for(e)) from e


def read_seal(path: Path, public_key: str) -> SignedSeal:
    """Read a seal and check its digest and that `public_key` signed it.

    Raises:
        UsageError: there is no such file.
        SealBroken: it was altered or is no seal.
        SignatureInvalid: `public_key` did not sign it, or the signature is not over these bytes.
    """
    try:
        data = path.read_bytes()
    except OSError as e:
        raise UsageError(f"cannot read the seal {path}: {e.strerror}", hint=hint_for(e)) from e
    try:
        signed = msgspec.json.decode(data, type=SignedSeal)
    except UNREADABLE as e:
        raise SealBroken(f"{path} is not a seal: {e}", hint=AGAIN) from e
    if canonical(signed) != data:
        raise SealBroken(f"{path} is not in canonical form: bytes were added or altered", hint=_EVIDENCE)
    found = blake3(canonical(signed.seal)).hexdigest()
    if found != signed.digest:
        raise SealBroken(f"the seal in {path} has digest {found}, it states {signed.digest}", hint=_EVIDENCE)
    by_key = [s for s in signed.signatures if s.key == public_key]
    if not by_key:
        signers = ", ".join(s.key for s in signed.signatures) or "nobody"
        raise SignatureInvalid(
            f"the seal in {path} is signed by {signers}, expected {public_key}",
            hint="check which key signed this run",
        )
    for signature in by_key:
        verify_signature(signature, canonical(signed.seal), public_key)
    return signed


# ------------------------------------------------------------------------- files


def _put_trees(
    store: Store, kinds: dict[str, Trees], keep_data: int, progress: Progress | None, prefix: str
) -> dict[str, ManifestRef]:
    """Hash and store all files, store the manifests; the references by kind."""
    stored = _stored(store)
    everything = {path: item for trees in kinds.values() for tree in trees.values() for path, item in tree.items()}
    total = sum(i.size for trees in kinds.values() for tree in trees.values() for i in tree.values() if i.link is None)
    before = 0
    refs: dict[str, ManifestRef] = {}
    with cache_of(store) as cache:
        for kind, trees in kinds.items():
            items = [item for tree in trees.values() for item in tree.values()]
            kept = _within(items, keep_data) if kind == "data" else {item.path for item in items}
            digests = _digest_and_store(store, cache, items, kept, stored, _shifted(progress, before, total), kind)
            before += sum(i.size for i in items if i.link is None)
            manifest = make_manifest(
                kind,
                {path_text(root): _entries(root, tree, digests, everything, prefix) for root, tree in trees.items()},
            )
            refs[kind] = manifest_ref(manifest)
            store.put_bytes(canonical(manifest), fsync=False)
    return refs


def _shifted(progress: Progress | None, before: int, total: int) -> Progress | None:
    if progress is None:
        return None
    return lambda done, _total, label: progress(before + done, total, label)


def _within(items: list[Item], budget: int) -> set[str]:
    """The files that are kept: in order of path, each that still fits."""
    kept: set[str] = set()
    for item in sorted(items):
        if item.size <= budget:
            budget -= item.size
            kept.add(item.path)
    return kept


def _digest_and_store(
    store: Store,
    cache: DigestCache,
    items: list[Item],
    kept: set[str],
    stored: set[str],
    progress: Progress | None,
    kind: str,
) -> dict[str, Digest]:
    def read(path: str) -> Digest:
        if path not in kept:
            return read_digest(path)
        digest = store.put_file(Path(path), fsync=False)
        return Digest(digest, _head(store, digest) if path.endswith(".pyc") else b"")

    return digest_files(
        items,
        cache,
        read=read,
        must_read=lambda item, digest: item.path in kept and digest.digest not in stored,
        progress=progress,
        label=f"sealing {kind}",
    )


def _head(store: Store, digest: str) -> bytes:
    with store.object_path(digest).open("rb", buffering=0) as f:
        return f.read(16)


def _stored(store: Store) -> set[str]:
    """The names of all objects, listed at once: asking for forty thousand one by one takes longer."""
    found: set[str] = set()
    with os.scandir(store.objects) as folders:
        for folder in folders:
            if len(folder.name) == 2:
                with os.scandir(folder.path) as objects:
                    found.update(folder.name + entry.name for entry in objects)
    return found


def _entries(
    root: str, tree: dict[str, Item], digests: dict[str, Digest], everything: dict[str, Item], prefix: str
) -> list[FileEntry]:
    start = 1 if root == SINGLES else len(root) + 1
    return [
        FileEntry(
            path=path_text(path[start:]),
            digest=digests[path].digest,
            size=item.size,
            mode=item.mode & 0o7777,
            link=path_text(item.link) if item.link is not None else "",
            inert=path.endswith(".pyc") and _is_inert(path, digests[path].head, everything, prefix),
        )
        for path, item in tree.items()
    ]


def _is_inert(path: str, head: bytes, everything: dict[str, Item], prefix: str) -> bool:
    source = source_of(path, prefix)
    item = everything.get(source[0]) if source else None
    return item is not None and item.link is None and not fits_source(head, item.mtime_ns, item.size)


def _git_state(store: Store, root: str) -> tuple[str, str]:
    """The commit, and the digest of what differs from it ("" when nothing does)."""
    commit = git(root, "rev-parse", "--verify", "HEAD")
    if not commit:
        return "", ""
    diff = git(root, "diff", "--no-ext-diff", "--no-textconv", "--binary", "HEAD")
    return commit.decode().strip(), store.put_bytes(diff, fsync=False) if diff else ""
