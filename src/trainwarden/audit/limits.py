"""What a job uses that is known not to replay bit for bit in every way, or was never tried, and why.

Rules
-----
* Looked at is the sealed code, as text: modules it imports, names it uses, arguments with a plain value. A name that is
  hidden is not found, and libraries in the environment are not searched for what they use themselves.
* A limit is knowledge of this project about a feature, no finding about the job: whether a job replays is tried.
* `docs/frameworks.md` shows the same list.

Trust: the seal's manifest of the code and the store's copies, by their digests. Nothing is imported or run.
"""

from __future__ import annotations

import ast
import os
import warnings
from collections.abc import Iterator, Mapping

import msgspec

from trainwarden.model import Seal
from trainwarden.seal.check import expected
from trainwarden.store import Store


class Limit(msgspec.Struct, frozen=True, kw_only=True):
    """A feature, what of its replays does not hold, and why. `words`: any of them shows its use; none of `unless`."""

    feature: str
    words: tuple[str, ...]
    holds: str
    why: str
    unless: tuple[str, ...] = ()


class Met(msgspec.Struct, frozen=True):
    """A limit that the sealed code meets, first at `place` (file:line)."""

    limit: Limit
    place: str


class Looked(msgspec.Struct, frozen=True):
    """The limits that were met, in how many files they were looked for, and which could not be read."""

    met: tuple[Met, ...] = ()
    files: int = 0
    unread: tuple[str, ...] = ()


LIMITS = (
    Limit(
        feature="loader workers that are kept",
        words=("persistent_workers=True", "dataloader_persistent_workers=True"),
        holds="from the second epoch on it replays from the start only",
        why="what kept workers have drawn and fetched lies in their own memory and is in no snapshot",
    ),
    Limit(
        feature="torchdata `StatefulDataLoader`",
        words=("StatefulDataLoader",),
        holds="with a state of its own, or made before it is iterated, it replays from the start and by the script's "
        "own resume only",
        why="that state lies in the loader and its data set, and only the script saves it",
    ),
    Limit(
        feature="batches dispatched from the first rank (accelerate)",
        words=("dispatch_batches=True",),
        holds="not tried",
        why="the other ranks get their batches in a broadcast, which a replay would have to give each of them",
    ),
    Limit(
        feature="data that is streamed from elsewhere",
        words=("streaming=True",),
        holds="what was streamed cannot be put back, so no checkpoint of it is cleared",
        why="it is in no seal, and may be other bytes tomorrow",
    ),
    Limit(
        feature="`torch.compile`",
        words=("torch.compile", "torch_compile=True"),
        holds="only with the same compiler and instruction set, and never against an eager run",
        why="kernels are generated on the host, and other kernels add in another order",
    ),
    Limit(
        feature="asynchronous checkpoints by a process of their own",
        words=("AsyncCheckpointerType.PROCESS",),
        holds="such checkpoints are a gap and are not cleared",
        why="they are written outside of the ranks that are recorded",
    ),
    Limit(
        feature="checkpoints in remote storage",
        words=("fsspec", "FsspecWriter", "s3fs", "gcsfs"),
        holds="such checkpoints are not seen, or are a gap",
        why="what is compared is files on a disk",
    ),
    Limit(
        feature="FSDP1 (`FullyShardedDataParallel`)",
        words=("FullyShardedDataParallel", "FSDPPlugin", "fsdp="),
        holds="not tried; FSDP2 (`fully_shard`) was",
        why="it trains on flat parameters, and which of the model's tensors a shard holds is not in the record",
    ),
    Limit(
        feature="tensor parallelism",
        words=("parallelize_module", "distribute_tensor"),
        holds="strided shards are compared each by itself, and not as one whole over ranks",
        why="shares that do not depend on the cut are defined for shards that are whole rows",
    ),
    Limit(
        feature="pipelines of stages, and RPC",
        words=("torch.distributed.pipelining", "torch.distributed.rpc", "PipelineStage"),
        holds="not tried",
        why="a rank's inputs are what other ranks computed, and a replay in the middle would need them",
    ),
    Limit(
        feature="weights in memory that processes share",
        words=("share_memory_", "share_memory"),
        holds="it does not replay",
        why="whose update comes first is up to the scheduler of the operating system, and in no record",
    ),
    Limit(
        feature="Lightning with manual optimization",
        words=("manual_backward",),
        holds="not tried",
        why="which passes make a step is then up to the script",
    ),
    Limit(
        feature="engines with optimizers of their own (DeepSpeed, Colossal-AI, Megatron-LM, fairscale)",
        words=("deepspeed", "deepspeed=", "colossalai", "megatron", "fairscale"),
        holds="not tried",
        why="they split weights and states their own way, which the record of a step does not know",
    ),
    Limit(
        feature="training without PyTorch (JAX, TensorFlow)",
        words=("jax", "flax", "tensorflow"),
        holds="it is not guarded, so there is nothing to replay",
        why="what is recorded is the steps of PyTorch's optimizers",
    ),
    Limit(
        feature="a framework's loop in a script that takes no checkpoint (`Trainer`, accelerate, Lightning)",
        words=("transformers.Trainer", "lightning", "pytorch_lightning", "accelerate.Accelerator"),
        unless=("resume_from_checkpoint", "resume_from_checkpoint=", "ckpt_path=", "load_state"),
        holds="it replays, but `recover` starts it from the beginning",
        why="a replay gives the framework the checkpoint; a job that goes on does only what its script says",
    ),
)


def look(store: Store, seal: Seal) -> Looked:
    """Which limits the sealed code meets.

    Raises:
        SealBroken, StoreError, StoreTampered: the manifest of the code, or a file of it, cannot be had.
    """
    words: dict[str, str] = {}
    files, unread = 0, []
    for path, entry in sorted(expected(store, seal, "code").files.items()):
        if not path.endswith(".py") or entry.link:
            continue
        shown = os.path.relpath(path, seal.cwd)
        try:
            found = dict(used(store.get(entry.digest))) if store.has(entry.digest) else None
        except (SyntaxError, ValueError, RecursionError):
            found = None
        if found is None:
            unread.append(shown)
            continue
        files += 1
        for word, line in found.items():
            words.setdefault(word, f"{shown}:{line}")
    return Looked(met=tuple(met(words)), files=files, unread=tuple(unread))


def met(words: Mapping[str, str]) -> Iterator[Met]:
    """The limits that code meets which uses `words`, each with the place of its first use (pure)."""
    for limit in LIMITS:
        places = [words[word] for word in limit.words if word in words]
        if places and not words.keys() & set(limit.unless):
            yield Met(limit, places[0])


def used(source: bytes) -> Iterator[tuple[str, int]]:
    """Yield what a source uses, with the line: modules and the names taken from them, with and without their module;
    names and attributes, also as `a.b`; arguments that are not None as `name=`, and plain ones as `name=value`.

    Raises:
        SyntaxError, ValueError, RecursionError: it is no Python of this version.
    """
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        tree = ast.parse(source)
    for node in reversed(list(ast.walk(tree))):  # a dictionary then keeps the first
        match node:
            case ast.Import(names=names):
                yield from ((part, node.lineno) for name in names for part in _within(name.name))
            case ast.ImportFrom(module=module, names=names):
                yield from ((part, node.lineno) for part in _within(module or ""))
                for name in names:
                    yield from ((word, node.lineno) for word in (name.name, f"{module}.{name.name}"))
            case ast.Attribute(value=ast.Name(id=owner), attr=name):
                yield from ((word, node.lineno) for word in (name, f"{owner}.{name}"))
            case ast.Attribute(attr=name) | ast.Name(id=name):
                yield name, node.lineno
            case ast.keyword(arg=str(name), value=value):
                if not isinstance(value, ast.Constant) or value.value is not None:
                    yield f"{name}=", value.lineno
                if isinstance(value, ast.Constant):
                    yield f"{name}={value.value!r}", value.lineno
            case _:
                pass


def _within(module: str) -> Iterator[str]:
    """`a`, `a.b` and `a.b.c` of `a.b.c`."""
    parts = module.split(".")
    return (".".join(parts[:n]) for n in range(1, len(parts) + 1))
