"""A run that was killed, and what is left of it damaged: recovered all the same, to the weights of an honest run."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path

import pytest
from recovering import Attacked, Job, settings

from trainwarden.casefile import load_case
from trainwarden.errors import NothingCleared
from trainwarden.keys import SigningKey
from trainwarden.model import CheckpointSaved, Quarantined, Restored, RunEnded
from trainwarden.respond.survivors import survivors

NEWEST = 6


def digest_of(job: Job, step: int) -> str:
    (saved,) = [e for e in job.entries("last") if isinstance(e, CheckpointSaved) and e.step == step]
    return saved.digest


def lose_copy(job: Job, step: int) -> None:
    """Somebody edits the store's own copy of a checkpoint."""
    copy = job.store.object_path(digest_of(job, step))
    copy.chmod(0o644)
    copy.write_bytes(b"poison" + copy.read_bytes()[6:])


def edited(job: Job) -> None:
    data = bytearray(job.checkpoint(NEWEST).read_bytes())
    data[len(data) // 2] ^= 1
    job.checkpoint(NEWEST).write_bytes(data)


def truncated(job: Job) -> None:
    os.truncate(job.checkpoint(NEWEST), 100)


def deleted(job: Job) -> None:
    job.checkpoint(NEWEST).unlink()


@pytest.mark.parametrize("damage", [edited, truncated, deleted])
def test_a_damaged_newest_checkpoint_comes_back_from_the_store(stopped: Job, damage: Callable[[Job], None]) -> None:
    whole = stopped.checkpoint(NEWEST).read_bytes()
    run = stopped.store.runs()[-1]
    damage(stopped)
    damaged = stopped.checkpoint(NEWEST).read_bytes() if stopped.checkpoint(NEWEST).exists() else None
    done = stopped.recover(Attacked(stopped.library), settings(verify=0))
    assert (done.plan.from_step, stopped.state) == (NEWEST, stopped.honest)
    path = str(stopped.checkpoint(NEWEST))
    assert path in [e.path for e in stopped.entries(run) if isinstance(e, Restored)]
    assert stopped.checkpoint(NEWEST).read_bytes() == whole
    kept = [e for e in stopped.entries(run) if isinstance(e, Quarantined) and e.path == path]
    assert [stopped.store.get(e.digest) for e in kept] == ([damaged] if damaged is not None else [])


def test_a_checkpoint_that_no_log_knows_is_not_resumed_from(stopped: Job) -> None:
    shutil.copy(stopped.checkpoint(2), stopped.checkpoint(10))
    other, notes = stopped.out / "best.pt", stopped.out / "notes.txt"
    shutil.copy(stopped.checkpoint(2), other)
    notes.write_text("kept")
    done = stopped.recover(Attacked(stopped.library), settings(verify=0))
    assert (done.plan.from_step, stopped.state) == (NEWEST, stopped.honest)
    assert {str(stopped.checkpoint(10)), str(other)} <= {m.path for m in done.plan.quarantine}
    assert notes.exists()


def test_where_the_stores_copy_is_poisoned_too_the_one_before_is_used(stopped: Job) -> None:
    edited(stopped)
    lose_copy(stopped, NEWEST)
    done = stopped.recover(Attacked(stopped.library), settings(verify=0))
    assert (done.plan.from_step, stopped.state) == (NEWEST - 2, stopped.honest)


def test_tampered_sidecars_and_snapshots_lead_no_replay_astray(stopped: Job) -> None:
    run = stopped.store.run("last")
    for file in run.snapshots.rglob("*.safetensors"):
        data = bytearray(file.read_bytes())
        data[-1] ^= 1
        file.write_bytes(data)
    done = stopped.recover(Attacked(stopped.library), settings())
    assert (done.link.replays, stopped.state) == ("matched", stopped.honest)


def test_broken_off_between_any_two_acts_the_same_call_finishes_it(stopped: Job) -> None:
    class Broken(Attacked):
        left = 0

        def says(self, sentence: str) -> None:
            super().says(sentence)
            self.left -= 1
            if self.left < 0:
                raise KeyboardInterrupt

    truncated(stopped)
    acts = 0
    while True:
        hears = Broken(stopped.library)
        hears.left = acts
        try:
            done = stopped.recover(hears, settings(verify=0), run=stopped.store.runs()[0])
        except KeyboardInterrupt:
            acts += 1
            truncated(stopped) if stopped.checkpoint(NEWEST).exists() else None  # and the insider is at it again
            continue
        break
    assert acts >= 2
    assert (done.plan.from_step, stopped.state) == (NEWEST, stopped.honest)


def test_a_run_that_ended_before_it_did_anything_goes_back_to_what_it_was_given(stopped: Job) -> None:
    first = stopped.store.runs()[-1]
    hears = Attacked(stopped.library, ["raise SystemExit(3)\n"])
    broken = stopped.recover(hears, settings(verify=0))
    assert (broken.result.exit_code, broken.result.records) == (3, 0)
    done = stopped.recover(Attacked(stopped.library), settings(verify=0))
    assert (done.link.parent, done.plan.from_step, stopped.state) == (broken.result.run_id, NEWEST, stopped.honest)
    assert load_case(stopped.store, first).history.checkpoints  # nothing of the first run was lost


def test_without_any_copy_of_a_cleared_checkpoint_nothing_is_guessed(stopped: Job) -> None:
    for step in (2, 4, NEWEST):
        lose_copy(stopped, step)
        stopped.checkpoint(step).unlink()
    with pytest.raises(NothingCleared, match="nothing is known to be safe"):
        stopped.recover(Attacked(stopped.library))


def test_the_watcher_is_killed_and_its_job_trains_on(job: Job) -> None:
    driver = Path(__file__).with_name("watcher.py")
    subprocess.run([sys.executable, driver, job.folder.parent], env=job.env(), check=False, timeout=100)
    job.key = SigningKey.load(job.folder.parent / "key")
    run = job.store.run("last")
    assert not any(isinstance(e, RunEnded) for e in job.entries("last"))
    deadline = time.monotonic() + 60
    while not survivors(run):
        assert time.monotonic() < deadline
        time.sleep(0.05)
    hears = Attacked(job.library)
    done = job.recover(hears, settings(verify=0))
    assert "outlived" in hears.said[0]
    assert not survivors(run)
    assert done.plan.from_step <= 4  # what the watcher had not written yet is not known
    assert job.state == job.honest
