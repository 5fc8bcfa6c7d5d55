"""State that nobody accounts for, and losses outside of their band: what must fire, and its honest twins."""

from __future__ import annotations

import math
import random
from collections.abc import Iterable

from records import Fed, feed, step

from trainwarden.detect.dynamics import MAX_STREAMS, Dynamics
from trainwarden.detect.loaded import Loaded
from trainwarden.model import CheckpointLoaded, CheckpointSaved, Entry, Severity, StepRecord


def saved(path: str, digest: str, at: int = 4) -> CheckpointSaved:
    return CheckpointSaved(attempt=0, rank=0, step=at, path=path, digest=digest, size=1, format="safetensors")


def loaded(path: str, digest: str, *, rank: int = 0, known: int = -1, sealed: bool = False) -> CheckpointLoaded:
    return CheckpointLoaded(attempt=0, rank=rank, path=path, digest=digest, known_step=known, sealed=sealed)


def run_of(*events: Entry, steps: int = 4) -> list[Fed]:
    """Two ranks' steps with these entries in their middle."""
    before: list[Fed] = [step(s, r) for s in range(steps) for r in (0, 1)]
    after: list[Fed] = [step(s, r) for s in range(steps, 2 * steps) for r in (0, 1)]
    return [*before, *events, *after]


# -- loaded


def test_a_planted_checkpoint_beside_those_of_the_run_is_told() -> None:
    fed = run_of(saved("/out/step-4/model", "a"), loaded("/out/step-9/model", "planted"))
    (found,) = feed(Loaded(), fed)
    assert (found.severity, found.ranks, found.step, found.evidence) == (Severity.HIGH, (0,), 3, (9,))
    assert "/out/step-9/model" in found.seen


def test_unknown_weights_loaded_in_the_middle_of_training_are_told() -> None:
    assert [f.severity for f in feed(Loaded(), run_of(loaded("/tmp/teacher.pt", "t")))] == [Severity.MEDIUM]


def test_a_start_from_files_outside_of_the_seal_is_a_note_and_said_once() -> None:
    fed: list[Fed] = [loaded("/cache/base", "b"), loaded("/cache/more", "m"), loaded("/out/step-4", "s", rank=1)]
    assert [f.severity for f in feed(Loaded(), [*fed, *run_of()])] == [Severity.INFO]


def test_a_file_that_every_rank_loads_is_told_once_also_when_no_step_follows() -> None:
    fed = [loaded("/a.pt", "x", rank=r) for r in range(8)]
    assert len(feed(Loaded(), fed, finish=True)) == 1


def test_sealed_files_and_recorded_checkpoints_are_silent() -> None:
    fed = run_of(
        loaded("/data/base.safetensors", "b", sealed=True),
        loaded("/elsewhere/model", "a", known=4),
        saved("/out/step-4/model", "a"),
        loaded("/out/step-4/model", "changed"),  # the detector `checkpoints` tells this one
    )
    assert feed(Loaded(), fed, finish=True) == []


def test_a_file_that_another_rank_has_just_saved_is_silent_while_it_is_hashed() -> None:
    fed = [
        step(0),
        loaded("/best.pt", "a", rank=1),
        step(1, 1),
        step(1),
        saved("/best.pt", "a"),
        step(2, 1),
        step(3, 1),
    ]
    assert feed(Loaded(), fed, finish=True) == []


# -- dynamics


def losses(values: Iterable[float], rank: int = 0, optimizer: int = 0) -> list[Fed]:
    return [
        StepRecord(attempt=0, rank=rank, world=1, step=i, optimizer=optimizer, seq=i, stages={}, loss=v)
        for i, v in enumerate(values)
    ]


def honest(seed: int, steps: int = 600) -> list[float]:
    """A loss that falls, with noise in proportion."""
    draw = random.Random(seed)
    return [(2.0 * math.exp(-i / 200) + 1.0) * math.exp(draw.gauss(0, 0.08)) for i in range(steps)]


def test_a_loss_that_is_not_a_number_is_told_once_as_medium() -> None:
    for odd in (math.nan, math.inf):
        (found,) = feed(Dynamics(), losses([1.0, 1.0, odd, odd, odd]))
        assert (found.severity, found.step) == (Severity.MEDIUM, 2)


def test_a_spike_and_a_shift_beyond_the_noise_are_told_as_low() -> None:
    for change in ({300: 6.0}, dict.fromkeys(range(300, 600), 2.6)):
        fed = losses(v * change.get(i, 1.0) for i, v in enumerate(honest(1)))
        found = feed(Dynamics(), fed)
        assert found
        assert all(f.severity is Severity.LOW for f in found)
        assert 300 <= found[0].step < 320


def test_honest_noise_is_silent() -> None:
    for seed in range(20):
        assert feed(Dynamics(), losses(honest(seed))) == []
        assert feed(Dynamics(), losses(-3 + v for v in honest(seed))) == []


def test_a_gradient_scaler_that_grows_is_silent() -> None:
    scaled = (v * (65536 if i < 300 else 131072) for i, v in enumerate(honest(2)))
    assert feed(Dynamics(), losses(scaled)) == []


def test_ranks_without_end_do_not_fill_the_memory() -> None:
    detector = Dynamics()
    for rank in range(1000):
        feed(detector, losses([1.0], rank))
    assert len(detector._streams) == MAX_STREAMS
