"""The rank's socket: what is sent arrives as it was, names travel once, and hostile frames end the connection."""

from __future__ import annotations

import contextlib
import socket
import struct
import threading
from pathlib import Path

import msgspec
import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st

from trainwarden import wire
from trainwarden.model import Detail, Stage, StepRecord
from trainwarden.wire import connection


def pair() -> tuple[wire.Connection, wire.Connection, socket.socket]:
    a, b = socket.socketpair()
    return wire.Connection(a), wire.Connection(b), a


def step(seq: int, details: dict[Stage, Detail]) -> wire.Step:
    return wire.Step(
        record=StepRecord(attempt=0, rank=0, world=1, step=seq, optimizer=0, seq=seq, stages={}), details=details
    )


def detail(*names: str) -> Detail:
    return Detail(names=names, digests=tuple(n.encode().ljust(16, b".")[:16] for n in names))


def test_steps_arrive_as_they_were_sent_and_their_names_travel_once() -> None:
    here, there, _ = pair()
    sent = [
        step(0, {Stage.WEIGHTS: detail("a", "b"), Stage.BATCH: detail("x")}),
        step(1, {Stage.WEIGHTS: detail("a", "b"), Stage.RNG: detail()}),
        step(2, {Stage.BATCH: detail("a", "b")}),
    ]
    got = []
    for message in sent:
        here.send(message)
        got.append(there.receive(5))
    assert got == sent
    first, last = got[0], got[2]
    assert isinstance(first, wire.Step)
    assert isinstance(last, wire.Step)
    assert first.details[Stage.WEIGHTS].names is last.details[Stage.BATCH].names


def test_a_full_table_of_names_begins_again(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(connection, "NAME_SLOTS", 3)
    here, there, _ = pair()
    for seq in range(20):
        message = step(seq, {Stage.BATCH: detail(f"n{seq}"), Stage.RNG: detail(f"n{seq // 2}")})
        here.send(message)
        assert there.receive(5) == message


def frame(body: object) -> bytes:
    data = msgspec.msgpack.encode(body)
    return struct.pack(">I", len(data)) + data


RECORD = msgspec.to_builtins(StepRecord(attempt=0, rank=0, world=1, step=0, optimizer=0, seq=0, stages={}))


@pytest.mark.parametrize(
    ("frames", "why"),
    [
        ([{"type": "row", "record": RECORD, "details": {"batch": [7, b""]}}], "slot 7 was given no names"),
        ([{"type": "names", "slot": -1, "names": []}], "slot -1"),
        ([{"type": "names", "slot": 1024, "names": []}], "slot 1024"),
        (
            [
                {"type": "names", "slot": 0, "names": ["a"]},
                {"type": "row", "record": RECORD, "details": {"batch": [0, bytes(17)]}},
            ],
            "17 bytes of digests for 1 names",
        ),
    ],
    ids=["unknown-slot", "negative-slot", "slot-too-large", "torn-digests"],
)
def test_a_hostile_row_is_refused(frames: list[object], why: str) -> None:
    _, there, raw = pair()
    raw.sendall(b"".join(map(frame, frames)))
    with pytest.raises(ValueError, match=why):
        there.receive(5)


def test_names_cannot_fill_the_memory(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(connection, "MAX_NAMES", 100)
    _, there, raw = pair()
    raw.sendall(b"".join(frame({"type": "names", "slot": i, "names": ["x" * 60]}) for i in range(2)))
    with pytest.raises(ValueError, match="above the limit of 100 bytes"):
        there.receive(5)


def test_a_frame_above_the_limit_is_not_read() -> None:
    _, there, raw = pair()
    raw.sendall(struct.pack(">I", wire.MAX_FRAME + 1))
    with pytest.raises(ValueError, match="above the limit"):
        there.receive(5)


@settings(max_examples=100, deadline=None)
@given(st.binary(max_size=200))
@example(msgspec.msgpack.encode({"type": "row"}))
@example(msgspec.msgpack.encode({"type": "names", "slot": 0, "names": [1]}))
def test_any_bytes_are_a_message_or_a_clean_error(body: bytes) -> None:
    here, there, raw = pair()
    raw.sendall(struct.pack(">I", len(body)) + body)
    raw.shutdown(socket.SHUT_WR)
    with contextlib.suppress(ValueError, msgspec.DecodeError):
        there.receive(5)
    here.close()
    there.close()


class Held:
    """A handler that comes to nothing until it may: a host that is busy elsewhere."""

    def __init__(self) -> None:
        self.may = threading.Event()
        self.seen: list[wire.Message] = []

    def message(self, message: wire.Message) -> None:
        self.may.wait()
        self.seen.append(message)

    def closed(self, error: str) -> None:
        self.seen.append(wire.Missed(step=0, reason=error))


def test_what_a_killed_process_had_sent_is_handled_though_the_server_is_closing(tmp_path: Path) -> None:
    held = Held()
    server = wire.Server(tmp_path / "s", lambda connection: held)
    rank, said = wire.Connection.connect(str(tmp_path / "s")), [wire.Opened(path=str(n)) for n in range(20)]
    for message in said:
        rank.send(message)
    rank.close()
    closing = threading.Thread(target=server.close, args=(0.0,))
    closing.start()
    closing.join(0.3)  # it has given up waiting for the process by now
    held.may.set()
    closing.join()
    assert held.seen == [*said, wire.Missed(step=0, reason="")]


def test_a_process_that_goes_on_sending_does_not_hold_up_the_close(tmp_path: Path) -> None:
    held = Held()
    held.may.set()
    server = wire.Server(tmp_path / "s", lambda connection: held)
    rank = wire.Connection.connect(str(tmp_path / "s"))
    rank.send(wire.Opened(path="before"))
    server.close(0.0)
    with pytest.raises(OSError):
        rank.send(wire.Opened(path="after"))
    assert [m for m in held.seen if isinstance(m, wire.Opened)] == [wire.Opened(path="before")]
