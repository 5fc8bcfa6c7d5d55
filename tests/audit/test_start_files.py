"""What an attempt that went on from a checkpoint found there, when parts of all its checkpoints are equal."""

from __future__ import annotations

from pathlib import Path

from msgspec.structs import replace

from trainwarden.audit.recorded import Recorded
from trainwarden.lineage import Attempt
from trainwarden.model import CheckpointLoaded, CheckpointSaved, ManifestRef, Seal, SignedSeal
from trainwarden.store import Store
from trainwarden.supervise.private import new_digest_key


def saved(folder: str, step: int, name: str, digest: str) -> CheckpointSaved:
    return CheckpointSaved(
        attempt=0, rank=0, step=step, path=f"{folder}/{name}", digest=digest, size=1, format="safetensors"
    )


def loaded(path: str, digest: str, step: int) -> CheckpointLoaded:
    return CheckpointLoaded(attempt=1, rank=0, path=path, digest=digest, known_step=step)


def places(tmp_path: Path, saves: list[CheckpointSaved], loads: list[CheckpointLoaded]) -> dict[str, str]:
    """Where `start_files` places what; contents stand for their digests in the lists given."""
    store = Store.open(tmp_path / "store", create=True)
    digests = {s.digest: store.put_bytes(s.digest.encode()) for s in saves}
    run = store.create_run()
    new_digest_key(run.private)
    nothing = {k: ManifestRef(kind=k, digest="0" * 64, files=0, bytes=0) for k in ("code", "environment", "data")}
    seal = SignedSeal(seal=Seal(created_ns=0, argv=(), cwd="/", interpreter="/", **nothing), digest="0" * 64)
    held = [replace(s, digest=digests[s.digest]) for s in saves]
    asked = tuple(replace(load, digest=digests[load.digest]) for load in loads)
    attempt = Attempt(number=1, world=1, base=12, last=20, ranks=(0,), loaded=asked)
    names = {digest: name for name, digest in digests.items()}
    return {f.path: names[f.digest] for f in Recorded(store, run, seal, held).start_files(attempt)}


CHECKPOINTS = [
    saved(f"/out/step-{step}", step, name, digest)
    for step in (6, 12, 18)
    for name, digest in (("model", f"m{step}"), ("rng", "same"), ("state.json", f"s{step}"))
]
WANTED = {"model": "m12", "rng": "same", "state.json": "s12"}


def test_the_folder_that_was_loaded_is_placed_and_no_other(tmp_path: Path) -> None:
    loads = [loaded("/out/step-12/model", "m12", 12), loaded("/out/step-12/rng", "same", 12)]
    assert places(tmp_path, CHECKPOINTS, loads) == {f"/out/step-12/{n}": d for n, d in WANTED.items()}


def test_a_checkpoint_that_was_moved_before_it_was_loaded_is_known_by_its_step(tmp_path: Path) -> None:
    loads = [loaded("/moved/model", "m12", 12), loaded("/moved/rng", "same", 12)]
    assert places(tmp_path, CHECKPOINTS, loads) == {f"/moved/{n}": d for n, d in WANTED.items()}
