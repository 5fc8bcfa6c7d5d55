"""The reproduction kit: unpacked elsewhere it gives the verdict of the log again, and a kit that lies is found."""

from __future__ import annotations

import sys
from contextlib import closing
from pathlib import Path

import msgspec
import pytest

from trainwarden.attribute.gathering import bring_up_to_date
from trainwarden.audit import proving
from trainwarden.audit.engine import Audit
from trainwarden.checks import Check, Failed, NotChecked, Passed
from trainwarden.custody import ledger
from trainwarden.dossier.gathering import Given
from trainwarden.dossier.kit import FOLDER
from trainwarden.dossier.making import Made, Options, make
from trainwarden.dossier.nouns import Audience
from trainwarden.dossier.reproducing import compared, reproduce, same_cause
from trainwarden.dossier.verifying import verify_files
from trainwarden.keys import SigningKey
from trainwarden.log.journal import LogWriter
from trainwarden.model import (
    Coverage,
    Diverged,
    Entry,
    Explanation,
    FileEntry,
    Inconclusive,
    Location,
    Matched,
    Sealed,
    Segment,
    SignedSeal,
    Stage,
    canonical,
)
from trainwarden.seal.manifest import make_manifest, manifest_ref
from trainwarden.seal.room import Room
from trainwarden.seal.seal import sign_seal, write_seal
from trainwarden.store import Store
from trainwarden.supervise import supervisor

sys.path.insert(0, str(Path(__file__).parents[1] / "audit"))
import job_scripts as scripts
from guarded_job import NOTHING, Job, make_job, plain_seal


def told(checks: list[Check]) -> list[tuple[str, str]]:
    return [(c.name, type(c.result).__name__) for c in checks]


def dossier_of(store: Store, audience: Audience = Audience.ORGANISATION) -> Made:
    by = ledger.signer(store)
    custody = ledger.read_custody(store)
    incident = custody.incidents.get("i1") or ledger.open_incident(store, by, "a run that did not replay")
    incident = bring_up_to_date(store, by, incident, ["last"])
    return make(store, by, incident, Given(), Options(audience=audience, pdf=False, kit=True), lambda _: None)


@pytest.fixture
def job(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Job:
    """A job in which a gradient is reversed by a file that no seal has, guarded, with a seal that verifies."""
    monkeypatch.setenv("TRAINWARDEN_KEY", str(tmp_path / "key"))
    job = make_job(tmp_path, monkeypatch, scripts.ATTACKED)
    job.key = SigningKey.load_or_create()
    monkeypatch.setattr(proving, "remove_variant", lambda room: None)  # the stand-in for a room has no variants
    monkeypatch.setattr(
        supervisor,
        "seal_command",
        lambda store, command, *a, **k: sign_seal(plain_seal(job.folder, tuple(command.argv)).seal, job.key),
    )
    return job


def append(job: Job, run: str, *entries: Entry) -> None:
    with closing(LogWriter.open(job.store.run(run).log, job.key)) as log:
        log.append([canonical(e) for e in entries])


def test_a_kit_gives_place_digests_and_cause_again_and_a_lying_log_is_found(job: Job) -> None:
    (job.folder / "evil.txt").write_text("flip 5 0")
    recorded = job.run(world=1)
    (job.folder / "evil.txt").unlink()
    [verdict] = [v for v in Audit(recorded, job.room).run(recorded.history.segments) if isinstance(v, Diverged)]
    explained = Explanation(at=verdict.at, hypotheses=(), cause="sign flipped")
    append(job, recorded.folder.id, verdict, explained)

    made = dossier_of(job.store)
    files, manifest = made.files, made.manifest
    held = verify_files(files, manifest.key)[1]
    assert not [c for c in held if isinstance(c.result, Failed)]
    found = reproduce(files, manifest, lambda _: None, lambda store, seal: job.room)
    assert [r for _, r in told(found)] == ["Passed", "Passed"], found
    assert isinstance(found[0].result, Passed)
    assert "step 5, rank 0" in found[0].result.seen

    journal = next(p for p in files if p.startswith(FOLDER) and p.endswith("/journal"))
    cut = {**files, journal: files[journal][:-200]}
    assert [r for _, r in told(reproduce(cut, manifest, lambda _: None, lambda store, seal: job.room))] == ["Failed"]

    lies = [msgspec.structs.replace(verdict.at, **{name: value}) for name, value in (("step", 6), ("recorded", "00"))]
    for lie in lies:
        assert isinstance(compared(msgspec.structs.replace(verdict, at=lie), [verdict]), Failed)
    matched = Matched(segment=verdict.segment, coverage=verdict.coverage)
    assert isinstance(compared(verdict, [matched]), Failed)
    open_ = Inconclusive(segment=verdict.segment, reasons=("another processor",))
    assert isinstance(compared(verdict, [open_]), NotChecked)
    assert isinstance(same_cause(explained, msgspec.structs.replace(explained, cause="seeded")), Failed)
    public = dossier_of(job.store, Audience.PUBLIC)
    assert not any(p.startswith(FOLDER) for p in public.files)
    assert isinstance(reproduce(public.files, public.manifest, lambda _: None)[0].result, NotChecked)


def test_a_kit_without_a_file_of_the_sealed_environment_is_not_checked_and_says_which(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("TRAINWARDEN_KEY", str(tmp_path / "key"))
    key, store = SigningKey.load_or_create(), Store.open(tmp_path / "store", create=True)
    environment = make_manifest("environment", {str(tmp_path): [FileEntry(path="gone.py", digest="ab" * 32, size=1)]})
    for manifest in (environment, *NOTHING):
        store.put_bytes(canonical(manifest))
    plain = plain_seal(tmp_path).seal
    seal = sign_seal(msgspec.structs.replace(plain, environment=manifest_ref(environment)), key)
    run = store.create_run()
    write_seal(run.seal_file, seal)
    at = Location(step=5, rank=0, stage=Stage.WEIGHTS)
    entries = (
        Sealed(run=run.id, seal=seal.digest, key=key.public),
        Diverged(segment=Segment(attempt=0, first=0, last=9), at=at, coverage=Coverage()),
    )
    with closing(LogWriter.create(run.log, f"trainwarden/{run.id}", key)) as log:
        log.append([canonical(e) for e in entries])
    made = dossier_of(store)
    [check] = reproduce(made.files, made.manifest, lambda _: None, no_room)
    assert isinstance(check.result, NotChecked)
    assert str(tmp_path / "gone.py") in check.result.reason
    assert made.manifest.absent[f"{FOLDER}environment"]
    parts = {p: d for p, d in made.files.items() if "/objects/" not in p}
    [check] = reproduce(parts, made.manifest, lambda _: None, no_room)
    assert isinstance(check.result, NotChecked)  # a kit that is not whole is no contradiction


def no_room(store: Store, seal: SignedSeal) -> Room:
    raise AssertionError("nothing is run of a kit that is not whole")
