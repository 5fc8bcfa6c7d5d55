"""From the gate's own verbs to the server: what `clear` and `promote` decide is what answers."""

from __future__ import annotations

from pathlib import Path

import pytest

from tests.gate.yard import KEEPER, Yard, diverged, finding
from trainwarden import serving
from trainwarden.config import Config, GateConfig, ServingConfig
from trainwarden.errors import NotCleared
from trainwarden.gate.decision import Cleared
from trainwarden.gate.promote import promote, roll_back
from trainwarden.store import Store

POLICY = GateConfig(keeper=KEEPER.public)


def step(files: serving.Files) -> int:
    return int(files.json("state.json")["step"])


def test_what_was_cleared_and_promoted_answers_until_a_replay_says_otherwise(tmp_path: Path) -> None:
    yard = Yard(Store.open(tmp_path / "store", create=True), tmp_path / "out")
    config = Config(gate=POLICY, serving=ServingConfig(state=str(tmp_path / "state"), poll_seconds=0.02))

    def put(number: int, name: str = "r") -> str:
        assert isinstance(yard.clear(yard.checkpoint(number, name), POLICY), Cleared)
        return promote(yard.store, "chat", yard.checkpoint(number, name), POLICY, KEEPER).digest

    run = yard.run()
    first = put(4)
    with serving.open("chat", step, store=yard.store.path, config=config) as chat:
        assert (chat.current().digest, chat.current().model) == (first, 4)
        second = put(8)
        assert (chat.reload().digest, chat.current().model) == (second, 8)
        (yard.checkpoint(8) / "state.json").write_text("{}")
        assert chat.reload().digest == second, "the store has what was cleared"
        yard.says(run, diverged(4, 7, at=6))
        assert chat.current().digest == first, "its last step is before the one that diverged"
        yard.says(run, finding(step=2))
        with pytest.raises(NotCleared, match="finding sleep"):
            chat.current()
        yard.run("again")
        third = put(8, "again")
        assert chat.current().digest == third
        fourth = put(4, "again")
        assert chat.reload().digest == fourth
        roll_back(yard.store, "chat", KEEPER, "slower")
        assert chat.current().digest == third
