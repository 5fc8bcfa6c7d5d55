"""Each reader says of real records what they say, reports the lines that it cannot read, and loses no other."""

from __future__ import annotations

import gzip
import io
import json
import tarfile
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from trainwarden.custody import readers
from trainwarden.custody.readers.interface import LONGEST_LINE, SECOND
from trainwarden.custody.taking import opened, read_all
from trainwarden.errors import UsageError
from trainwarden.model import Act, ActorKind, Binding, CustodyEvent, SourceKind, Unread

SAMPLES = Path(__file__).parent / "samples"
GITHUB = Path(__file__).parents[2] / "data" / "wheels" / "pygithub-2.10.0.tar.gz"
NAMES = sorted(p.name for p in SAMPLES.iterdir() if p.suffix != ".md")
CONTEXT = readers.Context(source="s", host="here", account="vera", year=2026, users={1001: "vera"})
ADAMW = "/shared/env/lib/torch/optim/adamw.py"
KINDS = {
    "audit.raw": SourceKind.AUDIT, "audit.csv": SourceKind.AUDIT, "audit-extra-time.csv": SourceKind.AUDIT,
    "journal.json": SourceKind.JOURNAL, "journal.iso": SourceKind.JOURNAL, "journal.short": SourceKind.JOURNAL,
    "wtmp": SourceKind.WTMP, "git.log": SourceKind.GIT, "reflog": SourceKind.GIT, "push.json": SourceKind.GIT,
    "find.txt": SourceKind.FILES, "stat.txt": SourceKind.FILES, "btrfs.dump": SourceKind.SNAPSHOT,
    "zfs.diff": SourceKind.SNAPSHOT, "tetragon.json": SourceKind.TETRAGON, "falco.json": SourceKind.FALCO,
    "kubernetes.json": SourceKind.KUBERNETES, "sacct.txt": SourceKind.SLURM, "teleport.json": SourceKind.TELEPORT,
    "teleport.recorded": SourceKind.TELEPORT, "tetragon.recorded": SourceKind.TETRAGON,
    "falco.recorded": SourceKind.FALCO, "falco.replayed": SourceKind.FALCO,
    "bash_history": SourceKind.SHELL, "zsh_history": SourceKind.SHELL, "fish_history": SourceKind.SHELL,
    "auditd.log": SourceKind.AUDIT, "auditd.csv": SourceKind.AUDIT, "journald.json": SourceKind.JOURNAL,
    "apiserver.json": SourceKind.KUBERNETES, "sacct.recorded": SourceKind.SLURM, "sacct.json": SourceKind.SLURM,
    "statements.jsonl": SourceKind.STATEMENT, "sshd.iso": SourceKind.JOURNAL, "wtmp.sshd": SourceKind.WTMP,
}  # fmt: skip
RECORDS = ("audit.raw", "auditd.log", "btrfs.dump", "fish_history", "git.log", "sacct.json", "stat.txt", "wtmp")
LINES = [n for n in NAMES if not n.startswith(RECORDS)]  # the others have records of several lines, or no lines


def read(data: bytes, name: str) -> list[CustodyEvent | Unread]:
    reader = readers.recognised(data, name)
    return [item for item in read_all(reader, io.BytesIO(data), CONTEXT) if item is not None]


def sample(name: str) -> list[CustodyEvent]:
    return [item for item in read((SAMPLES / name).read_bytes(), name) if isinstance(item, CustodyEvent)]


def at(text: str) -> int:
    return int(datetime.fromisoformat(text).replace(tzinfo=UTC).timestamp() * 1000) * 1_000_000


def test_every_sample_is_known_by_its_content_and_every_kind_has_one() -> None:
    assert {n: readers.recognised((SAMPLES / n).read_bytes(), "records").kind for n in NAMES if "fish" not in n} == {
        n: k for n, k in KINDS.items() if "fish" not in n
    }
    assert set(NAMES) == set(KINDS)
    assert set(KINDS.values()) | {SourceKind.LOG} == set(SourceKind) == {r.kind for r in readers.READERS}
    with pytest.raises(UsageError, match="not records that are known here"):
        readers.recognised(b"\x7fELF\x02\x01", "a.out")


def test_linux_audit_tells_the_login_apart_from_the_account_and_makes_paths_whole() -> None:
    login, write, touch, kill, logout = sample("audit.raw")
    assert (login.act, login.account, login.origin, login.session) == (Act.LOGIN, "vera", "10.9.0.7", "41")
    assert (write.act, write.path, write.account, write.login) == (Act.WRITE, ADAMW, "vera", "")
    assert write.time_ns == at("2026-09-30T08:01:00.123")
    assert [(p.pid, p.program, p.argv) for p in write.processes] == [
        (4311, "/usr/bin/vim.basic", ("vim", "torch/optim/adamw.py")),
        (4300, "", ()),
    ]
    assert touch.processes[0].argv == ("touch", "-r", "adam.py", "adamw.py")
    assert (kill.act, kill.account, kill.login, kill.path) == (Act.SIGNAL, "root", "vera", "pid 8000")
    assert kill.note == "signal 9 to python of noor"
    assert (logout.act, logout.session) == (Act.LOGOUT, "41")


def test_linux_audit_without_names_uses_those_given_and_opening_to_read_is_no_write() -> None:
    raw = (SAMPLES / "audit.raw").read_bytes()
    plain = b"\n".join(line.partition(b"\x1d")[0] for line in raw.split(b"\n"))
    reading = plain.replace(b"a2=241", b"a2=0")
    events = [i for i in read(plain, "audit.log") if isinstance(i, CustodyEvent)]
    assert [(e.act, e.account, e.login) for e in events[1:4]] == [
        (Act.WRITE, "vera", ""),
        (Act.EXECUTE, "vera", ""),
        (Act.SIGNAL, "root", "vera"),
    ]
    assert read(reading, "audit.log")[1].act is Act.READ  # type: ignore[union-attr]
    assert all("success=no" not in e.note for e in events)


def test_linux_audit_csv_says_less_and_claims_no_more() -> None:
    for name, error in (("audit.csv", SECOND), ("audit-extra-time.csv", SECOND // 1000)):
        events = sample(name)
        assert [(e.act, e.account, e.login) for e in events] == [
            (Act.LOGIN, "vera", ""),
            (Act.OTHER, "vera", ""),  # opened-file: to read or to write is not told
            (Act.EXECUTE, "vera", ""),
            (Act.SIGNAL, "root", "vera"),
            (Act.LOGOUT, "vera", ""),
        ]
        assert events[1].path == ADAMW
        assert {e.error_ns for e in events} == {error}
    assert sample("audit-extra-time.csv")[1].time_ns == at("2026-09-30T08:01:00.123")


def test_what_auditd_recorded_of_two_logins_tells_each_once_and_what_was_done_in_them() -> None:
    told = sample("auditd.log")
    sessions = [(e.act, e.account, e.session, e.origin) for e in told if e.act in (Act.LOGIN, Act.LOGOUT)]
    assert sessions == [  # USER_START and, with a terminal, USER_LOGIN; sudo's own session is none
        (Act.LOGIN, "vera", "7", "127.0.0.1"),
        (Act.LOGOUT, "vera", "7", "127.0.0.1"),
        (Act.LOGIN, "vera", "8", "127.0.0.1"),
        (Act.LOGOUT, "vera", "8", "127.0.0.1"),
    ]
    assert [(e.act, e.path, e.note) for e in told if e.act in (Act.RENAME, Act.DELETE)] == [
        (Act.RENAME, "/srv/train/env/adamw.py", "was /srv/train/env/sedLWUQ0m"),  # sed -i
        (Act.DELETE, "/srv/train/env/adam.py", ""),
    ]
    (kill,) = [e for e in told if e.act is Act.SIGNAL]
    assert (kill.account, kill.login, kill.note) == ("root", "vera", "signal 9 to perl of noor")
    assert kill.time_ns == at("2026-11-29T00:47:52.022")
    (refused,) = [e for e in told if e.act is Act.LOGIN_FAILED]
    assert refused.account == ""  # sshd writes (invalid user), in hexadecimal
    assert [e.note for e in told if e.path == "the records of audit"] == [
        "op=remove_rule key=runs res=1",
        "op=set audit_enabled=0 res=1",
        "op=terminate res=success",
    ]


def test_a_session_number_that_comes_again_after_a_boot_is_another_login() -> None:
    raw = (SAMPLES / "auditd.log").read_bytes()
    later = raw.replace(b"1795913271.", b"1795999671.")
    logins = [i for i in read(raw + later, "audit.log") if isinstance(i, CustodyEvent) and i.act is Act.LOGIN]
    assert [e.session for e in logins] == ["7", "8", "7"]


def test_the_csv_of_the_same_recording_tells_the_same_logins_and_no_more_than_it_has() -> None:
    told, raw = sample("auditd.csv"), sample("auditd.log")
    wanted = (Act.LOGIN, Act.LOGOUT, Act.DELETE, Act.LOGIN_FAILED)
    assert [(e.act, e.account, e.time_ns, e.session) for e in told if e.act in wanted] == [
        (e.act, e.account, e.time_ns, e.session) for e in raw if e.act in wanted
    ]
    assert [e.note for e in told if e.act is Act.RENAME] == ["the CSV tells the old name alone"]
    assert not [e for e in told if e.act is Act.WRITE or "(null)" in e.path]


def test_tetragon_gives_the_whole_tree_and_its_mask_tells_reading_from_writing() -> None:
    run, write, look = sample("tetragon.json")
    assert [p.program for p in run.processes] == ["/usr/bin/vim.basic", "/bin/bash", "/usr/sbin/sshd"]
    assert (run.host, run.account, run.act) == ("node3", "vera", Act.EXECUTE)
    assert (write.act, write.path, look.act) == (Act.WRITE, ADAMW, Act.READ)
    assert write.time_ns == at("2026-09-30T08:01:00") + 123_400_000


def test_what_tetragon_recorded_names_each_file_that_was_written_renamed_or_deleted_and_who_logged_in() -> None:
    """1.7 on Linux 6.1: `sed -i`, `>>`, `mv`, truncate, `rm`, a kill, a connection of vera; then root after a login."""
    told = sample("tetragon.recorded")
    assert {e.host for e in told} == {"node3"}
    assert (told[0].path, told[0].note) == ("/bin/busybox", "ran already when Tetragon was started")
    spare = "/shared/env/lib/torch/optim/sed3jCvO7"
    assert [(e.act, e.path, e.note) for e in told if e.account == "vera" and e.act is not Act.EXECUTE] == [
        (Act.READ, ADAMW, "security_file_permission"),
        (Act.WRITE, spare, "security_file_permission"),
        (Act.RENAME, ADAMW, f"was {spare}"),
        (Act.WRITE, ADAMW, "security_file_permission"),
        (Act.RENAME, "/data/shard-1.bin", "was /data/shard-0.bak"),
        (Act.WRITE, "/data/shard-1.bin", "security_path_truncate"),
        (Act.DELETE, "/data/shard-1.bin", "security_path_unlink"),
        (Act.SIGNAL, "pid 5727", "signal 9"),
        (Act.CONNECT, "127.0.0.1:8443", "tcp_connect"),
        (Act.DELETE, "/home/vera/.bash_history", "security_path_unlink"),
    ]
    assert {(e.account, e.login) for e in told[1:]} == {("vera", ""), ("root", "uid:1002")}
    sed = next(e for e in told if e.act is Act.RENAME)
    assert [p.program for p in sed.processes[:3]] == ["/usr/sbin/sed", "/usr/sbin/bash", "/bin/setpriv"]
    assert sed.processes[0].argv == ("-i", "s/0.999/0.99/", ADAMW)


def test_a_program_that_ran_before_tetragon_was_started_is_told_as_one_and_its_time_as_proc_counts_it() -> None:
    run = (SAMPLES / "tetragon.json").read_bytes().splitlines()[0]
    found = run.replace(b'"flags":"execve clone"', b'"flags":"procFS auid"', 1)
    early, late = (i for i in read(b"\n".join([found, run]), "x") if isinstance(i, CustodyEvent))
    assert (early.act, early.note) == (Act.EXECUTE, "ran already when Tetragon was started")
    assert (early.error_ns, late.error_ns, late.act, late.note) == (SECOND // 100, 1000, Act.EXECUTE, "")


def test_tetragon_in_a_containers_log_is_read_and_an_argument_with_spaces_is_one() -> None:
    line = (SAMPLES / "tetragon.json").read_bytes().splitlines()[0].replace(b'"torch/', b'"-c \\"ls -l\\" torch/')
    (event,) = read(b"2026-09-30T08:01:01.475152409Z stdout F " + line + b"\n", "x")
    assert isinstance(event, CustodyEvent)
    assert event.processes[0].argv == ("-c", "ls -l", "torch/optim/adamw.py")


def test_tetragons_hooks_of_paths_name_the_entry_and_not_its_folder_and_a_task_that_is_killed_has_no_number() -> None:
    """As Tetragon 1.7 tells what is a `path` and a `dentry`: an entry's path stops at its own file system."""
    told = '{"process_kprobe":{"process":{"pid":7,"uid":1001},"function_name":"%s","args":[%s]},"time":"%s"}\n'
    folder, deep = (f'{{"path_arg":{{"path":"{path}","permission":"drwxr-xr-x"}}}}' for path in ("/data", "/mnt/d/sub"))
    old, new, other = (
        f'{{"path_arg":{{"path":"{path}","permission":"-rw-r--r--"}}}}' for path in ("/data/a", "/data/b", "/sub/c")
    )
    calls = (
        ("security_path_unlink", f"{folder},{old}"), ("security_path_unlink", f"{deep},{other}"),
        ("security_path_unlink", old), ("security_path_rename", f"{folder},{old},{folder},{new}"),
        ("security_path_rename", f"{old},{new}"), ("security_task_kill", '{"int_arg":9}'),
        ("__x64_sys_kill", '{"int_arg":4311},{"int_arg":15}'),
    )  # fmt: skip
    lines = "".join(told % (*call, "2026-09-30T08:01:00.1Z") for call in calls)
    assert [(e.act, e.path, e.note) for e in read(lines.encode(), "x") if isinstance(e, CustodyEvent)] == [
        (Act.DELETE, "/data/a", "security_path_unlink"),
        (Act.DELETE, "/mnt/d/sub/c", "security_path_unlink"),
        (Act.DELETE, "/data/a", "security_path_unlink"),
        (Act.RENAME, "/data/b", "was /data/a"),
        (Act.RENAME, "/data/b", "was /data/a"),
        (Act.SIGNAL, "", "signal 9"),
        (Act.SIGNAL, "pid 4311", "signal 15"),
    ]


def test_falco_says_its_rule_and_a_service_without_login_has_none() -> None:
    write, accept = sample("falco.json")
    assert (write.act, write.path, write.account, write.login) == (Act.WRITE, "/usr/bin/foo", "vera", "")
    assert write.note.startswith("Write below binary dir")
    assert (accept.act, accept.account, accept.login) == (Act.CONNECT, "root", "")


def test_what_falco_recorded_names_each_file_that_was_written_renamed_or_deleted_and_who_logged_in() -> None:
    """0.40 on Linux 6.1, its own rules and two more: the acts of vera, then of root after a login of noor (1002)."""
    told = sample("falco.recorded")
    spare = "/shared/env/lib/torch/optim/sedqjUOG8"
    assert [(e.act, e.path) for e in told if e.account == "vera" and e.act not in (Act.EXECUTE, Act.OTHER)] == [
        (Act.WRITE, spare),
        (Act.RENAME, ADAMW),
        (Act.WRITE, ADAMW),
        (Act.RENAME, "/data/shard 1.bak"),
        (Act.DELETE, "/data/shard 1.bak"),
        (Act.SIGNAL, ""),
        (Act.WRITE, "/home/vera/.bashrc"),
        (Act.CONNECT, "203.0.113.7:50646->203.0.113.7:443"),
        (Act.DELETE, "/home/vera/.bash_history"),
    ]
    assert f"oldpath={spare}" in next(e.note for e in told if e.act is Act.RENAME)
    assert [(e.act, e.path) for e in told if e.account == "root" and e.act is not Act.EXECUTE] == [
        (Act.READ, "/etc/shadow"),
        (Act.WRITE, "/usr/bin/ls2"),
        (Act.ATTRIBUTES, "/usr/bin/ls2"),
        (Act.ATTRIBUTES, "/data/tool"),
        (Act.WRITE, "/var/log/secure"),
        (Act.OTHER, "/tmp/.s"),
        (Act.WRITE, "/etc/cron.d/job"),
        (Act.WRITE, "/etc/probe.conf"),
        (Act.RENAME, "/usr/bin/ls3"),
    ]
    assert {(e.account, e.login, e.host) for e in told} == {("vera", "", "node3"), ("root", "uid:1002", "node3")}
    assert len(told) == 24  # neither what it counts of itself nor its summary


def test_what_falco_replayed_is_told_without_what_it_did_not_know_or_its_own_summary() -> None:
    """0.40 replaying captures: `<NA>` for users and processes that a capture lacks, its counts after a run's alerts."""
    recorded = read((SAMPLES / "falco.replayed").read_bytes(), "falco.replayed")
    told = [item for item in recorded if isinstance(item, CustodyEvent)]
    assert told == recorded
    assert [(e.act, e.account, e.path, e.note.split(":")[0]) for e in told] == [
        (Act.EXECUTE, "", "", "Program run by shell"),
        (Act.READ, "", "/etc/ld.so.cache", "Read below etc"),
        (Act.READ, "ubuntu", "/etc/nsswitch.conf", "Read below etc"),
        (Act.READ, "ubuntu", "/etc/resolv.conf", "Read below etc"),
        (Act.EXECUTE, "", "", "Program run by shell"),
        (Act.READ, "", "/etc/ld.so.cache", "Read below etc"),
        (Act.CONNECT, "", "::1:38255->::1:2345", "Unexpected UDP Traffic"),
        (Act.OTHER, "", "2001:db8::3:1234", "Unexpected inbound connection source"),
        (Act.CONNECT, "", "2001:db8::4:54405->2001:db8::3:1234", "Unexpected inbound connection source"),
    ]
    assert {(e.login, e.origin, e.host) for e in told} == {("", "", "vm")}
    assert [(p.pid, p.program) for p in told[0].processes] == [(17497, "curl"), (3200, "bash")]
    assert [e.processes for e in told[-2:]] == [(), ()]  # programs that began before the capture did
    assert told[0].time_ns == at("2018-08-17T17:35:48") + 514_632_619


def test_a_login_that_falco_has_only_as_a_number_is_told() -> None:
    line = (SAMPLES / "falco.replayed").read_bytes().splitlines()[0]
    (event,) = read(line.replace(b'"user.loginuid":-1', b'"user.loginuid":1001') + b"\n", "x")
    assert isinstance(event, CustodyEvent)
    assert (event.account, event.login) == ("", "vera")


def test_falco_alerts_of_containers_say_which_and_a_read_is_no_write() -> None:
    """As published alerts of 2026 have them: nulls for what is not known, `evt.time.iso8601`, no process id."""
    fields = '"container.id":"%s","container.name":"%s","evt.time.iso8601":1783710627228348323,"fd.name":"/etc/shadow"'
    alert = (
        '{"hostname":"n","output":"19:10: Warning Sensitive file opened for reading by non-trusted program",'
        '"output_fields":{%s,"evt.type":"openat","k8s.pod.name":null,"proc.cmdline":"cat /etc/shadow",'
        '"user.loginuid":-1,"user.name":"root","user.uid":0},"priority":"Warning","rule":"Read sensitive file '
        'untrusted","source":"syscall","tags":[],"time":"2026-07-10T19:10:27.228348323Z"}\n'
    )
    lines = "".join(alert % (fields % names) for names in (("9cc6d64c75d0", "lab9"), ("host", "host")))
    inside, outside = (i for i in read(lines.encode(), "x") if isinstance(i, CustodyEvent))
    assert (inside.act, inside.account, inside.login, inside.origin) == (Act.READ, "root", "", "lab9")
    assert (outside.origin, outside.time_ns % SECOND) == ("", 228_348_323)


def test_what_an_api_server_recorded_is_told_with_who_acted_as_whom_and_what_failed() -> None:
    told = sample("apiserver.json")
    assert [(e.act, e.account, e.login, e.path, e.note) for e in told] == [
        (Act.WRITE, "vera", "", "train/configmaps/launch", "create"),
        (Act.READ, "vera", "", "train/pods", "list"),
        (Act.OTHER, "vera", "", "train/secrets/registry", "delete refused (403)"),
        (Act.READ, "noor", "admin", "train/configmaps", "list"),
        (Act.OTHER, "vera", "", "train/pods/llm-0/exec", "create failed (404)"),
        (Act.DELETE, "vera", "", "train/configmaps/launch", "delete"),
    ]
    assert {e.origin for e in told} == {"127.0.0.1"}


def test_kubernetes_counts_a_request_once_and_a_refused_one_did_nothing() -> None:
    run, refused = sample("kubernetes.json")
    assert (run.act, run.account, run.path, run.line) == (Act.EXECUTE, "vera", "train/pods/llm-0/exec", 2)
    assert (refused.act, refused.kind, refused.note) == (Act.OTHER, ActorKind.SERVICE, "delete refused (403)")


def test_slurm_tells_who_submitted_and_when_the_job_ran_but_no_steps() -> None:
    first, job, pending = sample("sacct.txt")
    assert (first.act, first.account, first.session, first.host) == (Act.SUBMIT, "noor", "slurm:12748", "")
    assert (job.act, job.host) == (Act.JOB, "node[3-4]")
    assert (job.time_ns, job.until_ns) == (at("2026-09-30T07:00:10"), at("2026-09-30T08:01:40"))
    assert (pending.act, pending.line) == (Act.SUBMIT, 4)


def test_what_slurm_recorded_tells_each_job_and_by_whom_one_was_cancelled() -> None:
    told = sample("sacct.recorded")
    jobs = [(e.session, e.account, e.note) for e in told if e.act is Act.JOB]
    assert jobs[:4] == [
        ("slurm:1", "noor", "COMPLETED"),
        ("slurm:2", "vera", "TIMEOUT"),
        ("slurm:3", "noor", "COMPLETED"),  # called eval|full, submitted with a pipe in its command
        ("slurm:4", "vera", "FAILED"),
    ]
    assert {s for s, *_ in jobs} >= {"slurm:5_1", "slurm:5_2"}
    piped = next(e for e in told if e.session == "slurm:3")
    assert (piped.processes[0].program, piped.processes[0].argv[-3:]) == ("eval|full", ("|", "tee", "eval.txt"))
    stops = [(e.account, e.path, e.note, e.processes) for e in told if e.act is Act.SIGNAL]
    assert stops == [
        ("root", "job 8", "cancelled a job of noor", ()),
        ("root", "job 9", "cancelled a job of vera", ()),
        ("uid:1002", "job 11", "cancelled a job of noor", ()),
    ]
    assert told[0].time_ns == at("2026-11-29T00:43:48")


def test_slurms_json_tells_the_same_jobs() -> None:
    def told(name: str) -> list[tuple[Act, int, int, str, str, str, str]]:
        events = (e for e in sample(name) if e.session in ("slurm:3", "slurm:8"))
        return [(e.act, e.time_ns, e.until_ns, e.account, e.host, e.path, e.session) for e in events]

    assert told("sacct.json") == told("sacct.recorded")
    (broken,) = read((SAMPLES / "sacct.json").read_bytes()[:-40], "sacct.json")
    assert isinstance(broken, Unread)


def test_a_job_whose_name_plays_other_columns_is_told_as_unread_and_frames_nobody() -> None:
    head, *_, job, _ = (SAMPLES / "sacct.recorded").read_text().splitlines()
    forged = "|".join(["x", "root", "2026-11-29T00:00:00", "Unknown", "Unknown"])
    items = read(f"{head}\n{job.replace('again', forged, 1)}\n".encode(), "sacct.txt")
    assert [type(i) for i in items] == [Unread]
    assert "sacct --json" in items[0].reason  # type: ignore[union-attr]


@pytest.mark.parametrize("name", ["journal.json", "journal.iso", "journal.short"])
def test_journal_in_each_form_says_the_same(name: str) -> None:
    login, failed, sudo, logout = sample(name)
    assert (login.act, login.account, login.origin, login.host) == (Act.LOGIN, "vera", "10.9.0.7", "node3")
    assert login.note.startswith("publickey: ED25519 SHA256:")
    assert (failed.act, failed.account, failed.origin) == (Act.LOGIN_FAILED, "admin", "203.0.113.9")
    assert (sudo.account, sudo.login, sudo.processes[0].argv) == ("root", "vera", ("/usr/bin/kill", "-9", "8000"))
    assert (logout.act, logout.processes[0].pid) == (Act.LOGOUT, 4242)
    assert login.error_ns == (SECOND if name == "journal.short" else 1000)


def test_what_an_ssh_server_wrote_to_its_log_and_to_wtmp_tells_the_same_sessions() -> None:
    told, kept = sample("sshd.iso"), sample("wtmp.sshd")
    failed = [e for e in told if e.act is Act.LOGIN_FAILED]
    assert [(e.account, e.origin, e.note) for e in failed] == [("admin", "127.0.0.1", "no such user")]
    sessions = [e for e in told if e not in failed]
    assert [(e.act, e.account, e.processes[0].pid) for e in sessions] == [
        (e.act, e.account, e.processes[0].pid) for e in kept
    ]
    assert [e.act for e in kept] == [Act.LOGIN, Act.LOGOUT, Act.LOGIN, Act.LOGOUT]
    assert all(abs(a.time_ns - b.time_ns) < SECOND // 10 for a, b in zip(sessions, kept, strict=True))


def test_what_journald_kept_tells_the_sessions_that_audit_tells_and_sudo_without_a_terminal() -> None:
    told = sample("journald.json")
    assert [(e.act, e.account, e.login) for e in told] == [
        (Act.LOGIN, "vera", ""),
        (Act.EXECUTE, "root", "vera"),
        (Act.LOGOUT, "vera", ""),
        (Act.LOGIN, "vera", ""),
        (Act.LOGOUT, "vera", ""),
        (Act.LOGIN_FAILED, "nobody-here", ""),
    ]
    assert told[1].processes[0].argv[:2] == ("/usr/bin/kill", "-9")
    audited = [e for e in sample("auditd.log") if e.act in (Act.LOGIN, Act.LOGOUT)]
    kept = [e for e in told if e.act in (Act.LOGIN, Act.LOGOUT)]
    assert all(abs(a.time_ns - k.time_ns) < SECOND // 10 for a, k in zip(audited, kept, strict=True))


def test_wtmp_joins_an_end_to_its_login_by_the_terminal() -> None:
    boot, login, logout, other = sample("wtmp")
    assert (boot.act, boot.note) == (Act.OTHER, "boot")
    assert (login.account, login.origin, login.path, login.processes[0].pid) == ("vera", "10.9.0.7", "pts/3", 4242)
    assert (logout.act, logout.account, other.account) == (Act.LOGOUT, "vera", "noor")
    assert login.time_ns == at("2026-09-30T08:00:00.093")
    torn = read((SAMPLES / "wtmp").read_bytes()[:-7], "wtmp")
    assert len(torn) == 4
    assert isinstance(torn[-1], Unread)


def test_teleport_knows_the_person_behind_a_shared_login_and_their_second_factor() -> None:
    login, session, write, logout, lock = sample("teleport.json")
    assert (login.act, login.account, login.binding) == (Act.LOGIN, "vera", Binding.SECOND_FACTOR)
    assert (session.account, session.login, session.host) == ("trainer", "vera", "node3")
    assert (session.binding, session.origin) == (Binding.NONE, "10.9.0.7")
    assert (write.act, write.path, logout.act) == (Act.WRITE, ADAMW, Act.LOGOUT)
    assert (lock.act, lock.account, lock.login) == (Act.REVOKE, "vera", "sec-admin")


def test_what_teleport_recorded_gives_each_session_one_account_from_login_to_logout() -> None:
    """6.1 ends an interactive session without its login, and tells a command or a copy without the host's name."""
    told = sample("teleport.recorded")
    auth = next(e.login for e in told if e.act is Act.GRANT)
    copied = "/tmp/shared/env/launch.sh"
    assert [(e.act, e.account, e.login, e.host, e.path) for e in told[:8]] == [
        (Act.GRANT, "vera", auth, "here", "teleport"),
        (Act.GRANT, "omar", auth, "here", "teleport"),
        (Act.LOGIN_FAILED, "vera", "", "here", "train.example.com"),
        (Act.LOGIN, "vera", "", "here", "train.example.com"),
        (Act.LOGIN, "omar", "", "here", "train.example.com"),
        (Act.LOGIN, "trainer", "vera", "node3", "node3"),
        (Act.EXECUTE, "trainer", "vera", "node3", "sed -i s/0.999/0.99/ /tmp/shared/env/lib/torch/optim/adamw.py"),
        (Act.LOGIN_FAILED, "root", "vera", "here", ""),
    ]
    assert [e.binding for e in told[2:5]] == [Binding.NONE, Binding.SECOND_FACTOR, Binding.SECOND_FACTOR]
    begun = {e.session: e for e in told if e.act is Act.LOGIN and e.note == "session.start"}
    ended = {e.session: e for e in told if e.act is Act.LOGOUT and e.note == "session.end"}
    assert begun.keys() == ended.keys()
    assert all((e.account, e.login, e.host) == ("trainer", "vera", "node3") for e in (*begun.values(), *ended.values()))
    assert all(begun[s].time_ns < ended[s].time_ns for s in begun)
    (joined,) = (e for e in told if e.note == "session.join")
    assert (joined.account, joined.login, joined.session in begun) == ("trainer", "omar", True)
    assert [(e.account, e.login) for e in told if e.note == "session.leave"] == [
        ("trainer", "vera"),
        ("trainer", "omar"),
        ("trainer", "vera"),
    ]
    assert [(e.act, e.path, e.host) for e in told if e.note == "scp"] == [
        (Act.WRITE, copied, "node3"),
        (Act.READ, "/tmp/shared/env/lib/torch/optim/adamw.py", "node3"),
    ]
    assert (told[-1].act, told[-1].account, told[-1].time_ns) == (Act.REVOKE, "vera", at("2026-11-29T05:11:29.625"))


def test_teleport_tells_who_joins_a_session_who_was_refused_and_whom_a_lock_is_of() -> None:
    """As published events have them: a lock's own name is a number."""
    common = '"ei":0,"uid":"u","cluster_name":"c","time":"2025-08-16T16:23:08.148Z"'
    join = f'{{{common},"event":"session.join","code":"T2001I","user":"omar","login":"root","sid":"s"}}'
    auth = f'{{{common},"event":"auth","code":"T3007W","success":false,"error":"not in the set","user":"omar"}}'
    lock = (
        f'{{{common},"event":"lock.created","code":"TLK00I","name":"8888-4444","target":{{"user":"vera"}},'
        '"updated_by":"sec","user":"sec"}'
    )
    told = [i for i in read("\n".join([join, auth, lock]).encode(), "x") if isinstance(i, CustodyEvent)]
    assert [(e.act, e.account, e.login, e.session) for e in told] == [
        (Act.LOGIN, "root", "omar", "s"),
        (Act.LOGIN_FAILED, "omar", "", ""),
        (Act.REVOKE, "vera", "sec", ""),
    ]


def test_pushes_are_of_who_was_authenticated_in_each_form_that_github_tells_them() -> None:
    hook = (
        '{"ref":"refs/heads/main","before":"0f","after":"a1","forced":true,"pusher":{"name":"ada"},'
        '"sender":{"login":"vera"},"repository":{"full_name":"acme/train","pushed_at":1790755300},"commits":'
        '[{"author":{"name":"noor"}}]}'
    )
    event = (
        '{"id":"1","type":"PushEvent","actor":{"login":"vera"},"repo":{"name":"acme/train"},"payload":{"ref":'
        '"refs/heads/main","head":"a1","before":"0f"},"created_at":"2026-09-30T08:01:40Z"}'
    )
    for text in (hook, event):
        (push,) = (i for i in read(text.encode(), "x") if isinstance(i, CustodyEvent))
        assert (push.act, push.account, push.path, push.digest) == (Act.PUSH, "vera", "acme/train", "git:a1")
        assert push.time_ns == at("2026-09-30T08:01:40")


def test_a_branch_that_is_made_or_deleted_names_no_object_of_zeros() -> None:
    """A webhook says so as `@octokit/webhooks-examples` 7.6.1 has it; git's reflog as it was recorded."""
    none, some = "0" * 40, "6113728f27ae82c7b1a177c8d03f9e96e0adf246"
    hook = (
        '{"ref":"refs/tags/simple-tag","before":"%s","after":"%s","created":%s,"deleted":%s,"forced":false,"commits":[],'
        '"pusher":{"name":"vera"},"sender":{"login":"vera"},"repository":{"full_name":"acme/train","pushed_at":1557933657}}'
    )
    lines = "\n".join((hook % (none, some, "true", "false"), hook % (some, none, "false", "true")))
    made, deleted = (i for i in read(lines.encode(), "x") if isinstance(i, CustodyEvent))
    assert (made.before, made.digest, made.note) == ("", f"git:{some}", "refs/tags/simple-tag, created")
    assert (deleted.before, deleted.digest, deleted.note) == (f"git:{some}", "", "refs/tags/simple-tag, deleted")
    assert {e.before for e in sample("reflog")} == {""}


def github_answered(name: str) -> list[dict[str, Any]]:
    """The events that api.github.com answered with when PyGithub's test `name` was recorded."""
    if not GITHUB.exists():
        pytest.skip(f"{GITHUB.name} was not fetched: `make test` says why")
    with tarfile.open(GITHUB) as packed:
        replay = packed.extractfile(f"{GITHUB.name.removesuffix('.tar.gz')}/tests/ReplayData/{name}.txt")
        assert replay is not None
        (body,) = (line for line in replay.read().splitlines() if line.startswith(b"[{"))
    return list(json.loads(body))


@pytest.mark.parametrize(
    ("name", "pushes", "tells_before"), [("Github.testGetEvents", 16, True), ("Repository.testGetEvents", 7, False)]
)
def test_pushes_that_github_itself_told_are_read_and_its_other_events_are_no_faults(
    name: str, pushes: int, tells_before: bool
) -> None:
    """Recorded in 2020 and in 2012, when pushes had no `before` yet; of these the first event is no push."""
    events = github_answered(name)
    items = read("\n".join(map(json.dumps, events)).encode(), "x")
    told = [i for i in items if isinstance(i, CustodyEvent)]
    assert (len(items), len(told), {e.act for e in told}) == (pushes, pushes, {Act.PUSH})
    assert [(e.account, e.path, e.digest, e.time_ns) for e in told] == [
        (e["actor"]["login"], e["repo"]["name"], f"git:{e['payload']['head']}", at(e["created_at"].rstrip("Z")))
        for e in events
        if e["type"] == "PushEvent"
    ]
    assert {bool(e.before) for e in told} == {tells_before}


def test_git_believes_a_key_and_takes_an_author_as_text() -> None:
    tidy, moved, optimizer, added = sample("git.log")
    assert (tidy.account, tidy.binding, tidy.login) == ("vera@example.com", Binding.NONE, "")
    assert "author, as it says: noor@example.com" in tidy.note
    assert (moved.path, moved.before, moved.digest) == (
        "opt/adam_w.py",
        "git:78981922613b2afb6025042ff6bd878ac1994e85",
        "git:422c2b7ab3b3c668038da977e4e93a5fc623169c",
    )
    assert (optimizer.binding, added.binding, added.before) == (Binding.KEY, Binding.KEY, "")
    assert sample("reflog")[0].act is Act.PUSH
    (push,) = sample("push.json")
    assert (push.act, push.account, push.origin, push.path) == (Act.PUSH, "vera", "10.9.0.7", "acme/train")


def test_metadata_never_makes_an_owner_the_writer() -> None:
    for name in ("find.txt", "stat.txt"):
        owner, write, *_ = sample(name)
        assert (owner.act, owner.account) == (Act.EXISTS, "root")
        assert (write.act, write.account) == (Act.WRITE, "")
    _, write, inode = sample("stat.txt")
    assert (write.time_ns, inode.act) == (at("2026-09-01T10:00:00.500"), Act.ATTRIBUTES)
    assert inode.time_ns > write.time_ns  # touch -d: mtime was set back, ctime tells


def test_snapshots_tell_what_changed_and_name_nobody() -> None:
    btrfs, zfs = sample("btrfs.dump"), sample("zfs.diff")
    assert {(e.act, e.path) for e in btrfs} >= {
        (Act.WRITE, "torch/adamw.py"), (Act.WRITE, "b.py"), (Act.WRITE, "new.py"), (Act.DELETE, "a file.py"),
        (Act.DELETE, "gone.py"), (Act.ATTRIBUTES, "new.py"),
    }  # fmt: skip
    assert {e.account for e in btrfs + zfs} == {""}
    assert all(e.time_ns == at("2026-11-28T18:08:53") for e in btrfs)
    assert [(e.act, e.path) for e in zfs[1:]] == [
        (Act.WRITE, "/tank/env/torch/optim/adamw.py"),
        (Act.WRITE, "/tank/env/new file.py"),
        (Act.RENAME, "/tank/env/older.py"),
        (Act.DELETE, "/tank/env/gone.py"),
    ]


def test_shell_history_is_weak_and_a_command_without_a_time_is_told() -> None:
    assert readers.reader_for(SourceKind.SHELL).weak
    items = read((SAMPLES / "bash_history").read_bytes() + b"ls\n", "x")
    assert [type(i) for i in items] == [*[CustodyEvent] * 4, Unread]
    for name in ("bash_history", "zsh_history", "fish_history"):
        _, touched, loop, _ = sample(name)  # the third goes over three lines
        assert touched.processes[0].argv == ("touch", "-r", "/etc/hostname", "adamw.py")
        assert loop.processes[0].argv[:3] == ("for", "f", "in")
        assert {"wc", "-l", "$f"} <= {word.strip(";") for word in loop.processes[0].argv}
        assert 0 <= loop.time_ns - touched.time_ns < 10 * SECOND


def test_statements_are_custody_events_with_times_that_people_write() -> None:
    absent, told, holds = sample("statements.jsonl")
    assert (absent.act, absent.person, absent.binding) == (Act.ABSENT, "P1", Binding.IN_PERSON)
    assert absent.until_ns - absent.time_ns == 5 * 3600 * SECOND
    assert (told.act, holds.act, holds.kind) == (Act.DISCLOSE, Act.HOLDS, ActorKind.PERSON)
    (bad,) = read(b'{"act":"accuse","time":"2026-09-30T07:00"}\n', "s.jsonl")
    assert isinstance(bad, Unread)
    assert "accuse" in bad.reason


@pytest.mark.parametrize("name", LINES)
@pytest.mark.parametrize(
    "bad", [b"\x00\xff garbage {", b"{}", b"x" * (LONGEST_LINE + 5)], ids=["bytes", "empty", "long"]
)
def test_a_bad_line_is_told_by_its_number_and_costs_no_other(name: str, bad: bytes) -> None:
    lines = (SAMPLES / name).read_bytes().splitlines(keepends=True)
    whole = read(b"".join(lines), name)
    after = 1 if name not in ("bash_history",) else 2
    items = read(b"".join([*lines[:after], bad + b"\n", *lines[after:]]), name)
    moved = [e for e in items if isinstance(e, CustodyEvent)]
    assert [(e.act, e.path, e.account) for e in moved] == [
        (e.act, e.path, e.account) for e in whole if isinstance(e, CustodyEvent)
    ]
    skipped = name.startswith("falco.") and not bad.startswith(b"{")  # its own chatter
    if not skipped:
        assert next(i.line for i in items if isinstance(i, Unread)) == after + 1


def test_a_compressed_file_is_read_and_one_that_breaks_off_says_so(tmp_path: Path) -> None:
    lines = (SAMPLES / "audit.raw").read_bytes()
    path = tmp_path / "audit.log.1.gz"
    path.write_bytes(gzip.compress(lines))
    with opened(path) as file:
        assert len([i for i in read_all(readers.reader_for(SourceKind.AUDIT), file, CONTEXT) if i]) == 5
    path.write_bytes(gzip.compress(lines)[:-20])
    with opened(path) as file:
        assert isinstance(list(read_all(readers.reader_for(SourceKind.AUDIT), file, CONTEXT))[-1], Unread)


@pytest.mark.parametrize("kind", list(SourceKind))
@settings(max_examples=60, deadline=None)
@given(data=st.data())
def test_no_bytes_make_a_reader_fail(kind: SourceKind, data: st.DataObject) -> None:
    of_kind = [n for n, k in KINDS.items() if k is kind]
    base = (SAMPLES / data.draw(st.sampled_from(of_kind))).read_bytes() if of_kind else b"H\0\0\0\1x"
    cut = data.draw(st.integers(0, len(base)))
    junk = data.draw(st.one_of(st.binary(max_size=60), st.text(max_size=40).map(str.encode)))
    drop = data.draw(st.integers(0, 40))
    reader = readers.reader_for(kind)
    for raw in (base[:cut] + junk + base[cut + drop :], junk):
        reader.recognise(raw, "records")
        for item in read_all(reader, io.BytesIO(raw), CONTEXT):
            assert item is None or isinstance(item, CustodyEvent | Unread)
