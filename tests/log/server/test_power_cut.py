"""The power is cut at every call by which a log server on a folder changes the disk: nothing acknowledged is lost."""

from __future__ import annotations

import os
import random
import sys
from pathlib import Path

import pytest

sys.path.insert(0, str(Path(__file__).parents[1]))
from power import KEPT, LOST, MIXED, Cut, Disk

from benchmarks.log_crashes import SMALL, Server, losses, new_index, read_log, run_until
from trainwarden.log.server.stores import FolderTiles


def files_of(folder: Path) -> dict[str, bytes]:
    return {str(p.relative_to(folder)): p.read_bytes() for p in folder.rglob("*") if p.is_file()}


@pytest.mark.parametrize("kind", [LOST, KEPT, MIXED])
def test_power_cut_at_every_call_loses_nothing_acknowledged(
    kind: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    point, ended, lost = 0, False, 0
    while not ended:
        acked: dict[tuple[str, str, int], int] = {}
        disk = Disk(tmp_path / f"disk{point}", cut_at=point)
        with disk.on(monkeypatch):
            try:
                server = Server(FolderTiles(disk.root), new_index())
                try:
                    run_until(server, acked, SMALL)
                    ended = True
                finally:
                    server.close()
            except Cut:
                pass
        found = disk.after(kind, tmp_path / f"after{point}", random.Random(point))
        disk.close()
        if acked:
            lost += losses(files_of(found), acked, SMALL)
        monkeypatch.setattr(os, "fsync", lambda fd: None)
        again = Server(FolderTiles(found), new_index())
        run_until(again, acked, SMALL)
        again.close()
        monkeypatch.undo()
        lost += losses(files_of(found), acked, SMALL)
        assert len(read_log(files_of(found))) == len(acked) == 4
        point += 1
    assert point > 60
    assert lost == 0
