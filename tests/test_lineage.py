"""What a checkpoint stands on, by attack: gaps, unknown files, sabotage that later segments hide."""

from __future__ import annotations

import random
import sys
from pathlib import Path

import msgspec
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from trainwarden import model as m
from trainwarden.lineage import against_disk, as_inherited, attempts, last_cleared, resume_place, segments, trace
from trainwarden.standing import matched_steps

sys.path.insert(0, str(Path(__file__).parent / "report"))
from story import PLOT, diverged, entries, matched

HONEST = PLOT._replace(killed_at=0)


def standings(log: list[m.Entry], **more: object) -> dict[int, m.Standing]:
    return {c.step: c.standing for c in trace(log, **more).checkpoints}  # type: ignore[arg-type]


def without(log: list[m.Entry], drop: object) -> list[m.Entry]:
    return [e for e in log if not drop(e)]  # type: ignore[operator]


def changed(log: list[m.Entry], kind: type, **new: object) -> list[m.Entry]:
    return [msgspec.structs.replace(e, **new) if isinstance(e, kind) else e for e in log]


# --------------------------------------------------------------------------- the story


def test_honest_run_audited_whole_clears_every_checkpoint() -> None:
    assert standings(entries(HONEST)) == dict.fromkeys(range(6, 37, 6), m.Standing.CLEARED)


def test_unaudited_run_clears_nothing() -> None:
    log = entries(HONEST._replace(audited=False))
    assert set(standings(log).values()) == {m.Standing.UNAUDITED}
    assert last_cleared(trace(log).checkpoints) is None


def test_segments_after_the_diverged_one_are_tainted_though_they_match() -> None:
    found = standings(entries())
    assert found[6] is found[12] is m.Standing.CLEARED
    assert {found[s] for s in (18, 24, 30, 36)} == {m.Standing.TAINTED}
    cleared = last_cleared(trace(entries()).checkpoints)
    assert cleared is not None
    assert cleared.step == 12


def test_attempts_and_segments_of_a_restart() -> None:
    first, second = attempts(entries())
    assert (first.base, first.last, first.ranks) == (0, 13, (0, 1))
    assert (second.base, second.last) == (12, 35)
    assert [(s.attempt, s.first, s.last) for s in segments(entries())] == [
        (0, 0, 5), (0, 6, 11), (0, 12, 13), (1, 12, 17), (1, 18, 23), (1, 24, 29), (1, 30, 35),
    ]  # fmt: skip


def test_lineage_leaves_out_what_the_restart_threw_away() -> None:
    last = trace(entries()).checkpoints[-1]
    assert [(s.attempt, s.first) for s in last.lineage] == [(0, 0), (0, 6), (1, 12), (1, 18), (1, 24), (1, 30)]


def test_steps_thrown_away_by_the_restart_may_diverge_without_tainting_what_follows() -> None:
    log = [*entries(PLOT._replace(audited=False)), matched(0, 0, 5), matched(0, 6, 11), matched(1, 12, 17)]
    at = msgspec.structs.replace(diverged(PLOT, 1, 12, 17).at, step=13)
    log.append(msgspec.structs.replace(diverged(PLOT, 0, 12, 13), at=at))
    assert standings(log)[18] is m.Standing.CLEARED


# --------------------------------------------------------------------------- attacks on clearing


def test_inconclusive_segment_is_never_a_pass() -> None:
    log = without(entries(HONEST), lambda e: isinstance(e, m.Matched) and e.segment.first == 12)
    log.append(m.Inconclusive(segment=m.Segment(attempt=0, first=12, last=17), reasons=("no room",)))
    found = standings(log)
    assert found[12] is m.Standing.CLEARED
    assert {found[s] for s in (18, 24, 36)} == {m.Standing.UNDECIDED}


@pytest.mark.parametrize("order", [False, True])
def test_divergence_is_not_overruled_by_a_match(order: bool) -> None:
    log = entries(PLOT)
    log.insert(len(log) if order else 1, matched(1, 12, 17))
    checkpoint = next(c for c in trace(log).checkpoints if c.step == 18)
    assert checkpoint.standing is m.Standing.UNDECIDED
    assert "conflict" in checkpoint.reason


def test_a_partial_match_is_no_conflict() -> None:
    part = msgspec.structs.replace(matched(1, 12, 17), coverage=m.Coverage(records=6, digests=100))
    assert standings([*entries(), part])[18] is m.Standing.TAINTED


def test_match_of_one_rank_alone_clears_nothing() -> None:
    log = changed(entries(HONEST), m.Matched, coverage=m.Coverage(records=6, digests=100))
    assert set(standings(log).values()) == {m.Standing.UNAUDITED}


def test_match_that_did_not_compare_the_weights_clears_nothing() -> None:
    coverage = m.Coverage(records=12, digests=100, unseen={"weights": "sharded"})
    assert set(standings(changed(entries(HONEST), m.Matched, coverage=coverage)).values()) == {m.Standing.UNDECIDED}


def test_unknown_file_loaded_at_restart_is_never_cleared() -> None:
    log = [*entries(), *(matched(1, a, a + 5) for a in range(12, 36, 6))]
    log = without(log, lambda e: isinstance(e, m.Diverged | m.Inconclusive))
    assert standings(log)[36] is m.Standing.CLEARED
    poisoned = changed(log, m.CheckpointLoaded, digest="ee" * 32)
    assert standings(poisoned)[12] is m.Standing.CLEARED
    assert {standings(poisoned)[s] for s in (18, 24, 30, 36)} == {m.Standing.UNDECIDED}


def test_unknown_file_loaded_in_the_middle_spoils_what_is_saved_after_it() -> None:
    log = entries(HONEST)
    at = next(i for i, e in enumerate(log) if isinstance(e, m.StepRecord) and e.step == 14)
    log.insert(at, m.CheckpointLoaded(attempt=0, rank=1, path="/tmp/x.pt", digest="ee" * 32))
    found = standings(log)
    assert found[12] is m.Standing.CLEARED
    assert found[18] is found[36] is m.Standing.UNDECIDED


def test_sealed_file_may_be_loaded() -> None:
    log = entries(HONEST)
    log.insert(3, m.CheckpointLoaded(attempt=0, rank=0, path="/srv/base.safetensors", digest="bb" * 32))
    assert standings(log)[36] is m.Standing.UNDECIDED
    assert standings(log, sealed={"bb" * 32})[36] is m.Standing.CLEARED


def test_gap_is_never_cleared() -> None:
    log = entries(HONEST)
    log.insert(40, m.Gap(attempt=0, rank=1, step=14, reason="recorder error"))
    found = standings(log)
    assert found[12] is m.Standing.CLEARED
    assert {found[s] for s in (18, 24, 30, 36)} == {m.Standing.UNDECIDED}


@pytest.mark.parametrize("step", [0, 3, 11])
def test_missing_record_is_never_cleared(step: int) -> None:
    log = without(entries(HONEST), lambda e: isinstance(e, m.StepRecord) and (e.step, e.rank) == (step, 1))
    assert m.Standing.CLEARED not in {s for c, s in standings(log).items() if c > step}


def test_silent_rank_is_never_cleared() -> None:
    log = without(entries(HONEST), lambda e: getattr(e, "rank", 0) == 1)
    assert m.Standing.CLEARED not in standings(log).values()


def test_file_that_differs_from_the_record_is_never_cleared() -> None:
    log = changed(entries(HONEST), m.CheckpointSaved, weights="differs: lora_a")
    assert set(standings(log).values()) == {m.Standing.UNDECIDED}


def test_file_that_nothing_ties_to_the_record_is_never_cleared() -> None:
    log = changed(entries(HONEST), m.CheckpointSaved, weights="")
    assert set(standings(log).values()) == {m.Standing.UNDECIDED}


def test_file_tied_to_the_record_vouches_for_its_siblings() -> None:
    log = entries(HONEST)
    at = next(i for i, e in enumerate(log) if isinstance(e, m.CheckpointSaved))
    optimizer = msgspec.structs.replace(log[at], path="/srv/out/optimizer.safetensors", digest="cc" * 32, weights="")
    log.insert(at, optimizer)
    assert standings(log)[6] is m.Standing.CLEARED
    assert len(trace(log).checkpoints[0].files) == 2


def test_checkpoint_of_no_step_at_all_is_not_cleared_by_an_empty_lineage() -> None:
    log = entries(HONEST)
    log.insert(3, m.CheckpointSaved(attempt=0, rank=0, step=0, path="/o/0", digest="0a" * 32, size=1, format="torch"))
    assert standings(log)[0] is m.Standing.UNDECIDED


def test_checkpoint_that_claims_an_earlier_step_stands_on_what_was_logged_before_it() -> None:
    log = entries()
    at = next(i for i, e in enumerate(log) if isinstance(e, m.CheckpointSaved) and e.step == 24)
    log[at] = msgspec.structs.replace(log[at], step=12)
    assert [c.standing for c in trace(log).checkpoints if (c.attempt, c.step) == (1, 12)] == [m.Standing.TAINTED]


def test_checkpoint_hashed_while_its_rank_went_on_stands_on_what_had_arrived() -> None:
    log = entries()
    at = next(i for i, e in enumerate(log) if isinstance(e, m.CheckpointSaved) and e.step == 12)
    late = next(i for i, e in enumerate(log) if isinstance(e, m.StepRecord) and e.step == 13)
    log.insert(late, msgspec.structs.replace(log.pop(at), reached=12))
    assert [s.first for s in trace(log).checkpoints[1].lineage] == [0, 6]
    log[late] = msgspec.structs.replace(log[late], reached=13)
    assert [s.first for s in trace(log).checkpoints[1].lineage] == [0, 6, 12]


def test_same_bytes_at_another_path_are_the_same_checkpoint() -> None:
    moved = changed(entries(), m.CheckpointLoaded, path="/elsewhere/model.safetensors")
    assert trace(moved).checkpoints[-1].lineage == trace(entries()).checkpoints[-1].lineage


def test_save_after_the_load_does_not_explain_the_load() -> None:
    log = entries(HONEST)
    early = next(e for e in log if isinstance(e, m.CheckpointSaved))
    log.insert(3, m.CheckpointLoaded(attempt=0, rank=0, path=early.path, digest=early.digest))
    assert standings(log)[6] is m.Standing.UNDECIDED


# --------------------------------------------------------------------------- across runs


def recovery(parent: list[m.Entry]) -> tuple[m.Checkpoint, ...]:
    """The checkpoints of a run that resumed from step 12 of `parent`."""
    child = [e for e in entries(PLOT) if getattr(e, "attempt", -1) == 1]
    child = [msgspec.structs.replace(e, attempt=0) for e in child]
    child += [matched(0, first, first + 5) for first in range(12, 36, 6)]
    return trace(child, inherited=as_inherited(trace(parent).checkpoints, "old")).checkpoints


def test_recovered_run_stands_on_its_parent() -> None:
    last = recovery(entries())[-1]
    assert last.standing is m.Standing.CLEARED
    assert [(s.run, s.first) for s in last.lineage[:3]] == [("old", 0), ("old", 6), ("", 12)]


def test_recovery_from_a_checkpoint_that_is_not_cleared_clears_nothing() -> None:
    unaudited = without(entries(), lambda e: isinstance(e, m.Matched) and e.segment.first == 6)
    assert {c.standing for c in recovery(unaudited)} == {m.Standing.UNAUDITED}


# --------------------------------------------------------------------------- files now


def test_checkpoint_edited_on_disk_is_tainted() -> None:
    first, *others = trace(entries(HONEST)).checkpoints
    path = first.files[0].path
    after = against_disk((first, *others), {path: "ab" * 32})
    assert after[0].standing is m.Standing.TAINTED
    assert after[1:] == tuple(others)


def test_checkpoint_that_is_intact_or_gone_keeps_its_standing() -> None:
    before = trace(entries(HONEST)).checkpoints
    assert against_disk(before, {f.path: f.digest for c in before for f in c.files}) == before
    assert against_disk(before, {f.path: "" for c in before for f in c.files}) == before


def test_checkpoint_replaced_by_a_later_recorded_save_is_not_the_recorded_state() -> None:
    before = trace(entries(HONEST)).checkpoints
    path = before[0].files[0].path
    after = against_disk(before, {path: "ab" * 32}, {path: {"ab" * 32}})
    assert after[0].standing is m.Standing.UNDECIDED


# --------------------------------------------------------------------------- properties


def verdict(draw: st.DrawFn) -> m.Verdict:
    attempt = draw(st.integers(0, 1))
    edges = [0, 6, 12, 14] if attempt == 0 else [12, 18, 24, 30, 36]
    i = draw(st.integers(0, len(edges) - 2))
    segment = m.Segment(attempt=attempt, first=edges[i], last=edges[i + 1] - 1)
    kind = draw(st.sampled_from(["matched", "partial", "diverged", "inconclusive"]))
    if kind == "diverged":
        at = msgspec.structs.replace(diverged(PLOT, 1, 12, 17).at, step=draw(st.integers(0, 40)))
        return m.Diverged(segment=segment, at=at, coverage=m.Coverage())
    if kind == "inconclusive":
        return m.Inconclusive(segment=segment, reasons=())
    whole = matched(attempt, segment.first, segment.last)
    return whole if kind == "matched" else msgspec.structs.replace(whole, coverage=m.Coverage(records=1))


verdict_lists = st.lists(st.composite(verdict)(), max_size=14)
BARE = entries(PLOT._replace(audited=False))


def cleared(log: list[m.Entry]) -> set[tuple[int, int]]:
    return {(c.attempt, c.step) for c in trace(log).checkpoints if c.standing is m.Standing.CLEARED}


@settings(deadline=None, max_examples=60)
@given(verdict_lists, verdict_lists)
def test_clearing_is_monotone_in_evidence(some: list[m.Verdict], more: list[m.Verdict]) -> None:
    good = [v for v in more if isinstance(v, m.Matched)]
    bad = [v for v in more if not isinstance(v, m.Matched)]
    assert cleared([*BARE, *some]) <= cleared([*BARE, *some, *good])
    assert cleared([*BARE, *some, *bad]) <= cleared([*BARE, *some])


@settings(deadline=None, max_examples=40)
@given(verdict_lists, st.randoms(use_true_random=False))
def test_the_order_of_verdicts_does_not_matter(some: list[m.Verdict], rng: random.Random) -> None:
    mixed = rng.sample(some, len(some))
    assert [c.standing for c in trace([*BARE, *some]).checkpoints] == [
        c.standing for c in trace([*BARE, *mixed]).checkpoints
    ]


@settings(deadline=None, max_examples=40)
@given(st.integers(0, 35), st.integers(0, 1), verdict_lists)
def test_a_hole_in_the_lineage_never_clears(step: int, rank: int, some: list[m.Verdict]) -> None:
    whole = [*entries(HONEST), *(v for v in some if v.segment.attempt == 0)]
    log = without(whole, lambda e: isinstance(e, m.StepRecord) and (e.step, e.rank) == (step, rank))
    assert all(c <= step for _, c in cleared(log))


@settings(deadline=None, max_examples=40)
@given(verdict_lists)
def test_every_cleared_checkpoint_has_a_whole_match_for_every_segment(some: list[m.Verdict]) -> None:
    log = [*BARE, *some]
    good = matched_steps(log)
    for c in trace(log).checkpoints:
        if c.standing is m.Standing.CLEARED:
            assert all((s.attempt, step) in good for s in c.lineage for step in range(s.first, s.last + 1))


def test_matched_steps_stop_at_the_divergence() -> None:
    steps = matched_steps(entries())
    assert (1, 15) in steps
    assert (1, 16) not in steps
    assert (1, 17) not in steps
    assert (1, 18) in steps
    assert (1, 24) not in steps


def test_hostile_numbers_cost_nothing() -> None:
    log = entries(HONEST)
    log.insert(3, m.CheckpointSaved(attempt=0, rank=0, step=10**15, path="/o", digest="0a" * 32, size=1, format="x"))
    log = changed(log, m.StepRecord, world=10**9)
    assert m.Standing.CLEARED not in standings(log).values()


# --------------------------------------------------------------------------- distributed checkpoints


def parts(log: list[m.Entry], rewritten: tuple[str, ...]) -> list[m.Entry]:
    """The story with its first checkpoint kept in two parts and an index, of which some were written again."""
    at = next(i for i, e in enumerate(log) if isinstance(e, m.CheckpointSaved))
    first = log[at]
    assert isinstance(first, m.CheckpointSaved)
    files = [
        msgspec.structs.replace(first, path=f"/ck/step-6/{name}", digest=name, format=format, weights="")
        for name, format in (("__0_0.distcp", m.DCP), ("__1_0.distcp", m.DCP), (".metadata", m.DCP_INDEX))
    ]
    others = without(log, lambda e: isinstance(e, m.CheckpointSaved) and e.step == first.step)
    log = [*others[:at], *files, *others[at:]]
    return [
        msgspec.structs.replace(e, files=rewritten) if isinstance(e, m.Matched) and e.segment.first == 0 else e
        for e in log
    ]


@pytest.mark.parametrize("lost", ["__0_0.distcp", "__1_0.distcp", ".metadata"])
def test_a_distributed_checkpoint_of_which_one_part_was_not_written_again_is_not_cleared(lost: str) -> None:
    every = ("__0_0.distcp", "__1_0.distcp", ".metadata")
    whole = trace(parts(entries(HONEST), every)).checkpoints[0]
    assert whole.standing is m.Standing.CLEARED
    lacking = trace(parts(entries(HONEST), tuple(p for p in every if p != lost))).checkpoints[0]
    assert lacking.standing is m.Standing.UNDECIDED
    assert lost in lacking.reason


def test_a_script_resumes_from_the_folder_of_a_distributed_checkpoint_even_of_one_rank() -> None:
    one = trace(parts(entries(HONEST), ())).checkpoints[0].files
    assert resume_place(one) == resume_place(one[:1]) == resume_place([one[0], one[2]]) == "/ck/step-6"
