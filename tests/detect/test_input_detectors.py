"""What goes into a step: what must fire, and the benign twins that must not."""

from __future__ import annotations

import pytest
from blake3 import blake3
from records import Fed, feed, step

from trainwarden.detect.loss_mask import LossMask
from trainwarden.detect.order import Order
from trainwarden.detect.rng import UNSEEDED, Rng
from trainwarden.detect.samples import IN_A_ROW, Samples
from trainwarden.model import (
    CheckpointLoaded,
    Confidence,
    DataDiffers,
    Detail,
    LossForm,
    LossSeen,
    Numerics,
    PassSeen,
    ProcessStarted,
    RandomSeen,
    Reseeded,
    Severity,
    Stage,
    StageDigest,
    StepRecord,
)


def started(rank: int, world: int) -> ProcessStarted:
    return ProcessStarted(
        attempt=0, rank=rank, world=world, pid=1, argv=(), cwd="/", executable="", env_digest="", numerics=Numerics()
    )


def a_pass(rank: int = 0, number: int = 0, **changes: object) -> PassSeen:
    facts = {
        "loader": 0, "dataset": "job.Text", "samples": 96, "sampler": "torch.utils.data.DistributedSampler",
        "order": "distributed", "seed": 7, "replicas": 2, "part": rank, "batch": 8, "epoch": number,
    } | changes  # fmt: skip
    return PassSeen(attempt=0, rank=rank, step=12 * number, number=number, **facts)  # type: ignore[arg-type]


def differs(kind: str, **changes: object) -> DataDiffers:
    return DataDiffers(attempt=0, rank=1, step=9, kind=kind, **changes)  # type: ignore[arg-type]


# -- order


def test_a_sample_out_of_order_is_told_with_the_one_that_belongs_there() -> None:
    (found,) = feed(Order(), [differs("order", expected=4, found=9, batch=3, number=2)])
    assert (found.severity, found.confidence, found.stage) == (Severity.HIGH, Confidence.HIGH, Stage.BATCH)
    assert "sample 9 at step 9 where sample 4 belongs" in found.seen


def test_a_class_of_its_own_that_leaves_a_known_order_is_only_suspected() -> None:
    (found,) = feed(Order(), [differs("order", expected=4, found=9, exact=False)])
    assert (found.severity, found.confidence) == (Severity.MEDIUM, Confidence.LOW)


def test_a_pass_that_ends_early_is_told() -> None:
    (found,) = feed(Order(), [differs("lost", expected=48, found=40)])
    assert "after 40 of 48 samples" in found.seen


def test_honest_passes_of_two_ranks_are_silent() -> None:
    fed = [started(0, 2), started(1, 2), *(a_pass(rank, n) for n in range(3) for rank in (0, 1))]
    assert feed(Order({"seed": 7}), fed, finish=True) == []


@pytest.mark.parametrize("seed", [0, 5, 6])
def test_seeds_that_follow_from_the_command_are_silent(seed: int) -> None:
    assert feed(Order({"seed": 5}), [a_pass(seed=seed, replicas=1)]) == []


def test_a_seed_that_the_command_does_not_name_is_told_once() -> None:
    (found,) = feed(Order({"seed": 5}), [a_pass(seed=-3), a_pass(seed=-3, number=1)])
    assert (found.severity, found.confidence) == (Severity.LOW, Confidence.LOW)
    assert feed(Order(), [a_pass(seed=-3)]) == [], "the command names no seed"


def test_a_sampler_that_changes_between_passes_is_told() -> None:
    (found,) = feed(Order(), [a_pass(), a_pass(number=1, shuffle=False, seed=8)])
    assert "shuffle from True to False, seed from 7 to 8" in found.seen
    assert feed(Order(), [a_pass(), a_pass(number=1, loader=1, samples=12)]) == [], "another loader"


def test_ranks_that_draw_one_part_are_told_where_each_rank_has_a_part() -> None:
    clones = [started(0, 2), a_pass(0), a_pass(1, part=0)]
    assert "both draw part 0 of 2" in feed(Order(), clones)[0].seen
    assert feed(Order(), [started(0, 4), *clones[1:]]) == [], "two ranks hold one replica together"


def test_ranks_that_divide_the_data_differently_are_told() -> None:
    (found,) = feed(Order(), [started(0, 2), a_pass(0), a_pass(1, seed=8)])
    assert "seeds 7 and 8" in found.seen


def test_what_was_not_checked_is_said_once() -> None:
    unchecked = [a_pass(rank, sampler="job.Mine", order="", unordered="it is none of PyTorch's") for rank in (0, 1)]
    (found,) = feed(Order(), unchecked)
    assert found.severity is Severity.INFO


# -- samples


def test_a_sample_that_is_not_in_the_manifest_is_high() -> None:
    (found,) = feed(Samples(), [differs("manifest", index=5, parts=("1",), same=("0",))])
    assert (found.severity, found.confidence) == (Severity.HIGH, Confidence.HIGH)
    assert "sample 5 at step 9 with another '1'" in found.seen
    assert "with '0' unchanged" in found.seen


def fed(steps: int, roots: tuple[str, str], weights: tuple[str, str] = ("w", "w"), first: int = 0) -> list[Fed]:
    made: list[Fed] = []
    for n in range(first, first + steps):
        for rank in (0, 1):
            record, _ = step(n, rank, {"a": f"{weights[rank]}{n}"})
            batch = StageDigest(root=f"{roots[rank]}{n}", tensors=1)
            made.append(
                StepRecord(attempt=0, rank=rank, world=2, step=n, optimizer=0, seq=n,
                           stages={**record.stages, Stage.BATCH: batch})
            )  # fmt: skip
    return made


def test_two_ranks_on_one_batch_are_told() -> None:
    (found,) = feed(Samples(), fed(IN_A_ROW + 3, ("x", "x")))
    assert (found.severity, found.ranks) == (Severity.LOW, (0, 1))
    later = [*fed(4, ("x", "y")), *fed(IN_A_ROW, ("x", "x"), first=4)]
    (found,) = feed(Samples(), later)
    assert found.severity is Severity.MEDIUM, "they had batches of their own before"


def test_ranks_with_batches_of_their_own_or_parts_of_one_model_are_silent() -> None:
    assert feed(Samples(), fed(3 * IN_A_ROW, ("x", "y"))) == []
    assert feed(Samples(), fed(3 * IN_A_ROW, ("x", "x"), ("v", "w"))) == [], "shards of one model share a batch"
    assert feed(Samples(), fed(IN_A_ROW - 1, ("x", "x"))) == []


# -- rng


def drew(n: int, state: str, rank: int = 0, world: int = 1, name: str = "forward0/torch") -> Fed:
    record = StepRecord(attempt=0, rank=rank, world=world, step=n, optimizer=0, seq=n, stages={})
    return record, {Stage.RNG: Detail(names=(name,), digests=(blake3(state.encode()).digest(16),))}


def test_a_generator_that_comes_back_is_told() -> None:
    (found,) = feed(Rng(), [drew(0, "a"), drew(1, "b"), drew(2, "c"), drew(3, "b")])
    assert "stands at step 3 where it stood at step 1" in found.seen
    assert found.severity is Severity.LOW


def test_generators_that_rest_move_on_or_are_restored_from_a_file_are_silent() -> None:
    assert feed(Rng(), [drew(n, "a") for n in range(5)]) == [], "nothing draws"
    assert feed(Rng(), [drew(n, str(n // 3)) for n in range(9)]) == [], "a loader draws once an epoch"
    restored = CheckpointLoaded(attempt=0, rank=0, path="/c.pt", digest="d", known_step=1)
    assert feed(Rng(), [drew(0, "a"), drew(1, "b"), drew(2, "c"), restored, drew(3, "b")]) == []


def test_ranks_that_come_to_stand_on_one_state_are_told() -> None:
    apart = [drew(n, f"{n} {rank}", rank, 2) for n in range(3) for rank in (0, 1)]
    (found,) = feed(Rng(), [*apart, drew(3, "s", 0, 2), drew(3, "s", 1, 2)])
    assert (found.ranks, found.severity) == ((0, 1), Severity.MEDIUM)
    alike = [drew(n, f"{n}", rank, 2) for n in range(5) for rank in (0, 1)]
    assert feed(Rng(), alike) == [], "they were seeded alike from the start"


def test_who_seeded_a_generator_again_is_named() -> None:
    said = Reseeded(attempt=0, rank=1, step=8, generator="torch", seed="99", file="/job/train.py", line=3, function="f")
    (found,) = feed(Rng(), [said])
    assert "seeded again with 99 by f (/job/train.py:3)" in found.seen
    assert found.severity is Severity.LOW


@pytest.mark.parametrize(("file", "severity"), [("torch/optim/adam.py", "medium"), ("transformers/set.py", "low")])
def test_a_library_that_seeds_is_worse_than_one_that_does_it_for_the_script(file: str, severity: str) -> None:
    said = Reseeded(attempt=0, rank=1, step=8, generator="torch", file=f"/v/site-packages/{file}", line=3)
    assert [f.severity for f in feed(Rng(), [said])] == [severity]


def test_first_seeds_are_held_against_the_command() -> None:
    def began(seed: int) -> RandomSeen:
        return RandomSeen(attempt=0, rank=0, step=0, world=4, torch=seed)

    for honest in (42, 43, 42 + 4, 42 + 1000):
        assert feed(Rng({"seed": 42}), [began(honest)]) == []
    assert feed(Rng(), [began(1337)]) == [], "the command names no seed"
    assert len(feed(Rng({"seed": 42}), [began(7), began(8)])) == 1, "seed and rank"
    assert "never seeded" in feed(Rng({"seed": 42}), [began(UNSEEDED)])[0].seen


# -- loss-mask

PLAIN = LossForm(ignore_index=-100, reduction=1)
OTHER = LossForm(ignore_index=-101, reduction=1)


def loss(*forms: LossForm, rank: int = 0, seen: int = 0, **changes: object) -> LossSeen:
    return LossSeen(attempt=0, rank=rank, step=seen, forms=forms, seen=seen, **changes)  # type: ignore[arg-type]


def test_a_loss_that_changes_what_it_ignores_is_told() -> None:
    (found,) = feed(LossMask(), [loss(PLAIN), loss(OTHER, seen=200)])
    assert (found.severity, found.confidence) == (Severity.MEDIUM, Confidence.MEDIUM)
    assert "ignore_index -101" in found.seen


def test_losses_of_the_first_steps_and_ranks_alike_are_silent() -> None:
    assert feed(LossMask(), [loss(PLAIN), loss(OTHER, seen=1), loss(PLAIN, OTHER, seen=2)]) == [], "two losses in turns"
    assert feed(LossMask(), [loss(PLAIN, rank=r) for r in range(4)]) == []


def test_ranks_with_other_losses_are_told() -> None:
    (found,) = feed(LossMask(), [loss(PLAIN), loss(OTHER, rank=1)])
    assert found.ranks == (0, 1)


def test_a_share_out_of_its_band_is_only_suspected() -> None:
    (found,) = feed(LossMask(), [loss(PLAIN), loss(PLAIN, seen=90, counted=0.2, low=0.9, high=0.95)])
    assert (found.severity, found.confidence) == (Severity.LOW, Confidence.LOW)


def test_a_loss_with_fewer_targets_than_always_is_told_at_once_with_low_confidence() -> None:
    (found,) = feed(LossMask(), [loss(PLAIN), loss(PLAIN, seen=40, per_input=0.998, usual=1.0)])
    assert (found.severity, found.confidence) == (Severity.MEDIUM, Confidence.LOW)
    assert "0.998 targets" in found.seen


def test_a_loss_of_another_kind_is_not_checked_and_said_once() -> None:
    found = feed(LossMask(), [loss(rank=r, unseen="it is compiled") for r in (0, 1)])
    assert [f.severity for f in found] == [Severity.INFO]
