"""What a rank told is in the socket before it goes on from a checkpoint: a kill leaves no file that nobody knows."""

from __future__ import annotations

import threading
from typing import cast

from trainwarden import wire
from trainwarden.record.link import Link


class SlowConnection:
    """Sends nothing before it is let; `sent` is what went."""

    def __init__(self) -> None:
        self.let, self.closed = threading.Event(), threading.Event()
        self.sent: list[wire.Message] = []
        self.broken = False

    def send(self, message: wire.Message) -> None:
        self.let.wait()
        if self.broken:
            raise BrokenPipeError
        self.sent.append(message)

    def receive(self, timeout: float | None = None) -> wire.Message | None:
        self.closed.wait()
        return None


def linked() -> tuple[SlowConnection, Link]:
    slow = SlowConnection()
    return slow, Link(cast("wire.Connection", slow), lambda token: wire.Missed(step=0, reason=token))


def test_a_wait_ends_when_everything_told_is_in_the_socket_and_not_before() -> None:
    slow, link = linked()
    told = [wire.Missed(step=i, reason="") for i in range(20)]
    for message in told:
        link.tell(message)
    assert not link.settle(0.01), "nothing was sent yet"
    slow.let.set()
    assert link.settle(60.0)
    assert slow.sent == told
    slow.closed.set()


def test_a_watcher_that_is_gone_ends_the_wait_at_once() -> None:
    slow, link = linked()
    link.tell(wire.Missed(step=0, reason=""))
    slow.broken = True
    threading.Timer(0.05, slow.let.set).start()
    assert not link.settle(3600.0), "or this test runs into its time limit"
    slow.closed.set()
