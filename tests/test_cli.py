"""The command line's frame: help, errors and exit codes."""

from __future__ import annotations

import argparse
import importlib
import json
import subprocess
import sys

import pytest

from trainwarden import cli
from trainwarden.commands.audit import sentence
from trainwarden.commands.common import consoles
from trainwarden.commands.run import shell_code
from trainwarden.errors import CannotDecide, LogTampered, TrainWardenError, UsageError
from trainwarden.model import Inconclusive, Segment


def output(*words: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run([sys.executable, "-m", "trainwarden.cli", *words], capture_output=True, text=True)


@pytest.mark.parametrize("verb", cli.VERBS)
def test_every_verb_has_help_examples_exit_codes_store_and_json(verb: str, capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as left:
        cli.build_parser().parse_args([verb.replace("_", "-"), "-h"])
    text = capsys.readouterr().out
    assert left.value.code == 0
    for part in ("exit codes:", "examples:", "--store", "--json"):
        assert part in text


def test_every_verb_is_a_module_with_add_and_run() -> None:
    for verb in cli.VERBS:
        module = importlib.import_module(f"trainwarden.commands.{verb}")
        assert callable(module.add)
        assert callable(module.run)


@pytest.mark.parametrize("words", [(), ("no-such-verb",), ("run", "--no-such-option"), ("run",)])
def test_a_wrong_call_leaves_with_3_one_error_and_one_hint(words: tuple[str, ...]) -> None:
    done = output(*words)
    assert done.returncode == 3
    assert done.stderr.count("error:") == 1
    assert done.stderr.count("hint:") == 1
    assert done.stdout == ""


@pytest.mark.parametrize(
    ("error", "code"),
    [(UsageError("no run x", hint="try y"), 3), (LogTampered("leaf 3"), 1), (CannotDecide("no copy"), 2)],
)
def test_an_error_of_ours_becomes_words_and_its_exit_code(
    error: TrainWardenError, code: int, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    def parser(*_: object) -> argparse.ArgumentParser:
        def fail(args: argparse.Namespace) -> int:
            raise error

        made = argparse.ArgumentParser()
        made.add_argument("--json", action="store_true")
        made.set_defaults(run=fail)
        return made

    monkeypatch.setattr(cli, "build_parser", parser)
    assert cli.main([]) == code
    shown = capsys.readouterr()
    assert shown.err.splitlines()[0] == f"error: {error}"
    assert ("hint: " in shown.err) == bool(error.hint)
    assert shown.out == ""
    assert cli.main(["--json"]) == code
    assert json.loads(capsys.readouterr().out)["error"] == str(error)


def test_help_is_instant_and_imports_no_torch() -> None:
    code = "import sys; from trainwarden import cli; cli.build_parser(); print('torch' in sys.modules)"
    assert subprocess.check_output([sys.executable, "-c", code], text=True) == "False\n"


def test_results_go_to_stdout_and_progress_elsewhere_where_stdout_is_no_terminal(
    capsys: pytest.CaptureFixture[str],
) -> None:
    results, shown = consoles(argparse.Namespace(json=False))
    results.print("matched")
    shown.print("replaying")
    said = capsys.readouterr()
    assert (said.out, said.err) == ("matched\n", "replaying\n")


def test_a_verdict_shows_names_as_they_are(capsys: pytest.CaptureFixture[str]) -> None:
    verdict = Inconclusive(segment=Segment(attempt=0, first=0, last=1), reasons=("no copy of [link=x]a[/] was kept",))
    consoles(argparse.Namespace(json=False))[0].print(sentence(verdict))
    assert "no copy of [link=x]a[/] was kept" in capsys.readouterr().out


def test_a_reader_that_has_seen_enough_is_no_error() -> None:
    done = subprocess.run(
        f"{sys.executable} -m trainwarden.cli -h | head -1", shell=True, capture_output=True, text=True
    )
    assert done.stderr == ""


@pytest.mark.parametrize(("code", "told"), [(0, 0), (7, 7), (255, 255), (-9, 137), (-15, 143)])
def test_exit_codes_are_told_as_a_shell_does(code: int, told: int) -> None:
    assert shell_code(code) == told
