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

import re
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import msgspec
from blake3 import blake3

from trainwarden.config import Config
from trainwarden.durable import hint_for, write_atomically
from trainwarden.errors import SealBroken, SignatureInvalid, StoreError, UsageError
from trainwarden.keys import SigningKey, verify_signature
from trainwarden.model import UNREADABLE, ApprovalPolicy, ComparisonPolicy, Seal, SignedSeal, canonical
from trainwarden.seal.cache import Progress
from trainwarden.seal.check import check_seal
from trainwarden.seal.command import LaunchCommand
from trainwarden.seal.git import git
from trainwarden.seal.interpreter import ask_interpreter
from trainwarden.seal.latent import pycache_prefix
from trainwarden.seal.numerics import numerics_of
from trainwarden.seal.scan import code_roots, environment_roots, scan_code, scan_data, scan_environment
from trainwarden.seal.trees import put_trees, stored_objects
from trainwarden.seal.walked import SealWalk
from trainwarden.seal.walking import Boundaries
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
    walk: SealWalk | None = None,
) -> SignedSeal:
    """Seal a launch command's environment, code and data as they are now, and sign that; `walk` keeps what was seen.

    Raises:
        UsageError: something that belongs to the seal cannot be read, or there is too much code.
        StoreError: the store cannot be written.
    """
    with ThreadPoolExecutor(1) as pool:  # the objects are listed while the interpreter starts
        asked = pool.submit(ask_interpreter, command.interpreter, command.cwd, command.env)
        stored = stored_objects(store)
        interpreter = asked.result()
    walk = walk or SealWalk()
    bounds = Boundaries(frozenset({str(store.path), *environment_roots(interpreter)}))
    code = scan_code(code_roots(command, config), bounds, command.outputs, command.script)
    environment = scan_environment(interpreter, command, code, bounds.watched_by(walk.folders))
    data = scan_data(command, config, code, tuple(environment), bounds)
    kinds = {"environment": environment, "code": code, "data": data}
    prefix = pycache_prefix(command.argv, command.env, command.cwd)
    refs = put_trees(store, stored, kinds, walk, config.seal.keep_data_mb * 1_000_000, progress, prefix)
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
        comparison=ComparisonPolicy(
            activations_every=config.record.activations_every, reduction=config.record.reduction
        ),
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


def _git_state(store: Store, root: str) -> tuple[str, str]:
    """The commit, and the digest of what differs from it ("" when nothing does)."""
    commit = git(root, "rev-parse", "--verify", "HEAD")
    if not commit:
        return "", ""
    diff = git(root, "diff", "--no-ext-diff", "--no-textconv", "--binary", "HEAD")
    return commit.decode().strip(), store.put_bytes(diff, fsync=False) if diff else ""
