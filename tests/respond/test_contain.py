"""`trainwarden contain`: the plan changes nothing, every act is logged, and what can be taken back is as it was."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest
from receivers import HttpReceiver, running
from resuming import SUPERVISE, Guarded, tree
from supervised import Ended, Place, entries_of, of_kind, until

from trainwarden.model import (
    Action,
    Contained,
    ProcessStarted,
    Quarantined,
    Released,
    Responded,
    Restored,
    Undelivered,
    Undone,
)

Sabotaged = tuple[Guarded, str]


def told(done: subprocess.CompletedProcess[str]) -> dict[str, object]:
    assert done.returncode == 0, done.stderr
    return dict(json.loads(done.stdout))


# --------------------------------------------------------------------------- a run that has ended


def test_the_plan_names_what_is_wrong_and_changes_nothing(sabotaged: Sabotaged) -> None:
    guarded, run = sabotaged
    guarded.library.write_text("VALUE = 2\n")
    guarded.model(12).write_bytes(b"edited")
    before = tree(guarded.out), tree(guarded.place.site), guarded.entries(run)
    shown = guarded.verb("contain", run)
    assert shown.returncode == 0, shown.stderr
    assert "nothing was changed" in shown.stdout
    plan = told(guarded.verb("contain", run, "--json"))["plan"]
    moved = {m["path"]: m["reason"] for m in plan["quarantine"]}  # type: ignore[index, call-overload]
    assert set(moved) == {
        str(guarded.library),
        *(str(guarded.out / f"step-{s}" / name) for s in (8, 12) for name in ("model.safetensors", "notes.txt")),
    }
    assert "not what was saved here" in moved[str(guarded.model(12))]
    assert (plan["running"], plan["job"], plan["freeze"]) == (False, "", True)  # type: ignore[index, call-overload]
    assert before == (tree(guarded.out), tree(guarded.place.site), guarded.entries(run))


def test_what_was_moved_and_frozen_is_logged_and_comes_back_as_it_was(sabotaged: Sabotaged) -> None:
    guarded, run = sabotaged
    guarded.library.write_text("VALUE = 2\n")
    os.chmod(guarded.library, 0o640)
    guarded.model(8).unlink()
    guarded.model(8).symlink_to("nowhere/at/all")
    before, mode = tree(guarded.out), guarded.library.stat()
    done = told(guarded.verb("contain", run, "--apply", "--reason", "case 7", "--json"))["done"]
    assert len(done) == 6  # type: ignore[arg-type]
    assert not guarded.library.exists()
    assert not guarded.model(8).is_symlink()
    moved = of_kind(guarded.entries(run), Quarantined)
    assert {f"user {os.getuid()}" in q.by and q.reason.endswith("case 7") for q in moved} == {True}
    assert all((guarded.folder_of(run).quarantine / q.digest).exists() for q in moved)
    assert "FROZEN" in guarded.verb("show", run).stdout
    left = dict(told(guarded.verb("contain", run, "--json"))["plan"])  # type: ignore[call-overload]
    del left["descendants"], left["by_bytes"]  # other runs of this store loaded checkpoints with the same bytes
    assert left == {"run": run, "running": False, "job": "", "freeze": False, "quarantine": [], "revoke": ""}

    assert "nothing was changed" in guarded.verb("contain", run, "--undo").stdout
    assert not guarded.library.exists()
    told(guarded.verb("contain", run, "--undo", "--apply", "--json"))
    assert tree(guarded.out) == before
    assert guarded.library.read_text() == "VALUE = 2\n"
    assert (guarded.library.stat().st_mode, guarded.library.stat().st_mtime) == (mode.st_mode, int(mode.st_mtime))
    assert os.readlink(guarded.model(8)) == "nowhere/at/all"
    entries = guarded.entries(run)
    assert {entries[u.of].__class__ for u in of_kind(entries, Undone)} == {Quarantined, Contained}
    assert len(of_kind(entries, Restored)) == 5
    assert "FROZEN" not in guarded.verb("show", run).stdout
    assert guarded.verb("verify", run).returncode in (0, 2)
    guarded.library.write_text("VALUE = 1\n")


def test_one_act_is_taken_back_by_its_log_entry(sabotaged: Sabotaged) -> None:
    guarded, run = sabotaged
    named = str(guarded.out / "step-4")
    told(guarded.verb("contain", run, named, "--only", "quarantine", "--apply", "--json"))
    assert not any(p.is_file() for p in Path(named).rglob("*"))
    acts = told(guarded.verb("contain", run, "--undo", "--json"))["acts"]
    index = next(a["entry"] for a in acts if a["what"]["path"].endswith("notes.txt"))  # type: ignore[attr-defined]
    told(guarded.verb("contain", run, "--undo", str(index), "--apply", "--json"))
    assert [p.name for p in Path(named).rglob("*") if p.is_file()] == ["notes.txt"]
    again = guarded.verb("contain", run, "--undo", str(index), "--apply")
    assert again.returncode == 3
    assert "no act of containment" in again.stderr


def test_another_file_at_the_place_is_not_overwritten(sabotaged: Sabotaged) -> None:
    guarded, run = sabotaged
    told(guarded.verb("contain", run, str(guarded.model(4)), "--only", "quarantine", "--apply", "--json"))
    guarded.model(4).write_bytes(b"new")
    undone = guarded.verb("contain", run, "--undo", "--apply")
    assert undone.returncode == 2
    assert "is another file now" in undone.stderr
    assert guarded.model(4).read_bytes() == b"new"


def test_quarantined_bytes_that_were_changed_are_not_put_back(sabotaged: Sabotaged) -> None:
    guarded, run = sabotaged
    told(guarded.verb("contain", run, str(guarded.model(4)), "--only", "quarantine", "--apply", "--json"))
    (moved,) = of_kind(guarded.entries(run), Quarantined)
    stored = guarded.store.object_path(moved.digest)
    stored.chmod(0o644)
    stored.write_bytes(b"changed")
    assert guarded.verb("contain", run, "--undo", "--apply").returncode == 1
    assert not guarded.model(4).exists()
    stored.unlink()  # the store is shared by all tests of this session


def test_a_freeze_reaches_the_run_that_recovered_it(sabotaged: Sabotaged) -> None:
    guarded, run = sabotaged
    child = str(guarded.applied(run)["new_run"])
    assert told(guarded.verb("contain", run, "--json"))["plan"]["descendants"] == [child]  # type: ignore[index, call-overload]
    told(guarded.verb("contain", run, "--only", "freeze", "--apply", "--json"))
    assert told(guarded.verb("show", child, "--json"))["frozen"][0]["run"] == run  # type: ignore[index]
    assert f"run {run}, which this one comes from" in guarded.verb("show", child).stdout
    told(guarded.verb("contain", run, "--undo", "--apply", "--json"))


def test_a_revoked_key_stays_revoked_and_undo_says_so(sabotaged: Sabotaged) -> None:
    guarded, run = sabotaged
    name = f"ada{os.getpid()}"
    key = "ab" * 28 + f"{os.getpid():08x}"
    told(guarded.verb("keys", "new", name, "--public", key, "--kind", "person", "--json"))
    told(guarded.verb("contain", run, "--only", "freeze", "--revoke", name, "--apply", "--json"))
    assert "REVOKED" in guarded.verb("keys", "list", name).stdout
    assert "revoked already" in guarded.verb("contain", run, "--revoke", name).stderr
    index = next(i for i, e in enumerate(guarded.entries(run)) if isinstance(e, Contained) and e.what == "revoke")
    undone = guarded.verb("contain", run, "--undo", str(index), "--apply")
    assert undone.returncode == 3
    assert f"enrol {name} anew" in undone.stderr
    told(guarded.verb("contain", run, "--undo", "--apply", "--json"))


@pytest.mark.parametrize(
    ("words", "says"),
    [
        (("--undo", "--release"), "three calls"),
        (("/nowhere/at/all",), "not a file that can be read"),
        (("--revoke", "nobody-is-called-so"), "nobody-is-called-so"),
        (("--undo", "99999"), "no act of containment"),
    ],
)
def test_a_wrong_call_is_an_error_before_anything_is_done(
    sabotaged: Sabotaged, words: tuple[str, ...], says: str
) -> None:
    guarded, run = sabotaged
    ended = guarded.verb("contain", run, *words, "--apply")
    assert ended.returncode == 3
    assert says in ended.stderr
    assert not of_kind(guarded.entries(run), Contained)


# --------------------------------------------------------------------------- a run that goes on


class Live:
    """A guarded fake rank that waits for ever."""

    def __init__(self, place: Place, job: Path, *before: str, options: tuple[str, ...] = ()) -> None:
        self.place, self.job = place, job
        words = ("fake_rank.py", "start", "join:0/1", "steps:2", "until_acked", *before, "forever")
        self.process = place.start(job, str(place.python), *words, options=options)
        assert self.process.stdout is not None
        self.lines = iter(self.process.stdout.readline, "")
        while next(self.lines) != "waiting\n":
            pass
        self.run = max(p.name for p in (place.store / "runs").iterdir())
        (started,) = of_kind(entries_of(place.store / "runs" / self.run / "log"), ProcessStarted)
        self.pid = started.pid

    def state(self) -> str:
        return Path(f"/proc/{self.pid}/stat").read_text().rpartition(")")[2].split()[0]

    def verb(self, *words: str) -> subprocess.CompletedProcess[str]:
        argv = [sys.executable, "-m", "trainwarden.cli", *words, "--store", str(self.place.store)]
        return subprocess.run(argv, cwd=self.job, env=self.place.env(), capture_output=True, text=True, timeout=120)

    def end(self, *, by_signal: bool = True) -> Ended:
        if by_signal and self.process.poll() is None:
            self.process.send_signal(signal.SIGTERM)
        _, err = self.process.communicate(timeout=120)
        return Ended(
            self.process.returncode, "", err, self.run, entries_of(self.place.store / "runs" / self.run / "log")
        )


@pytest.fixture
def job(tmp_path: Path) -> Path:
    folder = tmp_path / "job"
    folder.mkdir()
    (folder / "fake_rank.py").write_bytes((SUPERVISE / "fake_rank.py").read_bytes())
    return folder


@pytest.fixture
def live(place: Place, job: Path) -> Iterator[Live]:
    made = Live(place, job)
    yield made
    if made.process.stdout is not None and not made.process.stdout.closed:
        made.end()


def test_a_running_job_is_held_frozen_and_let_go_on_and_then_ended(live: Live, job: Path) -> None:
    (job / "extra.py").write_text("x = 1\n")
    plan = told(live.verb("contain", live.run, "--json"))["plan"]
    assert (plan["running"], plan["job"]) == (True, "hold")  # type: ignore[index, call-overload]
    told(live.verb("contain", live.run, str(job / "extra.py"), "--apply", "--json"))
    until(lambda: live.state() == "T", "the rank is held")
    assert not (job / "extra.py").exists()
    assert "the job goes on" in live.verb("contain", live.run, "--release").stdout
    until(lambda: live.state() != "T", "the rank goes on")
    assert "not held" in live.verb("contain", live.run, "--release").stdout
    told(live.verb("contain", live.run, "--undo", "--apply", "--json"))
    assert (job / "extra.py").exists()
    told(live.verb("contain", live.run, "--stop", "--apply", "--json"))
    ended = live.end(by_signal=False)
    assert ended.code == 128 + signal.SIGTERM
    assert [c.what for c in of_kind(ended.entries, Contained)] == ["hold", "freeze", "stop", "freeze"]
    assert all(f"user {os.getuid()}" in c.by for c in of_kind(ended.entries, Contained))
    assert len(of_kind(ended.entries, Released)) == 1
    told(live.verb("contain", live.run, "--undo", "--apply", "--json"))


def test_a_held_job_goes_on_at_sigcont_and_ends_at_sigterm(live: Live) -> None:
    told(live.verb("contain", live.run, "--only", "hold", "--apply", "--json"))
    until(lambda: live.state() == "T", "the rank is held")
    live.process.send_signal(signal.SIGCONT)
    until(lambda: live.state() != "T", "the rank goes on")
    told(live.verb("contain", live.run, "--only", "hold", "--apply", "--json"))
    assert live.end().code == 128 + signal.SIGTERM


def test_the_job_itself_is_not_answered(place: Place, job: Path, tmp_path: Path) -> None:
    code = (
        "import glob, os, socket; folder = max(glob.glob(os.path.join(os.environ['RUNS'], '*')));"
        "os.chdir(folder + '/private'); s = socket.socket(socket.AF_UNIX); s.connect('control');"
        "print(s.recv(999).decode())"
    )
    env = {"RUNS": str(place.store / "runs")}
    script = job / "ask.py"
    script.write_text(f"import os; os.environ.update({env!r}); {code}")
    ended = place.run(job, str(place.python), "ask.py")
    assert "does not answer this process" in ended.out, ended.err


# --------------------------------------------------------------------------- policy and alerts in a real run


def test_policy_holds_a_job_at_a_gap_until_it_is_released(place: Place, job: Path) -> None:
    (job / "trainwarden.toml").write_text('[policy.detectors]\ngaps = "hold"\n')
    live = Live(place, job, "miss:cannot see it")
    until(lambda: live.state() == "T", "the rank is held")
    live.verb("contain", live.run, "--release")
    until(lambda: live.state() != "T", "the rank goes on")
    ended = live.end()
    (done,) = [r for r in of_kind(ended.entries, Responded) if r.action is Action.HOLD]
    assert done.alert.detectors == ("gaps",)
    assert f"trainwarden contain {live.run} --release" in ended.err


def test_policy_recover_ends_the_command_and_says_so_to_the_caller(place: Place, job: Path) -> None:
    (job / "trainwarden.toml").write_text('[policy.detectors]\ngaps = "recover"\n')
    words = ("fake_rank.py", "start", "join:0/1", "steps:1", "miss:cannot see it", "until_acked", "forever")
    ended = place.run(job, str(place.python), *words, options=("--json",))
    assert ended.code == 128 + signal.SIGTERM
    assert ended.json()["asked"] == "recover"


def test_the_team_and_its_terminal_are_told_that_and_security_what(
    place: Place, job: Path, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    with running(HttpReceiver) as team, running(HttpReceiver) as security:
        (tmp_path / "url").write_text(security.url)
        (job / "trainwarden.toml").write_text(
            f"""
            [[alerts]]
            kind = "webhook"
            name = "team"
            url_env = "TEAM_HOOK"
            [[alerts]]
            kind = "webhook"
            audience = "security"
            format = "json"
            url_file = "{tmp_path / "url"}"
            """
        )
        (job / "train.py").write_text(
            "import os, fake_rank; print('hook', os.environ.get('TEAM_HOOK')); fake_rank.main()"
        )
        given = place.env() | {"TEAM_HOOK": team.url}
        monkeypatch.setattr(place, "env", lambda: given)
        words = ("train.py", "start", "join:0/1", "steps:1", "miss:cannot see it", "steps:1", "bye")
        ended = place.run(job, str(place.python), *words)
        security.wait(1)
        team.wait(1)
    assert ended.code == 0, ended.err
    assert "hook None" in ended.out
    assert "cannot see it" in security.json[0]["alert"]["title"]
    assert "cannot see it" not in f"{team.bodies} {ended.err}"
    assert f"trainwarden show {ended.run_id}" in ended.err
    (done,) = of_kind(ended.entries, Responded)
    assert done.action is Action.ALERT
    folder = place.store / "runs" / ended.run_id
    kept = b"".join(p.read_bytes() for p in folder.rglob("*") if p.is_file())
    assert b"services/T0" not in kept


def test_a_dead_channel_is_told_once_and_the_run_ends_as_it_would(place: Place, job: Path, tmp_path: Path) -> None:
    with running(lambda: HttpReceiver(404)) as receiver:
        (tmp_path / "url").write_text(receiver.url)
        (job / "trainwarden.toml").write_text(f'[[alerts]]\nkind = "webhook"\nurl_file = "{tmp_path / "url"}"\n')
        ended = place.run(job, str(place.python), "-c", "print('hi')")
    assert (ended.code, ended.out) == (0, "hi\n")
    assert ended.err.count("alerts over webhook do not arrive: the receiver answered with status 404") == 1
    assert [u.channel for u in of_kind(ended.entries, Undelivered)][:1] == ["webhook"]


def test_alerts_test_tries_every_channel(place: Place, job: Path, tmp_path: Path) -> None:
    with running(HttpReceiver) as good, running(lambda: HttpReceiver(403)) as bad:
        (tmp_path / "good").write_text(good.url)
        (tmp_path / "bad").write_text(bad.url)
        sections = [
            f'[[alerts]]\nkind = "webhook"\nname = "{n}"\nurl_file = "{tmp_path / n}"\n' for n in ("good", "bad")
        ]
        sections.append(f'[[alerts]]\nkind = "prometheus"\ntextfile = "{tmp_path / "n.prom"}"\n')
        (job / "trainwarden.toml").write_text("".join(sections))
        argv = [sys.executable, "-m", "trainwarden.cli", "alerts", "test"]
        done = subprocess.run(argv, cwd=job, env=place.env(), capture_output=True, text=True, timeout=120)
    assert done.returncode == 1
    assert done.stdout.splitlines() == [
        "good (team): ok",
        "bad (team): NOT DELIVERED: the receiver answered with status 403",
        "prometheus (team): ok",
    ]
    assert "a test of this alert channel" in good.json[0]["text"]
