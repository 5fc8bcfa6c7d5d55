"""What the supervisor makes of ranks, honest and hostile, over a real socket."""

from __future__ import annotations

import ctypes
import os
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest
from supervised import FAKE_PATH, HERE, Bench, entries_of, of_kind, until

from trainwarden import wire
from trainwarden.log.verify import verify_log
from trainwarden.model import (
    CheckpointLoaded,
    CheckpointSaved,
    DataOpened,
    Finding,
    Gap,
    ProcessExited,
    ProcessStarted,
    Stage,
    StepRecord,
)
from trainwarden.record.fingerprint import stage_root
from trainwarden.supervise.details import DetailReader
from trainwarden.supervise.files import FileDesk, KnownFiles, SavedFile

PR_SET_CHILD_SUBREAPER = 36


def test_an_honest_rank_is_recorded_whole(bench: Bench) -> None:
    out, _ = bench.rank("start", "join:0/1", "steps:3", "until_acked", "bye").communicate(timeout=60)
    entries = bench.finish()
    assert out.split("\n")[:4] == ["go", "joined 0", "acked 2", "bye 2"]
    assert [r.step for r in of_kind(entries, StepRecord)] == [0, 1, 2]
    assert [e.goodbye for e in of_kind(entries, ProcessExited)] == [True]
    assert of_kind(entries, Gap) == []
    assert of_kind(entries, Finding) == []
    verify_log(bench.run.log, bench.key.public)


def test_details_on_disk_have_the_roots_of_the_records(bench: Bench) -> None:
    bench.rank("join:0/1", "steps:4", "bye")
    records = of_kind(bench.finish(), StepRecord)
    reader = DetailReader(bench.run.details)
    for record in records:
        detail = reader.get(0, 0, record.seq)[Stage.WEIGHTS]
        assert stage_root(bench.digest_key, detail.names, detail.digests) == record.stages[Stage.WEIGHTS].root


def test_acknowledged_means_durable(bench: Bench) -> None:
    rank = bench.rank("join:0/1", "steps:5", "until_acked", "forever")
    assert rank.stdout is not None
    while not rank.stdout.readline().startswith("acked 4"):
        pass
    assert len(of_kind(entries_of(bench.run.log), StepRecord)) == 5  # read while the writer still holds the log
    rank.kill()


def test_a_refused_process_is_told_why(bench: Bench) -> None:
    bench.guard.reason = "torch/optim/adamw.py has changed"
    rank = bench.rank("start", "join:0/1")
    out, _ = rank.communicate(timeout=60)
    assert out == "refused torch/optim/adamw.py has changed\n"
    assert rank.returncode == 78
    assert of_kind(bench.finish(), ProcessStarted) == []


@pytest.mark.parametrize(
    ("words", "why"),
    [
        (("garbage",), "DecodeError"),
        (("huge",), "above the limit"),
        (("boast:100000",), "a note above the limit"),
        (("step_as:1",), "record for"),
        (("join:0/2",), "joined twice"),
        (("open:relative/path",), "not an absolute path"),
    ],
)
def test_a_hostile_message_closes_the_connection_and_is_a_gap(bench: Bench, words: tuple[str, ...], why: str) -> None:
    rank = bench.rank("join:0/2", "steps:2", "until_acked", *words, "closed")
    honest = bench.rank("join:1/2", "steps:3", "bye")
    rank.communicate(timeout=60)
    entries = bench.finish()
    assert honest.returncode == 0
    assert len(of_kind(entries, StepRecord)) == 5  # what came before stays, and the honest rank is not disturbed
    assert any(why in gap.reason and gap.rank == 0 for gap in of_kind(entries, Gap))


@pytest.mark.parametrize("words", [("steps:1",), ("miss:x",), ("bye",), ("tell_saved:/tmp/x",), ("join:5/2",)])
def test_nobody_speaks_for_a_rank_before_joining_as_one(bench: Bench, words: tuple[str, ...]) -> None:
    bench.rank(*words, "closed").communicate(timeout=60)
    assert bench.finish() == []


def test_a_process_id_that_the_kernel_denies_is_refused(bench: Bench) -> None:
    rank = bench.rank("join_as_parent:0/1")
    out, _ = rank.communicate(timeout=60)
    assert out == "closed\n"
    assert bench.finish() == []


def test_a_stranger_is_not_heard_and_is_a_finding(bench: Bench) -> None:
    # Started by a shell that ends at once, so that it is no longer below the supervisor. A test that supervised a run
    # in this very process has made it a subreaper, which would adopt the stranger.
    ctypes.CDLL(None).prctl(PR_SET_CHILD_SUBREAPER, 0, 0, 0, 0)
    words = (sys.executable, str(HERE / "fake_rank.py"), "join:0/1")
    env = {**os.environ, "FAKE_RANK_PATH": FAKE_PATH, wire.SOCKET_ENV: str(bench.server.path)}
    shell = ["sh", "-c", '(sleep 0.3; exec "$@") & exit 0', "sh", *words]
    done = subprocess.run(shell, env=env, stdout=subprocess.PIPE, text=True, check=True, timeout=60)
    entries = bench.finish()
    assert done.stdout == "closed\n"
    assert of_kind(entries, ProcessStarted) == []
    assert [f.detector for f in of_kind(entries, Finding)] == ["recorder"]


def test_the_attempt_counts_how_often_a_rank_joined(bench: Bench) -> None:
    for _ in range(3):
        bench.rank("join:0/1", "steps:1", "bye").communicate(timeout=60)
    entries = bench.finish()
    assert [p.attempt for p in of_kind(entries, ProcessStarted)] == [0, 1, 2]
    assert [(r.attempt, r.seq) for r in of_kind(entries, StepRecord)] == [(0, 0), (1, 0), (2, 0)]


def test_a_rank_that_never_joined_a_failed_attempt_joins_the_next_one(bench: Bench) -> None:
    bench.rank("join:0/2", "steps:1", "until_acked", "kill")
    until(lambda: bool(of_kind(entries_of(bench.run.log), ProcessExited)), "the kill was logged")
    bench.rank("join:1/2", "steps:1", "bye").communicate(timeout=60)
    bench.rank("join:0/2", "steps:1", "bye").communicate(timeout=60)
    assert [(r.rank, r.attempt) for r in of_kind(bench.finish(), StepRecord)] == [(0, 0), (1, 1), (0, 1)]


def test_two_live_processes_of_one_rank_are_a_finding(bench: Bench) -> None:
    first = bench.rank("join:0/1", "forever")
    assert first.stdout is not None
    first.stdout.readline()
    bench.rank("join:0/1", "bye").communicate(timeout=60)
    first.kill()
    found = of_kind(bench.finish(), Finding)
    assert [f.detector for f in found] == ["recorder"]
    assert "joined as rank 0 while process" in found[0].seen


def test_a_resumed_attempt_counts_on_from_the_checkpoint(bench: Bench, tmp_path: Path) -> None:
    path = tmp_path / "model.safetensors"
    bench.rank("join:0/2", "steps:6", f"save:{path}", "steps:2", "bye").communicate(timeout=60)
    bench.rank("join:1/2", "steps:8", "bye").communicate(timeout=60)
    out, _ = bench.rank("join:0/2", f"load:{path}", "steps:2", "bye").communicate(timeout=60)
    bench.rank("join:1/2", "steps:2", "miss:x", "bye").communicate(timeout=60)  # loaded nothing itself
    entries = bench.finish()
    assert "known 6" in out
    assert [r.step for r in of_kind(entries, StepRecord) if r.attempt == 1] == [6, 7, 6, 7]
    assert [g.step for g in of_kind(entries, Gap)] == [8]
    assert [c.known_step for c in of_kind(entries, CheckpointLoaded)] == [6]


def test_an_older_checkpoint_loaded_names_the_newest_only_where_that_is_gone(bench: Bench, tmp_path: Path) -> None:
    old, partial, new = (str(tmp_path / name) for name in ("old.safetensors", ".partial", "new.safetensors"))
    bench.rank("join:0/1", "steps:2", f"save:{old}", "steps:2", f"save:{new}", "bye").communicate(timeout=60)
    bench.files.saved(SavedFile(0, 0, 4, new, "safetensors", renamed_from=partial))
    for present in (True, False):
        if not present:
            os.unlink(new)
        bench.rank("join:0/1", f"load:{old}", "steps:1", "bye").communicate(timeout=60)
    loads = of_kind(bench.finish(), CheckpointLoaded)
    assert [(load.known_step, load.newer_gone) for load in loads] == [(2, ""), (2, new)]


def test_a_checkpoint_loaded_after_the_first_step_moves_nothing(bench: Bench, tmp_path: Path) -> None:
    path = tmp_path / "model.safetensors"
    bench.rank("join:0/1", "steps:6", f"save:{path}", "bye").communicate(timeout=60)
    bench.rank("join:0/1", "steps:1", f"load:{path}", "steps:1", "bye").communicate(timeout=60)
    assert [r.step for r in of_kind(bench.finish(), StepRecord) if r.attempt == 1] == [0, 1]


def test_a_saved_file_is_hashed_copied_and_found_to_match(bench: Bench, tmp_path: Path) -> None:
    path = tmp_path / "model.safetensors"
    bench.rank("join:0/1", "steps:2", f"save:{path}", "bye").communicate(timeout=60)
    (saved,) = of_kind(bench.finish(), CheckpointSaved)
    assert (saved.step, saved.weights) == (2, "matches")
    assert bench.store.get(saved.digest) == path.read_bytes()


def test_a_file_that_is_not_the_one_the_rank_wrote_is_a_gap_and_not_its_checkpoint(
    bench: Bench, tmp_path: Path
) -> None:
    path = tmp_path / "model.safetensors"
    bench.rank("join:0/1", "steps:1", f"save_replaced:{path}", "bye").communicate(timeout=60)
    entries = bench.finish()
    assert of_kind(entries, CheckpointSaved) == []
    assert "was overwritten before it could be hashed" in of_kind(entries, Gap)[0].reason


def test_a_saved_file_with_another_tensor_is_named(bench: Bench, tmp_path: Path) -> None:
    path = tmp_path / "model.safetensors"
    bench.rank("join:0/1", "steps:2", f"save_edited:{path}", "bye").communicate(timeout=60)
    (saved,) = of_kind(bench.finish(), CheckpointSaved)
    assert saved.weights == "differs: layer.bias"


def test_a_checkpoint_of_the_parent_run_is_known(make_bench: Callable[..., Bench], tmp_path: Path) -> None:
    first = make_bench()
    path = tmp_path / "model.safetensors"
    first.rank("join:0/1", "steps:4", f"save:{path}", "bye").communicate(timeout=60)
    second = make_bench(known=KnownFiles(of_kind(first.finish(), CheckpointSaved)))
    path.rename(tmp_path / "elsewhere")
    second.rank("join:0/1", f"load:{tmp_path / 'elsewhere'}", "steps:1", "bye").communicate(timeout=60)
    assert [r.step for r in of_kind(second.finish(), StepRecord)] == [4]


def test_a_saved_file_that_is_gone_is_a_gap(bench: Bench, tmp_path: Path) -> None:
    bench.rank("join:0/1", "steps:1", f"tell_saved:{tmp_path / 'none'}", "bye").communicate(timeout=60)
    assert any("was gone before" in g.reason for g in of_kind(bench.finish(), Gap))


def test_a_file_that_is_renamed_while_it_is_being_read_is_no_gap_of_its_old_name(
    bench: Bench, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path, final = tmp_path / ".partial", tmp_path / "final"
    path.write_bytes(b"state")
    take = FileDesk._take

    def renamed_before(desk: FileDesk, name: str, limit: int | None) -> tuple[str, int, bool]:
        if name == str(path):
            path.rename(final)
        return take(desk, name, limit)

    monkeypatch.setattr(FileDesk, "_take", renamed_before)
    bench.files.saved(SavedFile(0, 0, 1, str(path), "other"))
    bench.files.saved(SavedFile(0, 0, 1, str(final), "other", renamed_from=str(path)))
    entries = bench.finish()
    assert [s.path for s in of_kind(entries, CheckpointSaved)] == [str(final)]
    assert of_kind(entries, Gap) == []


def test_a_named_pipe_or_our_own_key_is_not_read(bench: Bench, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("TRAINWARDEN_KEY", str(tmp_path / "key"))
    os.mkfifo(tmp_path / "pipe")
    bench.rank(
        "join:0/1", "steps:1", f"tell_saved:{tmp_path / 'pipe'}", f"tell_saved:{tmp_path / 'key'}",
        f"tell_saved:{bench.run.private / 'digest.key'}", "bye",
    ).communicate(timeout=60)  # fmt: skip
    entries = bench.finish()
    assert of_kind(entries, CheckpointSaved) == []
    assert len(of_kind(entries, Gap)) == 3


def test_an_unsealed_data_file_is_logged_once(bench: Bench, tmp_path: Path) -> None:
    (tmp_path / "data.bin").write_bytes(b"data")
    words = (f"open:{tmp_path / 'data.bin'}",) * 3
    bench.rank("join:0/1", *words, "steps:1", "bye").communicate(timeout=60)
    assert [d.size for d in of_kind(bench.finish(), DataOpened)] == [4]


def test_a_killed_rank_leaves_its_signal(bench: Bench) -> None:
    bench.rank("join:0/1", "steps:2", "until_acked", "kill")
    until(lambda: bool(of_kind(entries_of(bench.run.log), ProcessExited)), "the exit was logged")
    entries = bench.finish()
    assert [(e.code, e.goodbye) for e in of_kind(entries, ProcessExited)] == [(-9, False)]
    assert len(of_kind(entries, StepRecord)) == 2


def test_a_lying_goodbye_is_a_gap(bench: Bench) -> None:
    bench.rank("join:0/1", "steps:1", "bye").communicate(timeout=60)
    bench.rank("join:0/1", "steps:1", "miss:lost one", "bye").communicate(timeout=60)
    gaps = of_kind(bench.finish(), Gap)
    assert [g.reason for g in gaps] == ["lost one"]


def test_a_rank_that_does_not_read_its_acknowledgements_holds_up_nobody(bench: Bench) -> None:
    deaf = bench.rank("join:0/2", "steps:400", "forever")
    hearing = bench.rank("join:1/2", "steps:400", "until_acked", "bye")
    hearing.communicate(timeout=60)
    assert hearing.returncode == 0  # acknowledged and let go, while the other still does not read
    until(lambda: len(of_kind(entries_of(bench.run.log), StepRecord)) == 800, "both ranks recorded")
    assert deaf.poll() is None
    deaf.kill()
    records = of_kind(bench.finish(), StepRecord)
    assert [[r.step for r in records if r.rank == rank] for rank in (0, 1)] == [list(range(400))] * 2


def test_what_a_rank_said_before_it_was_killed_counts_although_it_is_gone(
    bench: Bench, monkeypatch: pytest.MonkeyPatch
) -> None:
    class Ours:
        def peer_pid(self) -> int:
            return os.getpid()

    handler = bench.server._make_handler(Ours())  # type: ignore[arg-type]
    monkeypatch.setattr("trainwarden.supervise.session.descends_from", lambda pid, ancestor: False)  # as of the dead
    assert handler.message(wire.Opened(path=__file__)) is None
    assert bench.files.drain()
