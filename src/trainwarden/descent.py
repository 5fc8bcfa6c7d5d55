"""Which runs come from which, and which of them are frozen.

A run comes from another when it recovers it, or loaded a checkpoint file that was saved in it, by digest, before it had
saved the same bytes itself: a job that is trained again makes the same files, and goes on from its own.

Rules
-----
* A run is frozen when it, or a run that it comes from, was frozen and not thawed: an entry of that run's log. A folder
  of the store names the frozen runs, so that nothing else is read while there is none; a run's own log and those that
  it recovers are read in any case.
* Logs are read as they are. Whoever takes an entry out of one breaks the log, which `verify` and `show` tell.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping

import msgspec

from trainwarden.errors import LogError, StoreError
from trainwarden.log.reader import LogReader
from trainwarden.model import (
    CheckpointLoaded,
    CheckpointSaved,
    Contained,
    Recovered,
    Sealed,
    Undone,
    decode_entry,
)
from trainwarden.store import Store, store_errors

_READ = tuple(
    f'{{"type":"{kind.__struct_config__.tag}"'.encode()
    for kind in (Sealed, CheckpointSaved, CheckpointLoaded, Contained, Undone, Recovered)
)


class Kin(msgspec.Struct, frozen=True, kw_only=True):
    """What ties a run to others; `frozen` has the log index of the entry."""

    run: str
    parents: frozenset[str] = frozenset()
    children: frozenset[str] = frozenset()
    saved: frozenset[str] = frozenset()
    loaded: frozenset[str] = frozenset()
    frozen: tuple[int, Contained] | None = None


class Frozen(msgspec.Struct, frozen=True, kw_only=True):
    """Why a run may not be promoted: `run` was frozen, by entry `index` of its log."""

    run: str
    index: int
    reason: str
    by: str


def frozen_by(store: Store, run: str) -> tuple[Frozen, ...]:
    """Every freeze that holds for the run with this id: its own, and those of the runs that it comes from.

    Raises:
        StoreError: the store cannot be read.
    """
    kin = _all_kin(store) if _marked(store) else _recovered_by(store, run)
    return tuple(
        Frozen(run=k.run, index=k.frozen[0], reason=k.frozen[1].reason, by=k.frozen[1].by)
        for k in (kin[name] for name in sorted(_closure(run, _came_from(kin))))
        if k.frozen is not None
    )


class Descendants(msgspec.Struct, frozen=True, kw_only=True):
    """The runs that come from one, without itself; `by_bytes`: those of them for which no chain of recoveries says so.

    These, or one that they come from, loaded a file of the same bytes as one that was saved there. Another run may have
    saved these bytes too, and then it may be that one which they come from.
    """

    runs: tuple[str, ...]
    by_bytes: tuple[str, ...]


def descendants(store: Store, run: str) -> Descendants:
    """The runs that come from the run with this id.

    Raises:
        StoreError: the store cannot be read.
    """
    kin = _all_kin(store)
    found = _closure(run, _led_to(_came_from(kin))) - {run}
    recovered = _closure(run, _led_to(_recovering(kin)))
    return Descendants(runs=tuple(sorted(found)), by_bytes=tuple(sorted(found - recovered)))


def _led_to(came_from: Mapping[str, Iterable[str]]) -> dict[str, set[str]]:
    led_to: dict[str, set[str]] = {}
    for child, parents in came_from.items():
        for parent in parents:
            led_to.setdefault(parent, set()).add(child)
    return led_to


def savers(store: Store) -> dict[str, tuple[str, ...]]:
    """The runs that saved each file, by its digest.

    Raises:
        StoreError: the store cannot be read.
    """
    return {digest: tuple(sorted(runs)) for digest, runs in _savers(_all_kin(store)).items()}


def mark(store: Store, run: str, *, frozen: bool) -> None:
    """Note in the store that the run is frozen, or is not any more.

    Raises:
        StoreError: the store cannot be written.
    """
    with store_errors(f"write {store.frozen}"):
        store.frozen.mkdir(exist_ok=True)
        if frozen:
            (store.frozen / run).touch()
        else:
            (store.frozen / run).unlink(missing_ok=True)


def _marked(store: Store) -> bool:
    with store_errors(f"read {store.frozen}"):
        return store.frozen.is_dir() and any(store.frozen.iterdir())


def _all_kin(store: Store) -> dict[str, Kin]:
    return {run: _kin(store, run) for run in store.runs()}


def _recovered_by(store: Store, run: str) -> dict[str, Kin]:
    """The run, and those that it recovers one after the other."""
    found: dict[str, Kin] = {}
    known = set(store.runs())
    waiting = [run]
    while waiting:
        name = waiting.pop()
        if name in known and name not in found:
            found[name] = _kin(store, name)
            waiting.extend(found[name].parents)
    return found


def _kin(store: Store, run: str) -> Kin:
    parents, children, saved, loaded = set[str](), set[str](), set[str](), set[str]()
    frozen: dict[int, Contained] = {}
    try:
        for index, leaf in LogReader.open(store.run(run).log).entries():
            if not leaf.startswith(_READ):
                continue
            match decode_entry(leaf):
                case Sealed(parent=parent) if parent:
                    parents.add(parent)
                case Recovered(new_run=child):
                    children.add(child)
                case CheckpointSaved(digest=digest):
                    saved.add(digest)
                case CheckpointLoaded(digest=digest) if digest not in saved:
                    loaded.add(digest)
                case Contained(what="freeze") as entry:
                    frozen[index] = entry
                case Undone(of=of):
                    frozen.pop(of, None)
                case _:
                    pass
    except (LogError, StoreError, msgspec.DecodeError):
        pass  # as far as it can be read
    return Kin(
        run=run,
        parents=frozenset(parents),
        children=frozenset(children),
        saved=frozenset(saved),
        loaded=frozenset(loaded),
        frozen=max(frozen.items(), default=None),
    )


def _savers(kin: Mapping[str, Kin]) -> dict[str, set[str]]:
    found: dict[str, set[str]] = {}
    for k in kin.values():
        for digest in k.saved:
            found.setdefault(digest, set()).add(k.run)
    return found


def _came_from(kin: Mapping[str, Kin]) -> dict[str, set[str]]:
    """Each run's direct ancestors."""
    saved_by = _savers(kin)
    came_from = _recovering(kin)
    for k in kin.values():
        for digest in k.loaded:
            came_from[k.run] |= saved_by.get(digest, set()) - {k.run}
    return came_from


def _recovering(kin: Mapping[str, Kin]) -> dict[str, set[str]]:
    """The runs that each one recovers."""
    recovers = {k.run: {p for p in k.parents if p in kin} for k in kin.values()}
    for k in kin.values():
        for child in k.children & recovers.keys():
            recovers[child].add(k.run)
    return recovers


def _closure(start: str, leads_to: Mapping[str, Iterable[str]]) -> set[str]:
    found, waiting = {start}, [start]
    while waiting:
        new = set(leads_to.get(waiting.pop(), ())) - found
        found |= new
        waiting.extend(new)
    return found
