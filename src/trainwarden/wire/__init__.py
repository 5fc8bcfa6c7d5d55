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

from trainwarden.wire.connection import MAX_FRAME, MAX_NAMES, NAME_SLOTS, Connection, Handler, Server
from trainwarden.wire.environ import REDUCTION_ENV, SOCKET_ENV, decisive, keep_env
from trainwarden.wire.messages import (
    SAMPLE_BYTES,
    Acked,
    Batch,
    Bye,
    Code,
    Cut,
    Frame,
    Given,
    Go,
    Join,
    Joined,
    Known,
    LiveFunction,
    Loaded,
    Look,
    Message,
    Missed,
    Names,
    NewUnit,
    NextUnit,
    Opened,
    Pass,
    Plain,
    Refuse,
    Row,
    Saved,
    Slot,
    Stacks,
    Start,
    Step,
    Sums,
    SumsOf,
    ThreadStack,
    Told,
    Updated,
    identity_of,
)

__all__ = [
    "Acked",
    "Batch",
    "Bye",
    "Code",
    "Connection",
    "Cut",
    "Frame",
    "Given",
    "Go",
    "Handler",
    "Join",
    "Joined",
    "Known",
    "LiveFunction",
    "Loaded",
    "Look",
    "MAX_FRAME",
    "MAX_NAMES",
    "Message",
    "Missed",
    "NAME_SLOTS",
    "Names",
    "NewUnit",
    "NextUnit",
    "Opened",
    "Pass",
    "Plain",
    "REDUCTION_ENV",
    "Refuse",
    "Row",
    "SAMPLE_BYTES",
    "SOCKET_ENV",
    "Saved",
    "Server",
    "Slot",
    "Stacks",
    "Start",
    "Step",
    "Sums",
    "SumsOf",
    "ThreadStack",
    "Told",
    "Updated",
    "decisive",
    "identity_of",
    "keep_env",
]
