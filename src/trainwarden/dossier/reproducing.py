"""Re-runs a dossier's kit: replays the diverging segments from sealed inputs, explains them, and compares with the log.

Rules
-----
* The kit's log is the one whose head the dossier has: verified against its key, and its root at that size compared.
* What is compared is the place (step, rank, stage, tensor) with both digests, and the cause with its file. Another
  answer fails; what could not be replayed here is not checked, with the reason.
* The environment is taken from the kit, or file by file from this machine where the bytes are those that were sealed.
* Nothing is written to any log: these verdicts are the reader's own.

Trust: code of the sealed job runs here, in clean processes and not in a sandbox. Do this where that may happen.
"""

from __future__ import annotations

import tempfile
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import TYPE_CHECKING

import msgspec

from trainwarden.audit.engine import Audit
from trainwarden.audit.proving import prove
from trainwarden.audit.recorded import recorded_of
from trainwarden.casefile import CaseFile, explanation_of, file_digest, indexed, load_case
from trainwarden.checks import Check, Failed, NotChecked, Passed, Result
from trainwarden.dossier.kit import FOLDER
from trainwarden.dossier.nouns import LogHead, Manifest
from trainwarden.errors import DossierTampered, TrainWardenError
from trainwarden.log.notes import parse_head
from trainwarden.log.reader import LogReader
from trainwarden.log.verify import verify_log
from trainwarden.model import Diverged, Explanation, Inconclusive, Location, Matched, SignedSeal, Verdict
from trainwarden.model import Manifest as Sealed
from trainwarden.seal.room import build_room
from trainwarden.store import Store

if TYPE_CHECKING:
    from trainwarden.seal.places import Room

Rooms = Callable[[Store, SignedSeal], "Room"]
Progress = Callable[[str], None]


def reproduce(
    files: Mapping[str, bytes], manifest: Manifest, progress: Progress, rooms: Rooms = build_room
) -> list[Check]:
    """One check a diverging segment, and one its cause."""
    kit = {path.removeprefix(FOLDER): data for path, data in files.items() if path.startswith(FOLDER)}
    runs = sorted({path.split("/")[1] for path in kit if path.startswith("runs/") and path.endswith("/seal.json")})
    if not runs:
        why = manifest.absent.get(FOLDER, "this edition has none")
        return [Check("reproduction", NotChecked(f"there is no kit: {why}"))]
    heads = {log.name: log for log in manifest.logs}
    with tempfile.TemporaryDirectory(prefix="tw-kit-", ignore_cleanup_errors=True) as name:
        store = _unpacked(kit, Path(name) / "store")
        try:
            return [check for run in runs for check in _run(store, run, heads.get(run), progress, rooms)]
        finally:
            store.close()


def _unpacked(kit: Mapping[str, bytes], folder: Path) -> Store:
    """The store that a kit is.

    Raises:
        DossierTampered: a member's name leads out of it.
    """
    for path, data in kit.items():
        if any(part in ("", ".", "..") for part in path.split("/")):
            raise DossierTampered(f"{FOLDER}{path} leads out of the kit")
        place = folder / path
        place.parent.mkdir(mode=0o700, parents=True, exist_ok=True)
        place.write_bytes(data)
        place.chmod(0o600)
    for part in ("objects", "cache", "rooms", "runs", "seals"):
        (folder / part).mkdir(exist_ok=True)
    return Store.open(folder)


def _run(store: Store, run: str, head: LogHead | None, progress: Progress, rooms: Rooms) -> list[Check]:
    name = f"reproduction of {run}"
    try:
        case = _case(store, run, head)
        if missing := _completed(store, case):
            more = f", and {len(missing) - 1} more" if len(missing) > 1 else ""
            reason = (
                f"of the sealed environment neither the kit nor this machine has {missing[0]}{more}: "
                "ask for a dossier that was made with --kit-environment, or install the same packages at the same place"
            )
            return [Check(name, NotChecked(reason))]
        progress(f"rebuilding the environment of {run} …")
        recorded = recorded_of(store, case)
        room = rooms(store, recorded.seal)
        checks = []
        for _, verdict in indexed(case.entries, Diverged):
            s = verdict.segment
            progress(f"replaying steps {s.first} to {s.last} of {run} …")
            found = Audit(recorded, room).run([s])
            checks.append(Check(f"{name}, steps {s.first} to {s.last}", compared(verdict, found)))
            told = explanation_of(case.entries, verdict)
            if told is not None and told[1].cause and isinstance(checks[-1].result, Passed):
                progress(f"trying causes at step {verdict.at.step} of {run} …")
                cause = same_cause(told[1], prove(recorded, room, verdict))
                checks.append(Check(f"cause at step {verdict.at.step}, rank {verdict.at.rank}", cause))
        return checks
    except DossierTampered as e:
        return [Check(name, Failed(str(e)))]
    except TrainWardenError as e:
        return [Check(name, NotChecked(f"it could not be replayed here: {e}"))]


def _case(store: Store, run: str, head: LogHead | None) -> CaseFile:
    """The run of the kit, if its log is the one that the dossier names.

    Raises:
        DossierTampered: it is not.
    """
    if head is None:
        raise DossierTampered(f"the dossier has no head of the log of {run}")
    told = parse_head(head.note.encode())
    folder = store.run(run)
    try:
        verify_log(folder.log, head.key)
        with LogReader.open(folder.log, head.key) as log:
            root = log.root_at(told.size).hex()
    except TrainWardenError as e:
        raise DossierTampered(f"the log of {run} in the kit does not verify: {e}") from e
    if root != told.root:
        raise DossierTampered(f"the log of {run} in the kit has root {root} at {told.size}, the dossier's {told.root}")
    return load_case(store, run, head.key, look_at_files=False)


def _completed(store: Store, case: CaseFile) -> list[str]:
    """Take what the kit lacks of the sealed environment from this machine; the files that are not here."""
    if case.seal is None:
        raise DossierTampered(f"the seal of {case.run} in the kit does not verify")
    missing: list[str] = []
    data = store.get(case.seal.seal.environment.digest)
    try:
        manifest = msgspec.json.decode(data, type=Sealed)
    except msgspec.DecodeError as e:
        raise DossierTampered(f"the manifest of the environment in the kit cannot be read: {e}") from e
    for root, tree in zip(manifest.roots, manifest.trees, strict=True):
        for entry in tree:
            if entry.link or entry.inert or store.has(entry.digest):
                continue
            here = Path(root) / entry.path
            if file_digest(here) != entry.digest or store.put_file(here, fsync=False) != entry.digest:
                missing.append(str(here))
    store.sync()
    return missing


def compared(recorded: Diverged, found: list[Verdict]) -> Result:
    """A replay here against the verdict of the log."""
    match found[0] if found else None:
        case Diverged(at=at) if _place(at) == _place(recorded.at):
            return Passed(f"it differs at step {at.step}, rank {at.rank}, {at.words}, with the digests of the log")
        case Diverged(at=at):
            where = f"step {at.step}, rank {at.rank}, {at.words}"
            return Failed(f"here it differs at {where}; in the log at step {recorded.at.step}, {recorded.at.words}")
        case Matched():
            return Failed("here it matches: what the log says of it is not so")
        case Inconclusive(reasons=reasons):
            return NotChecked(f"it could not be decided here: {'; '.join(reasons)}")
        case _:
            return NotChecked("nothing was replayed")


def _place(at: Location) -> tuple[object, ...]:
    return at.step, at.rank, at.stage, at.tensor, at.before, at.recorded, at.replayed


def same_cause(recorded: Explanation, found: Explanation) -> Result:
    """The cause found here against that of the log."""
    if (found.cause, found.file) == (recorded.cause, recorded.file):
        file = f" with the file {found.file}" if found.file else ""
        return Passed(f"{found.cause}{file} gives the recorded digest bit for bit")
    return Failed(f"here the cause is {found.cause or 'not established'}, in the log {recorded.cause}")
