"""A few weeks of an ordinary cluster, written as its programs write them: audit, logins, jobs, kernel events.

`World` writes the records, and a story of `incidents.py` goes into them. Nobody in them exists.
"""

from __future__ import annotations

import json
import struct
from collections.abc import Mapping, Sequence
from datetime import UTC, datetime
from typing import NamedTuple

from trainwarden.attribute.facts import Replayed
from trainwarden.attribute.nouns import Hypothesis
from trainwarden.model import Artefact, SourceKind

SECOND = 1_000_000_000
HOUR, DAY = 3600, 86_400
BEGIN = int(datetime(2026, 9, 1, tzinfo=UTC).timestamp())
_UTMP = struct.Struct("<hxxi32s4s32s256s4xiii16s20x")
UIDS = {"omar": 1001, "vera": 1002, "noor": 1003, "ipsen": 1004, "trainer": 1010, "agent-tuner": 1020, "root": 0}
HOMES = {"omar": "10.1.0.11", "vera": "10.1.0.12", "noor": "10.1.0.13", "ipsen": "10.1.0.14", "trainer": "10.1.0.9"}
LIBRARY = "/shared/env/torch/optim/"
_EXPLAINED = Replayed(diverged=2, explained=1)


class Records(NamedTuple):
    """One file of records, and what whoever takes it in says of it."""

    name: str
    data: bytes
    kind: SourceKind
    editors: tuple[str, ...] = ()
    account: str = ""


class Scenario(NamedTuple):
    """An incident: what is known of it, and what is true."""

    name: str
    story: str
    records: tuple[Records, ...]
    artefacts: tuple[Artefact, ...]
    truth: Hypothesis
    decidable: bool
    innocent: tuple[str, ...]  # accounts whose holders did nothing
    replayed: Replayed
    aliases: Mapping[str, Sequence[str]]  # other names of artefacts' digests


class World:
    """A cluster's records while they are written. Times are seconds since `BEGIN`, by the true clock."""

    def __init__(self, *, audit: bool = True, tetragon: bool = True, teleport: bool = True) -> None:
        self.on = {"audit": audit, "tetragon": tetragon, "teleport": teleport}
        self.lines: dict[str, list[tuple[float, str]]] = {}
        self.utmp: list[tuple[float, bytes]] = []
        self.serial, self.pid = 100, 5000
        self.artefacts: list[Artefact] = []
        for day in range(20):
            for n, who in enumerate(("omar", "vera", "noor", "ipsen")):
                self.session(day * DAY + 8 * HOUR + n * 700, who, hours=1)

    def put(self, name: str, t: float, line: str) -> None:
        self.lines.setdefault(name, []).append((t, line))

    # ---------------------------------------------------------------- what people and programs do

    def session(
        self, t: float, who: str, *, origin: str = "", hours: float = 2, factor: bool = True, host: str = "node3"
    ) -> int:
        """A login over ssh by way of Teleport, and its end; its process id."""
        self.pid += 7
        pid, origin, end = self.pid, origin or HOMES.get(who, "10.1.0.99"), t + hours * HOUR
        node = t + 0.4  # its clock
        self.put(
            "auth.log",
            node,
            f"{iso(node)} {host} sshd[{pid}]: Accepted publickey for {who} from {origin} port 5022 ssh2: ED25519 SHA256:k{who}",
        )
        self.put(
            "auth.log",
            end,
            f"{iso(end + 0.4)} {host} sshd[{pid}]: pam_unix(sshd:session): session closed for user {who}",
        )
        for at, kind, user in ((node, 7, who), (end + 0.4, 8, "")):
            whole, part = divmod(BEGIN * 1_000_000 + round(at * 1_000_000), 1_000_000)
            self.utmp.append(
                (at, _UTMP.pack(kind, pid, b"pts/%d" % pid, b"", user.encode(), origin.encode(), 0, whole, part, b""))
            )
        if self.on["teleport"]:
            away = t - 7.25  # the clock of the login service is behind
            sid = f"sid-{pid}"
            common = {"user": who, "login": who, "sid": sid, "server_hostname": host, "addr.remote": f"{origin}:40001"}
            start = {"ei": 0, "event": "session.start", "code": "T2000I", "time": iso(away), **common}
            if factor:
                start["with_mfa"] = f"device-of-{who}"
            self.put("teleport.json", away, json.dumps(start))
            self.put(
                "teleport.json",
                end,
                json.dumps({"ei": 9, "event": "session.end", "code": "T2004I", "time": iso(end - 7.25), **common}),
            )
            self.pid_of_sshd(t, who, pid, host, origin)
        return pid

    def pid_of_sshd(self, t: float, who: str, pid: int, host: str, origin: str) -> None:
        """The audit record of the same login."""
        if self.on["audit"]:
            self.audit(
                t,
                host,
                "USER_LOGIN",
                f'pid={pid} uid=0 auid={UIDS[who]} ses={pid} msg=\'op=login id={UIDS[who]} exe="/usr/sbin/sshd" hostname={origin} addr={origin} terminal=ssh res=success\'\x1dUID="root" AUID="{who}" ID="{who}"',
            )

    def audit(self, t: float, host: str, kind: str, body: str) -> None:
        self.put("audit.log", t, f"node={host} type={kind} msg=audit({BEGIN + t + 0.4:.3f}:{self.serial}): {body}")

    def syscall(
        self,
        t: float,
        host: str,
        name: str,
        number: int,
        given: str,
        who: str,
        run_as: str,
        session: int,
        program: str,
        *,
        key: str,
    ) -> None:
        """The audit record of a system call by the newest process; `given`: what it returned and was given."""
        ids = f"ppid={self.pid - 1} pid={self.pid} auid={UIDS[who]} uid={UIDS[run_as]} ses={session}"
        self.audit(
            t,
            host,
            "SYSCALL",
            f'arch=c000003e syscall={number} success=yes {given} items=1 {ids} comm="x" exe="{program}" key="{key}"\x1dSYSCALL={name} AUID="{who}" UID="{run_as}"',
        )

    def path(self, t: float, host: str, path: str, *, inode: int, mode: str) -> None:
        """The audit record of the file that a system call named."""
        told = f"inode={inode} dev=08:01 mode={mode} ouid=0 ogid=0 rdev=00:00 nametype=NORMAL"
        self.audit(t, host, "PATH", f'item=0 name="{path}" {told}')

    def write(
        self,
        t: float,
        who: str,
        path: str,
        *,
        session: int = 0,
        host: str = "node3",
        program: str = "/usr/bin/vim",
        parents: tuple[str, ...] = ("/bin/bash",),
        uid: str = "",
    ) -> None:
        """A write as the kernel sees it, told by Linux audit and by Tetragon."""
        self.pid += 3
        self.serial += 1
        run_as = uid or who
        if self.on["audit"]:
            given = "exit=3 a0=ffffff9c a1=0 a2=241 a3=1b6"
            self.syscall(t, host, "openat", 257, given, who, run_as, session, program, key="env")
            self.path(t, host, path, inode=12, mode="0100644")
        if self.on["tetragon"]:
            tree = [{"pid": self.pid - 1 - n, "binary": p} for n, p in enumerate(parents)]
            event = {
                "process_kprobe": {
                    "process": {"pid": self.pid, "uid": UIDS[run_as], "auid": UIDS[who], "binary": program, "arguments": path},
                    "parent": tree[0] if tree else {}, "ancestors": tree[1:], "function_name": "security_file_permission",
                    "args": [{"file_arg": {"path": path}}, {"int_arg": 2}],
                },
                "node_name": host, "time": iso(t + 0.4),
            }  # fmt: skip
            self.put("tetragon.json", t, json.dumps(event))

    def run(self, t: float, who: str, *argv: str, session: int = 0, host: str = "node3", uid: str = "") -> None:
        """A program started."""
        self.pid += 3
        self.serial += 1
        run_as = uid or who
        if self.on["audit"]:
            program, given = f"/usr/bin/{argv[0]}", "exit=0 a0=0 a1=0 a2=0 a3=0"
            self.syscall(t, host, "execve", 59, given, who, run_as, session, program, key="exec")
            self.audit(t, host, "EXECVE", f"argc={len(argv)} " + " ".join(f'a{n}="{a}"' for n, a in enumerate(argv)))
            self.path(t, host, program, inode=1, mode="0100755")
        if self.on["tetragon"]:
            event = {
                "process_exec": {
                    "process": {"pid": self.pid, "uid": UIDS[run_as], "auid": UIDS[who], "binary": f"/usr/bin/{argv[0]}", "arguments": " ".join(argv[1:])},
                    "parent": {"pid": self.pid - 1, "binary": "/bin/bash"},
                },
                "node_name": host, "time": iso(t + 0.4),
            }  # fmt: skip
            self.put("tetragon.json", t, json.dumps(event))

    def say(self, t: float, act: str, **fields: object) -> None:
        """A statement: a badge reader, minutes, a personnel record."""
        until = fields.pop("until", None)
        told = {"act": act, "time": iso(t), **fields}
        if isinstance(until, int | float):
            told["until"] = iso(until)
        self.put("statements.jsonl", t, json.dumps(told))

    def changed(self, t: float, path: str, n: int = 0) -> None:
        """An artefact: a sealed file that a run found changed."""
        digest = f"{n:02x}" * 32
        self.artefacts.append(
            Artefact(path=path, digest=digest, what="changed code", found_ns=int((BEGIN + t) * SECOND))
        )

    # ---------------------------------------------------------------- what is left of it

    def records(self) -> tuple[Records, ...]:
        """Every file, its lines in order."""
        own = {
            "audit.log": (SourceKind.AUDIT, ("root",), ""),
            "tetragon.json": (SourceKind.TETRAGON, ("admin:collector",), ""),  # sent to another host
            "auth.log": (SourceKind.JOURNAL, ("root",), ""),
            "teleport.json": (SourceKind.TELEPORT, ("admin:teleport",), ""),
            "statements.jsonl": (SourceKind.STATEMENT, ("admin:hr",), ""),
            "git.log": (SourceKind.GIT, (), ""),
            "find.txt": (SourceKind.FILES, (), ""),
        }
        found = []
        for name, lines in self.lines.items():
            kind, editors, account = own.get(name) or (SourceKind.SHELL, (), name.partition(".")[0])
            text = "\n".join(line for _, line in sorted(lines, key=lambda pair: pair[0])) + "\n"
            found.append(Records(name, text.encode(), kind, editors, account))
        utmp = b"".join(record for _, record in sorted(self.utmp))
        return (*found, Records("wtmp", utmp, SourceKind.WTMP, ("root",)))

    def scenario(
        self,
        name: str,
        story: str,
        truth: Hypothesis,
        *,
        decidable: bool = True,
        innocent: tuple[str, ...] = (),
        replayed: Replayed = _EXPLAINED,
        aliases: Mapping[str, Sequence[str]] = {},
    ) -> Scenario:
        return Scenario(
            name, story, self.records(), tuple(self.artefacts), truth, decidable, innocent, replayed, aliases
        )


def iso(t: float) -> str:
    return datetime.fromtimestamp(BEGIN + t, UTC).isoformat(timespec="microseconds").replace("+00:00", "Z")
