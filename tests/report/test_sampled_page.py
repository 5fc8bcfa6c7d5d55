"""The sampled audit on the run page: what was covered, what it finds, what it cost, and what it did not do."""

from __future__ import annotations

import io
from pathlib import Path

import msgspec
import pytest
from planted import Planted, plant
from rich.console import Console

import trainwarden.model as m
from trainwarden.casefile import CaseFile
from trainwarden.report.case_json import case_json
from trainwarden.report.html import render_html
from trainwarden.report.sampled import sampled_facts
from trainwarden.report.text import print_case

NEAR, FAR = m.UnitKind.NEAR, m.UnitKind.FAR


@pytest.fixture(scope="module")
def planted(tmp_path_factory: pytest.TempPathFactory) -> Planted:
    return plant(tmp_path_factory.mktemp("sampled"))


def case(planted: Planted, more: list[m.Entry]) -> CaseFile:
    case = planted.case()
    return msgspec.structs.replace(case, entries=(*case.entries, *more))


def entries(planted: Planted) -> list[m.Entry]:
    units = sum(isinstance(e, m.StepRecord) for e in planted.case().entries)
    two = (m.Unit(attempt=0, step=2, rank=0, kind=NEAR), m.Unit(attempt=0, step=3, rank=1))
    return [
        m.UnitsDrawn(
            source="system",
            randomness="00",
            first=0,
            last=9,
            chances={NEAR: 0.5, FAR: 0.01},
            of={NEAR: 2, FAR: units - 2},
            units=two,
        ),
        m.UnitAudited(
            attempt=0, step=2, rank=0, kind=NEAR, result=m.UnitResult.MATCHED, stages=(m.Stage.BATCH, m.Stage.RNG)
        ),
        m.SampledAudit(
            budget=0.01, job_cpu_ns=500_000_000_000, spent_ns=4_000_000_000, waiting=1, reason="the run ended first"
        ),
    ]


def test_the_page_says_what_was_audited_what_it_finds_and_what_it_cost(planted: Planted) -> None:
    found = {f.name: f for f in sampled_facts(case(planted, entries(planted)))}
    assert found["Audited"].value.startswith("1 of ")
    assert "it drew once" in found["Audited"].note
    assert found["Steps whose state was kept"].value == "1 of 2, p = 50 %"
    assert "batch, rng" in found["Steps whose state was kept"].note
    assert found["Against who knows the states"].value == "nothing", "no unit between was decided"
    assert "1 − (1 − p)^k" in found["Bad units that it finds"].note
    assert found["Cost"].value == "4.0 of 500.0 CPU seconds, 0.8 %"
    assert (found["Not done"].value, found["Not done"].note) == ("the run ended first", "1 drawn unit not run")


def test_a_run_that_bought_no_unit_says_so_everywhere(planted: Planted) -> None:
    reason = "the budget did not buy a unit: 0.01 of 3.0 CPU seconds is less than an auditor's start takes"
    short = case(planted, [m.SampledAudit(budget=0.01, job_cpu_ns=3_000_000_000, spent_ns=0, reason=reason)])
    assert "did not buy a unit" in render_html(short)
    out = io.StringIO()
    print_case(Console(file=out, width=300), short)
    assert "did not buy a unit" in out.getvalue()
    told = case_json(short)["sampled"]
    assert (told["all"]["audited"], told["all"]["share"], told["needed"]) == (0, 0.0, None)


def test_a_run_without_sampled_audit_has_no_such_section(planted: Planted, tmp_path: Path) -> None:
    plain = planted.case()
    assert sampled_facts(plain) == []
    assert "Sampled audit" not in render_html(plain)
    assert case_json(plain)["sampled"] is None
