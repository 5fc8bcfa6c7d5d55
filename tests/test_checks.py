"""Offline checks, by what was tampered with; the untouched run is the benign twin of all of them."""

from __future__ import annotations

import sys
from pathlib import Path

import msgspec
import pytest

from trainwarden import model as m
from trainwarden.checks import Failed, NotChecked, Passed, Result, verify_run
from trainwarden.errors import UsageError

sys.path.insert(0, str(Path(__file__).parent / "report"))
import story
from planted import KEY, OTHER, Planted, copied, plant


@pytest.fixture(scope="module")
def source(tmp_path_factory: pytest.TempPathFactory) -> Planted:
    return plant(tmp_path_factory.mktemp("checks"))


@pytest.fixture
def run(source: Planted, tmp_path: Path) -> Planted:
    return copied(source, tmp_path)


def results(run: Planted, key: str = KEY.public, deep: bool = False) -> dict[str, Result]:
    return {c.name: c.result for c in verify_run(run.store, run.run.id, key, deep)}


def rewrite(path: Path, data: bytes) -> None:
    path.chmod(0o644)
    path.write_bytes(data)


def relogged(folder: Path, change: object) -> Planted:
    """A run whose log was honestly written from `change(entries)`: what a lying supervisor could sign."""
    made = plant(folder)
    store, run = made.store, made.store.create_run()
    seal = story.a_seal(store)
    plot = story.PLOT._replace(run=run.id, out=str(folder / "other"))
    log = change(story.entries(plot, story.sign(seal, KEY).digest, KEY.public))  # type: ignore[operator]
    story.write_run(store, run, seal, KEY, log)
    return Planted(store, run, folder / "other")


@pytest.mark.parametrize("deep", [False, True])
def test_untouched_run_passes_every_check(source: Planted, deep: bool) -> None:
    found = results(source, deep=deep)
    assert all(isinstance(r, Passed) for r in found.values()), found
    assert list(found) == ["key", "log", "seal", "approvals", "records", "details", "checkpoints", "stored objects"]


def test_without_a_key_of_ones_own_it_is_not_a_pass(source: Planted) -> None:
    found = results(source, key="")
    assert isinstance(found["key"], NotChecked)
    assert isinstance(found["log"], Passed)


def test_wrong_key_fails_and_nothing_after_it_is_believed(source: Planted) -> None:
    found = results(source, key=OTHER.public)
    assert isinstance(found["key"], Failed)
    assert isinstance(found["log"], Failed)
    assert {type(found[name]) for name in ("seal", "records", "details")} == {NotChecked}


def test_truncated_log_fails(run: Planted) -> None:
    journal = max(run.run.log.iterdir(), key=lambda p: p.stat().st_size)
    rewrite(journal, journal.read_bytes()[:-300])
    assert isinstance(results(run)["log"], Failed)


def test_rewritten_entry_fails(run: Planted) -> None:
    journal = max(run.run.log.iterdir(), key=lambda p: p.stat().st_size)
    data = journal.read_bytes()
    assert b"posttrain.py" in data
    rewrite(journal, data.replace(b"posttrain.py", b"pretrainn.py", 1))
    assert isinstance(results(run)["log"], Failed)


def test_edited_seal_fails(run: Planted) -> None:
    rewrite(run.run.seal_file, run.run.seal_file.read_bytes().replace(b'"world":2', b'"world":4'))
    found = results(run)
    assert isinstance(found["seal"], Failed)
    assert isinstance(found["log"], Passed)
    assert isinstance(found["stored objects"], NotChecked)


def test_edited_detail_fails(run: Planted) -> None:
    path = run.run.details / "a1-r1.bin"
    data = bytearray(path.read_bytes())
    data[-1] ^= 1
    rewrite(path, bytes(data))
    result = results(run)["details"]
    assert isinstance(result, Failed)
    assert "rank 1" in result.reason


def test_missing_detail_fails(run: Planted) -> None:
    (run.run.details / "a0-r1.bin").unlink()
    assert isinstance(results(run)["details"], Failed)


def test_missing_digest_key_is_not_a_pass(run: Planted) -> None:
    (run.run.private / "digest.key").unlink()
    assert isinstance(results(run)["details"], NotChecked)


def test_edited_checkpoint_fails(tmp_path: Path) -> None:
    own = plant(tmp_path)
    path = own.out / "step-000012" / "model.safetensors"
    path.write_bytes(path.read_bytes()[:-1] + b"!")
    result = results(own)["checkpoints"]
    assert isinstance(result, Failed)
    assert str(path) in result.reason


def test_checkpoint_that_is_gone_passes_while_the_store_has_it(tmp_path: Path) -> None:
    own = plant(tmp_path)
    path = own.out / "step-000012" / "model.safetensors"
    digest = next(f.digest for c in own.case().history.checkpoints for f in c.files if f.path == str(path))
    path.unlink()
    assert isinstance(results(own)["checkpoints"], Passed)
    own.store.object_path(digest).unlink()
    assert isinstance(results(own)["checkpoints"], NotChecked)


def test_tampered_object_fails(run: Planted) -> None:
    digest = run.store.put_bytes(story.CHANGED_SOURCE.encode())
    rewrite(run.store.object_path(digest), b"something else")
    assert isinstance(results(run)["stored objects"], Failed)


def test_tampered_sealed_file_is_found_by_the_deep_check(run: Planted) -> None:
    case = run.case()
    assert case.seal is not None
    data = run.store.put_bytes(b"data")
    rewrite(run.store.object_path(data), b"atad")
    assert isinstance(results(run)["stored objects"], Passed)
    assert isinstance(results(run, deep=True)["stored objects"], Failed)


def test_removed_manifest_fails(run: Planted) -> None:
    case = run.case()
    assert case.seal is not None
    run.store.object_path(case.seal.seal.environment.digest).unlink()
    assert isinstance(results(run)["stored objects"], Failed)


def test_hole_in_the_records_fails(tmp_path: Path) -> None:
    hole = relogged(tmp_path, lambda log: [e for e in log if not (isinstance(e, m.StepRecord) and e.step == 9)])
    result = results(hole)["records"]
    assert isinstance(result, Failed)
    assert "expected 9" in result.reason


def test_miscounted_end_fails(tmp_path: Path) -> None:
    def miscount(log: list[m.Entry]) -> list[m.Entry]:
        return [msgspec.structs.replace(e, records=99) if isinstance(e, m.RunEnded) else e for e in log]

    assert isinstance(results(relogged(tmp_path, miscount))["records"], Failed)


def test_gap_fails(tmp_path: Path) -> None:
    gap = m.Gap(attempt=0, rank=0, step=3, reason="recorder error")
    assert isinstance(results(relogged(tmp_path, lambda log: [*log, gap]))["records"], Failed)


def test_run_without_its_end_is_not_a_pass(tmp_path: Path) -> None:
    open_end = relogged(tmp_path, lambda log: [e for e in log if not isinstance(e, m.RunEnded)])
    assert isinstance(results(open_end)["records"], NotChecked)


def test_unknown_run_is_one_clear_error(source: Planted) -> None:
    with pytest.raises(UsageError, match="no such run"):
        verify_run(source.store, "nothing")
