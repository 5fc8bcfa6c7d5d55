"""A rank without torch: speaks the recorder's side of `wire`, honestly or not, as its arguments say.

    python fake_rank.py start join:0/2 steps:3 save:/tmp/model.safetensors bye

Each word is an action, done in order. It needs nothing of the guarded environment: our source and msgspec are
found through FAKE_RANK_PATH. What it was answered is printed, one line each, so that tests can wait for it.
"""

from __future__ import annotations

import importlib.util
import json
import os
import signal
import struct
import sys
import time
from collections.abc import Callable

sys.path[:0] = os.environ["FAKE_RANK_PATH"].split(os.pathsep)

from trainwarden import codeform, wire  # noqa: E402
from trainwarden.model import Detail, ModelSeen, Numerics, Stage, StageDigest, StepRecord  # noqa: E402
from trainwarden.record.fingerprint import digest_bytes, stage_root  # noqa: E402

NAMES = ("layer.weight", "layer.bias")


def values(step: int) -> dict[str, bytes]:
    """The weights of every honest rank after `step`: float32, two tensors of 8."""
    return {name: struct.pack("<8f", *(step + i + len(name) for i in range(8))) for name in NAMES}


def safetensors(tensors: dict[str, bytes]) -> bytes:
    """The bytes of a safetensors file of float32 vectors."""
    header: dict[str, object] = {}
    at = 0
    for name, data in tensors.items():
        header[name] = {"dtype": "F32", "shape": [len(data) // 4], "data_offsets": [at, at + len(data)]}
        at += len(data)
    head = json.dumps(header).encode()
    return struct.pack("<Q", len(head)) + head + b"".join(tensors.values())


class Rank:
    def __init__(self) -> None:
        self.connection: wire.Connection | None = None
        self.joined = wire.Joined(attempt=0, key=b"", run_dir="", activations_every=0, snapshot_every=0)
        self.rank, self.world, self.seq, self.step, self.acked = 0, 1, 0, 0, -1
        self.weights = values(0)

    @property
    def wire(self) -> wire.Connection:
        if self.connection is None:
            self.connection = wire.Connection.connect(os.environ[wire.SOCKET_ENV])
        return self.connection

    def answer(self, kind: type[wire.Message]) -> wire.Message:
        while True:
            message = self.wire.receive(timeout=60)
            if message is None:
                say("closed")
                sys.exit(9)
            if isinstance(message, wire.Acked):
                self.acked = max(self.acked, message.seq)
            if isinstance(message, kind):
                return message

    def start(self, _: str) -> None:
        connection = wire.Connection.connect(os.environ[wire.SOCKET_ENV])
        connection.send(wire.Start(pid=os.getpid(), argv=tuple(sys.argv)))
        answer = connection.receive(timeout=60)
        connection.close()
        if isinstance(answer, wire.Refuse):
            say(f"refused {answer.reason}")
            sys.exit(answer.code)
        say("go")

    def join(self, place: str, pid: int | None = None) -> None:
        self.rank, self.world = (int(n) for n in place.split("/"))
        self.wire.send(
            wire.Join(
                pid=pid or os.getpid(),
                rank=self.rank,
                world=self.world,
                argv=tuple(sys.argv),
                cwd=os.getcwd(),
                executable=sys.executable,
                env={"A": "1"},
                numerics=Numerics(),
            )
        )
        answer = self.answer(wire.Joined)
        if isinstance(answer, wire.Joined):
            self.joined = answer
        say(f"joined {self.joined.attempt}")

    def join_as_parent(self, place: str) -> None:
        self.join(place, pid=os.getppid())

    def steps(self, count: str) -> None:
        for _ in range(int(count)):
            self.one_step(self.rank)

    def step_as(self, rank: str) -> None:
        self.one_step(int(rank))

    def flip(self, _: str) -> None:
        """Change one weight, as an insider would, before the next step ends."""
        self.tamper = True

    tamper = False
    hidden = False

    def hide(self, _: str) -> None:
        """Stop telling of the code in memory."""
        self.hidden = True

    def tell_code(self) -> None:
        if not self.hidden and self.joined.code_every:
            self.wire.send(wire.Code(step=self.step, magic=importlib.util.MAGIC_NUMBER, optimize=0))

    def one_step(self, rank: int) -> None:
        self.weights = values(self.step + 1)
        if self.tamper:
            self.weights["layer.bias"] = bytes(32)
        key = self.joined.key
        if codeform.due(key, self.step, self.joined.code_every):
            self.tell_code()
        digests = tuple(digest_bytes(key, "float32", (8,), data) for data in self.weights.values())
        root = stage_root(key, NAMES, digests)
        record = StepRecord(
            attempt=self.joined.attempt,
            rank=rank,
            world=self.world,
            step=self.step,
            optimizer=0,
            seq=self.seq,
            stages={Stage.WEIGHTS: StageDigest(root=root, tensors=len(NAMES))},
            loss=1.0,
            wall_ns=time.time_ns(),
        )
        self.wire.send(wire.Step(record=record, details={Stage.WEIGHTS: Detail(names=NAMES, digests=digests)}))
        self.seq += 1
        self.step += 1

    def until_acked(self, _: str) -> None:
        while self.acked < self.seq - 1:
            self.answer(wire.Acked)
        say(f"acked {self.acked}")

    def save(self, path: str) -> None:
        with open(path, "wb") as f:
            f.write(safetensors({f"model.{name}": data for name, data in self.weights.items()}))
        self.tell_saved(path)

    def save_edited(self, path: str) -> None:
        with open(path, "wb") as f:
            f.write(safetensors({**self.weights, "layer.bias": bytes(32)}))
        self.tell_saved(path)

    def save_replaced(self, path: str) -> None:
        """Write a file and tell of it when the next one already has its place."""
        with open(path, "wb") as f:
            f.write(safetensors({f"model.{name}": data for name, data in self.weights.items()}))
        old = os.stat(path)
        os.rename(path, path + ".old")
        with open(path, "wb") as f:
            f.write(safetensors({f"model.{name}": data for name, data in self.weights.items()}))
        self.tell_saved(path, (old.st_ino, old.st_size, old.st_mtime_ns))

    def tell_saved(self, path: str, identity: tuple[int, int, int] = (0, 0, 0)) -> None:
        told = wire.Saved(path=path, step=self.step, format="safetensors", weights_seq=self.seq - 1, identity=identity)
        self.wire.send(told)

    def load(self, path: str) -> None:
        self.wire.send(wire.Loaded(path=path))
        known = self.answer(wire.Known)
        say(f"known {known.step if isinstance(known, wire.Known) else known}")

    def open(self, path: str) -> None:
        self.wire.send(wire.Opened(path=path))

    def miss(self, reason: str) -> None:
        self.wire.send(wire.Missed(step=self.step, reason=reason))

    def boast(self, size: str) -> None:
        """Have so many bytes logged at once."""
        self.wire.send(wire.Told(note=ModelSeen(step=0, idle=("x" * int(size),))))

    def bye(self, unrecorded: str) -> None:
        self.tell_code()
        self.wire.send(wire.Bye(records=self.seq, unrecorded=int(unrecorded or 0)))
        self.answer(wire.Go)
        while self.acked < self.seq - 1:
            self.answer(wire.Acked)
        say(f"bye {self.acked}")

    def garbage(self, _: str) -> None:
        self.raw(struct.pack(">I", 5) + b"\xc1\xff\x00ab")

    def huge(self, _: str) -> None:
        self.raw(struct.pack(">I", 0xFFFFFFFF))

    def raw(self, data: bytes) -> None:
        self.wire._sock.sendall(data)

    def closed(self, _: str) -> None:
        """Wait until the other side closes the connection."""
        try:
            while self.wire.receive(timeout=60) is not None:
                pass
        except OSError:
            pass
        say("closed")

    def kill(self, _: str) -> None:
        os.kill(os.getpid(), signal.SIGKILL)

    def crash(self, text: str) -> None:
        raise RuntimeError(text)

    def exit(self, code: str) -> None:
        sys.exit(int(code))

    def touch(self, path: str) -> None:
        open(path, "w").close()

    def wait_for(self, path: str) -> None:
        while not os.path.exists(path):
            time.sleep(0.02)

    def write(self, path: str) -> None:
        with open(path, "a", encoding="utf-8") as f:
            f.write("# changed\n")

    def forever(self, _: str) -> None:
        say("waiting")
        while True:
            signal.pause()


def say(text: str) -> None:
    print(text, flush=True)


def main() -> None:
    rank = Rank()
    for word in sys.argv[1:]:
        name, _, value = word.partition(":")
        action: Callable[[str], None] = getattr(rank, name)
        action(value)


if __name__ == "__main__":
    main()
