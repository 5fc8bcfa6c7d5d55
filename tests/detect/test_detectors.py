"""Each detector: the case that must fire, and its benign twin that must stay silent."""

from __future__ import annotations

import math

import msgspec
import pytest
from blake3 import blake3
from hosts import told_of_hosts
from records import detail, exited, feed, root, step
from updates import changing_settings, standing_still

import trainwarden.detect
from trainwarden.detect import all_detectors
from trainwarden.detect.checkpoints import Checkpoints
from trainwarden.detect.continuity import Continuity
from trainwarden.detect.engine import Engine
from trainwarden.detect.environment import Environment
from trainwarden.detect.gaps import Gaps
from trainwarden.detect.kills import Kills
from trainwarden.detect.reduction import Reduction
from trainwarden.detect.replay import Replay
from trainwarden.detect.replicas import Replicas
from trainwarden.model import (
    CheckpointLoaded,
    CheckpointSaved,
    CodeDifference,
    CodeSeen,
    Coverage,
    DataDiffers,
    Deviation,
    Diverged,
    FileChanged,
    Gap,
    Inconclusive,
    Location,
    LossSeen,
    Matched,
    Misfit,
    ModelSeen,
    Numerics,
    PartDiffers,
    PrecisionSeen,
    ProcessSeen,
    ProcessStarted,
    ReductionFault,
    ReductionKey,
    ReductionSeen,
    Reseeded,
    RunEnded,
    Sealed,
    Segment,
    Severity,
    Stage,
    StageDigest,
    StateChanged,
    TrackerSeen,
    UnitAudited,
    UnitKind,
    UnitResult,
    UpdateSeen,
)


def started(rank: int, attempt: int = 0) -> ProcessStarted:
    return ProcessStarted(
        attempt=attempt, rank=rank, world=2, pid=1, argv=(), cwd="/", executable="", env_digest="", numerics=Numerics()
    )


def saved(path: str = "/c", digest: str = "d", weights: str = "matches", at: int = 4) -> CheckpointSaved:
    return CheckpointSaved(
        attempt=0, rank=0, step=at, path=path, digest=digest, size=1, format="safetensors", weights=weights
    )


def grown(found: str, log: bool = True) -> FileChanged:
    return FileChanged(path="/code/train.log", kind="code", sealed="s", found=found, grown=log)


def test_a_log_that_grows_is_noted_once_and_one_that_is_read_is_told() -> None:
    detector = Environment()
    entries = [grown("1"), grown("2"), grown("2", log=False), grown("3", log=False)]
    found = [[(f.severity, f.seen) for f in detector.observe(i, e, None)] for i, e in enumerate(entries)]
    assert [[s for s, _ in f] for f in found] == [[Severity.INFO], [], [Severity.MEDIUM], [Severity.MEDIUM]]
    assert "has grown" in found[0][0][1]
    assert "was changed after the seal" in found[2][0][1]
    assert "goes on changing" in found[3][0][1]


def changed(path: str = "/lib/x.py", kind: str = "environment", sealed: str = "s", found: str = "f") -> FileChanged:
    return FileChanged(path=path, kind=kind, sealed=sealed, found=found)


# -- replicas


def test_one_rank_with_another_weight_is_named_with_step_ranks_and_tensor() -> None:
    (found,) = feed(Replicas(), [step(0), step(0, 1), step(1), step(1, 1, {"a": "1", "b": "tampered"})])
    assert (found.step, found.ranks, found.stage, found.tensor) == (1, (0, 1), Stage.WEIGHTS, "b")
    assert found.evidence == (2, 3)


def test_a_difference_at_the_very_first_step_is_seen() -> None:
    (found,) = feed(Replicas(), [step(0), step(0, 1, {"a": "0", "b": "tampered"})])
    assert found.severity is Severity.HIGH


def test_every_rank_is_compared_and_not_only_the_first_two() -> None:
    found = feed(Replicas(), [step(0, r, {"a": "0", "b": "t" if r == 3 else "0"}, world=4) for r in range(4)])
    assert [f.ranks for f in found] == [(0, 3)]


def test_a_rank_that_is_steps_ahead_is_compared_when_the_other_comes() -> None:
    late = [step(s, 1, {"a": str(s), "b": "t" if s == 30 else str(s)}) for s in range(40)]
    assert [f.step for f in feed(Replicas(), [*(step(s) for s in range(40)), *late])] == [30]


def test_equal_replicas_are_silent() -> None:
    assert feed(Replicas(), [step(s, r) for s in range(20) for r in (0, 1)]) == []


def test_attempts_optimizers_and_steps_are_not_mixed_up() -> None:
    fed = [
        step(0, 0, {"a": "x"}, optimizer=0), step(0, 0, {"b": "y"}, optimizer=1),
        step(0, 1, {"a": "x"}, optimizer=0), step(0, 1, {"b": "y"}, optimizer=1),
        step(0, 0, {"a": "z"}, attempt=1), step(0, 1, {"a": "z"}, attempt=1),
    ]  # fmt: skip
    assert feed(Replicas(), fed) == []


def test_shards_are_not_compared_and_that_is_said_once() -> None:
    sharded = [step(s, r, {"a": f"{s}/{r}", "b": f"{s}/{r}"}) for s in range(5) for r in (0, 1)]
    by_name = [step(s, r, {f"part{r}": f"{s}"}) for s in range(5) for r in (0, 1)]
    for fed in (sharded, by_name):
        found = feed(Replicas(), fed)
        assert [f.severity for f in found] == [Severity.INFO]
        assert "were not compared" in found[0].seen


def test_shards_with_equal_step_counters_are_not_replicas() -> None:
    fed = []
    for rank in (0, 1):
        record, details = step(0, rank, {"a": f"{rank}"})
        counters = {"a/step": "1", "a/exp_avg": f"{rank}"}
        stages = record.stages | {Stage.OPTIMIZER_STATE: StageDigest(root=root(counters), tensors=2)}
        fed.append(
            (msgspec.structs.replace(record, stages=stages), details | {Stage.OPTIMIZER_STATE: detail(counters)})
        )
    (found,) = feed(Replicas(), fed)
    assert found.severity is Severity.INFO


@pytest.mark.parametrize(("reduced", "found"), [("", []), ("same", [Severity.HIGH])])
def test_state_of_optimizers_that_compute_gradients_themselves_is_each_ranks_own(
    reduced: str, found: list[Severity]
) -> None:
    fed = []
    for rank in (0, 1):
        record, details = step(0, rank, {"a": "1"})
        state = {"a/prev_loss": f"{rank}"}
        stages = record.stages | {
            Stage.REDUCED_GRADIENTS: StageDigest(root=reduced, unseen="" if reduced else "a closure"),
            Stage.OPTIMIZER_STATE: StageDigest(root=root(state), tensors=1),
        }
        fed.append((msgspec.structs.replace(record, stages=stages), details | {Stage.OPTIMIZER_STATE: detail(state)}))
    assert [f.severity for f in feed(Replicas(), fed)] == found


def test_replicas_that_once_agreed_do_not_become_shards() -> None:
    found = feed(Replicas(), [step(0), step(0, 1), step(1), step(1, 1, {"a": "x", "b": "y"})])
    assert [f.severity for f in found] == [Severity.HIGH]


def test_a_rank_that_never_reports_does_not_fill_the_memory() -> None:
    detector = Replicas()
    feed(detector, [step(s) for s in range(5_000)])
    assert len(detector._attempts[0].open) <= 65


# -- continuity


def test_weights_edited_between_two_steps_are_seen() -> None:
    w = [{"a": "0"}, {"a": "1"}]
    (found,) = feed(Continuity(), [step(0, weights=w[0]), step(1, weights=w[1], before={"a": "edited"})])
    assert (found.step, found.ranks, found.evidence) == (1, (0,), (0, 1))


def test_untouched_weights_and_steps_without_a_look_are_silent() -> None:
    w = [{"a": str(i)} for i in range(4)]
    looks = [step(i, weights=w[i], before=w[i - 1] if i % 2 else None) for i in range(4)]
    assert feed(Continuity(), looks) == []


def test_a_new_attempt_a_missing_record_and_several_optimizers_are_not_compared() -> None:
    other = {"a": "other"}
    assert feed(Continuity(), [step(0), step(1, before=other, attempt=1)]) == []
    assert feed(Continuity(), [step(0), step(2, before=other)]) == []
    assert feed(Continuity(), [step(0), step(0, seq=1, optimizer=1, before=other)]) == []


# -- checkpoints


def test_a_checkpoint_with_another_tensor_is_named() -> None:
    (found,) = feed(Checkpoints(), [saved(weights="differs: layer.bias")])
    assert (found.tensor, found.step, found.stage) == ("layer.bias", 4, Stage.CHECKPOINT)


def test_a_swapped_checkpoint_is_seen_when_it_is_loaded() -> None:
    loaded = CheckpointLoaded(attempt=1, rank=0, path="/c", digest="other", known_step=2)
    (found,) = feed(Checkpoints(), [saved(), loaded])
    assert "the one of step 2, not what was saved at step 4" in found.seen
    assert found.evidence == (0, 1)


def test_an_older_checkpoint_loaded_after_the_newest_is_gone_is_told_once_for_an_attempt() -> None:
    older = saved("/old", "o", at=2)
    loads = [
        CheckpointLoaded(attempt=a, rank=r, path="/old", digest="o", known_step=2, newer_gone="/c")
        for a, r in ((1, 0), (1, 1), (2, 0))
    ]
    found = feed(Checkpoints(), [older, saved(), *loads])
    assert [(f.attempt, f.severity) for f in found] == [(1, Severity.MEDIUM), (2, Severity.MEDIUM)]
    assert "went back to step 2 (/old): the newer checkpoint file /c of step 4 is gone" in found[0].seen
    honest = CheckpointLoaded(attempt=1, rank=0, path="/old", digest="o", known_step=2)
    assert feed(Checkpoints(), [older, saved(), honest]) == []


def test_an_edited_checkpoint_is_seen_when_its_change_is_told() -> None:
    found = feed(Checkpoints(), [saved(), changed("/c", "data", "", "other")])
    assert [f.severity for f in found] == [Severity.HIGH]


def test_honest_checkpoints_are_silent() -> None:
    loaded = CheckpointLoaded(attempt=1, rank=0, path="/c", digest="e", known_step=8)
    assert feed(Checkpoints(), [saved(), saved(digest="e", at=8), saved(weights=""), saved(digest="e"), loaded]) == []


# -- environment


@pytest.mark.parametrize(
    ("sealed", "now", "how"), [("s", "f", "was changed"), ("", "f", "is new"), ("s", "", "was removed")]
)
def test_a_changed_environment_file_is_told(sealed: str, now: str, how: str) -> None:
    (found,) = feed(Environment(), [changed(sealed=sealed, found=now)])
    assert f"/lib/x.py {how}" in found.seen
    assert found.severity is Severity.HIGH


def test_a_log_beside_the_code_is_told_once_and_an_environment_file_for_each_content() -> None:
    again = [changed("/job/log.txt", "code", found=f"f{i}") for i in range(9)]
    engine = Engine([Environment()])
    told = [f for i, e in enumerate(again) for f in engine.observe(i, e, None)] + engine.finish()
    assert [f.seen.partition(" (")[0] for f in told[:2]] == [
        "The code file /job/log.txt was changed after the seal",
        "The code file /job/log.txt goes on changing.",
    ]
    assert [f.seen.partition(":")[0] for f in told[2:]] == ["The same was seen 7 more times"]
    assert len(feed(Environment(), [changed(found=f"f{i}") for i in range(9)])) == 9


def test_other_entries_are_no_change_of_files() -> None:
    assert feed(Environment(), [step(0), saved(), exited(0, -9)]) == []


# -- replay


def diverged(at: int = 5) -> Diverged:
    where = Location(step=at, rank=0, stage=Stage.WEIGHTS, tensor="w", recorded="a", replayed="b")
    return Diverged(segment=Segment(attempt=0, first=4, last=7), coverage=Coverage(), at=where, mode="start")


def resumed(parent: str = "20260101-000000-aaaa") -> Sealed:
    return Sealed(run="20260101-000001-bbbb", seal="", key="", parent=parent)


def test_a_run_that_does_not_replay_is_told_with_its_place() -> None:
    (found,) = feed(Replay(), [resumed(), diverged()])
    assert (found.severity, found.step, found.stage, found.tensor) == (Severity.HIGH, 5, Stage.WEIGHTS, "w")
    assert "goes on from run 20260101-000000-aaaa does not replay" in found.seen


def test_a_resumed_run_that_replays_is_silent_and_one_that_cannot_be_replayed_is_told_as_not_checked() -> None:
    segment = Segment(attempt=0, first=4, last=7)
    assert feed(Replay(), [resumed(), Matched(segment=segment, coverage=Coverage())]) == []
    unknown = Inconclusive(segment=segment, reasons=("no room",))
    (found,) = feed(Replay(), [resumed(), unknown, unknown])
    assert found.severity is Severity.INFO
    assert feed(Replay(), [resumed(""), unknown]) == []


# -- kills


def test_a_killed_rank_is_told_with_its_signal() -> None:
    (found,) = feed(Kills(), [started(0), exited(0, -9)])
    assert "ended by SIGKILL" in found.seen
    assert found.evidence == (0, 1)


def test_a_killed_launch_command_is_told() -> None:
    (found,) = feed(Kills(), [started(0), exited(-1, -9)])
    assert "launch command" in found.seen


def test_a_rank_that_vanished_is_told() -> None:
    (found,) = feed(Kills(), [exited(1, -1, known=False)])
    assert "vanished" in found.seen


def test_a_single_rank_ended_by_sigterm_is_told() -> None:
    assert len(feed(Kills(), [exited(1, -15)])) == 1


def test_ends_in_order_crashes_of_scripts_stops_and_the_launchers_clean_up_are_silent() -> None:
    assert feed(Kills(), [exited(0, 0, goodbye=True), exited(1, -1, known=False, goodbye=True)]) == []
    assert feed(Kills(), [exited(0, 1, goodbye=True), exited(1, -15)]) == []
    assert feed(Kills(), [exited(0, -15, stopping=15), exited(1, -9, stopping=2)]) == []
    assert feed(Kills(), [exited(-1, 1), exited(-1, -15, stopping=15), exited(-1, -11)]) == []  # the launch command
    rank_itself = msgspec.structs.replace(exited(-1, -9), pid=1)  # its end as a rank is told
    assert feed(Kills(), [started(0), rank_itself]) == []
    assert len(feed(Kills(), [exited(0, -9), exited(1, -1, known=False)])) == 1  # only the one that was not cleaned up


def test_an_end_in_order_excuses_no_kill_that_follows() -> None:
    for killed in (exited(1, -15), exited(1, -1, known=False)):
        assert len(feed(Kills(), [exited(0, 0, goodbye=True), killed])) == 1


def test_a_second_kill_beside_a_clean_up_is_told() -> None:
    assert len(feed(Kills(), [exited(0, 1, goodbye=True), exited(1, -9)])) == 1


# -- gaps


def test_gaps_holes_and_a_silenced_recorder_are_told() -> None:
    gap = Gap(attempt=0, rank=1, step=3, reason="hooks failed")
    assert "hooks failed" in feed(Gaps(), [gap])[0].seen
    assert "2 records of rank 0 are missing before step 3" in feed(Gaps(), [step(0), step(3)])[0].seen
    assert "never said goodbye" in feed(Gaps(), [started(0), exited(0, 0)])[0].seen


def test_a_log_without_an_end_or_with_a_wrong_count_is_told() -> None:
    assert "has no end" in feed(Gaps(), [step(0)], finish=True)[0].seen
    (found,) = feed(Gaps(), [step(0), RunEnded(code=0, records=5, wall_ns=0)], finish=True)
    assert "counts 5 records, the log holds 1" in found.seen


def test_a_run_without_a_step_is_told_once() -> None:
    (found,) = feed(Gaps(), [RunEnded(code=0, records=0, wall_ns=0)], finish=True)
    assert "without a single optimizer step" in found.seen


def test_the_same_gap_at_other_steps_is_told_once() -> None:
    gaps = [Gap(attempt=0, rank=0, step=i, reason=f"step {i}: not supported") for i in range(50)]
    assert len(feed(Gaps(), gaps)) == 1


def test_a_whole_run_is_silent() -> None:
    fed = [started(0), *(step(i) for i in range(3)), exited(0, 0, goodbye=True), RunEnded(code=0, records=3, wall_ns=0)]
    assert feed(Gaps(), fed, finish=True) == []


# -- all of them


def test_every_finding_is_whole() -> None:
    fed = [
        step(0), step(0, 1, {"a": "0", "b": "t"}), step(5, before={"x": "y"}), saved(weights="differs: x"),
        changed(), exited(0, -9), Gap(attempt=0, rank=0, step=0, reason="r"), step(6), step(7, before={"a": "e"}),
        CodeSeen(attempt=0, rank=0, step=0, root="", names=1, functions=1, unchecked=0,
                 differences=(CodeDifference(kind="unsealed", slots=("a:b",), places=1),)),
        ProcessSeen(attempt=0, rank=0, pid=1, libraries=1, sealed=0, system=0,
                    deviations=(Deviation(kind="library", name="/x.so"),)),
        PrecisionSeen(attempt=0, rank=0, step=0, flags={"f": "1"}),
        PrecisionSeen(attempt=0, rank=1, step=0, flags={"f": "2"}),
        ReductionSeen(attempt=0, step=0, faults=(ReductionFault(kind="rank", ranks=(1,), factor=0.0),)),
        diverged(),
        *told_of_hosts(),
        CheckpointLoaded(attempt=0, rank=0, path="/p", digest="p"), msgspec.structs.replace(step(8)[0], loss=math.nan),
        step(9), TrackerSeen(rank=0, tracker="wandb", unchecked="accuracy"),
        *(DataDiffers(attempt=0, rank=0, step=0, kind=k) for k in ("order", "lost", "changed", "manifest", "copies")),
        Reseeded(attempt=0, rank=0, step=9), LossSeen(attempt=0, rank=0, step=9, unseen="it is compiled"),
        UpdateSeen(attempt=0, rank=0, step=1, optimizer=0, kind="k.K", misfits=(Misfit(tensor="a", part="weights"),)),
        StateChanged(attempt=0, rank=0, step=1, emptied=("a/exp_avg",)),
        ModelSeen(attempt=0, rank=0, step=0, idle=("a",), idle_count=1),
        *changing_settings(), *standing_still(),
        UnitAudited(attempt=0, step=3, rank=1, kind=UnitKind.NEAR, result=UnitResult.DIVERGED,
                    at=Location(step=3, rank=1, stage=Stage.LOCAL_GRADIENTS)),
    ]  # fmt: skip
    for detector in all_detectors():
        found = feed(detector, fed)
        assert found, detector.id
        for f in found:
            assert f.detector == detector.id
            assert f.expected.endswith(".")
            assert f.evidence
            assert f.benign


def test_ids_are_unique_and_each_run_gets_fresh_detectors() -> None:
    ids = [d.id for d in all_detectors()]
    assert len(set(ids)) == len(ids) >= 12
    assert not set(map(id, all_detectors())) & set(map(id, all_detectors()))


def test_the_package_exports_its_spine() -> None:
    assert trainwarden.detect.__all__ == ["Detector", "Engine", "Facts", "all_detectors"]


# -- ordered reduction


def keys(rank: int, key: str = "", table: str = "") -> ReductionKey:
    return ReductionKey(attempt=0, rank=rank, step=0, key=key or f"{rank:064x}", world=2, table=table)


def test_public_keys_that_a_rank_was_given_are_those_that_the_ranks_told() -> None:
    table = blake3(bytes.fromhex(f"{0:064x}{1:064x}")).hexdigest()
    honest = [keys(0), keys(1), keys(0, table=table), keys(1, table=table)]
    assert feed(Reduction(), honest) == []
    assert feed(Reduction(), [honest[0], honest[2], honest[1], honest[3]]) == []  # a rank may be early
    (found,) = feed(Reduction(), [*honest[:3], keys(1, table="f" * 64)])
    assert found.ranks == (1,)
    assert "was given other public keys" in found.seen
    (found,) = feed(Reduction(), [*honest, keys(1, key="e" * 64)])
    assert "another key than it told" in found.seen


def test_a_part_that_differs_names_sender_and_receiver() -> None:
    (found,) = feed(Reduction(), [PartDiffers(attempt=0, rank=2, step=7, sender=1, tensors=("w",))])
    assert (found.ranks, found.step, found.tensor) == ((1, 2), 7, "w")
