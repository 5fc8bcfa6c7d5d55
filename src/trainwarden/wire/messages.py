"""The messages themselves: what a rank says to its watcher, and what it is answered. `connection` encodes them."""

from __future__ import annotations

import os
from typing import Any, TypeAlias

import msgspec

from trainwarden.model import Detail, Note, Numerics, StackFrame, Stage, StepRecord

SAMPLE_BYTES = 16  # of a tensor of a sample: 4 of its type and shape, 12 of its content


class Base(msgspec.Struct, frozen=True, kw_only=True, omit_defaults=True):
    pass


class Start(Base, tag="start"):
    """May this Python process import torch? Sent before torch's first line runs."""

    pid: int
    argv: tuple[str, ...]


class Go(Base, tag="go"):
    """Yes."""


class Refuse(Base, tag="refuse"):
    """No: the process must exit with `code` and print `reason`."""

    reason: str
    code: int = 78  # EX_CONFIG


class Join(Base, tag="join"):
    """A process that is about to train introduces itself as a rank (when its first optimizer is made)."""

    pid: int
    rank: int
    world: int
    argv: tuple[str, ...]
    cwd: str
    executable: str
    env: dict[str, str]
    numerics: Numerics


class Joined(Base, tag="joined"):
    """The rank's place in the run; `plan` is a replay plan (JSON) or empty when this is a live run."""

    attempt: int
    key: bytes
    run_dir: str
    activations_every: int
    snapshot_every: int
    plan: bytes = b""
    snapshot_share: float = 0.0  # of training time that full snapshots may take, 0 = whatever they take
    snapshot_mib: int = 0  # of full snapshots on disk, all ranks of a host together
    code_every: int = 0  # steps between looks at the code in memory on average, 0 = never
    every_sample: bool = False  # digest every sample of a batch, and not a choice of them


class LiveFunction(msgspec.Struct, frozen=True, array_like=True):
    """A function as it lives in a rank: where it says it comes from, its form's digest, its defaults as text."""

    file: str
    qualname: str
    line: int
    digest: bytes
    defaults: tuple[str, ...]
    keywords: tuple[tuple[str, str], ...]
    home: str  # name of the module whose globals it uses


class Slot(msgspec.Struct, frozen=True, array_like=True):
    """What a name holds: the type of its value and the functions in it by number, outermost first."""

    kind: str
    functions: tuple[int, ...]


class Code(Base, tag="code"):
    """What is new of the code in a rank's memory since its last look. Functions are numbered as they are told."""

    step: int
    magic: bytes
    optimize: int
    functions: tuple[LiveFunction, ...] = ()
    forms: tuple[bytes, ...] = ()  # of each function (`codeform.form_text`)
    slots: dict[str, Slot] = {}
    gone: tuple[str, ...] = ()
    classes: dict[str, tuple[str, ...]] = {}  # class → its bases in order
    modules: dict[str, str] = {}  # module → its file


class Cut(msgspec.Struct, frozen=True, array_like=True):
    """Elements of tensors of one dtype (torch's name of it), little-endian, end to end; `shape` of whole tensors."""

    dtype: str
    data: bytes
    shape: tuple[int, ...] = ()


class Batch(msgspec.Struct, frozen=True, array_like=True):
    """The same elements of tensors that one rule moves alike: `counts[i]` of tensor `names[i]` from `starts[i]` on.

    `values`: `weight`, `gradient` and `before/KEY` (state) as the update found them, `left` and `after/KEY` as it left
    them, `gradient_left` where it is another. `numbers`: state that is one number for each tensor, under such names.
    Without a `gradient` the tensors have none. `whole`: one tensor with all of its state, each with its shape.
    """

    group: int
    names: tuple[str, ...]
    starts: tuple[int, ...]
    counts: tuple[int, ...]
    values: dict[str, Cut]
    numbers: dict[str, Cut]
    whole: bool = False


class Updated(Base, tag="updated"):
    """What an optimizer's update did to a few slices of its tensors."""

    step: int
    optimizer: int
    kind: str  # module and name of its class
    bases: tuple[str, ...] = ()  # the names of the classes below it
    settings: tuple[dict[str, Any], ...] = ()  # of each parameter group, as the update found them
    scale: float = 1.0  # the gradients were this many times those that the update used
    unseen: str = ""  # why no slice could be taken
    batches: tuple[Batch, ...] = ()


class Step(Base, tag="step"):
    """A step record (its `step` is the index within this process) and the per-tensor digests under its roots."""

    record: StepRecord
    details: dict[Stage, Detail]


def identity_of(path: str) -> tuple[int, int, int]:
    """Inode, size and mtime in ns of a file, by which both ends know the same bytes. Raises OSError when it is gone."""
    status = os.stat(path)
    return status.st_ino, status.st_size, status.st_mtime_ns


class Saved(Base, tag="saved"):
    """A state file was written (or renamed to `path`). `weights_seq` is the last record before it, −1 for none.

    `identity`: what `identity_of` said when it was told; zeros when it was gone at once.
    """

    path: str
    step: int  # records' steps done in this process
    format: str
    weights_seq: int = -1
    identity: tuple[int, int, int] = (0, 0, 0)
    renamed_from: str = ""
    sidecar: str = ""  # path of the recorder's complement, below run_dir


class Loaded(Base, tag="loaded"):
    """A state file was read; answered with `Known`."""

    path: str


class Known(Base, tag="known"):
    """The step that the log knows this file by, −1 when it does not."""

    step: int


class Opened(Base, tag="opened"):
    """A file outside environment and code was opened for reading."""

    path: str


class Missed(Base, tag="missed"):
    """A gap."""

    step: int
    reason: str


class Pass(Base, tag="pass"):
    """A rank is about to draw the first indexes of a pass over a data loader: what decides their order."""

    step: int
    number: int  # of the pass in this process
    loader: int  # of the loader in this process
    data: int  # of the data set in this process
    dataset: str  # class
    sampler: str  # class
    order: str = ""  # "sequential" | "random" | "distributed" | "" = not derivable
    exact: bool = True  # the sampler's class iterates as PyTorch's own does
    unordered: str = ""  # why the order cannot be derived
    samples: int = -1
    length: int = -1  # samples that the sampler hands out, −1 = all of its part
    seed: int | None = None
    epoch: int = 0
    shuffle: bool = True
    replicas: int = 1
    part: int = 0
    even: bool = False
    batch: int = 0
    drop_last: bool = False
    state: bytes = b""  # of the generator that a random order is drawn from
    drawn: bool = False  # the order's own seed is first drawn from it


class Given(Base, tag="given"):
    """A batch of a pass was handed out: the indexes of its samples, and digests of some of them."""

    step: int
    number: int  # of the pass
    batch: int  # which one of it; the count of them where it says that the pass has ended
    indexes: bytes = b""  # 8 bytes each, little-endian
    names: tuple[str, ...] = ()  # of the tensors of a sample
    rows: bytes = b""  # places in the batch of the samples digested, 4 bytes each
    digests: bytes = b""  # `SAMPLE_BYTES` for each of them and each tensor
    unseen: str = ""  # why there are no digests
    ended: bool = False  # the sampler has no more


class Told(Base, tag="told"):
    """An entry of the log that a rank's observer made; its `step` is the index within this process."""

    note: Note


class SumsOf(msgspec.Struct, frozen=True, array_like=True):
    """Keyed sums over a part of one tensor's gradients: before the reduction, after it, as the optimizer got them.

    `last` is the last reduction of several in the update, empty when there was one; `used` is empty when not seen.
    """

    name: str
    dtype: str
    elements: int
    local: tuple[float, ...]
    reduced: tuple[float, ...]
    last: tuple[float, ...]
    used: tuple[float, ...]


class Sums(Base, tag="sums"):
    """What a rank saw of the reduction in one update, over the gradients of `ranks`; or why it saw nothing."""

    step: int
    optimizer: int = 0
    ranks: tuple[int, ...] = ()
    rows: tuple[SumsOf, ...] = ()
    unchecked: str = ""


class Bye(Base, tag="bye"):
    """The process ends in order after `records` step records; answered with `Go` when all is durable.

    `unrecorded`: updates that its optimizers have counted since they were last recorded.
    """

    records: int
    unrecorded: int = 0


class NextUnit(Base, tag="next_unit"):
    """A replaying rank has run its plan and asks for another; answered with `NewUnit`, when there is one."""


class NewUnit(Base, tag="new_unit"):
    """What a replaying rank does next: a plan (JSON), empty when there is nothing more."""

    plan: bytes = b""


class Acked(Base, tag="acked"):
    """Everything up to record `seq` is durable."""

    seq: int


class Look(Base, tag="look"):
    """The watcher asks a rank, unasked itself, where its threads stand; answered with `Stacks`."""

    token: int


class ThreadStack(msgspec.Struct, frozen=True, array_like=True):
    """Where one thread stands, innermost first."""

    native: int  # the kernel's id of the thread
    name: str
    trains: bool  # it moves the optimizers
    frames: tuple[StackFrame, ...]


class Stacks(Base, tag="stacks"):
    """Where the rank's threads stand, and in which part of a step (`model.PartTimes`) it is."""

    token: int
    part: str
    threads: tuple[ThreadStack, ...]


Plain: TypeAlias = (
    Start | Go | Refuse | Join | Joined | Saved | Loaded | Known | Opened | Missed | Told | Bye | Acked | Code
    | Sums
    | Look | Stacks | Pass | Given | Updated
    | NextUnit | NewUnit
)  # fmt: skip
Message: TypeAlias = Plain | Step


class Names(Base, tag="names"):
    """A list of names, kept in a slot of the connection until the slot is given another."""

    slot: int
    names: tuple[str, ...]


class Row(Base, tag="row"):
    """A step record as it travels, and the digests under it: by stage the slot of the names, all digests as one."""

    record: StepRecord
    details: dict[Stage, tuple[int, bytes]]


Frame: TypeAlias = Plain | Names | Row  # what travels
