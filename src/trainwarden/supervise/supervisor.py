"""The parent of the launch command: seals, watches, records, and passes the command's end through.

Rules
-----
* The order of a start: watch on each folder as it is sealed → log (first entry `Sealed`) → what the watch tells, and
  what it cannot tell, compared with the seal → socket → command (`seal.walked` says why one walk is enough). So no
  change between sealing and the first import goes unseen, and under the policy `refuse` the command is not started in
  an environment that has changed since.
* The supervisor alone writes the log, and closes it whatever the command does. When the supervisor itself is
  killed, training goes on unrecorded; the log then verifies up to its last signed head and has no `RunEnded`.
* Threads other than the caller's are started with our signals blocked; the caller's thread collects them.

Trust: this process, its user's key and the store. It runs as the user who trains, so against a hostile rank it
holds as far as the operating system keeps processes of one user apart.
"""

from __future__ import annotations

import platform
import signal
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import closing
from pathlib import Path
from typing import TypeVar

import msgspec

from trainwarden.actors.approvals import admit, policy_for
from trainwarden.config import Config
from trainwarden.keys import SigningKey
from trainwarden.log.client.session import limits_of, target_of
from trainwarden.log.client.state import Target
from trainwarden.log.journal import LogWriter
from trainwarden.log.reader import LogReader
from trainwarden.model import (
    Approved,
    CheckpointSaved,
    Seal,
    Sealed,
    SignedSeal,
    decode_entry,
)
from trainwarden.seal.cache import Progress
from trainwarden.seal.command import LaunchCommand
from trainwarden.seal.inotify import Folders
from trainwarden.seal.seal import seal_command, sign_seal, write_seal
from trainwarden.seal.walked import SealWalk
from trainwarden.store import Store
from trainwarden.supervise.events import Beside, Event, RunResult
from trainwarden.supervise.files import KnownFiles
from trainwarden.supervise.guarded import Guarded
from trainwarden.supervise.ledger import NoWatcher, Watcher
from trainwarden.supervise.live import Desk, Live, shipping
from trainwarden.supervise.needs import require_recorder
from trainwarden.supervise.process import block_signals
from trainwarden.supervise.responding import Response
from trainwarden.supervise.shelter import Shelter

T = TypeVar("T")


def supervise(
    command: LaunchCommand,
    store: Store,
    config: Config,
    key: SigningKey,
    *,
    on_event: Callable[[Event], None] = lambda _: None,
    progress: Progress | None = None,
    watcher: Callable[[SignedSeal], Watcher] = lambda _: NoWatcher(),
    parent: str = "",
    start_checkpoint: str = "",
    approve: Callable[[SignedSeal], None] = lambda _: None,
    config_file: str = "",
    clean_room: bool = False,
    response: Response | None = None,
    beside: Beside | None = None,
    as_sealed: Seal | None = None,
) -> RunResult:
    """Seal the command, run it guarded, and return how it ended; to be called from the main thread.

    `parent` names the run that this one recovers: state files recorded there, or in its own parents, are known.
    `watcher` makes what sees every entry of the log, from the seal.
    `approve` sees the seal before anything is started; what it raises ends the call, and there is no run.
    `config_file` is where `config` was read from; the process that ships the log reads it again.
    With `clean_room` the command runs in the sealed environment rebuilt from the store. `response` says how findings
    are answered; without it they are logged and told alone. `beside` works while the command runs. With `as_sealed`
    nothing is sealed anew: environment, code and data are those of that seal, for a clean room.

    Raises:
        UsageError: the command cannot be sealed or started, or the log server's settings are not usable.
        NotApproved: the seal's policy, or the store's, demands approvals that it lacks.
        CannotDecide: the clean room cannot be entered.
        StoreError, LogError: the store or the log cannot be written before the start.
    """
    target = _target(config)
    seen = SealWalk(Folders())
    sealed, approved = _in_quiet_thread(
        lambda: _admitted(store, command, config, key, progress, start_checkpoint, seen, as_sealed)
    )
    approve(sealed)
    shelter = _in_quiet_thread(lambda: Shelter.build(store, sealed, command)) if clean_room else None
    known = KnownFiles(_saved_in(store, parent)) if parent else KnownFiles()
    mask = block_signals()
    try:
        run = store.create_run()
        write_seal(run.seal_file, sealed)
        with closing(LogWriter.create(run.log, f"trainwarden/{run.id}", key)) as log:
            desk = Desk(log, run, watcher(sealed), response, on_event)
            live = Live(desk, run, sealed, shelter, beside, on_event)
            first = Sealed(run=run.id, seal=sealed.digest, key=key.public, parent=parent, wall_ns=time.time_ns())
            try:
                live.begin(first, approved)
                guarded = Guarded(store, run, config, sealed, seen, desk.ledger, known, desk.refused, shelter)
                desk.answer(guarded)
                live.open(lambda: shipping(store, run, target, config, config_file, desk.ledger, on_event))
                code = live.run(guarded, command, mask)
            except BaseException:
                live.break_off()
                raise
            return live.end(code, guarded.interrupted, log)
    finally:
        signal.pthread_sigmask(signal.SIG_SETMASK, mask)


def _target(config: Config) -> Target | None:
    """The log server that entries are sent to, if there is one.

    Raises:
        UsageError: its settings are not usable.
    """
    if not config.log.server:
        return None
    target = target_of(config.log, platform.node())
    limits_of(config.log)
    SigningKey.load(Path(target.host_key) if target.host_key else None)
    return target


def _admitted(
    store: Store,
    command: LaunchCommand,
    config: Config,
    key: SigningKey,
    progress: Progress | None,
    start_checkpoint: str,
    walk: SealWalk,
    as_sealed: Seal | None = None,
) -> tuple[SignedSeal, Approved | None]:
    """The seal to run under: a new one, or where policy demands approvals the one that has them."""
    policy = policy_for(store, config.seal)
    if as_sealed is not None:
        now = time.time_ns()
        seal = msgspec.structs.replace(
            as_sealed, argv=command.argv, created_ns=now, start_checkpoint=start_checkpoint, approval=policy
        )
        sealed = sign_seal(seal, key)
    else:
        sealed = seal_command(
            store,
            command,
            config,
            key,
            progress=progress,
            start_checkpoint=start_checkpoint,
            approval=policy,
            walk=walk,
        )
    admitted = admit(store, sealed, key)
    require_recorder(store, admitted[0].seal, walk)
    return admitted


def _saved_in(store: Store, run_id: str) -> Iterator[CheckpointSaved]:
    """Every checkpoint file recorded in a run and in those it recovers."""
    seen: set[str] = set()
    while run_id and run_id not in seen:
        seen.add(run_id)
        parent = ""
        with LogReader.open(store.run(run_id).log) as log:
            for _, leaf in log.entries():
                entry = decode_entry(leaf)
                if isinstance(entry, Sealed):
                    parent = entry.parent
                elif isinstance(entry, CheckpointSaved):
                    yield entry
        run_id = parent


def _in_quiet_thread(work: Callable[[], T]) -> T:
    """Do `work` in a thread that takes no signals, nor do those it starts; Ctrl-C interrupts the waiting.

    A library's thread pool lives on after its first use. Were our signals not blocked in it, one of them could
    be delivered there later instead of where the run waits for it.
    """
    outcome: list[T] = []
    errors: list[BaseException] = []

    def in_thread() -> None:
        try:
            outcome.append(work())
        except BaseException as e:  # noqa: BLE001  handed on to the caller, below
            errors.append(e)

    mask = block_signals()
    try:
        thread = threading.Thread(target=in_thread, daemon=True, name="trainwarden-seal")
        thread.start()
    finally:
        signal.pthread_sigmask(signal.SIG_SETMASK, mask)
    while thread.is_alive():
        thread.join(0.5)
    if errors:
        raise errors[0]
    return outcome[0]
