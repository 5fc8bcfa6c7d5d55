"""SabotageBench counts what it says that it counts, and goes on where it stopped; nothing is trained here."""

from __future__ import annotations

import ast
import json
from pathlib import Path
from typing import Any

import msgspec
import pytest

from benchmarks.sabotage import jobs, ledger, matrix, report, running, scoring, traincheck, traincheck_job
from benchmarks.sabotage.__main__ import USUAL
from benchmarks.sabotage.ledger import Ledger
from benchmarks.sabotage.matrix import Case
from benchmarks.sabotage.traces import Run as RunNoun
from benchmarks.sabotage.traces import Step, Struck, Truth, Verdict, write, write_verdicts
from trainwarden.redteam import catalogue
from trainwarden.redteam.outcome import Expected, Found, Marked, Outcome
from trainwarden.redteam.place import Range
from trainwarden.redteam.workloads import WORKLOADS

ROOT = Path(__file__).resolve().parents[2]
LIVE = Found(when="live", by="patched", severity="high", step=60, ranks=(1,), steps=1, seconds=0.1, exact=True)
REPLAY = Found(when="audit", by="replay", severity="high", step=60, ranks=(1,), stage="local_gradients", exact=True)
LOW = msgspec.structs.replace(LIVE, by="dynamics", severity="low")


def row(case: str = "22-a-chat-0", kind: str = "attack", audited: bool = False, **values: Any) -> dict[str, Any]:
    given = {"technique": "22", "variant": "a", "workload": "chat", "seed": 0, "verdict": "found", **values}
    return {"case": case, "audited": audited, **msgspec.to_builtins(Outcome(kind=kind, **given))}


def expected(state: str) -> Expected:
    return Expected(when="audit", by="replay", stage="", needed=True, state=state)


# ------------------------------------------------------------------ counting


@pytest.mark.parametrize(
    ("values", "result"),
    [
        ({"found": (LIVE, REPLAY)}, "live"),
        ({"found": (REPLAY,)}, "audit"),
        ({"found": (LOW,), "expected": (expected("silent"),)}, "missed"),
        ({"found": (), "expected": (expected("not checked"),)}, "not checked"),
        ({"verdict": "not carried out"}, "not carried out"),
    ],
)
def test_what_was_not_looked_for_is_neither_found_nor_missed_and_low_findings_find_nothing(
    values: dict[str, Any], result: str
) -> None:
    assert scoring.how(row(**values)) == result


def test_the_summary_counts_attacks_that_did_something_and_names_the_rest() -> None:
    marks = (Marked(rank=1, step=60, wall_ns=1),)
    rows = [
        row("live", found=(LIVE,), marks=marks, strikes=("batch",), located="exact", cause_proved=True, audited=True),
        row("live alone", found=(LIVE,), marks=marks, strikes=("batch",), located="near"),
        row("audit", technique="23", found=(REPLAY,), marks=marks, strikes=("rng",), located="near", audited=True),
        row("sleep", technique="28", found=(LIVE,), marks=marks, located="exact", audited=True),
        row("missed", technique="24", expected=(expected("silent"),), audited=True),
        row("open", technique="25", expected=(expected("not checked"),)),
        row("no-op", technique="26", found=(LIVE,), worked=False),
        row("lacking", technique="27", verdict="not carried out"),
        row("honest", kind="honest", technique="", verdict="silent"),
        row("twin", kind="twin", verdict="accused", found=(LIVE,)),
    ]
    told = scoring.summary(rows)
    assert (told["techniques"], told["cases"]) == (5, 6)
    assert (told["found_pct"], told["found_live_pct"], told["found_by_audit_alone"]) == (66.7, 50.0, 1)
    assert (told["exact_pct"], told["exact_of"], told["not_exact"]) == (66.7, 3, ["audit"])
    assert (told["cause_proved_pct"], told["cause_proved_of"]) == (50.0, 2), "a sleep has no digest to reproduce"
    assert told["cause_not_proved"] == ["audit"]
    assert (told["false_accusations"], told["honest_runs"], told["benign_twins"]) == (1, 1, 1)
    named = [told[k] for k in ("missed", "not_checked", "without_effect", "not_carried_out")]
    assert named == [["missed"], ["open"], ["no-op"], ["lacking"]]
    assert (told["curves_found_pct"], told["curves_cases"]) == (None, 0)


def test_a_finding_from_before_the_attack_is_a_false_accusation() -> None:
    assert scoring.false_accusations([row(found=(LIVE,), false=(LIVE,)), row(found=(LIVE,), false=(LOW,))]) == 1


@pytest.mark.parametrize(
    ("verdict", "attack", "twin"),
    [
        (Verdict(run="r", flagged=True, step=60), "found", "false"),
        (Verdict(run="r", flagged=True, step=59), "false", "false"),
        (Verdict(run="r", flagged=True), "found", "false"),
        (Verdict(run="r", flagged=False), "missed", "silent"),
        (None, "not run", "not run"),
    ],
)
def test_any_detectors_verdict_is_judged_by_the_marks_and_an_early_flag_is_false(
    verdict: Verdict | None, attack: str, twin: str
) -> None:
    assert scoring.judged(Truth(kind="attack", first_step=60), verdict) == attack
    assert scoring.judged(Truth(kind="twin"), verdict) == twin


def test_a_detector_without_trainwarden_is_scored_from_files_alone(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    for name, truth in (("a", Truth(kind="attack", first_step=60)), ("h", Truth(kind="honest"))):
        write(tmp_path / "cases", RunNoun(run=name, workload="w", seed=0, world=1, steps=1), [], truth)
    write_verdicts(tmp_path / "v.jsonl", [Verdict(run="a", flagged=True, step=61), Verdict(run="h", flagged=False)])
    assert scoring.main([str(tmp_path), str(tmp_path / "v.jsonl")]) == 0
    told = json.loads(capsys.readouterr().out)
    assert (told["found_pct"], told["false_accusations"], told["not_run"]) == (100.0, 0, 0)
    rows = running.with_verdicts([{"case": "a"}, {"case": "unknown"}], tmp_path, "v")
    assert [r["v"]["result"] for r in rows] == ["found", "not run"]


# ------------------------------------------------------------------ the matrix


def test_the_sampled_matrix_has_every_technique_and_its_twin_and_the_whole_one_every_variant_and_seed() -> None:
    techniques = catalogue.load()
    names = {t.id for t in techniques}
    few = [case for name in ("chat", "toy") for case in matrix.sampled(techniques, name, WORKLOADS)]
    all_of_them = [case for name in WORKLOADS for case in matrix.whole(techniques, name, WORKLOADS)]
    live = [c.technique for c in few if c.kind == "attack" and not c.audit]
    assert set(live) == names, "each on a workload that has what it needs"
    for case in few:
        needs = [v.needs for t in techniques for v in t.variants if (t.id, v.name) == (case.technique, case.variant)]
        assert all(WORKLOADS[case.workload].has.issuperset(n) for n in needs), case
    tried = {(c.technique, c.variant) for c in few}
    assert {("12", "disk"), ("13", "disk"), ("32", "plant"), ("33", "scorer")} <= tried, "what the small job cannot do"
    for name in ("chat", "toy"):
        order = [c.technique for c in few if c.workload == name and c.kind == "attack"]
        assert len(set(order[: len(set(order))])) == len(set(order)), "one of each technique before a second of any"
    alone = matrix.sampled(techniques, "toy", {n: WORKLOADS[n] for n in ("toy", "chat")})
    assert not [c for c in alone if c.technique == "17"], "no case of a workload that lacks what it needs"
    numeric = {(t.id, v.name) for t in techniques for v in t.variants if v.strikes}
    assert {(c.technique, c.variant) for c in few if c.audit} == numeric
    twins = [t.twin for c in few if c.kind == "twin" for t in techniques if t.id == c.technique]
    assert all(twins.count(t.twin) == 1 for t in techniques), "each twin once, however many techniques have it"
    variants = {(t.id, v.name, seed) for t in techniques for v in t.variants for seed in matrix.SEEDS}
    assert {(c.technique, c.variant, c.seed) for c in all_of_them if c.kind == "attack"} == variants
    assert all(c.audit for c in all_of_them if c.kind == "attack")
    assert len({c.name for c in all_of_them}) == len(all_of_them), "every case has a name of its own"


def test_what_is_run_by_default_has_an_honest_run_and_an_audited_attack_of_every_workload() -> None:
    techniques = catalogue.load()
    cases = [case for name in USUAL for case in matrix.usual(techniques, name)]
    for name in ("chat", "toy", "ranking", "video"):
        assert any(c.kind == "honest" and c.workload == name for c in cases)
        assert any(c.kind == "attack" and c.workload == name for c in cases)
    assert {c.workload for c in cases if c.audit} == {"toy", "ranking", "video"}
    assert {c.technique for c in cases if c.kind == "attack"} == {t.id for t in techniques}
    assert len({c.name for c in cases}) == len(cases)


def test_what_was_not_found_live_is_audited_before_the_twins_and_what_was_after_them() -> None:
    attacks = [Case("attack", t, "a", "chat", 0) for t in ("22", "23")]
    cases = [Case("honest", "", "", "chat", 1), *attacks, Case("twin", "22", "b", "chat", 0)]
    done: dict[str, dict[str, Any]] = {}
    order = []
    for case in matrix.to_do(cases, done):
        order.append((case.name, case.audit))
        found = (LIVE,) if case.technique == "22" else (REPLAY,) if case.audit else ()
        due = (expected("found" if case.audit else "not checked"),)
        done[case.name] = row(case.name, case.kind, case.audit, found=found, expected=due)
    assert order == [
        ("honest-chat-1", False),
        ("22-a-chat-0", False),
        ("23-a-chat-0", False),
        ("23-a-chat-0", True),
        ("twin-22-b-chat-0", False),
        ("22-a-chat-0", True),
    ]
    assert list(matrix.to_do(cases, done)) == []


def test_the_ledger_goes_on_after_a_crash_and_forgets_rows_that_were_struck_by_other_code(tmp_path: Path) -> None:
    path = tmp_path / "rows.jsonl"
    Ledger(path).add(row("a"))
    with path.open("a") as file:
        file.write('{"case": "half')
    again = Ledger(path)
    assert list(again.rows) == ["a"]
    again.add(row("b"))
    again.add(row("a", audited=True))
    assert {k: v["audited"] for k, v in Ledger(path).rows.items()} == {"a": True, "b": False}
    lines = [json.loads(line) for line in path.read_text().splitlines()]
    path.write_text("".join(json.dumps({**line, "struck": "otherwise"}) + "\n" for line in lines))
    assert Ledger(path).rows == {}


def test_a_row_that_earlier_code_looked_at_still_counts_names_its_commit_and_is_made_again(tmp_path: Path) -> None:
    path = tmp_path / "rows.jsonl"
    Ledger(path).add(row("22-a-chat-0", found=(LIVE,)))
    (line,) = [json.loads(text) for text in path.read_text().splitlines()]
    assert line["commit"]
    assert not ledger.earlier(line)
    path.write_text(json.dumps({**line, "looked": "otherwise"}) + "\n")
    rows = Ledger(path).rows
    assert [ledger.earlier(r) for r in rows.values()] == [True]
    cases = [Case("attack", "22", "a", "chat", 0)]
    assert list(matrix.to_do(cases, rows)) == []
    assert list(matrix.to_do(cases, rows, ledger.earlier)) == cases


def test_comments_and_docstrings_make_no_other_code() -> None:
    plain = "def f(x):\n    return x\n"
    assert ledger._meaning(plain) == ledger._meaning('"""Doc."""\ndef f(x):\n    """Doc."""\n    return x  # so\n')
    assert ledger._meaning(plain) != ledger._meaning(plain.replace("return x", "return -x"))


# ------------------------------------------------------------------ jobs and peers


@pytest.mark.parametrize("name", sorted(WORKLOADS))
def test_every_workload_logs_its_curves_by_one_more_line_in_one_script(name: str, tmp_path: Path) -> None:
    place = Range(tmp_path, jobs.job(name))
    place.fresh()
    lines = [line.strip() for f in place.job.rglob("*.py") for line in f.read_text().splitlines() if "curvelog" in line]
    assert lines[0] == "import curvelog"
    assert len(lines) == 2
    assert lines[1].startswith("curvelog.log(step, rank, ")
    for script in place.job.rglob("*.py"):
        ast.parse(script.read_text())


def test_the_log_of_a_killed_rank_is_read_up_to_its_last_whole_line(tmp_path: Path) -> None:
    step = msgspec.json.encode(Step(step=0, rank=0, loss=1.0, grad_norm=None, lr=0.1, wall_ns=5))
    out = tmp_path / "out"
    out.mkdir()
    (out / "curves.rank0.jsonl").write_bytes(step + b"\n" + step[:20])

    class Place:
        job, workload = tmp_path, WORKLOADS["chat"]

    assert [s.step for s in jobs.steps_of(Place())] == [0]  # type: ignore[arg-type]


def test_the_truth_of_an_attack_without_marks_begins_with_the_first_step_after_the_insider_acted() -> None:
    steps = [Step(step=i, rank=0, loss=1.0, grad_norm=1.0, lr=0.1, wall_ns=i * 10) for i in range(10)]
    killed = Outcome(kind="attack", workload="chat", seed=0, verdict="found", struck_ns=45)
    assert jobs.truth_of(killed, steps).first_step == 5
    marked = msgspec.structs.replace(killed, marks=(Marked(rank=1, step=7, wall_ns=70, tensor="w"),))
    assert jobs.truth_of(marked, steps) == Truth(
        kind="attack", first_step=7, struck=(Struck(step=7, rank=1, tensor="w"),)
    )
    assert jobs.truth_of(msgspec.structs.replace(killed, kind="honest"), steps).first_step == -1


def test_traincheck_gets_the_two_scripts_as_one_with_nothing_changed() -> None:
    text = traincheck_job.flat([ROOT / "workloads" / "chat" / f"{name}.py" for name in ("loop", "pretrain")])
    assert text.startswith("from __future__ import annotations\n"), "TrainCheck puts lines after the first"
    functions = {n.name for n in ast.walk(ast.parse(text)) if isinstance(n, ast.FunctionDef)}
    assert {"train", "learning_rate", "main"} <= functions
    assert "from loop import" not in text
    assert "clip_grad_norm_(parameters, given.clip)" in text


def test_traincheck_flags_what_no_honest_tuning_run_violates() -> None:
    loose = frozenset({"noise"})
    assert not traincheck.verdict("r", {"noise": 3}, loose).flagged
    verdict = traincheck.verdict("r", {"noise": 1, "b": 7, "a": 6}, loose)
    assert (verdict.flagged, verdict.step, verdict.why) == (True, 6, "2 invariants, first: a")


# ------------------------------------------------------------------ docs


def test_the_table_and_the_picture_have_a_line_for_each_variant_and_escape_what_they_show() -> None:
    seeds = [row(f"22-a-chat-{s}", found=(LIVE,), marks=(Marked(rank=1, step=60, wall_ns=1),)) for s in (0, 1)]
    seeds[0]["curves"], seeds[1]["curves"] = {"result": "missed"}, {"result": "found"}
    rows = [*seeds, row("x", technique="23", variant="<b>", expected=(expected("silent"),), audited=True)]
    results = {"runs": rows, "summary": scoring.summary(rows)}
    table = report.table(results).splitlines()
    assert len(table) == 4
    assert "| live | `patched` | 1 | 0.10 |" in table[2]
    assert "missed 1×, found 1×" in table[2]
    assert "**missed**" in table[3]
    picture = report.plot(results)
    assert picture.count("<circle") == 6
    assert "<b>" not in picture
    assert "Missed: `x`." in report.block(results)
    assert report.block(None) == "not measured yet"
