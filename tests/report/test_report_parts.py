"""The parts of a report: the right words for the right strength of evidence, scale, and hostile content."""

from __future__ import annotations

import math
import re
import xml.etree.ElementTree as ET
from collections import Counter
from pathlib import Path

import msgspec
import pytest
import story
from hypothesis import given, settings
from hypothesis import strategies as st
from planted import Planted, plant

from trainwarden import model as m
from trainwarden.casefile import Answer, Broken, CaseFile
from trainwarden.lineage import trace
from trainwarden.report import summary, tables
from trainwarden.report.curve import loss_curve, ticks
from trainwarden.report.events import bounded, markers, timeline
from trainwarden.report.grid import MOST_COLUMNS, MOST_ROWS, Cell, grid, heat_map
from trainwarden.report.html import render_html
from trainwarden.report.lineage_chart import chosen, lineage_chart
from trainwarden.report.words import clean, percent, when

HOSTILE = '"><script>alert(1)</script><img src=x onerror=alert(2)>{{ 7*7 }}\x1b[31m\u202egnp'


@pytest.fixture(scope="module")
def planted(tmp_path_factory: pytest.TempPathFactory) -> Planted:
    return plant(tmp_path_factory.mktemp("parts"))


@pytest.fixture(scope="module")
def case(planted: Planted) -> CaseFile:
    return planted.case()


def over(case: CaseFile, log: list[m.Entry], **more: object) -> CaseFile:
    return msgspec.structs.replace(case, entries=tuple(log), history=trace(log), **more)


# --------------------------------------------------------------------------- words


def test_story_of_the_sabotage_tells_what_where_and_what_follows(case: CaseFile) -> None:
    told = {part.name: part.value for part in summary.story(case)}
    assert "accumulate.py changed on disk" in told["What happened"]
    assert "sign flip reproduces the recorded digest bit for bit" in told["What the replay shows"]
    assert "4 checkpoints" in told["What follows"]
    assert "Step 12" in told["What follows"]


def test_a_reproduced_digest_is_proof_and_less_is_not(case: CaseFile) -> None:
    assert summary.facts(case)[0].value == "Proof"
    log = [msgspec.structs.replace(e, cause=None) if isinstance(e, m.Explanation) else e for e in case.entries]
    without = over(case, log)
    assert summary.facts(without)[0].value == "Evidence"
    assert "Cause not established" in summary.subline(without)


def test_findings_alone_are_called_suspicion(tmp_path: Path) -> None:
    case = plant(tmp_path, story.PLOT._replace(audited=False)).case()
    assert summary.headline(case) == "This run has not been audited"
    assert summary.facts(case)[0].value == "None yet"
    assert any("trainwarden audit" in step.name for step in summary.next_steps(case))


def test_broken_record_says_so_before_anything_else(case: CaseFile) -> None:
    broken = msgspec.structs.replace(case, state=Broken(reason="root differs"), answer=Answer.BROKEN)
    assert "cannot be trusted" in summary.headline(broken)
    assert summary.not_checked(broken)[0].why.endswith("root differs")


def test_everything_not_checked_is_listed(case: CaseFile) -> None:
    told = " | ".join(f"{line.what}: {line.why}" for line in summary.not_checked(case))
    for part in ("steps 30–35", "ran out of time", "step 17", "activations"):
        assert part in told


def test_a_run_without_a_step_is_not_told_as_wholly_replayed(case: CaseFile) -> None:
    log = [e for e in story.entries() if isinstance(e, m.Sealed | m.RunEnded)]
    told = [f"{line.what}: {line.why}" for line in summary.not_checked(over(case, log))]
    assert told[0] == "the training: no optimizer step was recorded, so there is nothing to replay"


def test_run_replayed_in_part_is_never_told_as_whole(case: CaseFile) -> None:
    log = [*story.entries(story.PLOT._replace(killed_at=0, audited=False)), story.matched(0, 0, 5)]
    part = over(case, log, answer=Answer.MATCHED, audited=msgspec.structs.replace(case.audited, records=72, matched=12))
    assert "Every step that was replayed" in summary.headline(part)
    assert percent(0.9999) == "99 %"
    assert percent(0.0001) == "1 %"


def test_stage_table_marks_the_first_difference_and_what_follows_it(case: CaseFile) -> None:
    marks = [(row.name, row.mark) for row in tables.stage_rows(case)]
    assert marks == [
        ("batch", "same"), ("rng", "same"), ("activations", "same"), ("local gradients", "differs"),
        ("reduced gradients", "after"), ("hyperparameters", "after"), ("optimizer state", "after"),
        ("weights", "after"), ("checkpoint", "unseen"),
    ]  # fmt: skip


def test_changed_file_is_shown_against_the_sealed_one(planted: Planted, case: CaseFile) -> None:
    (diff,) = tables.diffs(case, planted.store)
    assert [line.text.strip("+ ") for line in diff.lines if line.kind == "add"][-1] == "grad = -grad"
    assert not [line for line in diff.lines if line.kind == "cut"]


def test_changed_file_that_is_not_in_the_store_is_said_so(planted: Planted, case: CaseFile) -> None:
    log = [msgspec.structs.replace(e, found="ab" * 32) if isinstance(e, m.FileChanged) else e for e in case.entries]
    (diff,) = tables.diffs(over(case, log), planted.store)
    assert not diff.lines
    assert "no diff" in diff.note


def test_numerics_that_differ_stand_out(case: CaseFile) -> None:
    other = m.Numerics(machine="x86_64", cpu="EPYC", isa="AVX512", threads=1, torch="2.13.0+cpu", python="3.11.4")
    log = [msgspec.structs.replace(e, numerics=other) if isinstance(e, m.ProcessStarted) else e for e in case.entries]
    assert [row.name for row in tables.compared(over(case, log)) if row.mark == "differs"] == ["isa"]
    assert not [row for row in tables.compared(case) if row.mark == "differs"]


# --------------------------------------------------------------------------- events and drawings


def test_curve_marks_what_interfered_and_what_was_proved(case: CaseFile) -> None:
    marks = {(e.what, e.step) for e in markers(timeline(case.entries))}
    assert {("Divergence", 16), ("Killed", 13), ("File changed", 13), ("Restart", 12)} <= marks


def test_a_finding_from_before_a_resume_stands_where_its_attempt_began(case: CaseFile) -> None:
    log = list(case.entries)
    first = next(i for i, e in enumerate(log) if isinstance(e, m.ProcessStarted) and e.attempt == 1)
    early = m.Finding(
        detector="patched", severity=m.Severity.HIGH, confidence=m.Confidence.HIGH, seen="x", expected="y", step=0,
        attempt=1,
    )  # fmt: skip
    log[first + 1 : first + 1] = [early]
    assert [e.step for e in timeline(log) if e.text == "patched: x"] == [12]
    assert [f.step for _, f in tables.findings(over(case, log))[0] if f.detector == "patched"] == [12]


def test_timeline_keeps_alerts_when_it_is_cut(case: CaseFile) -> None:
    events = timeline(case.entries)
    shown, more = bounded(events, 10)
    assert len(shown) == 10
    assert more == len(events) - 10
    assert {e.what for e in events if e.kind != "plain"} <= {e.what for e in shown}
    assert [e.index for e in shown] == sorted(e.index for e in shown)


def test_heat_map_tells_every_state(case: CaseFile) -> None:
    first, second = grid(case.entries, case.history)
    assert set(first.rows[0]) == {Cell.MATCHED}
    assert Counter(second.rows[1]) == {
        Cell.MATCHED: 10, Cell.DIVERGED: 1, Cell.NOT_AUDITED: 7, Cell.UNDECIDED: 6,
    }  # fmt: skip
    assert Cell.DIVERGED not in second.rows[0]


def test_missing_record_is_a_gap_in_the_heat_map() -> None:
    log = [
        e for e in story.entries(story.PLOT._replace(killed_at=0))
        if not (isinstance(e, m.StepRecord) and (e.step, e.rank) == (9, 1))
    ]  # fmt: skip
    (block,) = grid(log, trace(log))
    assert block.rows[1][9] is Cell.GAP


def test_heat_map_of_a_large_run_is_bounded_and_loses_no_divergence() -> None:
    plot = story.PLOT._replace(ranks=300, steps=1, killed_at=0, audited=False, every=10**9)
    first = next(e for e in story.entries(plot) if isinstance(e, m.StepRecord))
    log: list[m.Entry] = [
        msgspec.structs.replace(first, rank=rank, step=step, seq=step) for rank in range(300) for step in range(0, 900)
    ]
    at = msgspec.structs.replace(story.location(plot), step=777, rank=123)
    segment = m.Segment(attempt=0, first=777, last=777)
    log.append(m.Diverged(segment=segment, at=at, coverage=m.Coverage()))
    (block,) = grid(log, trace(log))
    assert len(block.rows) <= MOST_ROWS
    assert len(block.rows[0]) <= MOST_COLUMNS
    assert block.rows[123 // block.ranks_per_cell][777 // block.steps_per_cell] is Cell.DIVERGED
    drawing = heat_map((block,), 960)
    assert drawing is not None
    assert len(drawing) < 400_000
    ET.fromstring(drawing)


@pytest.mark.parametrize("losses", [[math.nan], [math.inf, -math.inf, 1.0], [0.0] * 3, [1e300, -1e300], [5.0]])
def test_curve_of_strange_losses_is_drawn_or_left_out(losses: list[float]) -> None:
    first = next(e for e in story.entries() if isinstance(e, m.StepRecord))
    log = [msgspec.structs.replace(first, step=i, loss=v) for i, v in enumerate(losses)]
    drawing = loss_curve(log, [], 960, 300)
    if drawing is not None:
        ET.fromstring(drawing)
        assert not re.search(r"nan|inf", drawing)


def test_drawings_are_well_formed_at_both_widths(case: CaseFile) -> None:
    marks = markers(timeline(case.entries))
    for width in (342, 960):
        for drawing in (
            loss_curve(case.entries, marks, width, 300),
            heat_map(grid(case.entries, case.history), width),
            lineage_chart(case.history.checkpoints, width),
        ):
            assert drawing is not None
            ET.fromstring(drawing)


def test_lineage_of_many_checkpoints_keeps_ends_and_turns(case: CaseFile) -> None:
    one = case.history.checkpoints[0]
    many = [
        msgspec.structs.replace(one, step=i, standing=m.Standing.CLEARED if i < 500 else m.Standing.TAINTED)
        for i in range(1000)
    ]
    shown = chosen(many, 12)
    assert len(shown) <= 12
    assert {0, 499, 500, 999} <= {c.step for c in shown}


@given(st.floats(-1e6, 1e6), st.floats(1e-3, 1e6), st.integers(1, 12))
def test_ticks_are_few_and_inside(first: float, size: float, most: int) -> None:
    found = ticks(first, first + size, most)
    assert len(found) <= most + 1
    assert all(first - 1e-3 * size <= t <= first + size * 1.001 for t in found)


# --------------------------------------------------------------------------- hostile content


def poisoned(case: CaseFile) -> CaseFile:
    """The case with every text that a rank or an insider chooses replaced by an attack on the reader."""

    def attack(value: object) -> object:
        match value:
            case m.Stage() | m.Severity() | m.Confidence() | m.Outcome() | m.Standing():
                return value
            case str():
                return HOSTILE
            case tuple():
                return tuple(attack(v) for v in value)
            case dict():
                return {HOSTILE if not isinstance(k, m.Stage) else k: attack(v) for k, v in value.items()}
            case msgspec.Struct():
                return type(value)(**{f: attack(getattr(value, f)) for f in value.__struct_fields__})
            case _:
                return value

    log = [attack(e) for e in case.entries]
    return over(case, log, run=HOSTILE, sentence=HOSTILE)  # type: ignore[arg-type]


def test_hostile_text_is_escaped_everywhere(planted: Planted, case: CaseFile) -> None:
    page = render_html(poisoned(case), planted.store)
    assert "<script" not in page
    assert "<img" not in page
    assert "&lt;script&gt;" in page
    assert "49\x1b" not in page
    assert "{{ 7*7 }}" in page
    assert not re.search("[\x00-\x08\x0b-\x1f\u202a-\u202e\u2066-\u2069]", page)


@settings(max_examples=200)
@given(st.text())
def test_clean_text_moves_no_cursor_and_is_bounded(text: str) -> None:
    cleaned = clean(text, 50)
    assert len(cleaned) <= 50
    cleaned.encode()
    assert not re.search("[\x00-\x1f\x7f-\x9f\u202a-\u202e\u2066-\u2069\ud800-\udfff]", cleaned)


@given(st.integers(-(2**63), 2**63 - 1))
def test_any_time_has_words(ns: int) -> None:
    assert isinstance(when(ns), str)


def test_ten_thousand_findings_make_a_page_that_is_bounded(planted: Planted, case: CaseFile) -> None:
    finding = next(e for e in case.entries if isinstance(e, m.Finding))
    log = [*case.entries, *(msgspec.structs.replace(finding, seen=f"{i} " + "x" * 5000) for i in range(10_000))]
    page = render_html(over(case, log), planted.store)
    assert len(page) < 600_000
    assert re.search(r"9,9\d\d more", page)


def test_page_has_no_script_and_asks_for_nothing(planted: Planted, case: CaseFile) -> None:
    page = render_html(case, planted.store)
    assert "default-src 'none'" in page
    assert "<script" not in page
    assert not re.search(r"""(src|href|action)\s*=|url\(|@import""", page)
