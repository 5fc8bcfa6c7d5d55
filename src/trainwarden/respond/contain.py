"""Keeps the damage of a run from spreading: job held or stopped, descendants frozen, files moved, a key revoked.

Rules
-----
* A plan first, then the acts, in this order: hold or stop → freeze → quarantine → revoke. What could go on doing harm
  stops first. An act that fails ends the call; those before it stay done, and the same call again does the rest.
* Every act is an entry of the run's log: by its supervisor while the run goes on, by this process afterwards. A file
  leaves its place only after its entry is durable.
* Nothing is deleted: files are in the store and in the run's quarantine with their custody notes (`respond.disk`).
* What was done can be taken back, but for two: an ended command is not started again, and a revoked key stays revoked.
* Moving a file here puts nothing in its place: that is `recover`.

Trust: as `respond.plan`.
"""

from __future__ import annotations

import os
import stat
import time
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import closing
from pathlib import Path
from typing import Literal, TypeAlias

import msgspec

from trainwarden import descent
from trainwarden.actors.registry import known_actor, read_registry, revoke
from trainwarden.casefile import CaseFile
from trainwarden.errors import CannotDecide, LogLocked, StoreError, UsageError
from trainwarden.keys import SigningKey
from trainwarden.log.journal import LogWriter
from trainwarden.model import CheckpointSaved, Contained, Quarantined, Restored, Standing, Undone, canonical
from trainwarden.respond.disk import Note, Restore, digest_now, keep, put_back, take_away
from trainwarden.respond.hears import carry_out
from trainwarden.respond.plan import Move, sealed_moves
from trainwarden.seal.check import check_seal
from trainwarden.seal.manifest import path_real, path_text
from trainwarden.store import RunDir, Store
from trainwarden.supervise.control import Act, Ask, account, ask_supervisor

Kind: TypeAlias = Literal["hold", "stop", "freeze", "quarantine", "revoke"]
KINDS: tuple[Kind, ...] = ("hold", "stop", "freeze", "quarantine", "revoke")
_END_SECONDS = 120.0  # for a command that is stopped to end, and its log to be closed


class ContainPlan(msgspec.Struct, frozen=True, kw_only=True):
    """Everything that `contain --apply` does, in this order."""

    run: str
    running: bool  # its supervisor answers on this host
    job: Literal["", "hold", "stop"] = ""
    freeze: bool = False
    descendants: tuple[str, ...] = ()  # frozen with it
    by_bytes: tuple[str, ...] = ()  # those of them that are told by equal bytes of a file alone (`descent`)
    quarantine: tuple[Move, ...] = ()
    revoke: str = ""  # the actor


class PastAct(msgspec.Struct, frozen=True, kw_only=True):
    """An act of containment that is in the log; `lasting`: why it cannot be taken back, "" when it can."""

    index: int
    act: Contained | Quarantined
    lasting: str = ""

    @property
    def kind(self) -> Kind:
        return "quarantine" if isinstance(self.act, Quarantined) else self.act.what


def make_plan(
    store: Store,
    case: CaseFile,
    paths: Sequence[str] = (),
    *,
    kinds: Iterable[Kind] = ("hold", "freeze", "quarantine"),
    actor: str = "",
) -> ContainPlan:
    """Work out what to contain; without `paths` what is known to be wrong is moved. Nothing is changed.

    Raises:
        UsageError: a path is not a file of this host, or no actor of that name is enrolled.
        CannotDecide: the supervisor refuses to answer.
        SealBroken, StoreError, StoreTampered: the seal's manifests cannot be had.
    """
    wanted = set(kinds)
    state = ask_supervisor(store.run(case.run), Ask(what="state"))
    job: Literal["", "hold", "stop"] = ""
    if state is not None:
        job = "stop" if "stop" in wanted else "hold" if "hold" in wanted and not state.held else ""
    if actor:
        _check_actor(store, actor)
    moves = tuple(_named(paths) if paths else _wrong(store, case)) if "quarantine" in wanted or paths else ()
    below = descent.descendants(store, case.run)
    own = any(f.run == case.run for f in descent.frozen_by(store, case.run))
    return ContainPlan(
        run=case.run,
        running=state is not None,
        job=job,
        freeze="freeze" in wanted and not own,
        descendants=below.runs,
        by_bytes=below.by_bytes,
        quarantine=moves,
        revoke=actor,
    )


def apply_plan(
    store: Store, run: RunDir, plan: ContainPlan, key: SigningKey, reason: str, on_act: Callable[[str], None]
) -> None:
    """Do what the plan says; `on_act` gets a sentence after each act.

    Raises:
        CannotDecide: the supervisor does not do it, or somebody writes to a file that is moved.
        LogLocked: the run goes on and its supervisor is not on this host.
        StoreError, LogError: a file cannot be kept or moved, or the log cannot be written.
        KeyUnusable, ActorsTampered: the actor's key cannot be revoked with this key.
    """
    if plan.job:
        ask_supervisor(run, Ask(what=plan.job, reason=reason))
        on_act("held the job" if plan.job == "hold" else "asked the command to end")
        if plan.job == "stop":
            _wait_for_end(run, key)
    by = account(os.getpid(), os.geteuid())
    if plan.freeze:
        descent.mark(store, run.id, frozen=True)
        log_act(run, key, Contained(what="freeze", reason=reason, by=by, wall_ns=time.time_ns()))
        others = len(plan.descendants)
        on_act("froze promotion of the run" + (f" and of the {others} that come from it" if others else ""))
    carry_out(_quarantines(store, run, plan, key, reason, by), on_act, "files quarantined")
    if plan.revoke:
        revoke(store, key, plan.revoke, reason or f"run {run.id} was contained")
        log_act(run, key, Contained(what="revoke", subject=plan.revoke, reason=reason, by=by, wall_ns=time.time_ns()))
        on_act(f"revoked the key of {plan.revoke}")


def _quarantines(store: Store, run: RunDir, plan: ContainPlan, key: SigningKey, reason: str, by: str) -> Iterator[str]:
    for move in plan.quarantine:
        why = f"{move.reason}; {reason}" if reason else move.reason
        ((digest, seen),) = keep(store, run, [(move.path, why)])
        entry = Quarantined(path=path_text(move.path), digest=digest, reason=why, by=by, wall_ns=time.time_ns())
        log_act(run, key, entry)
        take_away([(move.path, seen)])
        yield f"quarantined {move.path} ({digest[:12]}): {move.reason}"


def log_act(run: RunDir, key: SigningKey, act: Act) -> None:
    """Append an act to the run's log: by its supervisor while there is one, else here.

    Raises:
        CannotDecide, LogLocked, LogError: it could not be written.
    """
    if ask_supervisor(run, Ask(what="append", act=act)) is None:
        with closing(LogWriter.open(run.log, key)) as log:
            log.append([canonical(act)])


def _wait_for_end(run: RunDir, key: SigningKey) -> None:
    """Wait until the run's supervisor has let go of the log."""
    deadline = time.monotonic() + _END_SECONDS
    while time.monotonic() < deadline:
        try:
            LogWriter.open(run.log, key).close()
            return
        except LogLocked:
            time.sleep(0.1)
    raise CannotDecide(
        f"the command was asked to end {_END_SECONDS:.0f} s ago and has not",
        hint="end it, then contain the run again: the rest of the plan was not done",
    )


def _check_actor(store: Store, actor: str) -> None:
    registry = read_registry(store)
    known = known_actor(registry, actor)
    if known.key in registry.revoked:
        raise UsageError(f"the key of {actor} is revoked already", hint="trainwarden keys list")


# --------------------------------------------------------------------------- what is moved


def _named(paths: Sequence[str]) -> Iterator[Move]:
    """What was named on the command line: files, links, and every file below a folder."""
    for given in paths:
        path = os.path.abspath(given)
        if os.path.isdir(path) and not os.path.islink(path):
            for parent, _, names in os.walk(path):
                yield from (_move(os.path.join(parent, name)) for name in sorted(names))
        else:
            yield _move(path)


def _move(path: str) -> Move:
    digest = digest_now(path)
    if not digest:
        raise UsageError(f"not a file that can be read: {path}", hint="name files, links or folders of this host")
    return Move(path=path, digest=digest, reason="named by whoever contained the run")


def _wrong(store: Store, case: CaseFile) -> Iterator[Move]:
    """Sealed files that changed or are new, and checkpoints that are tainted or not what was saved."""
    saves: dict[str, list[CheckpointSaved]] = {}
    for save in (e for e in case.entries if isinstance(e, CheckpointSaved)):
        saves.setdefault(save.path, []).append(save)
    tainted = {f.digest for c in case.history.checkpoints if c.standing is Standing.TAINTED for f in c.files}
    if case.seal is not None:
        changes = (c for c in check_seal(store, case.seal) if path_real(c.path) not in saves)
        yield from (msgspec.structs.replace(m, replaced=False) for m in sealed_moves(changes))
    for path, listed in saves.items():
        now = digest_now(path)
        if now and now not in {s.digest for s in listed}:
            yield Move(path=path, digest=now, reason=f"not what was saved here at step {listed[-1].step}")
        elif now in tainted:
            yield Move(path=path, digest=now, reason=f"tainted checkpoint of step {listed[-1].step}")


# --------------------------------------------------------------------------- taking back


def past_acts(case: CaseFile) -> list[PastAct]:
    """Acts of containment of a run that were not taken back yet, in the order of its log."""
    undone = {e.of for e in case.entries if isinstance(e, Undone)}
    found: list[PastAct] = []
    for index, entry in enumerate(case.entries):
        if index in undone:
            continue
        if isinstance(entry, Contained):
            found.append(PastAct(index=index, act=entry, lasting=_lasting(entry)))
        elif isinstance(entry, Quarantined) and entry.by:
            found.append(PastAct(index=index, act=entry))
    return found


def _lasting(act: Contained) -> str:
    if act.what == "revoke":
        return f"a revoked key stays revoked; enrol {act.subject} anew with another key"
    return "an ended command is not started again; trainwarden recover resumes the run" if act.what == "stop" else ""


def chosen(acts: Sequence[PastAct], index: int | None) -> list[PastAct]:
    """What to take back, the last first: the act at log `index`, or every one that can be.

    Raises:
        UsageError: there is no such act, or it cannot be taken back.
    """
    if index is None:
        return [a for a in reversed(acts) if not a.lasting]
    found = [a for a in acts if a.index == index]
    if not found:
        raise UsageError(
            f"entry {index} is no act of containment that could be taken back",
            hint=f"there are {', '.join(str(a.index) for a in acts) or 'none'}",
        )
    if found[0].lasting:
        raise UsageError(f"entry {index} cannot be taken back: {found[0].lasting}")
    return found


def undo(store: Store, run: RunDir, acts: Sequence[PastAct], key: SigningKey, on_act: Callable[[str], None]) -> None:
    """Take acts back, in this order.

    Raises:
        CannotDecide: another file is at a quarantined one's place, or the supervisor does not let the job go on.
        StoreTampered: quarantined bytes are not what was moved.
        StoreError, LogError: a file cannot be put back, or the log cannot be written.
    """
    by = account(os.getpid(), os.geteuid())
    for past in acts:
        match past.act:
            case Quarantined():
                on_act(_put_back(store, run, past.act, key))
            case Contained(what="freeze"):
                on_act("thawed: promotion is not frozen any more")
            case Contained():
                on_act(release(run))
        log_act(run, key, Undone(of=past.index, by=by, wall_ns=time.time_ns()))
        if past.kind == "freeze" and not any(f.run == run.id for f in descent.frozen_by(store, run.id)):
            descent.mark(store, run.id, frozen=False)


def release(run: RunDir) -> str:
    """Let a held job go on; a sentence that says what became of it.

    Raises:
        CannotDecide: the supervisor refuses.
    """
    state = ask_supervisor(run, Ask(what="state"))
    if state is None:
        return "the job does not run any more"
    if not state.held:
        return "the job is not held any more"
    ask_supervisor(run, Ask(what="release"))
    return "the job goes on"


def _put_back(store: Store, run: RunDir, moved: Quarantined, key: SigningKey) -> str:
    path, note = path_real(moved.path), _note(run, moved)
    now = digest_now(path)
    if now and now != moved.digest:
        raise CannotDecide(
            f"{moved.path} is another file now ({now[:12]}): it is not overwritten",
            hint="move it away first, such as by `trainwarden contain` with its path",
        )
    if not now:
        link = os.fsdecode(store.get(moved.digest)) if note.link else ""
        mode, mtime = stat.S_IMODE(note.mode), note.mtime_ns // 1_000_000_000
        put_back(store, [Restore(path=path, digest=moved.digest, mode=mode, link=link, mtime=mtime)])
    log_act(run, key, Restored(path=moved.path, digest=moved.digest, wall_ns=time.time_ns()))
    return f"put {moved.path} back ({moved.digest[:12]})"


def _note(run: RunDir, moved: Quarantined) -> Note:
    """The custody note beside the quarantined bytes."""
    for path in Path(run.quarantine).glob(f"{moved.digest}.*.json"):
        try:
            note = msgspec.json.decode(path.read_bytes(), type=Note)
        except (OSError, msgspec.DecodeError) as e:
            raise StoreError(f"the custody note {path} cannot be read: {e}") from e
        if note.path == moved.path:
            return note
    raise StoreError(f"there is no custody note of {moved.path} in {run.quarantine}")
