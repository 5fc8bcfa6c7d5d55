"""`runs`, `show`, `verify` and `report` on the command line: what they print, their exit codes, bad input."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import story
from msgspec.structs import replace
from planted import KEY, OTHER, Planted, copied, plant

from trainwarden.cli import main
from trainwarden.model import Finding


@pytest.fixture(scope="module")
def source(tmp_path_factory: pytest.TempPathFactory) -> Planted:
    return plant(tmp_path_factory.mktemp("verbs"))


@pytest.fixture
def run(source: Planted, tmp_path: Path) -> Planted:
    return copied(source, tmp_path)


@pytest.fixture(autouse=True)
def _no_key_of_ones_own(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setenv("TRAINWARDEN_KEY", str(tmp_path / "no-key"))
    monkeypatch.setenv("COLUMNS", "120")


def call(run: Planted, *args: str) -> int:
    verb, *others = args
    return main([verb, "--store", str(run.store.path), *others])


def damage(run: Planted) -> None:
    journal = max(run.run.log.iterdir(), key=lambda p: p.stat().st_size)
    journal.chmod(0o644)
    journal.write_bytes(journal.read_bytes().replace(b"posttrain.py", b"pretrainn.py", 1))


# --------------------------------------------------------------------------- what they tell


def test_runs_lists_answer_and_findings(source: Planted, capsys: pytest.CaptureFixture[str]) -> None:
    assert call(source, "runs") == 0
    out = capsys.readouterr().out
    assert source.run.id in out
    assert "diverged" in out


def test_runs_as_json(source: Planted, capsys: pytest.CaptureFixture[str]) -> None:
    assert call(source, "runs", "--json", "--key", KEY.public) == 0
    (told,) = json.loads(capsys.readouterr().out)["runs"]
    assert told["answer"] == "diverged"
    assert told["findings"] == 2
    assert told["records"] == 76


def test_runs_of_an_empty_store(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (tmp_path / "objects").mkdir()
    assert main(["runs", "--store", str(tmp_path)]) == 0
    assert "no run" in capsys.readouterr().out


def test_show_tells_the_verdict_first_and_the_next_command(source: Planted, capsys: pytest.CaptureFixture[str]) -> None:
    assert call(source, "show", "last") == 0
    out = capsys.readouterr().out
    assert out.startswith("Training diverged at step 16 on rank 1")
    for part in ("torchrun", "sign flip (proof)", "cleared", "tainted", "suspicion", "trainwarden verify"):
        assert part in out


def test_show_an_unaudited_run_says_how_to_audit_it(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    made = plant(tmp_path, story.PLOT._replace(audited=False))
    assert call(made, "show", "last") == 0
    assert f"trainwarden audit {made.run.id}" in capsys.readouterr().out


def test_show_as_json_holds_all_but_step_records(source: Planted, capsys: pytest.CaptureFixture[str]) -> None:
    assert call(source, "show", "last", "--json") == 0
    told = json.loads(capsys.readouterr().out)
    assert told["last_cleared_step"] == 12
    assert told["state"]["type"] == "intact"
    kinds = {e["entry"]["type"] for e in told["entries"]}
    assert {"sealed", "finding", "diverged", "explanation"} <= kinds
    assert "step" not in kinds


def test_verify_passes_with_the_key(source: Planted, capsys: pytest.CaptureFixture[str]) -> None:
    assert call(source, "verify", "last", "--key", KEY.public) == 0
    assert "FAILED" not in capsys.readouterr().out


def test_verify_as_json(source: Planted, capsys: pytest.CaptureFixture[str]) -> None:
    assert call(source, "verify", "last", "--key", KEY.public, "--json", "--deep") == 0
    told = json.loads(capsys.readouterr().out)
    assert told["exit_code"] == 0
    results = {c["name"]: c["result"]["type"] for c in told["checks"]}
    assert {name for name, result in results.items() if result != "passed"} <= {"witnesses", "log server"}
    assert set(results.values()) <= {"passed", "not checked"}  # a run that has neither is not said to have passed


def test_report_is_written_into_the_runs_folder(run: Planted, capsys: pytest.CaptureFixture[str]) -> None:
    assert call(run, "report", "last") == 0
    path = Path(capsys.readouterr().out.strip())
    assert path == run.run.path / "report.html"
    assert "Training diverged at step 16" in path.read_text(encoding="utf-8")


def test_report_is_written_where_it_is_told(run: Planted, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    target = tmp_path / "deep" / "incident.html"
    assert call(run, "report", "last", "-o", str(target), "--json") == 0
    assert json.loads(capsys.readouterr().out)["report"] == str(target)
    assert target.stat().st_size > 10_000


def test_own_key_is_the_default(source: Planted, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    for seed, code in ((bytes(range(1, 33)), 0), (bytes(range(2, 34)), 1)):
        path = tmp_path / f"key{code}"
        path.write_text(seed.hex())
        path.chmod(0o600)
        monkeypatch.setenv("TRAINWARDEN_KEY", str(path))
        assert call(source, "verify", "last") == code


# --------------------------------------------------------------------------- bad input


def test_verify_without_any_key_is_undecided(source: Planted) -> None:
    assert call(source, "verify", "last") == 2


@pytest.mark.parametrize("verb", ["show", "verify", "report"])
def test_wrong_key(verb: str, run: Planted, capsys: pytest.CaptureFixture[str]) -> None:
    assert call(run, verb, "last", "--key", OTHER.public, "--json") == 1
    assert "Traceback" not in capsys.readouterr().err


@pytest.mark.parametrize("verb", ["show", "verify", "report"])
def test_corrupt_log(verb: str, run: Planted, capsys: pytest.CaptureFixture[str]) -> None:
    damage(run)
    assert call(run, verb, "last", "--key", KEY.public) == 1
    out, err = capsys.readouterr()
    assert "Traceback" not in err
    if verb == "report":
        text = Path(out.strip()).read_text(encoding="utf-8") if out else err
        assert "cannot be trusted" in text or "error:" in text


@pytest.mark.parametrize("verb", ["show", "verify", "report"])
def test_log_cut_to_nothing(verb: str, run: Planted, capsys: pytest.CaptureFixture[str]) -> None:
    for path in run.run.log.iterdir():
        path.chmod(0o644)
        path.write_bytes(b"")
    assert call(run, verb, "last", "--key", KEY.public) == 1
    out, err = capsys.readouterr()
    assert "Traceback" not in err
    assert ("hint:" in err) if verb != "verify" else ("FAILED" in out)


def test_runs_goes_on_past_a_broken_run(run: Planted, capsys: pytest.CaptureFixture[str]) -> None:
    damage(run)
    run.store.create_run()
    assert call(run, "runs") == 0
    out = capsys.readouterr().out
    assert len([line for line in out.splitlines() if line.startswith("20")]) == 2


@pytest.mark.parametrize("verb", ["show", "verify", "report"])
@pytest.mark.parametrize("name", ["20200101-000000-zzzz", "", "../../etc"])
def test_unknown_run(verb: str, name: str, source: Planted, capsys: pytest.CaptureFixture[str]) -> None:
    assert call(source, verb, name) == 3
    err = capsys.readouterr().err
    assert err.startswith("error:")
    assert "hint:" in err


def test_key_that_is_no_key(source: Planted, capsys: pytest.CaptureFixture[str]) -> None:
    assert call(source, "verify", "last", "--key", "xyz") == 3
    assert "64 hex digits" in capsys.readouterr().err


def test_no_store(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["show", "last", "--store", str(tmp_path / "none")]) == 3
    assert "hint:" in capsys.readouterr().err


@pytest.mark.parametrize("where", ["folder", "below-a-file"])
def test_report_that_cannot_be_written(
    where: str, run: Planted, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "file").write_text("x")
    target = tmp_path if where == "folder" else tmp_path / "file" / "report.html"
    assert call(run, "report", "last", "-o", str(target)) == 3
    assert "hint:" in capsys.readouterr().err


def test_hostile_text_moves_no_cursor_on_the_terminal(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    made = plant(tmp_path, story.PLOT._replace(out=str(tmp_path)))
    run = made.store.create_run()
    seal = story.a_seal(made.store)
    log = story.entries(
        story.PLOT._replace(run=run.id, out=str(tmp_path / "o")), story.sign(seal, KEY).digest, KEY.public
    )
    finding = "[bold red]\x1b]0;owned\x07\x1b[2J\u202e"
    log = [replace(e, seen=finding, detector=finding) if isinstance(e, Finding) else e for e in log]
    story.write_run(made.store, run, seal, KEY, log)
    assert call(made, "show", run.id) == 0
    out = capsys.readouterr().out
    assert "\x1b" not in out
    assert "\x07" not in out
    assert "[bold red]" in out
