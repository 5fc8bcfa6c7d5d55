"""`trainwarden run` as a whole: what passes through, what stops it, what the log keeps."""

from __future__ import annotations

import os
import pty
import signal
import subprocess
import sys
from pathlib import Path

import pytest
from supervised import Place, entries_of, of_kind

from trainwarden.errors import LogLocked
from trainwarden.keys import SigningKey
from trainwarden.log.journal import LogWriter
from trainwarden.log.verify import verify_log
from trainwarden.model import (
    FileChanged,
    Finding,
    ProcessExited,
    ProcessStarted,
    RunEnded,
    Sealed,
    StepRecord,
)

COUNT_SIGNALS = """
import os, signal, sys, time
number = int(sys.argv[1])
got = []
signal.signal(number, lambda *_: got.append(1))
print("ready", flush=True)
while not got:
    time.sleep(0.01)
time.sleep(0.3)
print("got", len(got), flush=True)
sys.exit(40 + len(got))
"""


def ready(process: subprocess.Popen[str], line: str = "ready") -> None:
    assert process.stdout is not None
    while (read := process.stdout.readline()).strip() != line:
        assert read, "the command ended early"


def test_output_input_and_exit_code_pass_through(place: Place, job: Path) -> None:
    (job / "echo.py").write_text(
        "import sys; print(sys.stdin.read().upper()); print('e', file=sys.stderr); sys.exit(7)"
    )
    (job / "in.txt").write_text("hello")
    with open(job / "in.txt") as stdin:
        ended = place.run(job, str(place.python), "echo.py", stdin=stdin)
    assert (ended.code, ended.out) == (7, "HELLO\n")
    assert "\ne\n" in ended.err
    assert [type(e) for e in ended.entries] == [Sealed, ProcessExited, RunEnded, Finding]
    assert of_kind(ended.entries, RunEnded)[0].code == 7
    verify_log(place.store / "runs" / ended.run_id / "log", place.public_key())


def test_a_run_without_a_step_is_one_warning_with_a_hint(place: Place, job: Path) -> None:
    (job / "idle.py").write_text("pass")
    ended = place.run(job, str(place.python), "idle.py", options=("--json",))
    assert ended.code == 0
    assert ended.err.count("without a single optimizer step") == 1
    assert ended.err.count("hint:") == 1
    assert ended.json()["records"] == 0


def test_a_script_that_crashes_leaves_its_code_and_a_closed_log(place: Place, job: Path) -> None:
    words = ("start", "join:0/1", "steps:2", "until_acked", "crash:no luck")
    ended = place.run(job, str(place.python), "fake_rank.py", *words)
    assert ended.code == 1
    assert "RuntimeError: no luck" in ended.err
    assert of_kind(ended.entries, RunEnded)[0].records == 2
    verify_log(place.store / "runs" / ended.run_id / "log", place.public_key())


def test_an_honest_job_raises_nothing(place: Place, job: Path, tmp_path: Path) -> None:
    words = ("start", "join:{}/2", "steps:4", "save:" + str(tmp_path / "r{}.safetensors"), "steps:2", "bye")
    ranks = [w.format(r) for r in (0, 1) for w in (*words, "--")][:-1]
    ended = place.run(job, str(place.python), "fake_launcher.py", *ranks, options=("--json",))
    assert ended.code == 0
    assert ended.json()["findings"] == []
    assert len(of_kind(ended.entries, StepRecord)) == 12
    assert {p.goodbye for p in of_kind(ended.entries, ProcessExited) if p.rank >= 0} == {True}


def test_a_killed_rank_is_told_and_its_restart_counts_on(place: Place, job: Path, tmp_path: Path) -> None:
    path, flag, here = tmp_path / "m.safetensors", tmp_path / "loaded", tmp_path / "here"
    first = (
        f"start join:0/2 steps:3 save:{path} wait_for:{here} kill -- start join:1/2 steps:3 touch:{here} forever"
    ).split()
    second = (
        f"start join:0/2 load:{path} touch:{flag} steps:2 bye -- start wait_for:{flag} join:1/2 steps:2 bye"
    ).split()
    ended = place.run(job, str(place.python), "fake_launcher.py", *first, "again", *second)
    assert ended.code == 0
    assert [r.step for r in of_kind(ended.entries, StepRecord) if r.attempt == 1] == [3, 4, 3, 4]
    assert [f.seen.split(" (")[0] for f in of_kind(ended.entries, Finding)] == ["Rank 0 of attempt 0"]
    assert "kills: Rank 0 of attempt 0" in ended.err


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGUSR1])
def test_a_signal_without_a_terminal_arrives_exactly_once(place: Place, job: Path, number: signal.Signals) -> None:
    (job / "count.py").write_text(COUNT_SIGNALS)
    process = place.start(job, str(place.python), "count.py", str(int(number)), start_new_session=True)
    ready(process)
    os.killpg(process.pid, number)  # the whole group, as a batch system does
    ended = place.ended(process)
    assert (ended.out, ended.code) == ("got 1\n", 41)


def test_the_end_by_a_signal_is_told_as_a_shell_tells_it(place: Place, job: Path) -> None:
    process = place.start(
        job, str(place.python), "fake_rank.py", "start", "join:0/1", "steps:2", "until_acked", "forever"
    )
    ready(process, "waiting")
    process.terminate()
    ended = place.ended(process)
    assert ended.code == 128 + signal.SIGTERM
    exits = of_kind(ended.entries, ProcessExited)
    assert [(e.rank, e.code, e.stopping) for e in exits] == [(0, -15, 15), (-1, -15, 15)]
    assert of_kind(ended.entries, Finding) == []  # stopped from outside: nobody is accused of a kill


def test_ctrl_c_in_a_terminal_arrives_exactly_once_and_leaves_a_verifiable_log(place: Place, job: Path) -> None:
    (job / "count.py").write_text(COUNT_SIGNALS)
    pid, terminal = pty.fork()
    if pid == 0:
        os.chdir(job)
        argv = place.argv(str(place.python), "count.py", "2")
        os.execve(sys.executable, argv, place.env())
    shown = b""
    pressed = False
    while True:
        try:
            shown += os.read(terminal, 4096)
        except OSError:
            break
        if b"ready" in shown and not pressed:
            pressed = True
            os.write(terminal, b"\x03")
    _, status = os.waitpid(pid, 0)
    os.close(terminal)
    text = shown.decode()
    assert "got 1" in text, text
    assert os.waitstatus_to_exitcode(status) == 41
    run_id = text.split("as run ")[1].split()[0]
    log = place.store / "runs" / run_id / "log"
    verify_log(log, place.public_key())
    assert of_kind(entries_of(log), RunEnded)[0].code == 41


def test_the_supervisor_killed_loses_nothing_that_was_acknowledged(place: Place, job: Path) -> None:
    words = ("start", "join:0/1", "steps:20", "until_acked", "forever")
    process = place.start(job, str(place.python), "fake_rank.py", *words)
    ready(process, "acked 19")
    rank = int(subprocess.check_output(["ps", "-o", "pid=", "--ppid", str(process.pid)], text=True).split()[0])
    process.kill()
    process.wait()
    os.kill(rank, signal.SIGKILL)  # it goes on without us: that is the promise
    run_id = process.communicate()[1].split("as run ")[1].split()[0]
    log = place.store / "runs" / run_id / "log"
    verify_log(log, place.public_key())
    entries = entries_of(log)
    assert len(of_kind(entries, StepRecord)) == 20
    assert of_kind(entries, RunEnded) == []


def test_a_second_supervisor_on_a_live_run_is_refused(place: Place, job: Path) -> None:
    process = place.start(job, str(place.python), "fake_rank.py", "start", "join:0/1", "steps:1", "forever")
    ready(process, "waiting")
    run = max((place.store / "runs").iterdir(), key=lambda p: p.stat().st_ctime)
    with pytest.raises(LogLocked):
        LogWriter.open(run / "log", SigningKey.load_or_create(place.key))
    process.terminate()
    place.ended(process)


@pytest.fixture
def library(place: Place) -> Path:
    """A module of the shared environment; put back afterwards."""
    path = place.site / "library.py"
    path.write_text("VALUE = 1\n")
    return path


def edits(path: Path) -> list[str]:
    """A job whose first attempt edits a shared file and fails, so that its launcher starts it again."""
    first = f"start join:0/1 steps:1 write:{path} until_acked exit:1"
    return f"{first} again start join:0/1 steps:1 bye".split()


def test_a_changed_environment_refuses_the_next_start(place: Place, job: Path, library: Path) -> None:
    ended = place.run(job, str(place.python), "fake_launcher.py", *edits(library))
    assert ended.code == 78
    assert f"refused 1 sealed environment file has changed since the seal ({library})" in ended.out
    assert len(of_kind(ended.entries, ProcessStarted)) == 1
    (change,) = of_kind(ended.entries, FileChanged)
    assert (place.store / "objects" / change.found[:2] / change.found[2:]).read_text() == "VALUE = 1\n# changed\n"
    seen = [f.seen for f in of_kind(ended.entries, Finding) if f.detector == "environment"]
    assert any(s.startswith(f"The environment file {library} was changed") for s in seen)
    assert any("was not allowed to start" in s for s in seen)


def test_policy_alert_tells_and_goes_on(place: Place, job: Path, library: Path) -> None:
    options = ("--on-environment-change", "alert")
    ended = place.run(job, str(place.python), "fake_launcher.py", *edits(library), options=options)
    assert ended.code == 0
    assert len(of_kind(ended.entries, ProcessStarted)) == 2
    assert [f.severity.value for f in of_kind(ended.entries, Finding) if f.detector == "environment"] == ["high"]


def test_code_edited_while_it_trains_is_told_and_never_refused(place: Place, job: Path) -> None:
    (job / "model.py").write_text("A = 1\n")
    ended = place.run(job, str(place.python), "fake_launcher.py", *edits(job / "model.py"))
    assert ended.code == 0
    assert [f.detector for f in of_kind(ended.entries, Finding) if f.detector == "environment"] == ["environment"]


@pytest.mark.parametrize(
    ("words", "options"),
    [
        (("no-such-command", "train.py"), ()),
        ((), ()),
        (("python", "missing.py"), ("--config", "missing.toml")),
    ],
)
def test_a_wrong_call_is_one_error_and_one_hint(
    place: Place, job: Path, words: tuple[str, ...], options: tuple[str, ...]
) -> None:
    before = set((place.store / "runs").iterdir()) if place.store.exists() else set()
    ended = place.run(job, *words, options=options)
    assert ended.code == 3
    assert ended.err.count("error:") == 1
    assert ended.out == ""
    assert (set((place.store / "runs").iterdir()) if place.store.exists() else set()) == before


def test_policy_stop_ends_the_command_at_the_first_gap(place: Place, job: Path) -> None:
    (job / "trainwarden.toml").write_text('[policy.detectors]\ngaps = "stop"\n')
    words = ("start", "join:0/1", "steps:1", "miss:cannot see it", "until_acked", "forever")
    ended = place.run(job, str(place.python), "fake_rank.py", *words)
    assert ended.code == 128 + signal.SIGTERM
    assert "gaps: Something of rank 0 was not recorded: cannot see it" in ended.err


def test_a_closed_stderr_does_not_end_the_recording(place: Place, job: Path) -> None:
    read, write = os.pipe()
    os.close(read)
    words = ("start", "join:0/1", "steps:2", "miss:x", "steps:2", "bye")
    argv = place.argv(str(place.python), "-S", "fake_rank.py", *words)
    done = subprocess.run(argv, cwd=job, env=place.env(), stdout=subprocess.PIPE, stderr=write, timeout=60)
    os.close(write)
    assert b"bye 3" in done.stdout
    assert done.returncode == 0


def test_an_environment_in_which_nothing_could_be_recorded_is_told_before_the_start(
    place: Place, job: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    library = tmp_path / "library"
    (library / "torch").mkdir(parents=True)
    (library / "torch" / "__init__.py").touch()
    monkeypatch.setattr(place, "env", lambda env=place.env: env() | {"PYTHONPATH": str(library)})
    ended = place.run(job, str(place.python), "-c", "open('started', 'w')")
    assert ended.code == 3
    assert "has torch and lacks numpy, safetensors: nothing could be recorded" in ended.err
    assert f"hint: {place.python} -m pip install numpy safetensors" in ended.err
    assert not (job / "started").exists()
    assert ended.run_id == ""


def test_policy_stop_ends_ranks_too_that_their_launcher_leaves_behind(place: Place, job: Path) -> None:
    (job / "trainwarden.toml").write_text('[policy.detectors]\ngaps = "stop"\n')
    words = ("start", "join:0/1", "steps:1", "miss:cannot see it", "until_acked", "forever")
    ended = place.run(job, str(place.python), "fake_launcher.py", *words)  # it ends at SIGTERM and leaves its rank
    assert ended.code == 128 + signal.SIGTERM
    (rank,) = [e for e in of_kind(ended.entries, ProcessExited) if e.rank == 0]
    assert (rank.code, rank.stopping) == (-signal.SIGTERM, signal.SIGTERM)
