"""A freeze reaches every run that comes from the frozen one, and no other."""

from __future__ import annotations

from collections.abc import Callable
from contextlib import closing
from pathlib import Path

import pytest

from trainwarden.descent import descendants, frozen_by, mark
from trainwarden.keys import SigningKey
from trainwarden.log.journal import LogWriter
from trainwarden.model import (
    CheckpointLoaded,
    CheckpointSaved,
    Contained,
    Entry,
    Recovered,
    Sealed,
    Undone,
    canonical,
)
from trainwarden.store import Store

Make = Callable[..., str]
FREEZE = Contained(what="freeze", reason="case 7", by="user 1")


@pytest.fixture
def store(tmp_path: Path) -> Store:
    return Store.open(tmp_path / "store", create=True)


@pytest.fixture
def make(store: Store, tmp_path: Path) -> Make:
    """Makes a run with these entries after its first one."""

    def run(*entries: Entry, parent: str = "") -> str:
        folder = store.create_run()
        first = Sealed(run=folder.id, seal="s", key="k", parent=parent)
        with closing(LogWriter.create(folder.log, folder.id, SigningKey.load_or_create(tmp_path / "key"))) as log:
            log.append([canonical(e) for e in (first, *entries)])
        return folder.id

    return run


def saved(digest: str) -> CheckpointSaved:
    return CheckpointSaved(attempt=0, rank=0, step=4, path="/out/c", digest=digest, size=1, format="other")


def loaded(digest: str) -> CheckpointLoaded:
    return CheckpointLoaded(attempt=0, rank=0, path="/out/c", digest=digest)


def names(store: Store, run: str) -> list[str]:
    return [f.run for f in frozen_by(store, run)]


def test_a_freeze_reaches_what_recovers_the_run_and_what_loads_its_checkpoints(store: Store, make: Make) -> None:
    bad = make(saved("x"), FREEZE)
    recovered = make(saved("y"), parent=bad)
    resumed = make(loaded("y"), saved("z"))
    later, other = make(loaded("z")), make(loaded("w"), saved("v"))
    mark(store, bad, frozen=True)
    below = descendants(store, bad)
    assert below.runs == tuple(sorted((recovered, resumed, later)))
    assert below.by_bytes == tuple(sorted((resumed, later)))  # another run may have saved these bytes too
    assert [names(store, run) for run in (bad, recovered, resumed, later, other)] == [[bad]] * 4 + [[]]


def test_the_own_log_and_those_it_recovers_count_without_the_stores_mark(store: Store, make: Make) -> None:
    bad = make(saved("x"), FREEZE)
    child = make(parent=bad)
    assert (names(store, bad), names(store, child)) == ([bad], [bad])


def test_a_thawed_run_is_not_frozen_and_a_second_freeze_holds(store: Store, make: Make) -> None:
    assert names(store, make(FREEZE, Undone(of=1))) == []
    assert names(store, twice := make(FREEZE, FREEZE, Undone(of=1))) == [twice]


def test_a_job_that_is_trained_again_and_goes_on_from_its_own_checkpoint_is_not_frozen(
    store: Store, make: Make
) -> None:
    bad = make(saved("same"), FREEZE)
    honest = make(saved("same"), loaded("same"))
    mark(store, bad, frozen=True)
    assert names(store, honest) == []


def test_saving_a_loaded_checkpoint_again_does_not_hide_where_it_came_from(store: Store, make: Make) -> None:
    bad = make(saved("x"), FREEZE)
    hiding = make(loaded("x"), saved("x"))
    mark(store, bad, frozen=True)
    assert names(store, hiding) == [bad]


def test_a_recovery_names_its_new_run_even_when_that_does_not_name_it(store: Store, make: Make) -> None:
    child = make()
    bad = make(FREEZE, Recovered(from_step=0, new_run=child, checkpoint=""))
    mark(store, bad, frozen=True)
    assert names(store, child) == [bad]


def test_runs_that_recover_each_other_in_a_circle_end_the_search(store: Store, make: Make) -> None:
    first = make(saved("a"), FREEZE)
    second = make(loaded("a"), Recovered(from_step=0, new_run=first, checkpoint=""))
    mark(store, first, frozen=True)
    assert names(store, second) == [first]


def test_a_log_that_cannot_be_read_ties_nothing_and_fails_nothing(store: Store, make: Make) -> None:
    broken, bad = make(), make(FREEZE)
    (store.run(broken).log / "head").write_text("x")
    mark(store, bad, frozen=True)
    assert names(store, bad) == [bad]
