"""The way of a checkpoint to what is served, by the commands that people type, on a run that was really guarded."""

from __future__ import annotations

import json
import sys
from pathlib import Path

import pytest

TESTS = Path(__file__).parents[1]
sys.path.append(str(TESTS / "respond"))

from resuming import Guarded, guarded, matched, place  # noqa: E402

__all__ = ["guarded", "place"]

EVAL = """
import json, struct, sys
weights = open(sys.argv[2] + "/model.safetensors", "rb").read()
bias = json.load(open(sys.argv[1]))
print("loading")
print(json.dumps({"loss": struct.unpack("<f", weights[-4:])[0] + bias, "samples": 3}))
"""
FIGURES = {"loss": 25.5, "samples": 3}


def figures(path: Path, **figures: float) -> Path:
    path.write_text(json.dumps(figures))
    return path


@pytest.mark.timeout(600)
def test_from_training_to_serving_and_back(guarded: Guarded) -> None:
    run = guarded.run(8).run_id
    checkpoint = guarded.out / "step-8"
    (checkpoint / "untold.txt").unlink()  # no part of the checkpoint
    (guarded.folder / "eval.py").write_text(EVAL)
    (guarded.folder / "held-out.json").write_text("0.5")
    words = ("--", str(guarded.place.python), "eval.py", "held-out.json", "{checkpoint}")
    sealed = json.loads(guarded.verb("seal", "--json", *words).stdout)["seal"]
    for name in ("ada", "grace"):
        assert guarded.verb("keys", "new", name).returncode == 0
    (guarded.folder / "trainwarden.toml").write_text(
        f'[gate]\nevaluate = "{sealed}"\napprovals = 1\napprovers = ["ada", "grace"]\n'
    )

    # Nothing is known yet, and each line says how it would be.
    done = guarded.verb("clear", str(checkpoint))
    assert done.returncode == 2, done.stderr
    for command in (f"audit {run}", f"approve --checkpoint {checkpoint} --as ada", "--claims FILE"):
        assert command in done.stdout
    assert guarded.verb("promote", "chat", str(checkpoint)).returncode == 1

    # A replay, an approval, and figures that are not so: refused for these.
    guarded.says(run, matched(0, 3), matched(4, 7))
    assert guarded.verb("approve", "--checkpoint", str(checkpoint), "--as", "ada").returncode == 0
    false = figures(guarded.folder / "false.json", loss=0.1, samples=3)
    done = guarded.verb("clear", str(checkpoint), "--claims", str(false))
    assert (done.returncode, "loss is" in done.stdout, "claimed was 0.1" in done.stdout) == (1, True, True), done

    # The evaluation reads the sealed data, not what lies there now.
    (guarded.folder / "held-out.json").write_text("100.5")
    figures(guarded.out / "step-8.eval.json", **FIGURES)
    told = json.loads(guarded.verb("clear", str(checkpoint), "--json").stdout)
    assert told["decision"]["type"] == "cleared", told
    assert told["decision"]["clearance"]["evaluated"]["figures"] == FIGURES
    written = {Path(p).name for p in told["attestations"]}
    assert written == {"model.sig", "model.sig.pem", "provenance.json", "provenance.pem", "bom.cdx.json"}

    # Promoted; then an incident opens and closes.
    assert guarded.verb("promote", "chat", str(checkpoint)).returncode == 0
    assert json.loads(guarded.verb("status", "--json").stdout)["names"]["chat"]["serves"]
    drawn = guarded.folder / "lineage.svg"
    assert guarded.verb("lineage", str(checkpoint), "--svg", str(drawn)).returncode == 0
    assert drawn.read_text().startswith("<svg")
    assert guarded.verb("contain", run, "--only", "freeze", "--apply", "--reason", "case 7").returncode == 0
    done = guarded.verb("status", "chat")
    assert (done.returncode, "is frozen" in done.stdout, "nothing can be served" in done.stdout) == (1, True, True)
    assert guarded.verb("promote", "web", str(checkpoint)).returncode == 1
    assert guarded.verb("rollback", "chat").returncode == 1
    assert guarded.verb("contain", run, "--undo", "--apply").returncode == 0
    assert guarded.verb("status", "chat").returncode == 0
