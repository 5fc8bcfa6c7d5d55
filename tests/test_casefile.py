"""A run read as a case: the answer comes from verdicts alone, and a broken record says so."""

from __future__ import annotations

import sys
from contextlib import suppress
from pathlib import Path

import pytest
from blake3 import blake3

from trainwarden import model as m
from trainwarden.casefile import Answer, Broken, Intact, KeySource, coverage_share, load_case
from trainwarden.errors import LogTampered, TrainWardenError, UsageError
from trainwarden.lineage import last_cleared
from trainwarden.store import RunDir

sys.path.insert(0, str(Path(__file__).parent / "report"))
import story
from planted import KEY, OTHER, Planted, copied, plant


@pytest.fixture(scope="module")
def source(tmp_path_factory: pytest.TempPathFactory) -> Planted:
    return plant(tmp_path_factory.mktemp("case"))


@pytest.fixture
def run(source: Planted, tmp_path: Path) -> Planted:
    return copied(source, tmp_path)


def test_diverged_run_names_step_rank_stage_tensor_and_cause(source: Planted) -> None:
    case = source.case()
    assert case.answer is Answer.DIVERGED
    assert (
        case.sentence == f"diverged at step 16, rank 1, local gradients of {story.BAD_TENSOR}; cause proved: sign flip"
    )
    assert isinstance(case.state, Intact)
    assert case.state.head.size == len(case.entries)
    safe = last_cleared(case.history.checkpoints)
    assert safe is not None
    assert safe.step == 12


def test_coverage_counts_what_was_reproduced_and_nothing_else(source: Planted) -> None:
    audited = source.case().audited
    # attempt 0 whole (14 steps), attempt 1 steps 12–15 and 18–23; two ranks
    assert (audited.records, audited.matched) == (76, 2 * (14 + 4 + 6))
    assert 0.6 < coverage_share(audited) < 0.7


def test_honest_run_is_matched(tmp_path: Path) -> None:
    case = plant(tmp_path, story.PLOT._replace(killed_at=0)).case()
    assert case.answer is Answer.MATCHED
    assert coverage_share(case.audited) == 1


def test_findings_alone_are_no_answer(tmp_path: Path) -> None:
    case = plant(tmp_path, story.PLOT._replace(audited=False)).case()
    assert any(isinstance(e, m.Finding) for e in case.entries)
    assert case.answer is Answer.NOT_AUDITED


def test_without_a_key_the_case_says_whose_key_it_used(source: Planted) -> None:
    case = load_case(source.store, source.run.id)
    assert case.key_source is KeySource.LOG
    assert case.key == KEY.public


def test_run_is_found_by_prefix_and_as_last(source: Planted) -> None:
    assert load_case(source.store, "last").run == load_case(source.store, source.run.id[:15]).run == source.run.id


def test_unknown_run_is_one_clear_error(source: Planted) -> None:
    with pytest.raises(UsageError, match="no such run") as e:
        load_case(source.store, "20200101-000000-zzzz")
    assert e.value.hint


def test_wrong_key_breaks_the_case(source: Planted) -> None:
    case = source.case(OTHER.public)
    assert isinstance(case.state, Broken)
    assert case.answer is Answer.BROKEN


def test_verdicts_of_a_broken_log_are_no_answer(run: Planted) -> None:
    seal = run.run.seal_file
    seal.chmod(0o644)
    seal.write_bytes(seal.read_bytes().replace(b'"world":2', b'"world":3'))
    assert run.case().answer is Answer.BROKEN


def test_seal_of_another_run_in_its_place_breaks_the_case(run: Planted) -> None:
    seal = story.a_seal(run.store)
    other = story.sign(m.Seal(**{f: getattr(seal, f) for f in seal.__struct_fields__} | {"cwd": "/else"}), KEY)
    run.run.seal_file.chmod(0o644)
    run.run.seal_file.write_bytes(m.canonical(other))
    state = run.case().state
    assert isinstance(state, Broken)
    assert other.digest in state.reason


def test_run_copied_under_another_name_breaks_the_case(run: Planted) -> None:
    moved = run.run.path.with_name("20260101-000000-aaaa")
    run.run.path.rename(moved)
    assert isinstance(load_case(run.store, moved.name, KEY.public).state, Broken)


def test_truncated_log_is_broken_or_an_error_and_never_an_answer(run: Planted) -> None:
    journal = max(run.run.log.iterdir(), key=lambda p: p.stat().st_size)
    whole = journal.read_bytes()
    journal.chmod(0o644)
    for size in (0, 7, len(whole) // 3, len(whole) - 1):
        journal.write_bytes(whole[:size])
        with suppress(LogTampered):
            assert run.case().answer is Answer.BROKEN


def test_corrupt_log_is_broken_or_an_error_and_never_an_answer(run: Planted) -> None:
    journal = max(run.run.log.iterdir(), key=lambda p: p.stat().st_size)
    whole = journal.read_bytes()
    journal.chmod(0o644)
    for at in range(5, len(whole), len(whole) // 9):
        journal.write_bytes(whole[:at] + bytes([whole[at] ^ 0x20]) + whole[at + 1 :])
        with suppress(LogTampered):
            assert run.case().answer is Answer.BROKEN


def test_run_without_a_log_is_one_clear_error(run: Planted) -> None:
    empty = run.store.create_run()
    with pytest.raises(TrainWardenError) as e:
        load_case(run.store, empty.id, KEY.public)
    assert str(e.value)
    assert e.value.hint


def test_checkpoint_edited_after_the_run_is_tainted(tmp_path: Path) -> None:
    own = plant(tmp_path)
    before = {c.step: c.standing for c in own.case().history.checkpoints}
    assert before[12] is m.Standing.CLEARED
    (own.out / "step-000012" / "model.safetensors").write_bytes(b"other weights")
    after = {c.step: c.standing for c in own.case().history.checkpoints}
    assert after[12] is m.Standing.TAINTED
    assert after[6] is m.Standing.CLEARED


def test_recovered_run_stands_on_its_verified_parent(tmp_path: Path) -> None:
    old = plant(tmp_path)
    child = recover(old, tmp_path)
    last = load_case(old.store, child.id, KEY.public).history.checkpoints[-1]
    assert last.standing is m.Standing.CLEARED, last.reason
    assert [s.run for s in last.lineage] == [old.run.id] * 2 + [""] * 4


def test_recovered_run_does_not_stand_on_a_parent_whose_log_is_broken(tmp_path: Path) -> None:
    old = plant(tmp_path)
    child = recover(old, tmp_path)
    journal = max(old.run.log.iterdir(), key=lambda p: p.stat().st_size)
    journal.chmod(0o644)
    data = journal.read_bytes()
    journal.write_bytes(data[:-40] + b"x" + data[-39:])
    found = load_case(old.store, child.id, KEY.public).history.checkpoints
    assert m.Standing.CLEARED not in {c.standing for c in found}


def recover(old: Planted, folder: Path) -> RunDir:
    """Write the run that resumes `old` from step 12, fully matched."""
    run = old.store.create_run()
    seal = story.a_seal(old.store)
    plot = story.PLOT._replace(run=run.id, out=str(folder / "again"), parent=old.run.id, audited=False)
    log = story.entries(plot, story.sign(seal, KEY).digest, KEY.public)
    kept: list[m.Entry] = [log[0]]
    for e in log:
        if getattr(e, "attempt", -1) == 1 and not isinstance(e, m.Finding):
            values = {f: getattr(e, f) for f in e.__struct_fields__} | {"attempt": 0}
            if isinstance(e, m.CheckpointLoaded):
                values["path"] = str(old.out / "step-000012" / "model.safetensors")
            if isinstance(e, m.CheckpointSaved):
                values["digest"] = blake3(story.checkpoint_bytes(0, e.step)).hexdigest()
            kept.append(type(e)(**values))
    kept += [story.matched(0, first, first + 5) for first in range(12, 36, 6)]
    story.write_run(old.store, run, seal, KEY, kept)
    return run
