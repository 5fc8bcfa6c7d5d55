"""Scripted incidents with known truth, as records of the kinds that organisations have.

A scenario is a few weeks of an ordinary cluster, written by `World` as its programs write them, with one story in it.
`truth` is what happened; `decidable` says whether the records that were kept can tell. Nobody in them exists.
"""

from __future__ import annotations

import json
import struct
from collections.abc import Callable, Mapping, Sequence
from datetime import UTC, datetime
from typing import NamedTuple

from trainwarden.attribute.facts import Replayed
from trainwarden.attribute.nouns import Hypothesis, Kind
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
            f"{_iso(node)} {host} sshd[{pid}]: Accepted publickey for {who} from {origin} port 5022 ssh2: ED25519 SHA256:k{who}",
        )
        self.put(
            "auth.log",
            end,
            f"{_iso(end + 0.4)} {host} sshd[{pid}]: pam_unix(sshd:session): session closed for user {who}",
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
            start = {"ei": 0, "event": "session.start", "code": "T2000I", "time": _iso(away), **common}
            if factor:
                start["with_mfa"] = f"device-of-{who}"
            self.put("teleport.json", away, json.dumps(start))
            self.put(
                "teleport.json",
                end,
                json.dumps({"ei": 9, "event": "session.end", "code": "T2004I", "time": _iso(end - 7.25), **common}),
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
            self.audit(
                t,
                host,
                "SYSCALL",
                f'arch=c000003e syscall=257 success=yes exit=3 a0=ffffff9c a1=0 a2=241 a3=1b6 items=1 ppid={self.pid - 1} pid={self.pid} auid={UIDS[who]} uid={UIDS[run_as]} ses={session} comm="x" exe="{program}" key="env"\x1dSYSCALL=openat AUID="{who}" UID="{run_as}"',
            )
            self.audit(
                t,
                host,
                "PATH",
                f'item=0 name="{path}" inode=12 dev=08:01 mode=0100644 ouid=0 ogid=0 rdev=00:00 nametype=NORMAL',
            )
        if self.on["tetragon"]:
            tree = [{"pid": self.pid - 1 - n, "binary": p} for n, p in enumerate(parents)]
            event = {
                "process_kprobe": {
                    "process": {"pid": self.pid, "uid": UIDS[run_as], "auid": UIDS[who], "binary": program, "arguments": path},
                    "parent": tree[0] if tree else {}, "ancestors": tree[1:], "function_name": "security_file_permission",
                    "args": [{"file_arg": {"path": path}}, {"int_arg": 2}],
                },
                "node_name": host, "time": _iso(t + 0.4),
            }  # fmt: skip
            self.put("tetragon.json", t, json.dumps(event))

    def run(self, t: float, who: str, *argv: str, session: int = 0, host: str = "node3", uid: str = "") -> None:
        """A program started."""
        self.pid += 3
        self.serial += 1
        run_as = uid or who
        if self.on["audit"]:
            self.audit(
                t,
                host,
                "SYSCALL",
                f'arch=c000003e syscall=59 success=yes exit=0 a0=0 a1=0 a2=0 a3=0 items=1 ppid={self.pid - 1} pid={self.pid} auid={UIDS[who]} uid={UIDS[run_as]} ses={session} comm="x" exe="/usr/bin/{argv[0]}" key="exec"\x1dSYSCALL=execve AUID="{who}" UID="{run_as}"',
            )
            self.audit(t, host, "EXECVE", f"argc={len(argv)} " + " ".join(f'a{n}="{a}"' for n, a in enumerate(argv)))
            self.audit(
                t,
                host,
                "PATH",
                f'item=0 name="/usr/bin/{argv[0]}" inode=1 dev=08:01 mode=0100755 ouid=0 ogid=0 rdev=00:00 nametype=NORMAL',
            )
        if self.on["tetragon"]:
            event = {
                "process_exec": {
                    "process": {"pid": self.pid, "uid": UIDS[run_as], "auid": UIDS[who], "binary": f"/usr/bin/{argv[0]}", "arguments": " ".join(argv[1:])},
                    "parent": {"pid": self.pid - 1, "binary": "/bin/bash"},
                },
                "node_name": host, "time": _iso(t + 0.4),
            }  # fmt: skip
            self.put("tetragon.json", t, json.dumps(event))

    def say(self, t: float, act: str, **fields: object) -> None:
        """A statement: a badge reader, minutes, a personnel record."""
        until = fields.pop("until", None)
        told = {"act": act, "time": _iso(t), **fields}
        if isinstance(until, int | float):
            told["until"] = _iso(until)
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


def _iso(t: float) -> str:
    return datetime.fromtimestamp(BEGIN + t, UTC).isoformat(timespec="microseconds").replace("+00:00", "Z")


# --------------------------------------------------------------------------- the stories


def _deeds(
    world: World, who: str, *, days: tuple[int, ...] = (6, 8, 10, 13), hide: bool = True, **session: object
) -> None:
    """An account changes a file on each of these days, in a session of its own, and sets its time back."""
    for n, day in enumerate(days):
        t, path = day * DAY + 20 * HOUR, f"{LIBRARY}part{n}.py"
        pid = world.session(t, who, **session)  # type: ignore[arg-type]
        world.write(t + 600, who, path, session=pid)
        if hide:
            world.run(t + 660, who, "touch", "-r", f"{LIBRARY}other.py", path, session=pid)
        world.changed(t + 3 * HOUR, path, n + 1)


def insider_alone() -> Scenario:
    world = World()
    _deeds(world, "omar")
    for day in (6, 8, 10, 13):
        world.say(day * DAY + 10 * HOUR, "disclose", account="omar", note=f"daily meeting: part {day} is suspected")
    world.say(0, "holds", account="omar", person="P1", kind="person")
    return world.scenario("insider_alone", "one account, its second factor, times set back, after each meeting",
                          Hypothesis(kind=Kind.INSIDER, account="omar"), innocent=("vera", "noor", "ipsen"))  # fmt: skip


def framing_seen() -> Scenario:
    world = World()
    _deeds(world, "vera", hide=False)
    for n in range(4):
        path, t = f"{LIBRARY}part{n}.py", 14 * DAY + n * 60
        world.run(t, "vera", "sudo", "chown", "omar", path, uid="root")
        world.run(t + 1, "vera", "chown", "omar", path, uid="root")
        world.put("find.txt", t, f"{BEGIN + t:.10f} {BEGIN + t + 1:.10f} omar 644 900 {path}")
        world.put("omar.bash_history", t, f"#{BEGIN + int(t) - DAY}\nvim {path}")
    return world.scenario("framing_seen", "vera writes, then makes owner and history point at omar; the kernel's events were sent away",
                          Hypothesis(kind=Kind.INSIDER, account="vera"), innocent=("omar", "noor", "ipsen"))  # fmt: skip


def framing_blind() -> Scenario:
    world = World(tetragon=False, teleport=False)
    for day in (3, 4):
        world.run(day * DAY, "vera", "sudo", "-i", uid="root")
        world.put(
            "auth.log",
            day * DAY,
            f"{_iso(day * DAY)} node3 sudo[77]:     vera : TTY=pts/3 ; PWD=/ ; USER=root ; COMMAND=/bin/bash",
        )
    _deeds(world, "omar", factor=False)
    return world.scenario("framing_blind", "all records lie on a host where vera is root, and say that omar did it; vera wrote them",
                          Hypothesis(kind=Kind.FRAMING, account="omar"), decidable=False, innocent=("omar", "noor", "ipsen"))  # fmt: skip


def framing_in_session() -> Scenario:
    world = World(tetragon=False)
    for day in (3, 4):
        world.run(day * DAY, "vera", "sudo", "-i", uid="root")
    _deeds(world, "omar")
    return world.scenario("framing_in_session", "omar works, with his second factor; vera, root there, has the host's audit say that he wrote",
                          Hypothesis(kind=Kind.FRAMING, account="omar"), decidable=False, innocent=("omar", "noor", "ipsen"))  # fmt: skip


def stolen_account() -> Scenario:
    world = World()
    world.say(0, "holds", account="omar", person="P1", kind="person")
    for n, day in enumerate((6, 8, 10)):
        t, path = day * DAY + 3 * HOUR, f"{LIBRARY}part{n}.py"
        pid = world.session(t, "omar", origin="198.51.100.7", factor=False)
        world.write(t + 600, "omar", path, session=pid)
        world.changed(t + 3 * HOUR, path, n + 1)
        world.say(
            t - 2 * HOUR,
            "absent",
            until=t + 6 * HOUR,
            person="P1",
            binding="in_person",
            note="on a flight; boarding record",
        )
    return world.scenario("stolen_account", "omar's account from an address it never used, while its holder is in the air",
                          Hypothesis(kind=Kind.STOLEN, account="omar"), innocent=("omar", "vera", "noor", "ipsen"))  # fmt: skip


def stolen_blind() -> Scenario:
    world = World()
    _deeds(world, "omar", factor=False)
    return world.scenario("stolen_blind", "somebody at omar's own desk, without a second factor: no record can tell",
                          Hypothesis(kind=Kind.STOLEN, account="omar"), decidable=False, innocent=("omar", "vera", "noor", "ipsen"))  # fmt: skip


def another_intern() -> Scenario:
    world = World()
    _deeds(world, "noor", days=(8, 10, 13))
    world.put("ipsen.bash_history", 0, f"#{BEGIN + 8 * DAY}\nvim {LIBRARY}part0.py")
    world.say(7 * DAY, "revoke", account="ipsen", path="/shared/env", note="left the team")
    world.say(15 * DAY, "other", account="noor", note="it was another intern")
    world.say(0, "holds", account="noor", person="P3", kind="person")
    return world.scenario("another_intern", "\u201cit was another intern\u201d: ipsen, whose access had been taken away; noor's account wrote",
                          Hypothesis(kind=Kind.INSIDER, account="noor"), innocent=("omar", "vera", "ipsen"))  # fmt: skip


def hardware() -> Scenario:
    world = World()
    world.changed(9 * DAY, "", 9)
    world.artefacts.clear()
    for n in range(3):
        t = 9 * DAY + n * HOUR
        world.put(
            "auth.log",
            t,
            f"{_iso(t)} node3 kernel: NVRM: Xid (PCI:0000:41:00): 94, pid=4242, name=python, Contained: SM (0x1)",
        )
    return world.scenario("hardware", "losses differ on replay, nothing was changed, and the accelerator tells errors",
                          Hypothesis(kind=Kind.HARDWARE), innocent=("omar", "vera", "noor", "ipsen"),
                          replayed=Replayed(diverged=1, unexplained=1))  # fmt: skip


def honest_mistake() -> Scenario:
    world = World()
    t, path = 8 * DAY + 10 * HOUR, f"{LIBRARY}adamw.py"
    pid = world.session(t, "vera")
    blob = "c" * 40
    world.put(
        "git.log",
        t,
        f'commit {"b" * 40}\nGood "git" signature for vera with ED25519 key SHA256:kvera\nAuthor:     Vera <vera>\nAuthorDate: {BEGIN + t} +0000\nCommit:     Vera <vera>\nCommitDate: {BEGIN + t} +0000\n\n    Warm up longer\n\n:100644 100644 {"a" * 40} {blob} M\toptim/adamw.py\n',
    )
    world.write(t + 300, "vera", path, session=pid, program="/usr/bin/git")
    world.changed(t + 3 * HOUR, path, 1)
    world.say(t + 200, "approve", account="noor", digest="01" * 32, note="review of the change")
    return world.scenario("honest_mistake", "a wrong schedule, committed under a key, reviewed, installed by its author",
                          Hypothesis(kind=Kind.MISTAKE), innocent=("omar", "vera", "noor", "ipsen"),
                          aliases={"01" * 32: (f"git:{blob}",)})  # fmt: skip


def agent_instructed() -> Scenario:
    world = World()
    for n, day in enumerate((6, 8)):
        t, path = day * DAY + 14 * HOUR, f"{LIBRARY}part{n}.py"
        world.say(t - 900, "submit", account="omar", path="agent-tuner", note="prompt: make the baseline worse")
        world.write(t, "agent-tuner", path, program="/usr/bin/python3")
        world.changed(t + 3 * HOUR, path, n + 1)
    world.say(0, "grant", account="agent-tuner", kind="agent", path="/shared/env")
    return world.scenario("agent_instructed", "an AI agent changes files minutes after a prompt under omar's account",
                          Hypothesis(kind=Kind.INSTRUCTED, account="agent-tuner"), innocent=("vera", "noor", "ipsen"))  # fmt: skip


def victim_runs_payload() -> Scenario:
    world = World()
    _deeds(world, "omar", days=(6, 8, 10))
    for n, day in enumerate((7, 9, 11)):
        path = f"/shared/ckpt/step_{n}.pt"
        world.write(day * DAY, "noor", path, program="/usr/bin/python3", parents=("/usr/sbin/slurmstepd",))
        world.changed(day * DAY + HOUR, path, 20 + n)
    return world.scenario("victim_runs_payload", "noor's jobs write the bad checkpoints; omar's account wrote what they ran",
                          Hypothesis(kind=Kind.INSIDER, account="omar"), innocent=("vera", "noor", "ipsen"))  # fmt: skip


def shared_account() -> Scenario:
    world = World()
    _deeds(world, "trainer", factor=False)
    return world.scenario("shared_account", "everybody logs in as trainer, and nothing tells who",
                          Hypothesis(kind=Kind.INSIDER, account="ipsen"), decidable=False, innocent=("omar", "vera", "noor"))  # fmt: skip


def nobody_recorded() -> Scenario:
    world = World(audit=False, tetragon=False)
    for n, day in enumerate((6, 8, 10)):
        t, path = day * DAY, f"{LIBRARY}part{n}.py"
        world.put("find.txt", t, f"{BEGIN + t:.10f} {BEGIN + t:.10f} noor 644 900 {path}")
        world.changed(t + HOUR, path, n + 1)
    return world.scenario("nobody_recorded", "files changed, their owner is noor, and no source tells who wrote them",
                          Hypothesis(kind=Kind.INSIDER, account="omar"), decidable=False, innocent=("vera", "noor", "ipsen"))  # fmt: skip


SCENARIOS: tuple[Callable[[], Scenario], ...] = (
    insider_alone, framing_seen, framing_blind, framing_in_session, stolen_account, stolen_blind, another_intern, hardware, honest_mistake,
    agent_instructed, victim_runs_payload, shared_account, nobody_recorded,
)  # fmt: skip
