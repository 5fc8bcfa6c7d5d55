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

import os
import platform
import signal
import tempfile
import threading
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path
from typing import TypeAlias, TypeVar

import trainwarden
from trainwarden import wire
from trainwarden.actors.approvals import admit, policy_for
from trainwarden.config import Config
from trainwarden.errors import StoreError
from trainwarden.keys import SigningKey
from trainwarden.log.client.session import limits_of, target_of
from trainwarden.log.client.shipper import Shipped
from trainwarden.log.journal import LogWriter
from trainwarden.log.reader import LogReader
from trainwarden.model import (
    Approved,
    CheckpointSaved,
    Entry,
    FileEntry,
    Finding,
    Gap,
    ProcessExited,
    RunEnded,
    Sealed,
    SignedSeal,
    canonical,
    decode_entry,
)
from trainwarden.seal.cache import Progress
from trainwarden.seal.check import KINDS, check_seal, expected
from trainwarden.seal.command import LaunchCommand
from trainwarden.seal.functions import SealedFunctions
from trainwarden.seal.inotify import Folders
from trainwarden.seal.seal import seal_command, write_seal
from trainwarden.seal.walked import SealWalk
from trainwarden.seal.watch import FileWatch
from trainwarden.seal.writers import Writers
from trainwarden.store import RunDir, Store
from trainwarden.supervise import private
from trainwarden.supervise.code import CodeDesk
from trainwarden.supervise.environment import EnvironmentGuard
from trainwarden.supervise.files import FileDesk, KnownFiles
from trainwarden.supervise.ledger import Ledger, NoWatcher, Watcher
from trainwarden.supervise.mappings import ProcessDesk
from trainwarden.supervise.needs import require_recorder
from trainwarden.supervise.process import Child, Reaper, become_subreaper, block_signals
from trainwarden.supervise.roster import Roster
from trainwarden.supervise.session import Session, Shared
from trainwarden.supervise.shelter import Shelter
from trainwarden.supervise.shipping import Shipping
from trainwarden.supervise.weights import WeightCheck

GAP_DETECTOR = "gaps"  # whose findings stop the run under the policy `gap = "stop"`
SOURCE_ENV = "TRAINWARDEN_SOURCE"
REFUSED = 78  # EX_CONFIG, as a refused rank leaves with
_NOT_STARTED = 127  # what a shell says of a command that it cannot start
_EXIT_GRACE = 2.0  # seconds for ranks that outlive the launch command for a moment
_DRAIN = 5.0  # seconds for messages under way
_CODE_EVERY = 128  # steps between looks at the code in a rank's memory on average

T = TypeVar("T")


@dataclass(frozen=True)
class Started:
    """The command is about to run, guarded as run `run_id`."""

    run_id: str
    seal: SignedSeal


@dataclass(frozen=True)
class Notice:
    """Something that the user should know now and that is no finding."""

    sentence: str
    hint: str = ""


Event: TypeAlias = Started | Notice | Finding


@dataclass(frozen=True)
class RunResult:
    """How a guarded run ended. `exit_code` is the command's, negative for the signal that ended it."""

    run_id: str
    exit_code: int
    findings: tuple[Finding, ...] = ()
    records: int = 0
    log_whole: bool = True  # False: the log could not be written to its end
    shipped: Shipped | None = None  # how much of the log is on the log server, None: there is none
    room: str = ""  # the kind of clean room that it ran in, "" for none


def supervise(
    command: LaunchCommand,
    store: Store,
    config: Config,
    key: SigningKey,
    *,
    on_event: Callable[[Event], None] = lambda _: None,
    progress: Progress | None = None,
    watcher: Watcher | None = None,
    parent: str = "",
    start_checkpoint: str = "",
    approve: Callable[[SignedSeal], None] = lambda _: None,
    config_file: str = "",
    clean_room: bool = False,
) -> RunResult:
    """Seal the command, run it guarded, and return how it ended; to be called from the main thread.

    `parent` names the run that this one recovers: state files recorded there, or in its own parents, are known.
    `approve` sees the seal before anything is started; what it raises ends the call, and there is no run.
    `config_file` is where `config` was read from; the process that ships the log reads it again.
    With `clean_room` the command runs in the sealed environment rebuilt from the store.

    Raises:
        UsageError: the command cannot be sealed or started, or the log server's settings are not usable.
        NotApproved: the seal's policy, or the store's, demands approvals that it lacks.
        CannotDecide: the clean room cannot be entered.
        StoreError, LogError: the store or the log cannot be written before the start.
    """
    target = target_of(config.log, platform.node()) if config.log.server else None
    if target is not None:
        limits_of(config.log)
        SigningKey.load(Path(target.host_key) if target.host_key else None)
    seen = SealWalk(Folders())
    sealed, approved = _in_quiet_thread(
        lambda: _admitted(store, command, config, key, progress, start_checkpoint, seen)
    )
    approve(sealed)
    shelter = _in_quiet_thread(lambda: Shelter.build(store, sealed, command)) if clean_room else None
    known = KnownFiles(_saved_in(store, parent)) if parent else KnownFiles()
    mask = block_signals()
    try:
        run = store.create_run()
        write_seal(run.seal_file, sealed)
        with ExitStack() as stack:
            log = LogWriter.create(run.log, f"trainwarden/{run.id}", key)
            stack.callback(log.close)

            def on_finding(finding: Finding) -> None:
                on_event(finding)
                if finding.detector == GAP_DETECTOR and config.policy.gap == "stop":
                    guarded.stop()

            ledger = Ledger(log, run.details, watcher or NoWatcher(), on_finding, _notices(on_event))
            shipping: Shipping | None = None
            try:
                first = Sealed(run=run.id, seal=sealed.digest, key=key.public, parent=parent, wall_ns=time.time_ns())
                ledger.submit(first)
                if approved is not None:
                    ledger.submit(approved)
                refused = _notices(on_event)
                guarded = _Guarded(
                    store,
                    run,
                    config,
                    sealed,
                    seen,
                    ledger,
                    known,
                    lambda why: refused(f"not started: {why}", ""),
                    shelter,
                )
                on_event(Started(run.id, sealed))
                if shelter is not None:
                    ledger.submit(shelter.entry())
                    on_event(Notice(shelter.sentence()))
                if target is not None:
                    shipping = Shipping(
                        store, run, target, config_file, ledger.submit, _notices(on_event), config.log.drain_seconds
                    )
                code = guarded.run(command, mask)
            except BaseException:
                _end(ledger, _NOT_STARTED)
                if shipping is not None:
                    shipping.close(lambda entry: None)
                raise
            whole = _end(ledger, code)
            late: list[Finding] = []
            shipped = shipping.close(_appender(log, late)) if shipping is not None else None
            if shipped is not None:
                shipped = Shipped(entries=shipped.entries, of=log.size)
            for finding in late:
                on_event(finding)
            room = str(shelter.room.kind) if shelter else ""
            return RunResult(run.id, code, (*ledger.findings, *late), ledger.records, whole, shipped, room)
    finally:
        signal.pthread_sigmask(signal.SIG_SETMASK, mask)


def _appender(log: LogWriter, late: list[Finding]) -> Callable[[Entry], None]:
    """Appends what is found after the ledger's end, such as while the last entries are sent."""

    def append(entry: Entry) -> None:
        log.append([canonical(entry)])
        if isinstance(entry, Finding):
            late.append(entry)

    return append


def _admitted(
    store: Store,
    command: LaunchCommand,
    config: Config,
    key: SigningKey,
    progress: Progress | None,
    start_checkpoint: str,
    walk: SealWalk,
) -> tuple[SignedSeal, Approved | None]:
    """The seal to run under: a new one, or where policy demands approvals the one that has them."""
    policy = policy_for(store, config.seal)
    sealed = seal_command(
        store, command, config, key, progress=progress, start_checkpoint=start_checkpoint, approval=policy, walk=walk
    )
    admitted = admit(store, sealed, key)
    require_recorder(store, admitted[0].seal, walk)
    return admitted


def _end(ledger: Ledger, code: int) -> bool:
    return ledger.close(lambda records: RunEnded(code=code, records=records, wall_ns=time.time_ns()))


class _Guarded:
    """The parts that are open while one command runs, and the command itself."""

    def __init__(
        self,
        store: Store,
        run: RunDir,
        config: Config,
        sealed: SignedSeal,
        walk: SealWalk,
        ledger: Ledger,
        known: KnownFiles,
        on_refusal: Callable[[str], None] = lambda _: None,
        shelter: Shelter | None = None,
    ) -> None:
        self._on_refusal = on_refusal
        self._store, self._run, self._config, self._sealed, self._ledger = store, run, config, sealed, ledger
        self._walk, self._shelter = walk, shelter
        self._child: Child | None = None
        self._key = private.new_digest_key(run.private)
        self._reaper = Reaper()
        self._roster = Roster()
        self._files = FileDesk(
            store,
            run,
            ledger,
            known,
            WeightCheck(self._key),
            sealed_paths(store, sealed),
            config.seal.keep_data_mb * 1024 * 1024,
        )
        self._code = CodeDesk(ledger, lambda optimize: sealed_functions(store, sealed, optimize, shelter))
        seal = sealed.seal
        variables = seal.env_vars if shelter is None else shelter.room.environ(seal.env_vars)
        self._processes = ProcessDesk(store, ledger, seal, lambda: sealed_files(store, sealed, shelter), variables)
        self._writers = Writers()
        self._guard = EnvironmentGuard(
            store,
            ledger,
            lambda kinds: check_seal(store, sealed, kinds, walk=walk),
            refuse=config.policy.environment_changed == "refuse",
            writer=self._writers.of,
            shelter=shelter,
        )

    def run(self, command: LaunchCommand, mask: set[signal.Signals]) -> int:
        """Watch, start the command, wait for its end; its exit code, negative for a signal."""
        become_subreaper()
        with ExitStack() as stack:
            stack.callback(self._files.close)
            stack.callback(self._code.close)
            stack.callback(self._processes.close)
            stack.callback(self._reaper.close)
            self._watch_files(stack)
            # What runs in a clean room is checked when the room is entered, and does not see the shared environment.
            if self._shelter is None and (reason := self._guard.may_start()):
                self._on_refusal(reason)
                return REFUSED
            folder = Path(stack.enter_context(tempfile.TemporaryDirectory(prefix="tw-", dir="/tmp")))
            server = wire.Server(folder / "s", lambda connection: Session(connection, self._shared()))
            stack.callback(server.close, _DRAIN)
            self._ledger.flush()  # nothing runs under a seal that is not in the log, unless the log cannot be written
            child = self._child = self._start(command, server.path, mask)
            if self._shelter is not None:
                self._shelter.entered(child.pid, self._ledger.submit)
                stack.callback(self._shelter.leave)
            code = child.wait()
            self._reaper.settle(_EXIT_GRACE)
            child.reap()
        self._ledger.submit(
            ProcessExited(
                attempt=-1,
                rank=-1,
                pid=child.pid,
                code=code,
                stopping=child.stopping,
                wall_ns=time.time_ns(),
            )
        )
        return code

    def _start(self, command: LaunchCommand, socket: Path, mask: set[signal.Signals]) -> Child:
        shelter = self._shelter
        if shelter is None:
            return Child(command.argv, _child_env(command.env, socket, str), mask)
        env = _child_env(shelter.room.environ(command.env), socket, shelter.room.place)
        return Child(shelter.room.launch(command), env, mask, shelter.binds())

    def stop(self) -> None:
        """End the command because policy says so."""
        if self._child is not None:
            self._child.stop()

    def _watch_files(self, stack: ExitStack) -> None:
        """The watch is set before the first comparison, and looks at everything once more at the end."""
        watch = FileWatch(self._store, self._sealed, self._guard.changed, seen=self._walk)

        def stop() -> None:
            watch.stop()
            self._writers.close()
            for error in watch.errors:
                self._gap(f"the watch on sealed files has a hole: {error}")

        stack.callback(stop)
        self._writers.start(watch.folders)
        watch.start()
        self._guard.begin(watch)

    def _gap(self, reason: str) -> None:
        self._ledger.submit(Gap(attempt=-1, rank=-1, step=-1, reason=reason))

    def _shared(self) -> Shared:
        return Shared(
            ledger=self._ledger,
            files=self._files,
            roster=self._roster,
            reaper=self._reaper,
            guard=self._guard,
            joined=self._joined,
            keep_env=self._keep_env,
            stopping=lambda: self._child.stopping if self._child else 0,
            supervisor_pid=os.getpid(),
            code=self._code.seen,
            process=self._processes.joined,
        )

    def _joined(self, attempt: int, rank: int) -> wire.Joined:
        return wire.Joined(
            attempt=attempt,
            key=self._key,
            run_dir=str(self._run.path),
            activations_every=self._config.record.activations_every,
            snapshot_every=self._config.record.snapshot_every,
            code_every=_CODE_EVERY if self._sealed.seal.environment.files else 0,
        )

    def _keep_env(self, env: dict[str, str]) -> str:
        try:
            return private.write_env(self._run.private, env)
        except StoreError as e:
            self._gap(f"a rank's environment variables could not be kept: {e}")
            return ""


def sealed_paths(store: Store, sealed: SignedSeal) -> Callable[[str], bool]:
    """Whether a path is in the seal; the manifests are read when it is first asked."""
    paths: set[str] = set()

    def is_sealed(path: str) -> bool:
        if not paths:
            for kind in KINDS:
                paths.update(expected(store, sealed, kind).files)
        return path in paths

    return is_sealed


def sealed_files(store: Store, sealed: SignedSeal, shelter: Shelter | None = None) -> dict[str, FileEntry]:
    """The sealed files that a process may run: environment and code, in a clean room also under their places there."""
    files = expected(store, sealed, "environment").files | expected(store, sealed, "code").files
    if shelter is not None:
        files |= {shelter.room.place(path): entry for path, entry in list(files.items())}
    return files


def sealed_functions(
    store: Store, sealed: SignedSeal, optimize: int, shelter: Shelter | None = None
) -> SealedFunctions:
    """What sealed source says its functions are."""
    seal = sealed.seal
    library_path = seal.env_vars.get("LD_LIBRARY_PATH", "")
    return SealedFunctions(store, sealed_files(store, sealed, shelter), seal.interpreter, library_path, optimize)


def _child_env(env: Mapping[str, str], socket: Path, place: Callable[[str], str]) -> dict[str, str]:
    """The command's own environment, with the recorder's folder first on the path of every Python below.

    `place` says where the command finds our source.
    """
    source = Path(trainwarden.__file__).parent
    rest = env.get("PYTHONPATH", "")
    inject = place(str(source / "record" / "inject"))
    return {
        **env,
        "PYTHONPATH": f"{inject}{os.pathsep}{rest}" if rest else inject,
        wire.SOCKET_ENV: str(socket),
        SOURCE_ENV: place(str(source.parent)),
    }


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


def _notices(on_event: Callable[[Event], None]) -> Callable[[str, str], None]:
    return lambda sentence, hint: on_event(Notice(sentence, hint))


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
