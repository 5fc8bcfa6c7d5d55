"""What the audit concludes when a replay cannot be exact, and how work is shared out."""

from __future__ import annotations

import random
from pathlib import Path

import job_scripts as scripts
import msgspec
import pytest
from guarded_job import make_job

from trainwarden.audit.engine import Audit, choose, groups
from trainwarden.audit.recorded import Recorded
from trainwarden.errors import UsageError
from trainwarden.model import CheckpointSaved, Inconclusive, Matched, ProcessStarted, Segment


def parts(*spans: tuple[int, int, int]) -> list[Segment]:
    return [Segment(attempt=a, first=f, last=last) for a, f, last in spans]


def test_neighbouring_segments_share_a_replay_and_attempts_do_not() -> None:
    segments = parts((0, 0, 5), (0, 6, 11), (1, 6, 11), (1, 12, 17), (1, 24, 29))
    assert [len(g) for g in groups(segments, 1)] == [2, 2, 1]
    assert [len(g) for g in groups(segments, 5)] == [1, 1, 1, 1, 1]
    assert [s for g in groups(segments, 4) for s in g] == segments


def test_a_sample_is_never_empty_and_never_more_than_a_share() -> None:
    segments = parts(*((0, i, i) for i in range(50)))
    draw = random.Random(0)
    assert len(choose(segments, 0.0001, draw)) == 1
    assert 0 < len(choose(segments, 0.3, draw)) < 50
    assert choose(segments, None, draw) == segments
    for share in (0.0, -1.0, 1.5):
        with pytest.raises(UsageError, match="share"):
            choose(segments, share, draw)


def test_segments_replay_side_by_side(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    job = make_job(tmp_path, monkeypatch, scripts.CARELESS)
    (job.folder / "trainwarden.toml").write_text('[replay]\nresume = "--resume {checkpoint}"\n')
    recorded = job.run("--steps", "8", "--every", "4")
    said = Audit(recorded, job.room).run(recorded.history.segments, jobs=2)
    assert [v.segment.first for v in said] == [0, 4]
    assert all(isinstance(v, Matched) for v in said), said
    assert {v.mode for v in said if isinstance(v, Matched)} == {"start", "resume"}


def test_other_numerics_are_refused_with_the_reason(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    job = make_job(tmp_path, monkeypatch, scripts.NO_CHECKPOINT)
    recorded = job.run("--steps", "3")

    def elsewhere(entry: object) -> object:
        if not isinstance(entry, ProcessStarted):
            return entry
        return msgspec.structs.replace(entry, numerics=msgspec.structs.replace(entry.numerics, threads=7))

    other = Recorded(job.store, recorded.folder, recorded.seal, [elsewhere(e) for e in recorded.entries])  # type: ignore[misc]
    said = Audit(other, job.room).run(other.history.segments)
    assert isinstance(said[0], Inconclusive)
    assert "threads" in " ".join(said[0].reasons)


def test_an_honest_job_that_does_not_replay_is_inconclusive_and_not_accused(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    job = make_job(tmp_path, monkeypatch, scripts.UNSEEDED)
    recorded = job.run()
    (said,) = Audit(recorded, job.room).run(recorded.history.segments)
    assert isinstance(said, Inconclusive), said
    assert "two clean replays differ from each other at step 0" in said.reasons[0]


def test_a_missing_checkpoint_copy_is_inconclusive_with_its_path(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    job = make_job(tmp_path, monkeypatch, scripts.ATTACKED)
    (job.folder / "trainwarden.toml").write_text('[replay]\nresume = "--resume {checkpoint}"\n')
    (job.folder / "evil.txt").write_text("flip 1 0")  # the start cannot vouch for the second segment
    recorded = job.run("--steps", "8", "--every", "4")
    saved = next(e for e in recorded.entries if isinstance(e, CheckpointSaved) and e.step == 4)
    job.store.object_path(saved.digest).unlink()
    said = Audit(recorded, job.room).run(recorded.history.segments[1:2])
    assert isinstance(said[0], Inconclusive)
    assert "ck4.pt" in " ".join(said[0].reasons)
