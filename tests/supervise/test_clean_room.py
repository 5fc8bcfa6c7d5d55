"""`trainwarden run --clean-room`: what is done to the shared environment during the run does not reach the job."""

from __future__ import annotations

import os
import shutil
import signal
import subprocess
import sys
from pathlib import Path

import pytest
from supervised import Ended, Place, entries_of, of_kind, until

from trainwarden.model import CleanRoom, FileChanged, Finding, ProcessStarted, RunEnded, Severity
from trainwarden.supervise.process import no_namespace

ASK = """
import pathlib, subprocess, sys, time
here = pathlib.Path(sys.argv[1])
ask = [sys.executable, "-c", "import library; print(library.VALUE)"]
def answer():
    return subprocess.run(ask, capture_output=True, text=True).stdout.strip() or "nothing"
before = answer()
(here / "ready").touch()
while not (here / "go").exists():
    time.sleep(0.02)
print(f"before {before} after {answer()}", flush=True)
pathlib.Path("result.txt").write_text("written beside the code")
sys.exit(5)
"""
WRITE = """
import library, pathlib, sys
for place in (library.__file__, str(pathlib.Path(library.__file__).parent / "new.py"), sys.argv[1] + "/objects/new"):
    try:
        open(place, "a").close()
        print("written")
    except OSError as e:
        print(e.strerror)
"""
WHERE = "import sys, library; print(sys.executable, library.__file__, sys.prefix)"
COPY_ONLY = """
import sys
from trainwarden.supervise import shelter
shelter.no_namespace = lambda folder: "forbidden by this test"
from trainwarden.cli import main
sys.exit(main(sys.argv[1:]))
"""
NO_NAMESPACE = no_namespace(Path("/tmp"))
NAMESPACE = pytest.param("namespace", marks=pytest.mark.skipif(bool(NO_NAMESPACE), reason=NO_NAMESPACE))
both = pytest.mark.parametrize("kind", ["copy", NAMESPACE])
one = pytest.mark.parametrize("kind", ["copy" if NO_NAMESPACE else "namespace"])


@pytest.fixture(scope="session")
def environment(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("shared") / "venv"
    subprocess.run([sys.executable, "-m", "venv", "--without-pip", str(folder)], check=True)
    return folder


@pytest.fixture
def shared(place: Place, environment: Path, monkeypatch: pytest.MonkeyPatch) -> Place:
    """One environment for all tests here, as new for each: so all of them share one room of each kind."""
    packages = next((environment / "lib").glob("python3*"))
    for folder in packages.iterdir():
        shutil.rmtree(folder)
    (packages / "site-packages").mkdir()
    (packages / "site-packages" / "library.py").write_text("VALUE = 1\n")
    shared = Place(environment / "bin" / "python", packages / "site-packages", place.store, place.key)
    monkeypatch.setattr(shared, "env", lambda: {**place.env(), "PYTHONDONTWRITEBYTECODE": "1"})
    return shared


def start(shared: Place, job: Path, kind: str, *words: str, options: tuple[str, ...] = ()) -> subprocess.Popen[str]:
    """A guarded run in a clean room; kind "copy" as on a machine that forbids namespaces, "none" without a room."""
    argv = shared.argv(*words, options=(*options, *(["--clean-room"] if kind != "none" else [])))
    if kind == "copy":
        argv[1:3] = ["-c", COPY_ONLY]
    return subprocess.Popen(
        argv,
        cwd=job,
        env=shared.env(),
        stdin=subprocess.DEVNULL,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )


def run(shared: Place, job: Path, kind: str, *words: str, options: tuple[str, ...] = ()) -> Ended:
    return shared.ended(start(shared, job, kind, *words, options=options))


def ask_while(shared: Place, job: Path, kind: str, act: object = None) -> Ended:
    """A job that asks the shared library for its value before and after `act`."""
    (job / "ask.py").write_text(ASK)
    process = start(shared, job, kind, str(shared.python), "ask.py", str(job))
    until(lambda: (job / "ready").exists() or process.poll() is not None, "the job is ready")
    if callable(act):
        act()
    (job / "go").touch()
    return shared.ended(process)


@both
def test_edit_hook_and_shadow_in_the_shared_environment_mid_run_have_no_effect(
    shared: Place, job: Path, kind: str
) -> None:
    def tamper() -> None:
        (shared.site / "library.py").write_text("VALUE = 666\n")
        (shared.site / "evil.pth").write_text("import os; os._exit(9)\n")
        (shared.site / "sitecustomize.py").write_text("import os; os._exit(9)\n")
        (shared.site / "library").mkdir()
        (shared.site / "library" / "__init__.py").write_text("VALUE = 667\n")

    ended = ask_while(shared, job, kind, tamper)
    assert (ended.out, ended.code) == ("before 1 after 1\n", 5), ended.err
    (room,) = of_kind(ended.entries, CleanRoom)
    assert (room.kind, room.left) == (kind, ())
    assert (room.reason == "forbidden by this test") == (kind == "copy")
    assert str(shared.site / "library.py") in {c.path for c in of_kind(ended.entries, FileChanged)}
    told = [f for f in of_kind(ended.entries, Finding) if "library.py" in f.seen]
    assert {f.severity for f in told} == {Severity.INFO}
    assert all("does not see it" in f.seen for f in told)
    assert (job / "result.txt").exists()


def test_the_same_edit_without_a_room_does_take_effect(shared: Place, job: Path) -> None:
    ended = ask_while(shared, job, "none", lambda: (shared.site / "library.py").write_text("VALUE = 666\n"))
    assert (ended.out, ended.code) == ("before 1 after 666\n", 5)
    assert of_kind(ended.entries, CleanRoom) == []
    assert {f.severity for f in of_kind(ended.entries, Finding) if "library.py" in f.seen} == {Severity.HIGH}


@one
def test_honest_job_in_a_clean_room_raises_nothing(shared: Place, job: Path, kind: str) -> None:
    ended = ask_while(shared, job, kind)
    assert (ended.out, ended.code) == ("before 1 after 1\n", 5)
    assert [f for f in of_kind(ended.entries, Finding) if "without a single" not in f.seen] == []
    assert of_kind(ended.entries, RunEnded)[0].code == 5


@both
def test_the_job_cannot_write_into_its_room_by_mistake(shared: Place, job: Path, kind: str) -> None:
    (job / "write.py").write_text(WRITE)
    if kind == "copy" and os.geteuid() == 0:
        pytest.skip("mode bits do not hold root back, and a copy has nothing else")
    ended = run(shared, job, kind, str(shared.python), "write.py", str(shared.store))
    said = "Read-only file system" if kind == "namespace" else "Permission denied"
    assert ended.out.splitlines()[:2] == [said, said]
    if kind == "namespace":
        assert ended.out.splitlines()[2] == said
    assert not (shared.site / "new.py").exists()


def test_a_namespace_keeps_the_sealed_paths_and_a_copy_leads_into_the_store(shared: Place, job: Path) -> None:
    (job / "where.py").write_text(WHERE)
    copied = run(shared, job, "copy", str(shared.python), "where.py")
    assert all(word.startswith(f"{shared.store}/rooms/run-") for word in copied.out.split())
    if not NO_NAMESPACE:
        kept = run(shared, job, "namespace", str(shared.python), "where.py")
        assert kept.out.split() == [str(shared.python), f"{shared.site}/library.py", str(shared.python.parents[1])]


@both
def test_restarts_use_the_same_room_and_are_not_refused(shared: Place, job: Path, kind: str) -> None:
    first = f"start join:0/1 steps:1 write:{shared.site / 'library.py'} until_acked exit:1"
    again = "again start join:0/1 steps:1 bye"
    if kind == "namespace":  # from inside the shared one cannot even be reached: another process does it
        (job / "ask.py").write_text(ASK)
        first = f"start join:0/1 steps:1 touch:{job / 'ready'} wait_for:{job / 'go'} until_acked exit:1"
    process = start(shared, job, kind, str(shared.python), "fake_launcher.py", *first.split(), *again.split())
    if kind == "namespace":
        until(lambda: (job / "ready").exists() or process.poll() is not None, "the rank waits")
        (shared.site / "library.py").write_text("VALUE = 666\n")
        (job / "go").touch()
    ended = shared.ended(process)
    assert ended.code == 0, ended.err
    assert len(of_kind(ended.entries, ProcessStarted)) == 2
    assert "was not allowed to start" not in ended.err


@pytest.mark.skipif(bool(NO_NAMESPACE), reason=NO_NAMESPACE)
@pytest.mark.parametrize("how", ["renamed away", "removed"])
def test_shared_folder_swapped_under_the_mount_is_told_and_refuses_the_next_start(
    shared: Place, job: Path, how: str
) -> None:
    words = f"start join:0/1 steps:1 touch:{job / 'ready'} wait_for:{job / 'go'} until_acked exit:1 again start"
    process = start(shared, job, "namespace", str(shared.python), "-S", "fake_launcher.py", *words.split())
    until(lambda: (job / "ready").exists() or process.poll() is not None, "the rank waits")
    if how == "removed":
        shutil.rmtree(shared.site)
    else:
        shared.site.rename(shared.site.with_name("old-packages"))
    shared.site.mkdir()
    (shared.site / "library.py").write_text("VALUE = 666\n")
    (job / "go").touch()
    ended = shared.ended(process)
    assert ended.code == 78
    assert f"the clean room does not cover {shared.site}" in ended.out
    seen = [f.seen for f in of_kind(ended.entries, Finding) if f.severity is Severity.HIGH]
    assert any("was not allowed to start" in s for s in seen)


@one
def test_a_room_altered_in_the_store_refuses_the_next_start(shared: Place, job: Path, kind: str) -> None:
    words = f"start join:0/1 steps:1 touch:{job / 'ready'} wait_for:{job / 'go'} until_acked exit:1 again start"
    process = start(shared, job, kind, str(shared.python), "fake_launcher.py", *words.split())
    until(lambda: (job / "ready").exists() or process.poll() is not None, "the rank waits")
    log = max((shared.store / "runs").iterdir(), key=lambda p: p.name) / "log"
    victim = Path(f"{of_kind(entries_of(log), CleanRoom)[0].path}/root{shared.site}/library.py")
    victim.unlink()
    victim.write_text("VALUE = 666\n")
    (job / "go").touch()
    ended = shared.ended(process)
    assert ended.code == 78
    assert f"the clean room is no longer what was sealed ({shared.site}/library.py)" in ended.out


@both
def test_signals_and_exit_codes_pass_through_a_room(shared: Place, job: Path, kind: str) -> None:
    (job / "count.py").write_text(
        "import signal, sys, time\n"
        "got = []\n"
        "signal.signal(signal.SIGINT, lambda *_: got.append(1))\n"
        "print('ready', flush=True)\n"
        "while not got:\n    time.sleep(0.01)\n"
        "time.sleep(0.3)\n"
        "sys.exit(40 + len(got))\n"
    )
    process = start(shared, job, kind, str(shared.python), "count.py")
    assert process.stdout is not None
    assert process.stdout.readline() == "ready\n"
    process.send_signal(signal.SIGINT)
    assert shared.ended(process).code == 41
    words = ("start", "join:0/1", "steps:1", "until_acked", "forever")
    process = start(shared, job, kind, str(shared.python), "fake_rank.py", *words)
    while process.stdout.readline().strip() != "waiting":  # type: ignore[union-attr]
        assert process.poll() is None
    process.terminate()
    assert shared.ended(process).code == 128 + signal.SIGTERM


@one
def test_a_folder_that_the_room_cannot_stand_for_is_left_told_and_still_guarded(
    shared: Place, job: Path, tmp_path: Path, kind: str
) -> None:
    extra = tmp_path / "extra"
    extra.mkdir()
    (extra / "more.py").write_text("A = 1\n")
    (extra / "table.txt").write_text("not sealed")
    (shared.site / "extra.pth").write_text(f"{extra}\n")
    (job / "read.py").write_text(f"import more; print(open({str(extra / 'table.txt')!r}).read())")
    ended = run(shared, job, kind, str(shared.python), "read.py")
    assert ended.out == "not sealed\n"
    assert of_kind(ended.entries, CleanRoom)[0].left == (str(extra),)
    assert str(extra) in ended.err
    first = f"start join:0/1 steps:1 write:{extra / 'more.py'} until_acked exit:1 again start join:0/1 bye"
    refused = run(shared, job, kind, str(shared.python), "fake_launcher.py", *first.split())
    assert refused.code == 78
