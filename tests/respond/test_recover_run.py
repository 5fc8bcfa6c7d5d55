"""`trainwarden run` under the policy `recover`, as a user calls it; limits, waiting and the clean room."""

from __future__ import annotations

import json
import subprocess
import threading
from collections.abc import Sequence
from pathlib import Path
from typing import cast

import pytest
from resuming import Guarded, tree

from trainwarden.config import Config, RecoverConfig
from trainwarden.errors import CannotDecide, NothingCleared, SealBroken, StoreError
from trainwarden.keys import SigningKey
from trainwarden.model import Action, Alert, CleanRoom, Confidence, Finding, Recovered, Severity
from trainwarden.respond import chain as chain_module
from trainwarden.respond.chain import Chain, Link, Means, Recovery, keep_going
from trainwarden.respond.hears import Hears
from trainwarden.respond.plan import Plan
from trainwarden.store import Store
from trainwarden.supervise.events import RunResult

POLICY = """
[policy.detectors]
environment = "recover"
[recover]
verify_steps = 0
backoff_seconds = 0.0
"""


def run_attacked(guarded: Guarded, *words: str, strikes: int) -> tuple[int, dict[str, object], str]:
    """`trainwarden run` while an insider edits the library whenever a run begins, `strikes` times."""
    config = guarded.folder.parent / "policy.toml"
    config.write_text(POLICY)
    argv = (str(guarded.place.python), "job.py", "8", str(guarded.out))
    options = ("--json", "--config", str(config), *words)
    process = guarded.place.start(guarded.folder, *argv, options=options)
    said: list[str] = []

    def insider() -> None:
        left = strikes
        for line in process.stderr or ():
            said.append(line)
            if "guarding this as run" in line and left > 0:
                left -= 1
                guarded.library.write_text(f"VALUE = {100 + left}\n")

    thread = threading.Thread(target=insider)
    thread.start()
    out = process.stdout.read() if process.stdout else ""
    code = process.wait(120)
    thread.join()
    return code, json.loads(out.splitlines()[-1]), "".join(said)


def test_one_call_survives_repeated_attacks_and_goes_on_in_a_clean_room(guarded: Guarded) -> None:
    guarded.run(8)
    honest = tree(guarded.out)
    subprocess.run(["rm", "-r", str(guarded.out)], check=True)
    code, told, said = run_attacked(guarded, strikes=5)
    assert code == 0, said
    runs = cast(list[dict[str, object]], told["runs"])
    assert [bool(r.get("clean_room")) for r in runs] == [False, False, True], said
    assert "goes on in a clean room" in said
    assert {r.get("cause", "") for r in runs[1:]} == {"environment"}
    assert tree(guarded.out) == honest
    last = str(told["run"])
    assert any(isinstance(e, CleanRoom) for e in guarded.entries(last))
    assert [e.new_run for r in runs for e in guarded.entries(str(r["run"])) if isinstance(e, Recovered)] == [
        r["run"] for r in runs[1:]
    ]


def test_a_run_that_nobody_attacks_is_one_run(guarded: Guarded) -> None:
    code, told, said = run_attacked(guarded, strikes=0)
    assert (code, told.get("runs")) == (0, None), said


# -- limits, with recoveries that are only played


class Played(Hears):
    """Plays recoveries: each takes one of the given steps, or fails with one of the given errors."""

    def __init__(self, ends: Sequence[int | Exception], last: Action | None = Action.RECOVER) -> None:
        self.ends, self.last = list(ends), last
        self.rooms: list[bool] = []
        self.waits: list[float] = []
        self.said: list[str] = []

    def says(self, sentence: str) -> None:
        self.said.append(sentence)

    def recover(self, means: Means, run: str, *, clean_room: bool, cause: str) -> Recovery:
        self.rooms.append(clean_room)
        end = self.ends.pop(0)
        if isinstance(end, Exception):
            raise end
        asked = Action.RECOVER if self.ends else self.last
        plan = Plan(
            run=run, audit=(), from_step=end, checkpoint="", files=(), start_checkpoint="", quarantine=(), folders=(),
            restore=(), missing=(), argv=(), cwd="", why="",
        )  # fmt: skip
        return Recovery(plan, ended(asked), Link(run="r", parent=run, exit_code=0, records=1, from_step=end))


def ended(asked: Action | None, interrupted: int = 0) -> RunResult:
    first = Finding(
        detector="kills", severity=Severity.MEDIUM, confidence=Confidence.HIGH, seen="A rank was killed.", expected="."
    )
    alert = Alert(id="a1", severity=first.severity, confidence=first.confidence, title="", first=first, findings=(1,))
    return RunResult("run", -15 if asked else 0, asked=asked, alert=alert if asked else None, interrupted=interrupted)


def played(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, ends: Sequence[int | Exception], **settings: float
) -> tuple[Chain, Played]:
    play = Played(ends, None if not settings.pop("forever", 0) else Action.RECOVER)
    monkeypatch.setattr(chain_module, "recover", play.recover)
    config = Config(recover=RecoverConfig(**settings))  # type: ignore[arg-type]
    store = Store.open(tmp_path / "store", create=True)
    means = Means(store, config, SigningKey(bytes(32)), {}, play, sleep=play.waits.append)
    return keep_going(means, ended(Action.RECOVER)), play


def test_it_goes_on_for_ever_as_long_as_it_gets_further(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    chain, play = played(tmp_path, monkeypatch, [4, 8, 12, 16, 20], most=1, clean_room_after=0)
    assert (chain.exit_code, chain.gave_up, len(chain.links)) == (0, "", 6)
    assert play.waits == [0.0] * 5


def test_recoveries_that_get_no_further_wait_longer_and_longer_and_end(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    chain, play = played(tmp_path, monkeypatch, [4] * 9, most=3, backoff_seconds=1.0, clean_room_after=0, forever=1)
    assert play.waits == [0.0, 0.0, 1.0, 2.0]
    assert "3 recoveries in a row got no further than step 4" in chain.gave_up
    assert (chain.exit_code, "trainwarden recover" in chain.hint) == (-15, True)


def test_there_is_a_limit_in_all(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    chain, _ = played(tmp_path, monkeypatch, list(range(1, 9)), in_all=3, clean_room_after=0, forever=1)
    assert "in_all" in chain.gave_up
    assert len(chain.links) == 4


def test_the_clean_room_comes_with_the_second_of_one_cause_and_stays(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    _, play = played(tmp_path, monkeypatch, [4, 8, 12], clean_room_after=2)
    assert play.rooms == [False, True, True]


def test_where_no_clean_room_can_be_entered_it_goes_on_without(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    chain, play = played(tmp_path, monkeypatch, [CannotDecide("no namespace"), 4], clean_room_after=1)
    assert play.rooms == [True, False]
    assert chain.exit_code == 0


def test_a_recovery_that_fails_is_tried_again_and_one_without_a_state_to_go_back_to_is_not(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    chain, play = played(tmp_path, monkeypatch, [SealBroken("changed again"), StoreError("full"), 4])
    assert (chain.exit_code, play.ends) == (0, [])
    chain, play = played(tmp_path, monkeypatch, [NothingCleared("nothing is safe", hint="audit"), 4])
    assert (chain.gave_up, chain.hint, play.ends) == ("nothing is safe", "audit", [4])


def test_what_the_user_ends_is_over(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    play = Played([4])
    monkeypatch.setattr(chain_module, "recover", play.recover)
    means = Means(Store.open(tmp_path / "s", create=True), Config(), SigningKey(bytes(32)), {}, play)
    assert len(keep_going(means, ended(Action.RECOVER, interrupted=2)).links) == 1
