"""`trainwarden` as the process that audits beside a run, with the tests' stand-in for the clean room.

It does not stand back: on a test machine that is busy otherwise, a process that runs only when nobody else wants to
would never come to its first unit. It draws every second, and expects a unit to cost little: a test is short.
"""

from __future__ import annotations

import sys
from pathlib import Path

from guarded_job import PlainRoom, PlainWorkspace

from trainwarden.audit import replay, unitrun, units
from trainwarden.cli import main
from trainwarden.commands import audit_units
from trainwarden.model import SignedSeal
from trainwarden.seal import room
from trainwarden.store import Store


def plain_room(store: Store, seal: SignedSeal) -> PlainRoom:
    return PlainRoom(Path(sys.executable), Path(seal.seal.cwd), seal.seal)


if __name__ == "__main__":
    room.build_room = plain_room  # type: ignore[assignment]
    audit_units._stand_back = lambda: None
    units._DRAW_EVERY, units.START_SECONDS = 1.0, 0.5
    replay.new_workspace = unitrun.new_workspace = PlainWorkspace  # type: ignore[assignment]
    sys.exit(main(sys.argv[1:]))
