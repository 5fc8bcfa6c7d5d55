"""Takes a run back to its last cleared checkpoint and lets it go on in the sealed environment.

Rules
-----
* Order: quarantine → restore → compare with the seal → seal again → start. Each act is logged in the run that
  is recovered: a `Quarantined` before the file leaves its place, a `Restored` after it is back, and a
  `Recovered` when the new run has its log and before its command starts.
* Files are moved and put back in groups of `_TOGETHER`: each group is durable, then logged, then the next one begins.
* Every act can be repeated: after a failure half-way, the same call makes a new plan of what is left to do.
* The new run's environment and code must be those of the old seal, or its command is not started. Caches that
  Python itself has written from sealed sources since, and files beside the code that nothing imports, are no
  difference.
* The recovered run's log is held while files move and not while the new run goes on.

Trust: as `respond.plan`. The numerics and the variables that the seal does not keep are those of whoever recovers.
"""

from __future__ import annotations

import os
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import closing
from typing import TypeVar

from trainwarden.casefile import read_entries
from trainwarden.config import Config
from trainwarden.errors import CannotDecide, SealBroken
from trainwarden.keys import SigningKey
from trainwarden.log.journal import LogWriter
from trainwarden.model import (
    CheckpointLoaded,
    Entry,
    FileEntry,
    Quarantined,
    Recovered,
    Restored,
    Seal,
    SignedSeal,
    canonical,
)
from trainwarden.respond.disk import digest_now, keep, put_back, remove_if_empty, take_away
from trainwarden.respond.hears import OnAct, carry_out
from trainwarden.respond.plan import Plan
from trainwarden.seal.cache import Progress, item_of
from trainwarden.seal.check import KINDS, check_seal, expected, load_manifest
from trainwarden.seal.command import LaunchCommand, parse_command
from trainwarden.seal.manifest import compare, path_real
from trainwarden.seal.pyc import is_cache_of, source_of
from trainwarden.seal.seal import relevant_env
from trainwarden.seal.walking import importable, loadable
from trainwarden.store import RunDir, Store
from trainwarden.supervise.events import Beside, Event, RunResult, Started
from trainwarden.supervise.ledger import NoWatcher, Watcher
from trainwarden.supervise.responding import Response
from trainwarden.supervise.supervisor import supervise

T = TypeVar("T")
_TOGETHER = 512


def apply_plan(
    store: Store,
    run: RunDir,
    seal: SignedSeal,
    plan: Plan,
    key: SigningKey,
    on_act: OnAct,
    *,
    clean_room: bool = False,
) -> None:
    """Move away and put back what the plan names, then compare the disk with the seal.

    For a clean room the shared environment need not stay as it was restored.

    Raises:
        CannotDecide: a sealed file cannot be restored, or something writes to the files that are moved.
        LogLocked: the run still goes on, or an audit holds it.
        SealBroken: the disk is not what was sealed when all is done.
        StoreError, StoreTampered: a file cannot be kept or restored; what was done before stays done.
    """
    if plan.missing:
        raise CannotDecide(
            f"{len(plan.missing)} sealed files differ and no copy was kept, first {plan.missing[0]}",
            hint="restore them from where they came from, then recover again; nothing was changed",
        )
    with closing(LogWriter.open(run.log, key)) as log:

        def append(entries: Sequence[Entry]) -> None:
            log.append([canonical(entry) for entry in entries])

        carry_out(_quarantines(store, run, plan, append), on_act, "files quarantined")
        inside_out = sorted(plan.folders, key=len, reverse=True)
        removed = (f"removed the empty folder {folder}" for folder in inside_out if remove_if_empty(folder))
        carry_out(removed, on_act, "empty folders removed")
        carry_out(_restorations(store, plan, append), on_act, "files restored")
    _check(store, seal, plan, KINDS[1:] if clean_room else KINDS)


def _quarantines(store: Store, run: RunDir, plan: Plan, append: Callable[[Sequence[Entry]], None]) -> Iterator[str]:
    for moves in _together(plan.quarantine):
        kept = keep(store, run, [(m.path, m.reason) for m in moves])
        pairs = list(zip(moves, kept, strict=True))
        now = time.time_ns()
        append([Quarantined(path=m.path, digest=digest, reason=m.reason, wall_ns=now) for m, (digest, _) in pairs])
        take_away([(m.path, seen) for m, (_, seen) in pairs if not m.replaced])
        yield from (f"quarantined {m.path} ({digest[:12]}): {m.reason}" for m, (digest, _) in pairs)


def _restorations(store: Store, plan: Plan, append: Callable[[Sequence[Entry]], None]) -> Iterator[str]:
    for files in _together(plan.restore):
        put_back(store, files)
        append([Restored(path=f.path, digest=f.digest, wall_ns=time.time_ns()) for f in files])
        yield from (f"restored {f.path} ({f.digest[:12]})" for f in files)


def _together(files: Sequence[T]) -> Iterator[Sequence[T]]:
    """Files that are made durable, and logged, as one."""
    return (files[at : at + _TOGETHER] for at in range(0, len(files), _TOGETHER))


def _check(store: Store, seal: SignedSeal, plan: Plan, kinds: Sequence[str]) -> None:
    """Is what was put back there, and are the data as they were sealed?

    Environment and code are compared by `same_inputs` when they are sealed again, which looks at all of them anyhow.
    """
    wrong = [r.path for r in plan.restore if r.kind in (*kinds, "checkpoint") and digest_now(r.path) != r.digest]
    if wrong:
        raise SealBroken(f"{wrong[0]} is not what was just restored", hint="something writes to it: find that first")
    ours = {*plan.files, *(m.path for m in plan.quarantine)}
    left = [c for c in check_seal(store, seal, ("data",)) if path_real(c.path) not in ours]
    if left:
        raise SealBroken(
            f"{len(left)} sealed files differ again right after they were restored, first {left[0].path}",
            hint="something keeps changing them: stop it, then recover again",
        )


def resume(
    store: Store,
    run: RunDir,
    seal: SignedSeal,
    plan: Plan,
    config: Config,
    key: SigningKey,
    *,
    env: Mapping[str, str],
    on_event: Callable[[Event], None] = lambda _: None,
    progress: Progress | None = None,
    watcher: Callable[[SignedSeal], Watcher] = lambda _: NoWatcher(),
    response: Response | None = None,
    beside: Beside | None = None,
    config_file: str = "",
    clean_room: bool = False,
) -> RunResult:
    """Run the plan's command as a new run, the child of the recovered one; from the main thread, in the sealed folder.

    With `clean_room` it runs under the old seal's own manifests, in the environment rebuilt from the store: what is
    done to the shared one meanwhile does not reach it. The code lies outside of the room and must be as it was sealed.

    Raises:
        SealBroken: environment or code are not the sealed ones; the command was not started.
        UsageError: the command cannot be started any more.
        StoreError, LogError: the store or a log cannot be written before the start.
    """

    def told(event: Event) -> None:
        if isinstance(event, Started):
            _append(run, key, _recovered(plan, event.run_id))
        on_event(event)

    if clean_room and (changed := check_seal(store, seal, ("code",))):
        raise SealBroken(
            f"{changed[0].path} is not as it was sealed, and code lies outside of the clean room",
            hint="find what writes it, then recover again",
        )
    return supervise(
        sealed_command(seal.seal, plan.argv, env),
        store,
        config,
        key,
        on_event=told,
        progress=progress,
        watcher=watcher,
        response=response,
        parent=run.id,
        start_checkpoint=plan.start_checkpoint,
        approve=lambda new: same_inputs(store, seal.seal, new.seal),
        beside=beside,
        config_file=config_file,
        clean_room=clean_room,
        as_sealed=seal.seal if clean_room else None,
    )


def _recovered(plan: Plan, new_run: str) -> Recovered:
    return Recovered(from_step=plan.from_step, new_run=new_run, checkpoint=plan.checkpoint, wall_ns=time.time_ns())


def _append(run: RunDir, key: SigningKey, entry: Entry) -> None:
    with closing(LogWriter.open(run.log, key)) as log:
        log.append([canonical(entry)])


def sealed_command(seal: Seal, argv: tuple[str, ...], env: Mapping[str, str]) -> LaunchCommand:
    """The command in today's environment variables, but for those that decide results: these are the sealed ones.

    Raises:
        UsageError: the command is not there any more.
        SealBroken: it would be run by another Python than the sealed one.
    """
    now = dict(env)
    variables = {k: v for k, v in now.items() if k not in relevant_env(now)} | seal.env_vars
    command = parse_command(argv, seal.cwd, variables)
    if command.interpreter != seal.interpreter:
        variables["PATH"] = os.pathsep.join([os.path.dirname(seal.interpreter), variables.get("PATH", os.defpath)])
        command = parse_command(argv, seal.cwd, variables)
    if command.interpreter != seal.interpreter:
        raise SealBroken(f"{argv[0]} would be run by {command.interpreter}, sealed was {seal.interpreter}")
    return command


def loaded_its_checkpoint(store: Store, plan: Plan, new_run: str) -> bool:
    """Did the new run read the checkpoint it was to go on from or, where there was none, no state unknown to us?"""
    entries, _ = read_entries(store.run(new_run))
    loads = [e for e in entries if isinstance(e, CheckpointLoaded)]
    if plan.files:
        return any(e.path in plan.files for e in loads)
    earlier, _ = read_entries(store.run(plan.run))
    before = {e.digest for e in earlier if isinstance(e, CheckpointLoaded)}
    return all(e.known_step >= 0 or e.sealed or e.digest in before for e in loads)


# --------------------------------------------------------------------------- is it the sealed environment?


def same_inputs(store: Store, old: Seal, new: Seal) -> None:
    """Check that a new seal approves the environment and the code of an old one.

    Raises:
        SealBroken: it does not.
        StoreError, StoreTampered: a manifest or a file that must be looked at cannot be read.
    """
    different = [*_differences(store, old, new, "environment"), *_differences(store, old, new, "code")]
    if different:
        more = f" and {len(different) - 1} more" if len(different) > 1 else ""
        raise SealBroken(
            f"{different[0]} is not as it was sealed{more}: the command was not started",
            hint="it changed between the restoration and the new seal; stop what changes it, then recover again",
        )


def _differences(store: Store, old: Seal, new: Seal, kind: str) -> Iterator[str]:
    ref, again = getattr(old, kind), getattr(new, kind)
    if ref.digest == again.digest:
        return
    sealed = expected(store, old, kind).files
    for change in compare(load_manifest(store, ref), load_manifest(store, again)):
        path = path_real(change.path)
        if change.found and _is_own_cache(store, path, change.found, sealed):
            continue
        if change.sealed or _can_run(kind, path):
            yield change.path


def _is_own_cache(store: Store, path: str, digest: str, sealed: Mapping[str, FileEntry]) -> bool:
    """Is this what Python writes from a source that is sealed as it is?"""
    source = source_of(path)
    entry = sealed.get(source[0]) if source else None
    if source is None or entry is None or entry.link or not store.has(entry.digest) or not store.has(digest):
        return False
    return is_cache_of(store.get(digest), store.get(entry.digest), source[0], source[1])


def _can_run(kind: str, path: str) -> bool:
    """Could a new file change what runs? The rule of `seal.check`."""
    item = item_of(path)
    return importable(path) if kind == "code" else item is not None and loadable(item)
