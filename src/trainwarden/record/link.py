"""The recorder's end of the socket: a thread sends, so that training never waits for the watcher.

A message that cannot be queued or sent is counted; the count is told as a gap once sending works again. When the
watcher is gone for good the recorder falls silent and training goes on.

What is queued dies with the process; what is in the socket does not, the watcher reads it afterwards. So a file of
state is told with a wait (`settle`): else a kill soon after it was saved would leave a checkpoint that no record knows.
"""

from __future__ import annotations

import queue
import threading
from collections.abc import Callable

from trainwarden import wire

_LIMIT = 512  # messages in flight; a step is one message


class Link:
    """A connection with a sending thread. `ask` is for the few messages that need an answer."""

    def __init__(self, connection: wire.Connection, looked_at: Callable[[int], wire.Message]) -> None:
        """`looked_at` answers a `Look` with its token, on the receiving thread."""
        self._connection = connection
        self._looked_at = looked_at
        self._queue: queue.Queue[wire.Message] = queue.Queue(_LIMIT)
        self._answers: queue.Queue[wire.Message | None] = queue.Queue()
        self.dead = False
        self.lost = 0
        self.acknowledged = -1
        threading.Thread(target=self._send_all, daemon=True, name="trainwarden-send").start()
        threading.Thread(target=self._receive_all, daemon=True, name="trainwarden-receive").start()

    def tell(self, message: wire.Message) -> None:
        """Queue a message; never blocks."""
        if self.dead:
            return
        try:
            self._queue.put_nowait(message)
        except queue.Full:
            self.lost += 1

    def settle(self, timeout: float) -> bool:
        """Wait until everything queued is in the socket; whether it is."""
        finished = self._queue.all_tasks_done
        with finished:
            return finished.wait_for(lambda: self.dead or not self._queue.unfinished_tasks, timeout) and not self.dead

    def ask(self, message: wire.Message, timeout: float) -> wire.Message | None:
        """Send after everything queued and wait for the answer; None when there is none in `timeout` seconds."""
        if self.dead:
            return None
        try:
            self._queue.put(message, timeout=timeout)
            return self._answers.get(timeout=timeout)
        except (queue.Full, queue.Empty):
            return None

    def goodbye(self, last_seq: int, unrecorded: int, timeout: float) -> bool:
        """Say that this process ends in order; whether everything up to `last_seq` was acknowledged in time."""
        answered = self.ask(wire.Bye(records=last_seq + 1, unrecorded=unrecorded), timeout) is not None
        self.dead = True
        self._connection.close()
        return answered

    def _send_all(self) -> None:
        while True:
            message = self._queue.get()
            try:
                if self.lost and isinstance(message, wire.Step):
                    lost, self.lost = self.lost, 0
                    reason = f"{lost} messages lost: the watcher was too slow"
                    self._connection.send(wire.Missed(step=message.record.step, reason=reason))
                self._connection.send(message)
            except OSError:
                self._die()
                return
            self._queue.task_done()

    def _receive_all(self) -> None:
        while not self.dead:
            try:
                message = self._connection.receive()
            except (OSError, ValueError):
                message = None
            if message is None:
                self._die()
                return
            if isinstance(message, wire.Acked):
                self.acknowledged = message.seq
                continue
            if isinstance(message, wire.Look):
                self._tell_at_once(self._looked_at(message.token))
                continue
            self._answers.put(message)

    def _tell_at_once(self, message: wire.Message) -> None:
        """Ahead of what is queued: at a standstill the queue may stand still too."""
        try:
            self._connection.send(message)
        except OSError:
            pass  # the next `receive` sees it

    def _die(self) -> None:
        self.dead = True
        self._answers.put(None)
        with self._queue.all_tasks_done:
            self._queue.all_tasks_done.notify_all()
