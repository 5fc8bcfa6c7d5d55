"""The way of a checkpoint to what is served, by the commands that people type, on a run that was really guarded."""

from __future__ import annotations

import json
import sys
from collections.abc import Callable
from pathlib import Path

import pytest

TESTS = Path(__file__).parents[1]
sys.path[:0] = [str(TESTS / "respond"), str(TESTS / "gate")]

from resuming import Guarded, guarded, matched, place  # noqa: E402
from yard import finding  # noqa: E402

from trainwarden import serving  # noqa: E402
from trainwarden.cli import main  # noqa: E402
from trainwarden.errors import NotCleared  # noqa: E402

__all__ = ["guarded", "place"]

EVAL = """
import json, struct, sys
weights = open(sys.argv[2] + "/model.safetensors", "rb").read()
bias = json.load(open(sys.argv[1]))
print("loading")
print(json.dumps({"loss": struct.unpack("<f", weights[-4:])[0] + bias, "samples": 3}))
"""
FIGURES = {"loss": 25.5, "samples": 3}

Verb = Callable[..., tuple[int, str]]


@pytest.fixture
def verb(guarded: Guarded, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> Verb:
    """Runs a verb in the job's folder; its exit code and all that it said."""
    monkeypatch.chdir(guarded.folder)
    monkeypatch.setenv("TRAINWARDEN_STORE", str(guarded.place.store))
    monkeypatch.setenv("TRAINWARDEN_KEY", str(guarded.place.key))
    monkeypatch.setenv("COLUMNS", "200")

    def run(*words: object) -> tuple[int, str]:
        capsys.readouterr()
        code = main([str(w) for w in words])
        told = capsys.readouterr()
        return code, told.out if "--json" in words else told.out + told.err

    return run


def figures(path: Path, **figures: float) -> Path:
    path.write_text(json.dumps(figures))
    return path


def serves_while_cleared(guarded: Guarded, verb: Verb, chat: serving.Service[bytes], checkpoint: Path) -> None:
    """Poisoned where it lies, under an incident, and after it: what a server that holds the name does."""
    good, weights = chat.current(), checkpoint / "model.safetensors"
    kept = weights.read_bytes()
    weights.write_bytes(kept[:-4] + b"evil")
    code, told = verb("clear", checkpoint)
    assert (code, "evaluated anew, loss is" in told) == (1, True), told  # before it: nobody saved these bytes
    assert verb("promote", "chat", checkpoint)[0] == 1
    assert chat.reload().digest == good.digest
    weights.write_bytes(kept)

    assert verb("incident", "open", "--title", "case 8")[0] == 0
    with pytest.raises(NotCleared, match="incident i1 is open on run"):
        chat.current()
    assert chat.status().digest == ""
    code, told = verb("lineage", checkpoint)
    assert (code, "incident i1 is open on run" in told) == (2, True), told
    assert verb("incident", "close", "i1", "--outcome", "a failed disk")[0] == 0
    assert (chat.current().digest, chat.current().model) == (good.digest, kept)


@pytest.mark.timeout(600)
def test_from_training_to_serving_and_back(guarded: Guarded, verb: Verb) -> None:
    run = guarded.run(8).run_id
    checkpoint = guarded.out / "step-8"
    (checkpoint / "untold.txt").unlink()  # no part of the checkpoint
    (guarded.folder / "eval.py").write_text(EVAL)
    (guarded.folder / "held-out.json").write_text("0.5")
    sealed = verb("seal", "--json", "--", guarded.place.python, "eval.py", "held-out.json", "{checkpoint}")[1]
    for name in ("ada", "grace"):
        assert verb("keys", "new", name)[0] == 0
    (guarded.folder / "trainwarden.toml").write_text(
        f'[gate]\nevaluate = "{json.loads(sealed)["seal"]}"\napprovals = 1\napprovers = ["ada", "grace"]\n'
    )

    # Nothing is known yet, and each line says how it would be.
    guarded.says(run, finding(step=5))
    code, told = verb("clear", checkpoint)
    assert code == 2, told
    closing = next(line.split()[2:4] for line in told.splitlines() if line.strip().startswith("trainwarden close"))
    for command in (f"audit {run}", f"approve --checkpoint {checkpoint} --as ada", "--claims FILE"):
        assert command in told
    assert verb("promote", "chat", checkpoint)[0] == 1

    # A replay, a closed finding, an approval, and figures that are not so: refused for these.
    guarded.says(run, matched(0, 3), matched(4, 7))
    assert verb("close", *closing, "--as", "ada", "--reason", "the file server was being moved")[0] == 0
    assert verb("close", run, 0, "--as", "ada", "--reason", "no finding")[0] == 3
    assert verb("approve", "--checkpoint", checkpoint, "--as", "ada")[0] == 0
    code, told = verb("clear", checkpoint, "--claims", figures(guarded.folder / "false.json", loss=0.1, samples=3))
    assert (code, "loss is 25.5, claimed was 0.1" in told) == (1, True), told

    # The evaluation reads the sealed data, not what lies there now.
    (guarded.folder / "held-out.json").write_text("100.5")
    figures(guarded.out / "step-8.eval.json", **FIGURES)
    decided = json.loads(verb("clear", checkpoint, "--json")[1])
    assert decided["decision"]["type"] == "cleared", decided
    assert decided["decision"]["clearance"]["evaluated"]["figures"] == FIGURES
    written = {Path(p).name for p in decided["attestations"]}
    assert written == {"model.sig", "model.sig.pem", "provenance.json", "provenance.pem", "bom.cdx.json"}

    # What is made from it stands on it, and what is not made from it is not recorded.
    half = guarded.out / "half"
    made_so = ("--from", checkpoint, "--how", "cast", "--dtype", "float16", "--as", "ada")
    assert verb("derive", half, *made_so)[0] == 0
    assert verb("derive", guarded.folder / "eval.py", *made_so)[0] == 1  # loading it could run something
    assert verb("derive", guarded.out / "step-4", *made_so)[0] == 1
    drawn = guarded.folder / "lineage.svg"
    code, told = verb("lineage", half, "--svg", drawn)
    assert (code, f"run {run}, step 8" in told, "the approved inputs" in told) == (0, True, True), told
    assert drawn.read_text().startswith("<svg")

    # Promoted; then an incident opens and closes.
    assert verb("promote", "chat", checkpoint)[0] == 0
    assert (
        json.loads(verb("status", "--json")[1])["names"]["chat"]["serves"] == decided["decision"]["clearance"]["digest"]
    )
    digest = decided["decision"]["clearance"]["digest"]
    with serving.open("chat", lambda files: bytes(files.read("model.safetensors")), store=guarded.place.store) as chat:
        assert chat.current().digest == digest
        serves_while_cleared(guarded, verb, chat, checkpoint)
    assert verb("contain", run, "--only", "freeze", "--apply", "--reason", "case 7")[0] == 0
    code, told = verb("status", "chat")
    assert (code, "is frozen" in told, "nothing can be served" in told) == (1, True, True), told
    assert verb("promote", "web", checkpoint)[0] == 1
    assert verb("rollback", "chat")[0] == 1
    assert verb("contain", run, "--undo", "--apply")[0] == 0
    assert verb("status", "chat")[0] == 0
