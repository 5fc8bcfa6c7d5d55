"""`trainwarden recover`: the plan changes nothing, the recovery loses nothing, the result is clean."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import pytest
from blake3 import blake3
from resuming import Guarded, diverged, matched, tree

from trainwarden.model import Quarantined, Recovered, Restored, Sealed, Standing, StepRecord


def kinds(run: tuple[Guarded, str], kind: type) -> list[object]:
    guarded, name = run
    return [e for e in guarded.entries(name) if isinstance(e, kind)]


def test_the_plan_changes_nothing(sabotaged: tuple[Guarded, str]) -> None:
    guarded, run = sabotaged
    guarded.library.write_text("VALUE = 2\n")
    before = tree(guarded.out), tree(guarded.place.site), guarded.entries(run)
    shown = guarded.verb("recover", run)
    assert shown.returncode == 0, shown.stderr
    assert "nothing was changed" in shown.stderr
    plan = json.loads(guarded.verb("recover", run, "--json").stdout)["plan"]
    assert (plan["from_step"], plan["checkpoint"]) == (4, str(guarded.out / "step-4"))
    assert [r["path"] for r in plan["restore"]] == [str(guarded.library)]
    assert before == (tree(guarded.out), tree(guarded.place.site), guarded.entries(run))


def test_recovery_goes_back_to_the_cleared_checkpoint_and_on_in_the_sealed_environment(
    sabotaged: tuple[Guarded, str],
) -> None:
    guarded, run = sabotaged
    honest = tree(guarded.out)
    guarded.library.write_text("VALUE = 2\n")
    (guarded.place.site / "planted.pth").write_text("import sys\n")
    guarded.model(8).write_bytes(b"edited")
    told = guarded.applied(run)
    new = str(told["new_run"])
    assert tree(guarded.out) == honest  # recomputed by the sealed library from step 4 on
    assert guarded.library.read_text() == "VALUE = 1\n"
    assert not (guarded.place.site / "planted.pth").exists()
    assert [e.step for e in kinds((guarded, new), StepRecord)] == list(range(4, 12))  # type: ignore[attr-defined]
    (first,) = kinds((guarded, new), Sealed)
    assert first.parent == run  # type: ignore[attr-defined]
    (recovered,) = kinds(sabotaged, Recovered)
    assert (recovered.from_step, recovered.new_run) == (4, new)  # type: ignore[attr-defined]
    guarded.says(new, matched(4, 7), matched(8, 11))
    assert [c.standing for c in guarded.case(new).history.checkpoints] == [Standing.CLEARED] * 2
    assert guarded.verb("verify", run).returncode in (0, 2)


def test_a_package_that_was_installed_meanwhile_leaves_nothing_that_can_be_imported(
    sabotaged: tuple[Guarded, str],
) -> None:
    """PEP 420: a folder without modules is imported as well, and is what `find_spec` and `try: import` look for."""
    guarded, run = sabotaged
    package = guarded.place.site / "planted"
    for name in ("__init__.py", "py.typed", "sub/__init__.py", "sub/deep/table.json"):
        (package / name).parent.mkdir(parents=True, exist_ok=True)
        (package / name).write_text(f"# {name}")
    beside = guarded.library.with_name("notes.txt")  # in a folder that holds sealed files: cannot make it importable
    beside.write_text("x")
    for n in range(20):
        (package / f"module{n}.py").write_text(f"X = {n}")
    guarded.library.write_text("VALUE = 2\n")
    done = guarded.verb("recover", run, "--apply")
    assert done.returncode == 0, done.stderr
    assert not package.exists()
    assert beside.exists()
    moved = {Path(e.path) for e in kinds(sabotaged, Quarantined)}  # type: ignore[attr-defined]
    assert {package / "py.typed", package / "sub" / "deep" / "table.json", package / "module19.py"} <= moved
    assert "files quarantined: " in done.stderr  # thousands of files are no thousands of lines
    assert done.stderr.count(": new environment file") <= 10


def test_whatever_is_moved_or_replaced_is_kept_with_its_place_and_logged(sabotaged: tuple[Guarded, str]) -> None:
    guarded, run = sabotaged
    guarded.library.write_text("VALUE = 2\n")
    lost = {str(guarded.library): b"VALUE = 2\n"}
    lost |= {str(guarded.model(s)): guarded.model(s).read_bytes() for s in (8, 12)}
    guarded.applied(run)
    entries = {e.path: e for e in kinds(sabotaged, Quarantined)}  # type: ignore[attr-defined]
    quarantine = guarded.folder_of(run).quarantine
    for path, data in lost.items():
        digest = blake3(data).hexdigest()
        assert entries[path].digest == digest  # type: ignore[attr-defined]
        assert guarded.store.get(digest) == (quarantine / digest).read_bytes() == data
        notes = [json.loads(n.read_bytes()) for n in quarantine.glob(f"{digest}.*.json")]
        assert path in [n["path"] for n in notes]
    assert [e.path for e in kinds(sabotaged, Restored)] == [str(guarded.library)]  # type: ignore[attr-defined]


def test_an_edited_or_deleted_cleared_checkpoint_comes_back_from_the_store(sabotaged: tuple[Guarded, str]) -> None:
    guarded, run = sabotaged
    honest = guarded.model(4).read_bytes()
    guarded.model(4).write_bytes(b"edited")
    told = guarded.applied(run)
    assert told["loaded_checkpoint"] is True
    assert guarded.model(4).read_bytes() == honest
    again = str(told["new_run"])
    guarded.says(again, matched(4, 7))
    guarded.model(8).unlink()
    plan = json.loads(guarded.verb("recover", again, "--json").stdout)["plan"]
    assert plan["from_step"] == 8
    assert str(guarded.model(8)) in [r["path"] for r in plan["restore"]]


def test_without_a_cleared_checkpoint_nothing_is_decided(guarded: Guarded) -> None:
    run = guarded.run(8).run_id
    refused = guarded.verb("recover", run, "--apply")
    assert refused.returncode == 2
    assert f"trainwarden audit {run}" in refused.stderr
    assert len(guarded.entries(run)) == len(guarded.entries(run))
    plan = json.loads(guarded.verb("recover", run, "--json", options=("--from-start",)).stdout)["plan"]
    assert (plan["from_step"], plan["checkpoint"], len(plan["quarantine"])) == (0, "", 6)


def test_earlier_checkpoints_stay_untouched(guarded: Guarded) -> None:
    run = guarded.run(12).run_id
    guarded.says(run, matched(0, 3), matched(4, 7), diverged(8, 11, at=8))
    plan = json.loads(guarded.verb("recover", run, "--json").stdout)["plan"]
    assert (plan["from_step"], plan["restore"]) == (8, [])
    files = ("model.safetensors", "notes.txt", "untold.txt")
    assert {m["path"] for m in plan["quarantine"]} == {str(guarded.out / "step-12" / name) for name in files}


def test_when_the_first_segment_diverged_it_starts_from_the_very_beginning(guarded: Guarded) -> None:
    run = guarded.run(8).run_id
    honest = tree(guarded.out)
    guarded.says(run, diverged(0, 3, at=1), matched(4, 7))
    told = guarded.applied(run)
    new = str(told["new_run"])
    assert [e.step for e in kinds((guarded, new), StepRecord)] == list(range(8))  # type: ignore[attr-defined]
    assert tree(guarded.out) == honest


def test_the_resume_template_names_the_checkpoint_once(sabotaged: tuple[Guarded, str]) -> None:
    guarded, run = sabotaged
    config = guarded.folder.parent / "trainwarden.toml"
    config.write_text('[replay]\nresume = "--resume {checkpoint}"\n')
    told = guarded.applied(run, "--config", str(config))
    new = str(told["new_run"])
    words = guarded.case(new).seal.seal.argv  # type: ignore[union-attr]
    assert words[-2:] == ("--resume", str(guarded.out / "step-4"))
    guarded.says(new, matched(4, 7), matched(8, 11))
    plan = json.loads(guarded.verb("recover", new, "--json", "--config", str(config)).stdout)["plan"]
    assert (plan["argv"].count("--resume"), plan["argv"][-1]) == (1, str(guarded.out / "step-12"))


def test_a_recovered_run_that_goes_wrong_at_once_falls_back_on_its_parents_checkpoint(
    sabotaged: tuple[Guarded, str],
) -> None:
    guarded, run = sabotaged
    new = str(guarded.applied(run)["new_run"])
    guarded.says(new, diverged(4, 7, at=5))
    plan = json.loads(guarded.verb("recover", new, "--json").stdout)["plan"]
    assert (plan["from_step"], plan["checkpoint"]) == (4, str(guarded.out / "step-4"))
    assert {m["path"] for m in plan["quarantine"]} >= {str(guarded.model(8)), str(guarded.model(12))}


def test_what_fails_half_way_is_told_and_the_same_call_finishes_it(sabotaged: tuple[Guarded, str]) -> None:
    guarded, run = sabotaged
    guarded.library.write_text("VALUE = 2\n")
    package = guarded.place.site / "package"
    shutil.rmtree(package)
    package.write_text("a file where a folder was")
    stopped = guarded.verb("recover", run, "--apply")
    assert stopped.returncode == 3, stopped.stderr
    assert f"quarantined {guarded.model(8)}" in stopped.stderr
    assert "part.py" in stopped.stderr.splitlines()[-1] + stopped.stderr.splitlines()[-2]
    assert not kinds(sabotaged, Recovered)
    package.unlink()
    guarded.applied(run)
    assert guarded.library.read_text() == "VALUE = 1\n"
    assert (package / "part.py").read_text() == "PART = 1\n"


def test_a_held_log_stops_it_before_anything_moves(sabotaged: tuple[Guarded, str]) -> None:
    from contextlib import closing

    from trainwarden.keys import SigningKey
    from trainwarden.log.journal import LogWriter

    guarded, run = sabotaged
    before = tree(guarded.out)
    with closing(LogWriter.open(guarded.folder_of(run).log, SigningKey.load_or_create(guarded.place.key))):
        assert guarded.verb("recover", run, "--apply").returncode == 3
    assert tree(guarded.out) == before


def test_a_tampered_log_recovers_nothing(sabotaged: tuple[Guarded, str]) -> None:
    guarded, run = sabotaged
    journal = max(guarded.folder_of(run).log.iterdir(), key=lambda p: p.stat().st_size)
    data = bytearray(journal.read_bytes())
    data[len(data) // 2] ^= 1
    journal.write_bytes(data)
    before = tree(guarded.out)
    assert guarded.verb("recover", run, "--apply").returncode == 1
    assert tree(guarded.out) == before


def test_environment_tampered_after_the_restoration_never_starts_the_command(
    sabotaged: tuple[Guarded, str], monkeypatch: pytest.MonkeyPatch
) -> None:
    from trainwarden.config import Config
    from trainwarden.errors import SealBroken
    from trainwarden.keys import SigningKey
    from trainwarden.respond.plan import make_plan
    from trainwarden.respond.recover import apply_plan, resume

    guarded, run = sabotaged
    store, case, folder = guarded.store, guarded.case(run), guarded.folder_of(run)
    assert case.seal is not None
    key = SigningKey.load_or_create(guarded.place.key)
    plan = make_plan(store, case, "")
    apply_plan(store, folder, case.seal, plan, key, lambda _: None)
    guarded.library.write_text("VALUE = 3\n")
    monkeypatch.chdir(plan.cwd)
    runs = store.runs()
    with pytest.raises(SealBroken, match=r"library\.py"):
        resume(store, folder, case.seal, plan, Config(), key, env=guarded.place.env())
    assert store.runs() == runs
    assert not kinds(sabotaged, Recovered)


def test_a_crashing_script_passes_its_code_through_and_the_run_can_be_recovered_again(
    sabotaged: tuple[Guarded, str],
) -> None:
    guarded, run = sabotaged
    blocker = Path(guarded.out / "step-7000")
    blocker.mkdir()  # a folder that the script takes for a checkpoint, without a model in it
    ended = guarded.verb("recover", run, "--apply")
    assert ended.returncode == 0
    assert "did not load" in ended.stderr
    blocker.rmdir()
    assert guarded.applied(run)["loaded_checkpoint"] is True
