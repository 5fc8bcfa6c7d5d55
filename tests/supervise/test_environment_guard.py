"""Which comparison answers a start (the seal's own walk while the watch vouches for it), and what is logged."""

from __future__ import annotations

import time
from collections.abc import Sequence
from pathlib import Path

import pytest
from supervised import Bench, of_kind

from trainwarden.errors import StoreError
from trainwarden.model import FileChanged, Writer
from trainwarden.supervise.environment import FREELY, EnvironmentGuard

CHANGE = FileChanged(path="/env/torch.py", kind="environment", sealed="a" * 64, found="")
EDIT = FileChanged(path="/code/train.py", kind="code", sealed="b" * 64, found="")


class FakeWatch:
    """Vouches since some time ago, and tells what it was given when it is asked to settle."""

    def __init__(self, since: float) -> None:
        self.since = since
        self.waiting: list[FileChanged] = []
        self.guard: EnvironmentGuard | None = None

    def settle(self) -> None:
        while self.waiting and self.guard:
            self.guard.changed(self.waiting.pop())


class Guarded:
    def __init__(self, bench: Bench, since: float, on_disk: Sequence[FileChanged] = (), refuse: bool = True) -> None:
        self.compared: list[tuple[str, ...]] = []
        self.on_disk = list(on_disk)
        self.guard = EnvironmentGuard(bench.store, bench.ledger, self._check, refuse=refuse)
        self.watch = FakeWatch(since)
        self.watch.guard = self.guard

    def _check(self, kinds: Sequence[str]) -> Sequence[FileChanged]:
        self.compared.append(tuple(kinds))
        return [change for change in self.on_disk if change.kind in kinds]


def test_the_seals_own_walk_is_the_comparison_of_the_environment_and_code_is_compared_again(bench: Bench) -> None:
    it = Guarded(bench, since=time.monotonic(), on_disk=[EDIT])
    it.guard.begin(it.watch)
    assert it.guard.may_start() == ""
    assert it.compared == [("code", "data")]
    told = [entry for entry in bench.finish() if isinstance(entry, FileChanged)]
    assert [change.path for change in told] == [EDIT.path]


@pytest.mark.parametrize("ago", [float("inf"), 1_000.0])
def test_a_watch_that_does_not_vouch_or_an_old_walk_makes_everything_be_compared(bench: Bench, ago: float) -> None:
    it = Guarded(bench, since=time.monotonic() - ago, on_disk=[CHANGE])
    it.guard.begin(it.watch)
    assert it.compared == [("environment", "code", "data")]
    assert CHANGE.path in it.guard.may_start()


def test_what_the_watch_knows_by_the_time_of_the_question_refuses_the_start(bench: Bench) -> None:
    it = Guarded(bench, since=time.monotonic())
    it.guard.begin(it.watch)
    assert it.guard.may_start() == ""
    it.watch.waiting.append(CHANGE)
    assert CHANGE.path in it.guard.may_start()


def test_a_change_told_before_the_first_comparison_is_not_forgotten_by_it(bench: Bench) -> None:
    it = Guarded(bench, since=time.monotonic())
    it.watch.waiting.append(CHANGE)
    it.guard.begin(it.watch)
    assert CHANGE.path in it.guard.may_start()


def test_an_environment_that_cannot_be_compared_refuses_the_start(bench: Bench) -> None:
    def fails(kinds: Sequence[str]) -> Sequence[FileChanged]:
        raise StoreError("the manifest cannot be read")

    guard = EnvironmentGuard(bench.store, bench.ledger, fails, refuse=True)
    assert "could not be compared" in guard.may_start()


def test_a_log_beside_the_code_is_sampled_and_an_environment_file_is_not(bench: Bench, tmp_path: Path) -> None:
    guard = EnvironmentGuard(bench.store, bench.ledger, lambda kinds: (), refuse=False)
    file = tmp_path / "changing"
    for kind in ("code", "environment"):
        for i in range(FREELY + 5):
            file.write_text(f"{kind} {i}")
            guard.changed(FileChanged(path=f"{file}", kind=kind, sealed="s", found=f"{kind}{i}"))
    logged = [e.kind for e in of_kind(bench.finish(), FileChanged)]
    assert (logged.count("code"), logged.count("environment")) == (FREELY, FREELY + 5)


def grown(bench: Bench, folder: Path, name: str, more: str = "step 2\n", kind: str = "code") -> FileChanged:
    """A sealed file that was appended to, or changed where `more` says what it holds now."""
    path = folder / name
    path.write_text("step 1\n")
    sealed = bench.store.put_file(path)
    path.write_text(("step 1\n" + more) if more.startswith("step") else more)
    return FileChanged(path=str(path), kind=kind, sealed=sealed, found=bench.store.put_file(path))


def told(bench: Bench, *changes: FileChanged, read: str = "") -> list[bool]:
    guard = EnvironmentGuard(bench.store, bench.ledger, lambda kinds: (), refuse=False)
    for change in changes:
        guard.changed(change)
    if read:
        guard.was_read(read)
    return [e.grown for e in of_kind(bench.finish(), FileChanged)]


@pytest.mark.parametrize("name", ["train.log", "nohup.out", "log.txt", "metrics.jsonl"])
def test_a_log_that_was_there_at_the_seal_and_is_appended_to_has_grown(bench: Bench, tmp_path: Path, name: str) -> None:
    assert told(bench, grown(bench, tmp_path, name)) == [True]


@pytest.mark.parametrize(
    ("name", "more", "kind"),
    [
        ("train.log", "step 9\n", "data"),  # sealed as data: it may be poison
        ("train.log", "rewritten\n", "code"),
        ("train.jsonl", "step 2\n", "code"),
        ("config.yaml", "step 2\n", "code"),
        ("run.sh", "step 2\n", "code"),
    ],
)
def test_what_is_no_log_or_lost_its_beginning_is_changed(
    bench: Bench, tmp_path: Path, name: str, more: str, kind: str
) -> None:
    assert told(bench, grown(bench, tmp_path, name, more, kind)) == [False]


def test_a_log_that_a_rank_reads_is_a_changed_file_before_and_after(bench: Bench, tmp_path: Path) -> None:
    change = grown(bench, tmp_path, "train.log")
    assert told(bench, change, read=change.path) == [True, False]


@pytest.mark.parametrize(
    ("pid", "name", "as_grown"), [(7, "curves.jsonl", True), (8, "curves.jsonl", False), (7, "run.sh", False)]
)
def test_text_that_only_grew_is_a_log_where_a_rank_of_the_run_wrote_it(
    bench: Bench, tmp_path: Path, pid: int, name: str, as_grown: bool
) -> None:
    guard = EnvironmentGuard(
        bench.store,
        bench.ledger,
        lambda kinds: (),
        refuse=False,
        writer=lambda path: Writer(pid=pid),
        was_rank=lambda pid: pid == 7,
    )
    guard.changed(grown(bench, tmp_path, name))
    (change,) = of_kind(bench.finish(), FileChanged)
    assert change.grown == as_grown
