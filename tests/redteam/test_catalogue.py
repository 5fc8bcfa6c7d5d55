"""The catalogue: every technique says what it must, its payloads travel, and it is registered once."""

from __future__ import annotations

import builtins
import json
import re
from pathlib import Path
from types import CodeType

import pytest

from attacks._shared import carrier, scene
from attacks._shared.payload import Payload, Trigger
from trainwarden.cli import main
from trainwarden.detect import all_detectors
from trainwarden.errors import UsageError
from trainwarden.redteam.catalogue import DEFAULT, document, find, load
from trainwarden.redteam.interface import Moment, Technique, When
from trainwarden.redteam.place import Range
from trainwarden.redteam.workloads import WORKLOADS, Workload

TECHNIQUES = load()
IDS = [t.id for t in TECHNIQUES]
ALSO = {
    "gaps",
    "recorder",
    "engine",
    "replay",
    "sampled-audit",
    "shipping",
    "split-view",
}  # not raised by a detector file


@pytest.mark.parametrize("technique", TECHNIQUES, ids=IDS)
def test_a_technique_says_what_the_catalogue_wants_to_know(technique: Technique) -> None:
    assert re.fullmatch(r"\d\d", technique.id)
    assert 1 <= int(technique.id) <= 38
    assert technique.needs
    assert set(technique.needs) <= set("EURDKNLS")
    assert re.fullmatch(r"(T\d{4}(\.\d{3})?|ATT&CK T\d{4}(\.\d{3})?)", technique.atlas)
    assert technique.variants
    assert technique.twin.does
    text = document(technique)
    assert text.startswith(f"{technique.id}, ")
    for part in ("How an insider does it", "Precondition", "Expected evidence", "Effect", "Benign twin", "Clean-up"):
        assert part in text, f"attacks/t{technique.id}: the docstring does not say: {part}"


@pytest.mark.parametrize("technique", TECHNIQUES, ids=IDS)
def test_every_variant_acts_has_evidence_that_can_be_found_and_fits_a_workload(technique: Technique) -> None:
    detectors = {d.id for d in all_detectors()} | ALSO
    names = [v.name for v in technique.variants]
    assert len(names) == len(set(names))
    for v in technique.variants:
        assert v.does
        assert any(a.moment is not Moment.PREPARE for a in v.acts), "what was there before the seal is no attack"
        assert any(e.needed for e in v.expects)
        for e in v.expects:
            known = {When.LIVE: detectors, When.AUDIT: {"replay"}, When.BEFORE_START: {"seal"}}.get(e.when)
            assert known is None or e.by in known
            assert not e.stage or e.when is When.AUDIT
        if any(a.moment is Moment.START for a in v.acts):
            assert v.approved, "what changes before the start of an unapproved job is sealed with it"


def test_ids_and_slugs_are_unique_and_every_file_is_registered() -> None:
    assert len(set(IDS)) == len({t.slug for t in TECHNIQUES}) == len(TECHNIQUES)
    files = {p.stem for p in DEFAULT.glob("t[0-9][0-9]_*.py")}
    assert files == {f"t{t.id}_{t.slug.replace('-', '_')}" for t in TECHNIQUES}
    for path in DEFAULT.glob("t[0-9][0-9]_*.py"):
        assert len(path.read_text().splitlines()) <= 200, f"{path.name} is long: share helpers in attacks/_shared"


def names_used(code: CodeType) -> set[str]:
    inner = [c for c in code.co_consts if isinstance(c, CodeType)]
    import dis

    here = {i.argval for i in dis.get_instructions(code) if i.opname in ("LOAD_GLOBAL", "LOAD_NAME")}
    return here.union(*(names_used(c) for c in inner))


def payloads_of(technique: Technique) -> list[Payload]:
    """Every payload that the technique's acts close over."""
    twin_acts = list(technique.twin.acts)
    acts = [a for v in technique.variants for a in v.acts] + twin_acts
    cells = [cell.cell_contents for a in acts for cell in getattr(a.do, "__closure__", None) or ()]
    return [c for c in cells if isinstance(c, Payload)]


@pytest.mark.parametrize("technique", TECHNIQUES, ids=IDS)
def test_payloads_use_nothing_that_does_not_travel_with_them(technique: Technique) -> None:
    for payload in payloads_of(technique):
        assert payload.function.__doc__
        travels = {f.__name__ for f in (*payload.uses, payload.function)} | set(vars(scene)) | set(dir(builtins))
        assert names_used(payload.function.__code__) - travels == set()
        compile(payload.text(), "payload", "exec")


def test_a_carrier_is_a_module_of_its_own_and_holds_the_trigger(tmp_path: Path) -> None:
    job = Workload("toy", source=tmp_path, command=("x",), steps=20, first=10, lead=10, every=4)

    def nothing(scene: object) -> None:
        """Nothing."""

    payload = Payload(nothing, trigger=Trigger(ranks=(1,), every=8))
    text = carrier.carrier(Range(tmp_path, job), payload)
    compile(text, "carrier", "exec")
    compile(carrier.approved_module(Range(tmp_path, job), payload), "approved", "exec")
    assert '\\"every\\": 8' in text or '"every": 8' in text


def test_a_strike_arrives_once_and_steps_are_counted_from_those_of_the_script(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    job = Workload("toy", source=tmp_path, command=("x",), steps=20, first=10, lead=10, every=4)
    place = Range(tmp_path, job)
    monkeypatch.setattr("sys.meta_path", [])
    names = {"__file__": str(tmp_path / "site-packages" / "warm.py"), "__name__": "warm"}
    exec(compile(carrier.sleeper(place), "warm", "exec"), names)
    place.here.mkdir()
    marks = tmp_path / "came"
    text = f"def arrive(config): open({str(marks)!r}, 'a').write(config['payload'])"
    place.strike.write_text(json.dumps({"text": text, "config": {"payload": "p"}}))

    class Optimizer:
        _steps_seen: int

    optimizer, counted = Optimizer(), []
    for step in range(16, 20):  # as after a resume
        names["_look"](optimizer, (), {})  # type: ignore[operator]
        counted.append(optimizer._steps_seen - step)
        names["_made"](optimizer, (), {})  # type: ignore[operator]
    assert counted == [0, 0, 0, 0]
    assert marks.read_text() == "p"


def test_the_trigger_decides_by_step_rank_world_and_suspicion(tmp_path: Path) -> None:
    stage = object.__new__(scene.Scene)
    stage.first, stage.lasts, stage.marks, stage.rank, stage.world = 10, 20, str(tmp_path / "m"), 1, 2
    at: list[int] = [0]

    class Optimizer:
        @property
        def state(self) -> dict[int, dict[str, int]]:
            return {0: {"step": at[0]}}

    stage.optimizer = Optimizer()

    def when(**trigger: object) -> list[int]:
        stage.trigger, on = trigger, []
        for at[0] in range(40):
            on += [at[0]] if stage.on else []
        return on

    assert when() == list(range(10, 30))
    assert when(every=8) == [10, 18, 26]
    assert when(ranks=[1], min_world=2) == list(range(10, 30))
    assert when(ranks=[0]) == when(min_world=3) == when(hours=[25]) == []
    assert when(no_debugger=True) == ([] if scene.watched() else list(range(10, 30)))
    (tmp_path / "m.noticed").touch()
    assert when(noticed_every=0) == []
    assert when(noticed_every=10) == [10, 20]
    assert when() == list(range(10, 30)), "whoever does not listen goes on"


def test_techniques_are_found_by_id_slug_and_variant() -> None:
    assert find(TECHNIQUES, "22")[0].slug == "rank-sign-flip"
    assert find(TECHNIQUES, "t22")[0] is find(TECHNIQUES, "rank-sign-flip")[0]
    technique, variant = find(TECHNIQUES, "22/one-tensor")
    assert variant is technique.variants[0]
    with pytest.raises(UsageError, match="no technique"):
        find(TECHNIQUES, "99")
    with pytest.raises(UsageError, match="no variant"):
        find(TECHNIQUES, "22/none")


def test_without_a_catalogue_the_error_says_where_to_get_one(tmp_path: Path) -> None:
    with pytest.raises(UsageError, match="no catalogue of attacks") as missing:
        load(tmp_path)
    assert "--catalogue" in missing.value.hint


def test_every_workload_says_how_to_run_it() -> None:
    for w in WORKLOADS.values():
        assert 0 < w.first < w.steps
        assert w.lead <= w.first
        assert any("{seed}" in word for word in w.command)


def test_list_and_show_tell_the_catalogue(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["redteam", "list", "--json"]) == 0
    assert [t["id"] for t in json.loads(capsys.readouterr().out)["techniques"]] == IDS
    assert main(["redteam", "show", "22"]) == 0
    shown = capsys.readouterr().out
    assert "Benign twin" in shown
    assert "big-jobs-only" in shown


def test_a_command_follows_its_dashes_and_options_may_stand_before_it(tmp_path: Path) -> None:
    words = ["redteam", "run", "22", "--job", str(tmp_path), "--json", "--", "python", "train.py", "--out=/elsewhere"]
    assert main(words) == 3
