"""What is open while one command runs guarded: the watches, the desks that answer ranks, and the command itself.

Rules
-----
* The watch on sealed files is set before the first comparison; the socket listens before the command starts.
* Desks judge what ranks tell, each in a thread of its own, and are closed before the log is.
"""

from __future__ import annotations

import os
import signal
import tempfile
import time
from collections.abc import Callable, Mapping
from contextlib import ExitStack
from pathlib import Path

import msgspec

import trainwarden
from trainwarden import wire
from trainwarden.config import Config
from trainwarden.errors import StoreError
from trainwarden.model import Gap, Idled, Note, PrecisionSeen, ProcessExited, Released, SignedSeal
from trainwarden.seal.check import check_seal
from trainwarden.seal.command import LaunchCommand
from trainwarden.seal.walked import SealWalk
from trainwarden.seal.watch import FileWatch
from trainwarden.seal.writers import Writers
from trainwarden.store import RunDir, Store
from trainwarden.supervise import private, proc
from trainwarden.supervise.auditing import Auditing
from trainwarden.supervise.code import CodeDesk
from trainwarden.supervise.control import Control
from trainwarden.supervise.environment import EnvironmentGuard
from trainwarden.supervise.files import FileDesk, KnownFiles
from trainwarden.supervise.holding import Hold, send
from trainwarden.supervise.inputs import InputDesk
from trainwarden.supervise.ledger import Ledger
from trainwarden.supervise.mappings import ProcessDesk
from trainwarden.supervise.monitors import Host, Monitors, all_monitors
from trainwarden.supervise.presence import Presence
from trainwarden.supervise.process import STOPPING, Child, Reaper, become_subreaper
from trainwarden.supervise.reduction import ReductionDesk
from trainwarden.supervise.roster import Roster
from trainwarden.supervise.sealed import sealed_files, sealed_functions, sealed_paths, sealed_samples
from trainwarden.supervise.senders import Senders, Sent
from trainwarden.supervise.session import Session, Shared
from trainwarden.supervise.shelter import Shelter
from trainwarden.supervise.updates import UpdateDesk
from trainwarden.supervise.weights import WeightCheck
from trainwarden.supervise.wholes import WholeDesk

SOURCE_ENV = "TRAINWARDEN_SOURCE"
REFUSED = 78  # EX_CONFIG, as a refused rank leaves with
_EXIT_GRACE = 2.0  # seconds for ranks that outlive the launch command for a moment
_RANKS_GRACE = 10.0  # for ranks whose launcher was ended and left them
_DRAIN = 5.0  # seconds for messages under way
_CODE_EVERY = 128  # steps between looks at the code in a rank's memory on average


class Guarded:
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
        self._stopped = False  # by policy, or by somebody who contains the run
        self._wanted = ""  # what is to be done as soon as the command runs: "hold" or "stop"
        self._key = private.new_digest_key(run.private)
        self._reaper = Reaper()
        self._roster = Roster()
        self._hold = Hold(0, self._roster.pids)
        self._presence, self._senders = Presence(), Senders()
        self._is_sealed = sealed_paths(store, sealed, shelter)
        self._files = FileDesk(
            store,
            run,
            ledger,
            known,
            WeightCheck(self._key),
            self._is_sealed,
            config.seal.keep_data_mb * 1024 * 1024,
            lambda path: self._guard.was_read(path),
        )
        self._code = CodeDesk(ledger, lambda optimize: sealed_functions(store, sealed, optimize, shelter))
        self._inputs = InputDesk(ledger, run, sealed_samples(store, sealed, config.data.samples))
        self._reduction = ReductionDesk(ledger)
        seal = sealed.seal
        variables = seal.env_vars if shelter is None else shelter.room.environ(seal.env_vars)
        self._processes = ProcessDesk(store, ledger, seal, lambda: sealed_files(store, sealed, shelter), variables)
        self._updates = UpdateDesk(ledger)
        self._wholes = WholeDesk(ledger.submit, private.new_mask_key(run.private))
        self._auditing: Auditing | None = None
        self._writers = Writers()
        self._guard = EnvironmentGuard(
            store,
            ledger,
            lambda kinds: check_seal(store, sealed, kinds, walk=walk),
            refuse=config.policy.environment_changed == "refuse",
            writer=self._writers.of,
            was_rank=self._presence.was_rank,
            shelter=shelter,
        )

    def run(self, command: LaunchCommand, mask: set[signal.Signals]) -> int:
        """Watch, start the command, wait for its end; its exit code, negative for a signal."""
        become_subreaper()
        with ExitStack() as stack:
            stack.callback(self._files.close)
            stack.callback(self._code.close)
            stack.callback(self._reduction.close)
            stack.callback(self._inputs.close)
            stack.callback(self._processes.close)
            stack.callback(self._senders.close)
            stack.callback(self._updates.close)
            self._auditing = self._audited()
            stack.callback(self._auditing.close)
            stack.callback(self._reaper.close)
            self._watch_files(stack)
            # What runs in a clean room is checked when the room is entered, and does not see the shared environment.
            if self._shelter is None and (reason := self._guard.may_start()):
                self._on_refusal(reason)
                return REFUSED
            folder = Path(stack.enter_context(tempfile.TemporaryDirectory(prefix="tw-", dir="/tmp")))
            server = wire.Server(folder / "s", lambda connection: Session(connection, self._shared()))
            stack.callback(server.close, _DRAIN)
            stack.callback(Control(self._run, self, self._ledger).close)
            private.write_socket(self._run.private, server.path)
            self._ledger.flush()  # nothing runs under a seal that is not in the log, unless the log cannot be written
            self._senders.start()
            monitors = Monitors(all_monitors(self._host()), self._ledger.submit)
            monitors.start()
            stack.callback(monitors.close)
            child = self._start(command, server.path, mask)
            self._hold = Hold(child.pid, self._roster.pids)
            child.on_signal = self._signalled
            self._child = child
            stack.callback(self._hold.end)
            self._now()
            if self._shelter is not None:
                self._shelter.entered(child.pid, self._ledger.submit)
                stack.callback(self._shelter.leave)
            code = child.wait()
            sent = self._senders.of(child.pid, -code) if code < 0 and not child.stopping else None
            if not self._reaper.settle(_EXIT_GRACE) and self._stopped:
                self._end_ranks()
            child.reap()
        self._ledger.submit(
            ProcessExited(
                attempt=-1,
                rank=-1,
                pid=child.pid,
                code=code,
                stopping=child.stopping,
                wall_ns=time.time_ns(),
                sender=child.stopped_by or (sent.sender if isinstance(sent, Sent) else None),
                told_by="siginfo" if child.stopped_by else sent.by if isinstance(sent, Sent) else "",
                untold=sent if isinstance(sent, str) else "",
            )
        )
        return code

    def _host(self) -> Host:
        return Host(
            presence=self._presence,
            submit=self._ledger.submit,
            supervisor_pid=os.getpid(),
            is_sealed=self._is_sealed,
            stall_seconds=self._config.record.stall_seconds,
            held=lambda: self.held,
            stopped_by=self._senders.stopper,
        )

    def _marked(self, note: Note) -> Note:
        """What the rank cannot know: files of code that idles and is not sealed, and the seal's variables."""
        if isinstance(note, PrecisionSeen):
            sealed = wire.decisive(self._sealed.seal.env_vars)
            names = sorted(note.began.keys() | sealed.keys())
            other = {n: sealed.get(n, "") for n in names if sealed.get(n, "") != note.began.get(n, "")}
            return msgspec.structs.replace(note, unsealed=other)
        if not isinstance(note, Idled):
            return note
        frames = (*(f for sleep in note.sleeps for f in sleep.frames), *note.stack)
        return msgspec.structs.replace(note, unsealed=proc.unsealed(frames, self._is_sealed))

    def _start(self, command: LaunchCommand, socket: Path, mask: set[signal.Signals]) -> Child:
        shelter = self._shelter
        if shelter is None:
            return Child(command.argv, self._child_env(command.env, socket, str), mask)
        env = self._child_env(shelter.room.environ(command.env), socket, shelter.room.place)
        return Child(shelter.room.launch(command), env, mask, shelter.binds())

    def _child_env(self, env: Mapping[str, str], socket: Path, place: Callable[[str], str]) -> dict[str, str]:
        return _child_env({**env, wire.REDUCTION_ENV: self._sealed.seal.comparison.reduction}, socket, place)

    def stop(self) -> str:
        """End the command because policy says so; a held one goes on as far as it takes to end. Why not, or ""."""
        if self._child is None:
            self._wanted = "stop"
            return ""
        self._stopped = True
        self._child.stop()
        self._hold.end()
        return ""

    @property
    def stopped(self) -> bool:
        """Was the command told to end, by policy or by the user?"""
        return bool(self._child and self._child.stopping)

    @property
    def interrupted(self) -> int:
        """The signal with which the user ended the command, 0 for none."""
        return self._child.interrupted if self._child else 0

    def hold(self) -> str:
        """Pause the ranks until `release`; why they are not, or ""."""
        if self._child is None:
            self._wanted = self._wanted or "hold"
            return ""
        if self._child.stopping:
            return "the command is being ended"
        return "" if self._hold.begin() else "no process of the command runs any more"

    def release(self, by: str) -> str:
        """Let held ranks go on because `by` says so; why they do not, or ""."""
        if not self._hold.end():
            return "the job is not held"
        self._ledger.submit(Released(by=by, wall_ns=time.time_ns()))
        return ""

    @property
    def held(self) -> bool:
        """Are the ranks paused now?"""
        return bool(self._hold)

    def _signalled(self, number: int) -> None:
        """Somebody ends the command, or lets it go on: held ranks must be able to."""
        if number in STOPPING or number == signal.SIGCONT:
            self.release(f"{signal.Signals(number).name} to the watcher")

    def _now(self) -> None:
        """Do what was wanted before the command had started."""
        match self._wanted:
            case "stop":
                self.stop()
            case "hold":
                self.hold()

    def _end_ranks(self) -> None:
        """A launcher that ended without its ranks leaves them to train on unguarded: they are ended too."""
        for number in (signal.SIGTERM, signal.SIGKILL):
            for pid in self._roster.pids():
                send(pid, number, os.getpid())
            if self._reaper.settle(_RANKS_GRACE):
                return

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
            sums=self._reduction.seen,
            inputs=self._inputs.seen,
            process=self._process,
            presence=self._presence,
            sent=self._senders.of,
            marked=self._marked,
            updated=self._updates.seen,
            left=self._updates.left,
            shares=self._wholes.seen,
        )

    def _audited(self) -> Auditing:
        audit = self._config.audit
        return Auditing(
            self._store, self._run, audit.share, self._ledger.submit, beacon=audit.beacon, finish=audit.finish
        )

    def _process(self, attempt: int, rank: int, pid: int) -> None:
        self._processes.joined(attempt, rank, pid)
        if self._auditing is not None:
            self._auditing.joined(pid)

    def _joined(self, attempt: int, rank: int) -> wire.Joined:
        self._inputs.joined()
        return wire.Joined(
            attempt=attempt,
            key=self._key,
            run_dir=str(self._run.path),
            activations_every=self._config.record.activations_every,
            snapshot_every=self._config.record.snapshot_every,
            snapshot_share=self._config.record.snapshot_share,
            snapshot_mib=self._config.record.snapshot_mib,
            code_every=_CODE_EVERY if self._sealed.seal.environment.files else 0,
            every_sample=self._config.data.every_sample,
        )

    def _keep_env(self, env: dict[str, str]) -> str:
        try:
            return private.write_env(self._run.private, env)
        except StoreError as e:
            self._gap(f"a rank's environment variables could not be kept: {e}")
            return ""


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
