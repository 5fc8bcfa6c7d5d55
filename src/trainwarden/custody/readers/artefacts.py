"""What repositories and file systems know of files: git, metadata (find, stat), snapshots (zfs, btrfs).

Formats: `git log --raw --no-abbrev --format=fuller --date=raw [--show-signature]`; pushes from a server's reflog
(`logs/refs/…`), GitHub's audit log, its push webhooks and its events (`PushEvent`), as JSON lines;
`find -type f -printf '%T@ %C@ %u %m %s %p\\n'` and the text of stat(1);
`zfs diff -FHt`; `btrfs send --no-data -p OLD NEW | btrfs receive --dump` (btrfs-progs 6.2).

An author's name and date in git are free text; the committer's are too. The owner of a file is not who wrote it, and
mtime can be set at will; ctime takes root, or another clock.
"""

from __future__ import annotations

import re
from collections.abc import Iterator
from pathlib import PurePosixPath
from typing import Any, BinaryIO

import msgspec

from trainwarden.custody.readers.interface import (
    MILLI,
    SECOND,
    BadLine,
    Context,
    Item,
    Reader,
    each_line,
    epoch_ns,
    guarded,
    kind_of,
    numbered_lines,
    stamp_ns,
)
from trainwarden.model import Act, Binding, CustodyEvent, SourceKind, Unread

_decode = msgspec.json.Decoder(dict[str, Any]).decode

# --------------------------------------------------------------------------- git

_REFLOG = re.compile(r"([0-9a-f]{40,64}) ([0-9a-f]{40,64}) (.*?) <(.*?)> (\d+) [+-]\d{4}\t?(.*)")
_RAW = re.compile(r":+(?:\d{6} )+([0-9a-f]{40,64}) ([0-9a-f]{40,64}) ([A-Z])\d*\t(.*)")
_PERSON = re.compile(r"(Author|Commit): +(.*?) <(.*?)>")
_DATE = re.compile(r"(Author|Commit)Date: +(\d+) [+-]\d{4}")
_CHANGES = {"A": Act.WRITE, "M": Act.WRITE, "D": Act.DELETE, "R": Act.RENAME, "C": Act.WRITE, "T": Act.WRITE}


def recognise_git(head: bytes, name: str) -> bool:
    """Does the file begin like `git log`, a reflog, an audit log of GitHub, its webhooks or its events?"""
    first = head.split(b"\n", 1)[0].decode("utf-8", "replace")
    if re.match(r"commit [0-9a-f]{40,64}( |$)", first) or _REFLOG.match(first):
        return True
    plain = first.replace(" ", "")
    return first.startswith("{") and (
        '"action":"git.' in plain
        or ('"payload":' in plain and re.search(r'"type":"[A-Za-z]+Event"', plain) is not None)
        or all(key in plain for key in ('"pusher":', '"before":', '"after":'))
    )


def read_git(file: BinaryIO, context: Context) -> Iterator[Item]:
    """Commits with the files they change, and pushes."""
    start = file.read(8)
    file.seek(0)
    if start.startswith(b"commit "):
        return _commits(file, context)
    return each_line(file, lambda n, text: _push(n, text, context))


def _object(name: object) -> str:
    """The digest of a git object; all zeros stand for none: a branch that is made, or deleted."""
    text = str(name or "")
    return f"git:{text}" if text.strip("0") else ""


def _push(number: int, text: str, context: Context) -> CustodyEvent | None:
    if found := _REFLOG.fullmatch(text):
        old, new, _, mail, seconds, what = found.groups()
        act = Act.PUSH if what.startswith("push") else Act.COMMIT if what.startswith("commit") else Act.OTHER
        return CustodyEvent(
            source=context.source, line=number, time_ns=epoch_ns(seconds), error_ns=SECOND, act=act, account=mail,
            kind=kind_of(mail), host=context.host, before=_object(old), digest=_object(new), note=what,
        )  # fmt: skip
    raw = _decode(text)
    if "pusher" in raw:
        return _hooked(number, raw, context)
    if "type" in raw:
        return _happened(number, raw, context) if raw["type"] == "PushEvent" else None
    if raw["action"] != "git.push":
        return None
    stamp = raw.get("@timestamp") or raw["created_at"]
    return CustodyEvent(
        source=context.source, line=number, time_ns=int(stamp) * MILLI, error_ns=MILLI, act=Act.PUSH,
        account=str(raw["actor"]), kind=kind_of(str(raw["actor"])), host=context.host,
        origin=str(raw.get("actor_ip", "")), path=str(raw.get("repo") or raw.get("repository", "")),
        digest=_object(raw.get("after")), note=str(raw.get("transport_protocol_name", "")),
    )  # fmt: skip


def _hooked(number: int, raw: dict[str, Any], context: Context) -> CustodyEvent:
    """A push as GitHub's webhook tells it: by whom it was authenticated, whoever its commits name."""
    repository, account = raw["repository"], str(raw["sender"]["login"])
    stamp = repository["pushed_at"]
    return CustodyEvent(
        source=context.source, line=number, time_ns=stamp * SECOND if isinstance(stamp, int) else stamp_ns(stamp),
        error_ns=SECOND, act=Act.PUSH, account=account, kind=kind_of(account), host=context.host,
        path=str(repository["full_name"]), before=_object(raw["before"]), digest=_object(raw["after"]),
        note=raw["ref"] + "".join(f", {how}" for how in ("created", "deleted", "forced") if raw.get(how)),
    )  # fmt: skip


def _happened(number: int, raw: dict[str, Any], context: Context) -> CustodyEvent:
    """A push as GitHub's events tell it."""
    pushed, account = raw["payload"], str(raw["actor"]["login"])
    return CustodyEvent(
        source=context.source, line=number, time_ns=stamp_ns(raw["created_at"]), error_ns=SECOND, act=Act.PUSH,
        account=account, kind=kind_of(account), host=context.host, path=str(raw["repo"]["name"]),
        before=_object(pushed.get("before")), digest=_object(pushed.get("head")), note=str(pushed.get("ref", "")),
    )  # fmt: skip


class _Commit:
    """One commit while its lines are read."""

    def __init__(self, line: int, name: str) -> None:
        self.line, self.name = line, name
        self.people: dict[str, str] = {}
        self.dates: dict[str, str] = {}
        self.signed = ""
        self.subject = ""
        self.changes: list[tuple[int, str, str, str, str]] = []


def _commits(file: BinaryIO, context: Context) -> Iterator[Item]:
    commit: _Commit | None = None
    for number, line in numbered_lines(file):
        text = line.decode("utf-8", "backslashreplace")
        if text.startswith("commit ") and re.match(r"commit [0-9a-f]{40,64}", text):
            if commit is not None:
                yield from _commit_events(commit, context)
            commit = _Commit(number, text.split()[1])
        elif commit is None or not text or text.startswith("Merge: "):
            continue
        elif found := _RAW.fullmatch(text):
            commit.changes.append((number, *found.groups()))  # type: ignore[arg-type]
        elif found := _PERSON.match(text):
            commit.people[found[1]] = found[3]
        elif found := _DATE.match(text):
            commit.dates[found[1]] = found[2]
        elif text.startswith(("gpg:", "Good ", "Bad ", "No signature", "Could not verify")):
            commit.signed += text.removeprefix("gpg:").strip() + "; "
        elif text.startswith("    "):
            commit.subject = commit.subject or text.strip()
        elif text.startswith(":"):
            yield Unread(line=number, reason="not a change of a file as `git log --raw --no-abbrev` writes it")
    if commit is not None:
        yield from _commit_events(commit, context)


def _commit_events(commit: _Commit, context: Context) -> Iterator[Item]:
    if "Commit" not in commit.people or "Commit" not in commit.dates:
        yield Unread(line=commit.line, reason="a commit without committer and date: use --format=fuller --date=raw")
        return
    author, committer = commit.people.get("Author", ""), commit.people["Commit"]
    good = "Good " in commit.signed and "Bad " not in commit.signed and committer in commit.signed
    common: dict[str, Any] = {
        "source": context.source, "time_ns": epoch_ns(commit.dates["Commit"]), "error_ns": SECOND, "account": committer,
        "kind": kind_of(committer), "host": context.host,
        "session": f"git:{commit.name}", "binding": Binding.KEY if good else Binding.NONE,
    }  # fmt: skip
    signed = f"; {commit.signed.rstrip('; ')}" if commit.signed else "; not signed"
    signed += f"; author, as it says: {author}" if author != committer else ""
    yield CustodyEvent(
        line=commit.line, act=Act.COMMIT, digest=f"git:{commit.name}", note=commit.subject + signed, **common
    )
    for number, old, new, change, path in commit.changes:
        yield CustodyEvent(
            line=number, act=Act.COMMIT, path=path.split("\t")[-1], before=_object(old),
            digest=_object(new), note=_CHANGES.get(change, Act.OTHER), **common,
        )  # fmt: skip


GIT = Reader(kind=SourceKind.GIT, recognise=recognise_git, read=read_git, editors=("committer", "admin:git"))

# --------------------------------------------------------------------------- metadata

_FIND = re.compile(r"(-?\d+\.\d+) (-?\d+\.\d+) (\S+) ([0-7]{3,4}) (\d+) (.+)", re.DOTALL)
_STAT = re.compile(r"(Modify|Change): (.+)")
_STAT_OWNER = re.compile(r".*Access: \((\d{4})/.*Uid: \( *\d+/ *(\S+)\).*")


def recognise_files(head: bytes, name: str) -> bool:
    """Is it what find -printf or stat says?"""
    first = head.split(b"\n", 1)[0].decode("utf-8", "replace")
    return bool(_FIND.fullmatch(first)) or first.startswith("  File: ")


def read_files(file: BinaryIO, context: Context) -> Iterator[Item]:
    """For each file: it was there and whose it was; content changed at mtime, inode at ctime, untold by whom."""
    start = file.read(8)
    file.seek(0)
    if start.startswith(b"  File: "):
        yield from _stats(file, context)
        return
    for number, line in numbered_lines(file):
        found = _FIND.fullmatch(line.decode("utf-8", "backslashreplace"))
        if found is None:
            yield Unread(line=number, reason="not `%T@ %C@ %u %m %s %p`")
            continue
        mtime, ctime, owner, mode, size, path = found.groups()
        try:
            yield from _file(
                number, path, epoch_ns(mtime), epoch_ns(ctime), owner, f"mode {mode}, {size} bytes", context
            )
        except BadLine as e:
            yield Unread(line=number, reason=str(e))


def _stats(file: BinaryIO, context: Context) -> Iterator[Item]:
    told: dict[str, str] = {}
    at = 1
    for number, line in numbered_lines(file):
        text = line.decode("utf-8", "backslashreplace")
        if text.startswith("  File: "):
            told, at = {"path": text[8:]}, number
        elif found := _STAT_OWNER.fullmatch(text):
            told |= {"mode": found[1], "owner": found[2]}
        elif found := _STAT.fullmatch(text):
            told[found[1]] = found[2]
        if {"path", "mode", "Modify", "Change"} <= told.keys():
            try:
                mtime, ctime = stamp_ns(told["Modify"]), stamp_ns(told["Change"])
                yield from _file(at, told["path"], mtime, ctime, told["owner"], f"mode {told['mode']}", context)
            except BadLine as e:
                yield Unread(line=at, reason=str(e))
            told = {}


def _file(number: int, path: str, mtime: int, ctime: int, owner: str, what: str, context: Context) -> Iterator[Item]:
    def event(act: Act, time_ns: int, account: str, note: str) -> CustodyEvent:
        return CustodyEvent(
            source=context.source, line=number, time_ns=time_ns, error_ns=MILLI, act=act, account=account,
            host=context.host, path=path, note=note,
        )  # fmt: skip

    yield event(Act.EXISTS, ctime, owner, f"its owner; {what}")
    yield event(Act.WRITE, mtime, "", "mtime, which the owner can set")
    if ctime != mtime:
        yield event(Act.ATTRIBUTES, ctime, "", "ctime: the inode changed last")


FILES = Reader(kind=SourceKind.FILES, recognise=recognise_files, read=read_files, editors=("root", "owner"))

# --------------------------------------------------------------------------- snapshots

_ZFS = re.compile(r"(\d+\.\d+)\t([-+MR])\t(?:([BCDFLPS@=>|/])\t)?([^\t]+)(?:\t(.+))?", re.DOTALL)
_ZFS_ACTS = {"+": Act.WRITE, "M": Act.WRITE, "-": Act.DELETE, "R": Act.RENAME}
_BTRFS = re.compile(r"(\w+) +(\./(?:\\.|[^\s\\])+)(?: +(.*))?", re.DOTALL)
_BTRFS_ACTS = {
    "update_extent": Act.WRITE, "write": Act.WRITE, "clone": Act.WRITE, "mkfile": Act.WRITE, "link": Act.WRITE,
    "unlink": Act.DELETE, "rename": Act.RENAME, "chmod": Act.ATTRIBUTES, "chown": Act.ATTRIBUTES,
    "truncate": Act.WRITE, "encoded_write": Act.WRITE,
}  # fmt: skip


def recognise_snapshot(head: bytes, name: str) -> bool:
    """Is it `zfs diff -FHt`, or a dump of what btrfs sends?"""
    first = head.split(b"\n", 1)[0].decode("utf-8", "replace")
    return bool(_ZFS.fullmatch(first)) or bool(re.match(r"(snapshot|subvol) +\./\S+ +uuid=", first))


def read_snapshot(file: BinaryIO, context: Context) -> Iterator[Item]:
    """What changed between two snapshots, by nobody told."""
    start = file.read(9)
    file.seek(0)
    if start.startswith((b"snapshot ", b"subvol ")):
        yield from _btrfs(file, context)
    else:
        yield from each_line(file, lambda n, text: _zfs(n, text, context))


def _zfs(number: int, text: str, context: Context) -> CustodyEvent:
    found = _ZFS.fullmatch(text)
    if found is None:
        raise BadLine("not a line of `zfs diff -FHt`")
    seconds, change, _, path, new = found.groups()
    return CustodyEvent(
        source=context.source, line=number, time_ns=epoch_ns(seconds), error_ns=MILLI, act=_ZFS_ACTS[change],
        host=context.host, path=_unescaped(new or path),
        note=f"was {_unescaped(path)}" if new else "between two snapshots",
    )  # fmt: skip


def _btrfs(file: BinaryIO, context: Context) -> Iterator[Item]:
    """The changes of a path are given the ctime that the stream tells of it afterwards."""
    waiting: dict[str, list[CustodyEvent]] = {}
    made: dict[str, str] = {}  # the stream makes files under a name of its own, then renames them
    for number, line in numbered_lines(file):
        item = guarded(number, line, lambda n, text: _btrfs_line(n, text, waiting, made, context))
        if item is not None:
            yield item
        while ready := waiting.pop("", None):
            yield from ready
    for events in waiting.values():
        for event in events:
            yield Unread(line=event.line, reason=f"{event.path}: the stream tells no time of it")


def _btrfs_line(
    number: int, text: str, waiting: dict[str, list[CustodyEvent]], made: dict[str, str], context: Context
) -> CustodyEvent | None:
    found = _BTRFS.fullmatch(text)
    if found is None:
        raise BadLine("not a line of `btrfs receive --dump`")
    what, path, rest = found[1], _in_snapshot(found[2]), found[3] or ""
    if what == "utimes":
        ctime = re.search(r"ctime=(\S+)", rest)
        if ctime is None:
            raise BadLine("no ctime")
        time_ns = stamp_ns(ctime[1])
        whole = path == ""  # the last line: what is left changed before it
        for name in list(waiting) if whole else [path]:
            for event in waiting.pop(name, []):
                waiting.setdefault("", []).append(msgspec.structs.replace(event, time_ns=time_ns, error_ns=SECOND))
        return None
    act = _BTRFS_ACTS.get(what)
    if act is None:
        return None
    note = "between two snapshots"
    if what in ("rename", "link"):
        other = _in_snapshot(rest.partition("dest=")[2])
        if what == "rename" and path in made:
            waiting[other] = [msgspec.structs.replace(e, path=other) for e in waiting.pop(path, [])]
            return None
        path, note = (other, f"was {path}") if what == "rename" else (path, f"another name of {other}")
    if what == "mkfile":
        made[path] = path
    event = CustodyEvent(
        source=context.source, line=number, time_ns=0, act=act, host=context.host, path=path, note=note
    )
    waiting.setdefault(path, []).append(event)
    return None


def _in_snapshot(text: str) -> str:
    """The path inside of the snapshot, unescaped."""
    plain = re.sub(r"\\(.)", r"\1", text)
    return (
        str(PurePosixPath(*PurePosixPath(plain).parts[1:]))
        if plain.startswith("./") and len(PurePosixPath(plain).parts) > 1
        else ""
        if plain.startswith("./")
        else plain
    )


def _unescaped(path: str) -> str:
    """zfs writes other bytes than printable ASCII as backslash and four octal digits."""
    return re.sub(r"\\(\d{4})", lambda m: chr(int(m[1], 8) & 0xFF), path)


SNAPSHOT = Reader(
    kind=SourceKind.SNAPSHOT, recognise=recognise_snapshot, read=read_snapshot, editors=("admin:storage",)
)
