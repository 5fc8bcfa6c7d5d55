"""`trainwarden doctor` as a user calls it: what cannot be tried is never a pass."""

from __future__ import annotations

import json

from resuming import Guarded


def test_a_command_without_an_optimizer_step_cannot_be_tried(guarded: Guarded) -> None:
    (guarded.folder / "idle.py").write_text("raise SystemExit(5)")
    python = str(guarded.place.python)
    ended = guarded.verb("doctor", "--", python, "idle.py")
    assert ended.returncode == 2
    assert "ended with code 5 and no optimizer step was seen" in ended.stderr
    assert "hint:" in ended.stderr


def test_a_recording_that_cannot_be_replayed_is_not_a_pass(guarded: Guarded) -> None:
    (guarded.folder / "loaders.py").write_text("loader = make(num_workers=2,\n              persistent_workers=True)\n")
    words = ("--", str(guarded.place.python), "job.py", "6", str(guarded.out))
    ended = guarded.verb("doctor", "--json", *words)
    assert ended.returncode == 2, ended.stderr  # a rank that speaks the protocol by itself has no replayer in it
    assert '"replays":null' in ended.stdout
    assert '"outcome":"not possible"' in ended.stdout
    known = json.loads(ended.stdout.splitlines()[-1])["diagnosis"]["known"]
    assert [m["place"] for m in known["met"]] == ["loaders.py:2"]  # what does not replay in every way, and why
    assert "in no snapshot" in known["met"][0]["limit"]["why"]
    assert known["files"] >= 2


def test_too_few_steps_are_refused_before_anything_runs(guarded: Guarded) -> None:
    words = ("--", str(guarded.place.python), "job.py", "6", str(guarded.out))
    ended = guarded.verb("doctor", "--steps", "1", *words)
    assert ended.returncode == 3
    assert not guarded.out.exists()
