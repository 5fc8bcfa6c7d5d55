"""Messages between a rank and the process that watches it, over a Unix domain socket.

The same protocol serves live recording (the supervisor answers) and replay (the auditor answers).

Rules
-----
* A frame is a 4-byte big-endian length and a msgpack message. A frame above `MAX_FRAME` closes the connection.
* The names under a step's digests hardly ever change: a list of names is sent once, into one of `NAME_SLOTS`
  slots of the connection, and a step refers to the slot. A full table is used again from its beginning.
* `Start`, `Join` and `Loaded` are answered; everything else is sent and not waited for. `Look` alone goes the other
  way, and the rank's `Stacks` come when they can.
* `Acked(seq)` is sent after everything up to and including that record is durable in the log: what was
  acknowledged is never lost.
* A rank is never trusted: the server validates every message and closes the connection on a bad one.
"""

from __future__ import annotations

import os
import re
import socket
import struct
import threading
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any, Protocol, TypeAlias

import msgspec

from trainwarden.model import Detail, Note, Numerics, StackFrame, Stage, StepRecord, cut_digests

MAX_FRAME = 256 * 1024 * 1024
NAME_SLOTS = 1024
MAX_NAMES = 64 * 1024 * 1024  # bytes of names that one connection may have in its slots
SOCKET_ENV = "TRAINWARDEN_SOCKET"
REDUCTION_ENV = "TRAINWARDEN_REDUCTION"  # the seal's way of adding gradients over ranks, known before a rank joins
SAMPLE_BYTES = 16  # of a tensor of a sample: 4 of its type and shape, 12 of its content


class _Message(msgspec.Struct, frozen=True, kw_only=True, omit_defaults=True):
    pass


class Start(_Message, tag="start"):
    """May this Python process import torch? Sent before torch's first line runs."""

    pid: int
    argv: tuple[str, ...]


class Go(_Message, tag="go"):
    """Yes."""


class Refuse(_Message, tag="refuse"):
    """No: the process must exit with `code` and print `reason`."""

    reason: str
    code: int = 78  # EX_CONFIG


class Join(_Message, tag="join"):
    """A process that is about to train introduces itself as a rank (when its first optimizer is made)."""

    pid: int
    rank: int
    world: int
    argv: tuple[str, ...]
    cwd: str
    executable: str
    env: dict[str, str]
    numerics: Numerics


class Joined(_Message, tag="joined"):
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


class Code(_Message, tag="code"):
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


class Updated(_Message, tag="updated"):
    """What an optimizer's update did to a few slices of its tensors."""

    step: int
    optimizer: int
    kind: str  # module and name of its class
    bases: tuple[str, ...] = ()  # the names of the classes below it
    settings: tuple[dict[str, Any], ...] = ()  # of each parameter group, as the update found them
    scale: float = 1.0  # the gradients were this many times those that the update used
    unseen: str = ""  # why no slice could be taken
    batches: tuple[Batch, ...] = ()


class Step(_Message, tag="step"):
    """A step record (its `step` is the index within this process) and the per-tensor digests under its roots."""

    record: StepRecord
    details: dict[Stage, Detail]


def identity_of(path: str) -> tuple[int, int, int]:
    """Inode, size and mtime in ns of a file, by which both ends know the same bytes. Raises OSError when it is gone."""
    status = os.stat(path)
    return status.st_ino, status.st_size, status.st_mtime_ns


class Saved(_Message, tag="saved"):
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


class Loaded(_Message, tag="loaded"):
    """A state file was read; answered with `Known`."""

    path: str


class Known(_Message, tag="known"):
    """The step that the log knows this file by, −1 when it does not."""

    step: int


class Opened(_Message, tag="opened"):
    """A file outside environment and code was opened for reading."""

    path: str


class Missed(_Message, tag="missed"):
    """A gap."""

    step: int
    reason: str


class Pass(_Message, tag="pass"):
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


class Given(_Message, tag="given"):
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


class Told(_Message, tag="told"):
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


class Sums(_Message, tag="sums"):
    """What a rank saw of the reduction in one update, over the gradients of `ranks`; or why it saw nothing."""

    step: int
    optimizer: int = 0
    ranks: tuple[int, ...] = ()
    rows: tuple[SumsOf, ...] = ()
    unchecked: str = ""


class Bye(_Message, tag="bye"):
    """The process ends in order after `records` step records; answered with `Go` when all is durable."""

    records: int


class NextUnit(_Message, tag="next_unit"):
    """A replaying rank has run its plan and asks for another; answered with `NewUnit`, when there is one."""


class NewUnit(_Message, tag="new_unit"):
    """What a replaying rank does next: a plan (JSON), empty when there is nothing more."""

    plan: bytes = b""


class Acked(_Message, tag="acked"):
    """Everything up to record `seq` is durable."""

    seq: int


class Look(_Message, tag="look"):
    """The watcher asks a rank, unasked itself, where its threads stand; answered with `Stacks`."""

    token: int


class ThreadStack(msgspec.Struct, frozen=True, array_like=True):
    """Where one thread stands, innermost first."""

    native: int  # the kernel's id of the thread
    name: str
    trains: bool  # it moves the optimizers
    frames: tuple[StackFrame, ...]


class Stacks(_Message, tag="stacks"):
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


class Names(_Message, tag="names"):
    """A list of names, kept in a slot of the connection until the slot is given another."""

    slot: int
    names: tuple[str, ...]


class Row(_Message, tag="row"):
    """A step record as it travels, and the digests under it: by stage the slot of the names, all digests as one."""

    record: StepRecord
    details: dict[Stage, tuple[int, bytes]]


Frame: TypeAlias = Plain | Names | Row  # what travels
_encoder = msgspec.msgpack.Encoder()
_decoder: msgspec.msgpack.Decoder[Frame] = msgspec.msgpack.Decoder(Frame)


class _Sender:
    """The sending end's table of names."""

    def __init__(self) -> None:
        self._slots: dict[tuple[str, ...], int] = {}

    def frames(self, message: Message) -> bytes:
        if not isinstance(message, Step):
            return _frame(message)
        fresh: list[Names] = []
        details = {stage: (self._slot(d.names, fresh), b"".join(d.digests)) for stage, d in message.details.items()}
        return b"".join(map(_frame, (*fresh, Row(record=message.record, details=details))))

    def _slot(self, names: tuple[str, ...], fresh: list[Names]) -> int:
        slot = self._slots.get(names)
        if slot is None:
            if len(self._slots) == NAME_SLOTS:
                self._slots.clear()
            slot = self._slots[names] = len(self._slots)
            fresh.append(Names(slot=slot, names=names))
        return slot


class _Receiver:
    """The receiving end's table of names."""

    def __init__(self) -> None:
        self._slots: dict[int, tuple[str, ...]] = {}
        self._sizes: dict[int, int] = {}

    def message(self, body: bytes) -> Message | None:
        """The message in a frame; None for a frame that only fills the table."""
        frame = _decoder.decode(body)
        if isinstance(frame, Names):
            self._keep(frame, len(body))
            return None
        if isinstance(frame, Row):
            details = {stage: self._detail(slot, data) for stage, (slot, data) in frame.details.items()}
            return Step(record=frame.record, details=details)
        return frame

    def _keep(self, frame: Names, size: int) -> None:
        if not 0 <= frame.slot < NAME_SLOTS:
            raise ValueError(f"slot {frame.slot} of {NAME_SLOTS}")
        self._slots[frame.slot], self._sizes[frame.slot] = frame.names, size
        if sum(self._sizes.values()) > MAX_NAMES:
            raise ValueError(f"names above the limit of {MAX_NAMES} bytes")

    def _detail(self, slot: int, data: bytes) -> Detail:
        names = self._slots.get(slot)
        if names is None:
            raise ValueError(f"slot {slot} was given no names")
        return Detail(names=names, digests=cut_digests(data, len(names)))


def _frame(message: _Message) -> bytes:
    body = _encoder.encode(message)
    return struct.pack(">I", len(body)) + body


class Connection:
    """One end of the socket. `send` may be called from several threads; `receive` from one."""

    def __init__(self, sock: socket.socket) -> None:
        self._sock = sock
        self._lock = threading.Lock()
        self._sender, self._receiver = _Sender(), _Receiver()

    @classmethod
    def connect(cls, path: str, timeout: float = 10.0) -> Connection:
        """Connect to the server at `path`.

        Raises:
            OSError: nobody listens there.
        """
        sock = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
        sock.settimeout(timeout)
        sock.connect(path)
        return cls(sock)

    def send(self, message: Message) -> None:
        """Write one message. Raises OSError when the other end is gone."""
        with self._lock:
            self._sock.sendall(self._sender.frames(message))

    def receive(self, timeout: float | None = None) -> Message | None:
        """Read one message; None at the end of the stream.

        Raises:
            OSError, TimeoutError: the connection broke or nothing came in `timeout` seconds.
            msgspec.DecodeError, ValueError: the frame is not a message.
        """
        self._sock.settimeout(timeout)
        while (body := self._body()) is not None:
            message = self._receiver.message(body)
            if message is not None:
                return message
        return None

    def _body(self) -> bytes | None:
        head = self._exactly(4)
        if head is None:
            return None
        (length,) = struct.unpack(">I", head)
        if length > MAX_FRAME:
            raise ValueError(f"frame of {length} bytes is above the limit of {MAX_FRAME}")
        return self._exactly(length)

    def peer_pid(self) -> int:
        """The process id at the other end as the kernel reports it (SO_PEERCRED), not as it claims."""
        cred = self._sock.getsockopt(socket.SOL_SOCKET, socket.SO_PEERCRED, struct.calcsize("3i"))
        return int(struct.unpack("3i", cred)[0])

    def close(self) -> None:
        try:
            self._sock.shutdown(socket.SHUT_RDWR)
        except OSError:
            pass
        self._sock.close()

    def _exactly(self, n: int) -> bytes | None:
        parts = bytearray()
        while len(parts) < n:
            chunk = self._sock.recv(min(n - len(parts), 1 << 20))
            if not chunk:
                return None
            parts += chunk
        return bytes(parts)


class Handler(Protocol):
    """What a server does with one connection's messages. Called from that connection's own thread."""

    def message(self, message: Message) -> Message | None:
        """Handle one message; a returned message is sent back."""

    def closed(self, error: str) -> None:
        """The connection ended; `error` is empty when it ended in order."""


class Server:
    """Listens on a Unix socket and runs one thread per connection.

    Linux limits a socket's path to 107 bytes, so the path is chosen by the caller in a short folder.
    """

    def __init__(self, path: Path, make_handler: Callable[[Connection], Handler]) -> None:
        self._make_handler = make_handler
        self._sock = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
        self._sock.bind(str(path))
        os.chmod(path, 0o600)
        self._sock.listen(128)
        self.path = path
        self._threads: list[threading.Thread] = []
        self._open: list[Connection] = []
        self._acceptor = threading.Thread(target=self._accept, daemon=True, name="trainwarden-accept")
        self._acceptor.start()

    def _accept(self) -> None:
        while True:
            try:
                sock, _ = self._sock.accept()
            except OSError:
                return
            connection = Connection(sock)
            thread = threading.Thread(target=self._serve, args=(connection,), daemon=True)
            self._open.append(connection)
            self._threads.append(thread)
            thread.start()

    def _serve(self, connection: Connection) -> None:
        handler = self._make_handler(connection)
        error = ""
        try:
            while (message := connection.receive()) is not None:
                answer = handler.message(message)
                if answer is not None:
                    connection.send(answer)
        except (OSError, ValueError, msgspec.DecodeError, RecursionError) as e:
            error = f"{type(e).__name__}: {e}"
        finally:
            handler.closed(error)
            connection.close()

    def close(self, drain_seconds: float = 10.0) -> None:
        """Stop accepting, let open connections drain for a while, then close them."""
        self._sock.close()
        deadline = drain_seconds / max(1, len(self._threads))
        for thread in self._threads:
            thread.join(deadline)
        for connection in self._open:
            connection.close()
        self.path.unlink(missing_ok=True)


def keep_env(env: dict[str, str]) -> dict[str, str]:
    """The environment without our own variables, as the command's user set it."""
    return {k: v for k, v in env.items() if not k.startswith("TRAINWARDEN_")}


_DECISIVE = re.compile(
    r"(NCCL|GLOO|TORCH|PYTORCH|CUBLAS|CUDNN|ATEN|DNNL|ONEDNN|OMP|MKL|KMP)_\w+|NVIDIA_TF32_OVERRIDE|CUDA_LAUNCH_BLOCKING"
)
_SECRET = re.compile(r"TOKEN|SECRET|PASSW|KEY|CREDENTIAL|AUTH")
_MOST_TEXT = 200


def decisive(env: Mapping[str, str]) -> dict[str, str]:
    """The variables that decide precision and communication, values cut to a length that a log bears."""
    names = sorted(n for n in env if _DECISIVE.fullmatch(n) and not _SECRET.search(n))
    return {n: env[n][:_MOST_TEXT].encode("utf-8", "replace").decode() for n in names}
