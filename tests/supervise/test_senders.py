"""Who sent a signal: recorded samples of what each source says, and what works on this machine."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest
from supervised import until

from trainwarden.model import Writer
from trainwarden.supervise.senders import Senders, Sent, audited, memory, traced
from trainwarden.supervise.senders.audited import Audited
from trainwarden.supervise.senders.memory import OutOfMemory
from trainwarden.supervise.senders.traced import Traced

# Recorded with record-tgid on Linux 6.18, and without it on older ones, Android's among them.
TRACE = """\
         python3-17552   (  17511) [001] d..1. 11873.957611: signal_generate: sig=9 errno=0 code=0 comm=sleep pid=17510 grp=1 res=0
            bash-1465  [001] d...  6264.582237: signal_generate: sig=9 errno=0 code=0 comm=raspbian_proc pid=1617 grp=1 res=0
       sh-22775 [000] d..2 18844.276419: signal_generate: sig=9 errno=0 code=0 comm=cent.tim:Daemon pid=10649 grp=1 res=0
      Thread-89-10712 [000] dn.2 18844.340735: signal_generate: sig=9 errno=0 code=0 comm=tencent.tim:MSF pid=10669 grp=1 res=0
            repro-4084    [112] d..1.   233.654272: signal_generate: sig=9 errno=0 code=0 comm=repro pid=4085 grp=1 res=1
         python3-17617   (-------) [000] d.h2. 11874.214100: signal_generate: sig=9 errno=0 code=128 comm=python3 pid=17617 grp=1 res=0
"""  # noqa: E501
AUDIT = """\
type=PROCTITLE msg=audit(1695710251.567:366042): proctitle=73680078646B696C6C2E7368
type=SYSCALL msg=audit(1695710251.567:366042): arch=c000003e syscall=62 success=yes exit=0 a0=1dfd a1=9 a2=0 a3=7ffe8cad2ee0 items=0 ppid=5533 pid=7885 auid=0 uid=0 gid=0 euid=0 suid=0 fsuid=0 egid=0 sgid=0 fsgid=0 tty=pts5 ses=7482 comm="sh" exe="/usr/bin/bash" subj=unconfined_u:unconfined_r:unconfined_t:s0-s0:c0.c1023 key=(null)
type=OBJ_PID msg=audit(1695710251.567:366042): opid=7677 oauid=0 ouid=0 oses=7482 obj=unconfined_u:unconfined_r:unconfined_t:s0-s0:c0.c1023 ocomm="sh"
type=OBJ_PID msg=audit(1515661137.703:156743): opid=29236 oauid=0 ouid=0 oses=23836 obj=unconfined_u:unconfined_r:unconfined_t:s0-s0:c0.c1023 ocomm="push"
type=SYSCALL msg=audit(1515661137.703:156743): arch=c000003e syscall=62 success=yes exit=0 a0=7234 a1=9 a2=0 a3=7234 items=0 ppid=48597 pid=24814 auid=4294967295 uid=1001 gid=0 euid=0 suid=0 fsuid=0 egid=0 sgid=0 fsgid=0 tty=pts9 ses=23836 comm="sh" exe="/bin/bash" key="teste_kill"
type=SYSCALL msg=audit(1515661138.100:156744): arch=c000003e syscall=62 success=no exit=-1 a0=7234 a1=9 a2=0 a3=7234 items=0 ppid=1 pid=30000 auid=1000 uid=1000 comm="sh" exe="/bin/bash"
type=OBJ_PID msg=audit(1515661138.100:156744): opid=29236 oauid=0 ouid=0 ocomm="push"
"""  # noqa: E501
KMSG = (  # recorded on Linux 6.18; the third as older kernels write it
    "6,418,11874214145,-;oom-kill:constraint=CONSTRAINT_MEMCG,nodemask=(null),cpuset=/,mems_allowed=0,oom_memcg=/twtest,"
    "task_memcg=/twtest,task=python3,pid=17617,uid=0\n",
    "3,419,11874214161,-;Memory cgroup out of memory: Killed process 17618 (python3) total-vm:221372kB,"
    " anon-rss:47616kB, file-rss:6600kB, shmem-rss:0kB, UID:0 pgtables:160kB oom_score_adj:0\n",
    "3,7,99,-;Out of memory: Killed process 17619 (stress-ng-vm) total-vm:8423244kB, anon-rss:8312064kB\n",
)
V1 = "oom_kill_disable 0\nunder_oom 0\noom_kill 1\n"
V2 = "low 0\nhigh 0\nmax 25\noom 1\noom_kill 3\noom_group_kill 0\n"


def test_lines_of_the_signal_trace_name_sender_and_receiver() -> None:
    seen = [traced.parse(line) for line in TRACE.splitlines()]
    assert [(s.sender, s.comm, s.signal, s.pid, s.delivered) for s in seen if s] == [
        (17511, "python3", 9, 17510, True),
        (1465, "bash", 9, 1617, True),
        (22775, "sh", 9, 10649, True),
        (10712, "Thread-89", 9, 10669, True),
        (4084, "repro", 9, 4085, False),
        (17617, "python3", 9, 17617, True),
    ]
    assert seen[-1] is not None
    assert seen[-1].code == 128
    assert traced.parse("CPU:0 [LOST 4 EVENTS]") is None
    assert traced.parse("bash-1 [001] d... 1.0: signal_deliver: sig=9 errno=0 code=0 sa_handler=0 sa_flags=0") is None


def test_audit_records_are_joined_by_their_serial_and_calls_that_failed_left_out() -> None:
    first, second = audited.parse(AUDIT)
    assert (first.pid, first.arguments[1], first.sender) == (
        7677, 9, Writer(pid=7885, uid=0, login_uid=0, program="/usr/bin/bash"),
    )  # fmt: skip
    assert (second.pid, second.sender) == (29236, Writer(pid=24814, uid=1001, program="/bin/bash"))
    assert audited.parse("type=OBJ_PID msg=audit(1.2:3): opid=x\ngarbage\ntype=SYSCALL\n") == []


def test_the_audit_log_is_read_from_where_it_stood_at_the_start(tmp_path: Path) -> None:
    log = tmp_path / "audit.log"
    log.write_text("old\n")
    source = Audited(str(log))
    assert source.start() == ""
    assert source.sent(29236, 9) is None
    with log.open("a") as f:
        f.write(AUDIT)
    assert source.sent(29236, 9) == Sent(by="Linux audit", sender=Writer(pid=24814, uid=1001, program="/bin/bash"))
    assert source.sent(29236, 15) is None
    assert "No such file" in Audited(str(tmp_path / "none")).start()


def test_the_kernels_log_and_the_counts_of_control_groups_tell_of_its_oom_killer() -> None:
    assert [memory.killed(line) for line in KMSG] == [17617, 17618, 17619]
    assert memory.killed("6,7,99,-;python3 invoked oom-killer: gfp_mask=0xcc0(GFP_KERNEL), order=0") == 0
    assert (memory.count(V1), memory.count(V2), memory.count("")) == (1, 3, -1)
    hybrid = "9:name=systemd:/\n4:memory:/jobs/one\n0::/\n"
    assert memory.group_file(hybrid) == "/sys/fs/cgroup/memory/jobs/one/memory.oom_control"
    assert memory.group_file("") == ""


class Knows:
    def __init__(self, sent: Sent | None, reason: str = "") -> None:
        self._sent, self._reason = sent, reason

    def start(self) -> str:
        return self._reason

    def sent(self, pid: int, signal: int) -> Sent | None:
        return self._sent

    def close(self) -> None:
        pass


def test_the_first_source_that_knows_is_believed_and_where_none_does_the_reasons_are_told() -> None:
    senders = Senders((Knows(None, "no tracefs"), Knows(Sent(by="a")), Knows(Sent(by="b"))))
    senders.start()
    assert senders.of(1, 9) == Sent(by="a")
    blind = Senders((Knows(None, "no tracefs"), Knows(None, "no audit log")))
    blind.start()
    assert blind.of(1, 9) == "the system does not tell; no tracefs; no audit log"


# -- what this machine can do


@pytest.fixture
def source() -> Iterator[Traced]:
    source = Traced()
    reason = source.start()
    if reason:
        pytest.skip(f"the kernel's signal trace cannot be used here ({reason}): it needs root and tracefs")
    yield source
    source.close()


def test_the_sender_of_a_real_kill_is_named_by_the_kernel(source: Traced) -> None:
    victim = subprocess.Popen([sys.executable, "-c", "import signal; signal.pause()"])
    os.kill(victim.pid, signal.SIGKILL)
    victim.wait()
    until(lambda: source.sent(victim.pid, signal.SIGKILL) is not None, "the trace tells of the signal")
    sent = source.sent(victim.pid, signal.SIGKILL)
    assert sent is not None
    assert sent.sender is not None
    assert (sent.sender.pid, sent.sender.uid) == (os.getpid(), os.getuid())
    assert source.sent(victim.pid, 0) == sent


def test_nothing_of_the_trace_is_left_behind() -> None:
    source = Traced()
    if reason := source.start():
        pytest.skip(f"the kernel's signal trace cannot be used here ({reason})")
    instances = os.dup(source._instances)
    assert source._name in os.listdir(instances)
    source.close()
    assert source._name not in os.listdir(instances)
    os.close(instances)


def test_a_real_end_by_the_oom_killer_is_told_from_the_kernels_log() -> None:
    group = Path("/sys/fs/cgroup/memory") / f"trainwarden-test-{os.getpid()}"
    source = OutOfMemory()
    if source.start() or source._kmsg < 0:
        pytest.skip("the kernel's log cannot be read here")
    try:
        group.mkdir()
        (group / "memory.limit_in_bytes").write_text(str(32 << 20))
    except OSError as e:
        source.close()
        pytest.skip(f"no control group can be made here: {e.strerror}")
    code = f"import os; open('{group}/cgroup.procs', 'w').write(str(os.getpid())); bytearray(256 << 20)"
    try:
        victim = subprocess.Popen([sys.executable, "-c", code])
        ended = victim.wait()
        if ended != -signal.SIGKILL:
            pytest.skip(f"the group's limit did not end the process here (it ended with {ended}: there is swap)")
        sent = source.sent(victim.pid, signal.SIGKILL)
        assert sent == Sent(by="the kernel's log: its OOM killer")
        assert source.sent(os.getpid(), signal.SIGKILL) is None
    finally:
        source.close()
        group.rmdir()
