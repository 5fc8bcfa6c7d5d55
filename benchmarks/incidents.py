"""Scripted incidents with known truth, as records of the kinds that organisations have.

A scenario is a `World` with one story in it. `truth` is what happened; `decidable` says whether the records that were
kept can tell. Nobody in them exists.
"""

from __future__ import annotations

from collections.abc import Callable

from benchmarks.world import BEGIN, DAY, HOUR, LIBRARY, Scenario, World, iso
from trainwarden.attribute.facts import Replayed
from trainwarden.attribute.nouns import Hypothesis, Kind


def deeds(
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
    deeds(world, "omar")
    for day in (6, 8, 10, 13):
        world.say(day * DAY + 10 * HOUR, "disclose", account="omar", note=f"daily meeting: part {day} is suspected")
    world.say(0, "holds", account="omar", person="P1", kind="person")
    return world.scenario("insider_alone", "one account, its second factor, times set back, after each meeting",
                          Hypothesis(kind=Kind.INSIDER, account="omar"), innocent=("vera", "noor", "ipsen"))  # fmt: skip


def framing_seen() -> Scenario:
    world = World()
    deeds(world, "vera", hide=False)
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
            f"{iso(day * DAY)} node3 sudo[77]:     vera : TTY=pts/3 ; PWD=/ ; USER=root ; COMMAND=/bin/bash",
        )
    deeds(world, "omar", factor=False)
    return world.scenario("framing_blind", "all records lie on a host where vera is root, and say that omar did it; vera wrote them",
                          Hypothesis(kind=Kind.FRAMING, account="omar"), decidable=False, innocent=("omar", "noor", "ipsen"))  # fmt: skip


def framing_in_session() -> Scenario:
    world = World(tetragon=False)
    for day in (3, 4):
        world.run(day * DAY, "vera", "sudo", "-i", uid="root")
    deeds(world, "omar")
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
    deeds(world, "omar", factor=False)
    return world.scenario("stolen_blind", "somebody at omar's own desk, without a second factor: no record can tell",
                          Hypothesis(kind=Kind.STOLEN, account="omar"), decidable=False, innocent=("omar", "vera", "noor", "ipsen"))  # fmt: skip


def another_intern() -> Scenario:
    world = World()
    deeds(world, "noor", days=(8, 10, 13))
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
            f"{iso(t)} node3 kernel: NVRM: Xid (PCI:0000:41:00): 94, pid=4242, name=python, Contained: SM (0x1)",
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
    deeds(world, "omar", days=(6, 8, 10))
    for n, day in enumerate((7, 9, 11)):
        path = f"/shared/ckpt/step_{n}.pt"
        world.write(day * DAY, "noor", path, program="/usr/bin/python3", parents=("/usr/sbin/slurmstepd",))
        world.changed(day * DAY + HOUR, path, 20 + n)
    return world.scenario("victim_runs_payload", "noor's jobs write the bad checkpoints; omar's account wrote what they ran",
                          Hypothesis(kind=Kind.INSIDER, account="omar"), innocent=("vera", "noor", "ipsen"))  # fmt: skip


def shared_account() -> Scenario:
    world = World()
    deeds(world, "trainer", factor=False)
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
