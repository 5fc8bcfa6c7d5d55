"""`trainwarden damage` and `claims` over a planted run: words, numbers, page, exit codes."""

from __future__ import annotations

import json
import sys
from pathlib import Path

import pytest

from trainwarden.cli import main

sys.path.insert(0, str(Path(__file__).parent))
import story
from planted import KEY, Planted, copied, plant


@pytest.fixture(scope="module")
def source(tmp_path_factory: pytest.TempPathFactory) -> Planted:
    return plant(tmp_path_factory.mktemp("damage"))


@pytest.fixture(autouse=True)
def _elsewhere(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setenv("TRAINWARDEN_KEY", str(tmp_path / "no-key"))
    monkeypatch.chdir(tmp_path)


def call(run: Planted, verb: str, *args: str) -> int:
    return main([verb, *args, "--store", str(run.store.path), "--key", KEY.public])


def test_damage_of_a_run_that_diverged(source: Planted, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    page = tmp_path / "damage.html"
    assert call(source, "damage", source.run.id, "-o", str(page)) == 1
    told = capsys.readouterr().out
    assert "GPU-hours lost to interference" in told
    assert "not known: invalidated results: 13 steps were not replayed" in told
    html = page.read_text(encoding="utf-8")
    assert html.count('<svg class="chart"') == 4  # held time and waterfall, each wide and narrow
    assert "default-src &#39;none&#39;" in html or "default-src 'none'" in html
    assert "<script" not in html


def test_damage_as_json_has_every_line_with_its_range(source: Planted, capsys: pytest.CaptureFixture[str]) -> None:
    assert call(source, "damage", "--json") == 1
    found = json.loads(capsys.readouterr().out)
    lines = {a["line"]: a["hours"] for a in found["amounts"]}
    # steps 16 to 35 of attempt 1 stand on the altered step 16: 20 steps of a second, two ranks
    assert lines["invalidated results"]["low"] == pytest.approx(40 / 3600, rel=0.05)
    assert lines["interruption"]["low"] == 0  # nobody is named for the kill
    assert lines["interruption"]["high"] > 0
    assert found["jobs"][0]["diverged"] is True


def test_a_run_without_anything_wrong_is_not_said_to_have_lost(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    quiet = plant(tmp_path, story.Plot(killed_at=0, audited=True, bad_step=0))
    assert call(quiet, "damage", "last", "--json") == 2  # without anything to compare with it could not be decided
    assert json.loads(capsys.readouterr().out)["lost"]["mid"] == 0


def test_claims_over_a_run(source: Planted, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["claims", "--example"]) == 0
    file = tmp_path / "claims.toml"
    file.write_text(capsys.readouterr().out, encoding="utf-8")
    assert call(source, "claims", str(file), "-o", str(tmp_path / "page.html")) == 1
    told = capsys.readouterr().out
    assert "refuted      A system of thousands of GPUs was disrupted." in told
    assert "undetermined The damage was more than ten million dollars." in told
    assert "Public statements" in (tmp_path / "page.html").read_text(encoding="utf-8")


def test_settings_change_the_prices(source: Planted, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (tmp_path / "own.toml").write_text('[damage]\nprices = { flat = 5.0 }\ncurrency = "EUR"\nstaff_hours = 2\n')
    call(source, "damage", "last", "--config", str(tmp_path / "own.toml"), "--json")
    found = json.loads(capsys.readouterr().out)
    assert (found["currency"], [p["name"] for p in found["priced"]]) == ("EUR", ["flat"])
    assert found["cost"]["low"] == pytest.approx(5 * found["lost"]["low"] + 200)


@pytest.mark.parametrize(
    ("args", "says"),
    [
        (("damage", "nothing"), "no such run"),
        (("damage", "--since", "yesterday"), "not a time"),
        (("damage", "--since", "2026-02-01", "--until", "2026-01-01"), "--since is not before --until"),
        (("damage", "last", "--honest", "last"), "one to compare with"),
        (("claims",), "no file of statements"),
    ],
)
def test_a_wrong_call_says_what_is_wrong(
    args: tuple[str, ...], says: str, source: Planted, capsys: pytest.CaptureFixture[str]
) -> None:
    assert call(source, *args) == 3
    assert says in capsys.readouterr().err


def test_no_loss_is_computed_from_an_altered_log(
    source: Planted, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    run = copied(source, tmp_path)
    journal = run.run.log / "journal"
    data = bytearray(journal.read_bytes())
    data[len(data) // 2] ^= 1
    journal.write_bytes(data)
    assert call(run, "damage", "last") == 1
    assert "was rewritten" in capsys.readouterr().err
