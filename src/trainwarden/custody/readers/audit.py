"""Linux audit: raw records (audit.log, `ausearch --format raw`), and `ausearch --format csv`, best with --extra-time.

Format: audit-userspace, docs of auditd.conf(5) (`log_format = ENRICHED` appends names after the byte 0x1d), and
ausearch(8). `auid` is who had logged in and stays the same through su and sudo; `uid` is as whom a process ran.
Signals carry the target in OBJ_PID. Times have milliseconds (CSV: seconds, unless --extra-time).
"""

from __future__ import annotations

import csv
import posixpath
import re
from collections.abc import Iterator
from datetime import datetime
from typing import BinaryIO

from trainwarden.custody.readers.interface import (
    LONGEST_LINE,
    MILLI,
    SECOND,
    BadLine,
    Context,
    Item,
    Reader,
    epoch_ns,
    numbered_lines,
    stamp_ns,
    user_name,
)
from trainwarden.model import Act, CustodyEvent, Process, SourceKind, Unread

_HEADER = b"NODE,EVENT,DATE,TIME,"
_RECORD = re.compile(r"(?:node=(\S+) )?type=(\S+) msg=audit\((\d+\.\d+):(\d+)\)\s?: ?(.*)", re.ASCII | re.DOTALL)
_FIELD = re.compile(r"([\w-]+)=(\"[^\"]*\"|'[^']*'|[^\s'\"]+)", re.ASCII)
_HEX = re.compile(r"[0-9A-F]+", re.ASCII)
_TEXT = frozenset({"name", "cwd", "exe", "comm", "proctitle", "acct"})
_SENDER = frozenset(
    {"uid", "pid", "auid", "ses"}
)  # of who sent a record from user space: its msg does not override them
_OPEN_EVENTS = 64  # records of one event may lie between those of others

_CALLS = {
    "execve": Act.EXECUTE, "execveat": Act.EXECUTE, "open": Act.WRITE, "openat": Act.WRITE, "openat2": Act.WRITE,
    "creat": Act.WRITE, "truncate": Act.WRITE, "ftruncate": Act.WRITE, "write": Act.WRITE, "link": Act.WRITE,
    "linkat": Act.WRITE, "symlink": Act.WRITE, "symlinkat": Act.WRITE, "mkdir": Act.WRITE, "mkdirat": Act.WRITE,
    "rename": Act.RENAME, "renameat": Act.RENAME, "renameat2": Act.RENAME, "unlink": Act.DELETE,
    "unlinkat": Act.DELETE, "rmdir": Act.DELETE, "chmod": Act.ATTRIBUTES, "fchmod": Act.ATTRIBUTES,
    "fchmodat": Act.ATTRIBUTES, "chown": Act.ATTRIBUTES, "fchown": Act.ATTRIBUTES, "lchown": Act.ATTRIBUTES,
    "fchownat": Act.ATTRIBUTES, "utime": Act.ATTRIBUTES, "utimes": Act.ATTRIBUTES, "utimensat": Act.ATTRIBUTES,
    "setxattr": Act.ATTRIBUTES, "kill": Act.SIGNAL, "tkill": Act.SIGNAL, "tgkill": Act.SIGNAL, "connect": Act.CONNECT,
}  # fmt: skip
_X86_64 = {
    59: "execve", 322: "execveat", 2: "open", 257: "openat", 437: "openat2", 85: "creat", 76: "truncate",
    77: "ftruncate", 1: "write", 86: "link", 265: "linkat", 88: "symlink", 266: "symlinkat", 83: "mkdir",
    258: "mkdirat", 82: "rename", 264: "renameat", 316: "renameat2", 87: "unlink", 263: "unlinkat", 84: "rmdir",
    90: "chmod", 91: "fchmod", 268: "fchmodat", 92: "chown", 93: "fchown", 94: "lchown", 260: "fchownat",
    132: "utime", 235: "utimes", 280: "utimensat", 188: "setxattr", 62: "kill", 200: "tkill", 234: "tgkill",
    42: "connect",
}  # fmt: skip
_AARCH64 = {
    221: "execve", 281: "execveat", 56: "openat", 437: "openat2", 45: "truncate", 46: "ftruncate", 64: "write",
    37: "linkat", 36: "symlinkat", 34: "mkdirat", 38: "renameat", 276: "renameat2", 35: "unlinkat", 52: "fchmod",
    53: "fchmodat", 54: "fchownat", 55: "fchown", 88: "utimensat", 5: "setxattr", 129: "kill", 130: "tkill",
    131: "tgkill", 203: "connect",
}  # fmt: skip
_NUMBERS = {"c000003e": _X86_64, "c00000b7": _AARCH64}
_OPENS = {"open": 1, "openat": 2}  # which argument holds the flags
_WRITING, _CREATING = 0o3, 0o1000 | 0o100
_USERS = {"USER_LOGIN": Act.LOGIN, "USER_LOGOUT": Act.LOGOUT, "USER_END": Act.LOGOUT}
_CSV_ACTS = {
    "opened-file": Act.OTHER, "created-file": Act.WRITE, "changed-file": Act.WRITE, "executed": Act.EXECUTE,
    "renamed": Act.RENAME, "deleted": Act.DELETE, "changed-file-permissions-of": Act.ATTRIBUTES,
    "changed-file-ownership-of": Act.ATTRIBUTES, "changed-timestamp-of": Act.ATTRIBUTES,
    "changed-file-attributes-of": Act.ATTRIBUTES, "killed-pid": Act.SIGNAL, "killed-list-of-pids": Act.SIGNAL,
    "killed-thread": Act.SIGNAL, "connected-to": Act.CONNECT, "logged-in": Act.LOGIN, "ended-session": Act.LOGOUT,
}  # fmt: skip


def recognise(head: bytes, name: str) -> bool:
    """Does the file begin like records of Linux audit?"""
    return (
        head.startswith(_HEADER)
        or re.match(rb"(?:----\s)?(?:time->.*\s)?(?:node=\S+ )?type=\S+ msg=audit\(", head) is not None
    )


def read(file: BinaryIO, context: Context) -> Iterator[Item]:
    """Every event of the file; several records make one event."""
    head = file.read(len(_HEADER))
    file.seek(0)
    return _read_csv(file, context) if head == _HEADER else _read_raw(file, context)


# --------------------------------------------------------------------------- raw


class _Event:
    """The records of one event, until it is whole."""

    __slots__ = ("line", "node", "records", "time")

    def __init__(self, line: int, node: str, time: str) -> None:
        self.line, self.node, self.time = line, node, time
        self.records: list[tuple[str, dict[str, str]]] = []

    def first(self, *kinds: str) -> dict[str, str]:
        return next((fields for kind, fields in self.records if kind in kinds), {})


def _read_raw(file: BinaryIO, context: Context) -> Iterator[Item]:
    waiting: dict[tuple[str, str, str], _Event] = {}
    for number, line in numbered_lines(file):
        if not line or line == b"----" or line.startswith(b"time->"):
            continue
        found = _RECORD.match(line.decode("utf-8", "backslashreplace")) if len(line) <= LONGEST_LINE else None
        if found is None:
            yield Unread(line=number, reason="not a record of Linux audit")
            continue
        node, kind, time, serial, body = found.groups()
        at = (node or "", time, serial)
        event = waiting.get(at)
        if event is None:
            event = waiting[at] = _Event(number, node or "", time)
        if kind == "EOE":
            yield _told(waiting.pop(at), context)
            continue
        event.records.append((kind, _fields(body)))
        if len(waiting) > _OPEN_EVENTS:
            yield _told(waiting.pop(next(iter(waiting))), context)
    for event in waiting.values():
        yield _told(event, context)


def _fields(body: str) -> dict[str, str]:
    """Fields by name; those inside msg='…' come as they are, the names of an enriched record under `UID:` and so on."""
    plain, _, names = body.partition("\x1d")
    fields: dict[str, str] = {}
    for key, value in _FIELD.findall(plain):
        if value[0] == "'":
            own = fields.keys() & _SENDER
            fields |= {k: v.strip('"') for k, v in _FIELD.findall(value[1:-1]) if k not in own}
        elif value[0] == '"':
            fields[key] = value[1:-1]
        else:
            fields[key] = _unhexed(value) if key in _TEXT else value
    for key, value in _FIELD.findall(names):
        fields[key + ":"] = value.strip('"')
    return fields


def _unhexed(value: str) -> str:
    """What an unquoted value of the kernel says: hexadecimal where it has odd characters."""
    if len(value) % 2 or not _HEX.fullmatch(value):
        return value
    return bytes.fromhex(value).decode("utf-8", "backslashreplace")


def _told(event: _Event, context: Context) -> Item:
    try:
        return _event(event, context)
    except (BadLine, ValueError, OverflowError) as e:
        return Unread(line=event.line, reason=str(e)[:200])


def _event(event: _Event, context: Context) -> CustodyEvent | None:
    call = event.first("SYSCALL")
    if call:
        return _call(event, call, context)
    for kind, act in _USERS.items():
        if fields := event.first(kind):
            return _user(event, kind, act, fields, context)
    return None


def _call(event: _Event, call: dict[str, str], context: Context) -> CustodyEvent | None:
    name = call.get("SYSCALL:") or _NUMBERS.get(call.get("arch", ""), {}).get(_number(call.get("syscall")), "")
    act = _CALLS.get(name)
    if act is None or call.get("success") == "no":
        return None
    if act is Act.WRITE and not _writes(name, call, event):
        act = Act.READ
    paths = [fields for kind, fields in event.records if kind == "PATH"]
    path, note = _path(act, paths, event.first("CWD").get("cwd", ""))
    if act is Act.SIGNAL:
        target = event.first("OBJ_PID")
        path = f"pid {target.get('opid', _number(call.get('a0'), 16))}"
        number = _number(call.get("a2" if name == "tgkill" else "a1"), 16)
        note = f"signal {number} to {target.get('ocomm', '?')} of {_who(target, 'ouid', context) or '?'}"
    account = _who(call, "uid", context)
    login = _who(call, "auid", context)
    return CustodyEvent(
        source=context.source,
        line=event.line,
        time_ns=epoch_ns(event.time),
        error_ns=MILLI,
        act=act,
        account=account,
        login=login if login != account else "",
        host=event.node or context.host,
        session=_session(call),
        processes=_processes(event, call),
        path=path,
        note=note,
    )


def _user(event: _Event, kind: str, act: Act, fields: dict[str, str], context: Context) -> CustodyEvent:
    failed = fields.get("res", "success") not in ("success", "1", "yes")
    account = fields.get("acct") or fields.get("ID:") or _who(fields, "id", context) or _who(fields, "auid", context)
    origin = fields.get("addr", "")
    return CustodyEvent(
        source=context.source,
        line=event.line,
        time_ns=epoch_ns(event.time),
        error_ns=MILLI,
        act=Act.LOGIN_FAILED if failed and act is Act.LOGIN else act,
        account=account.removeprefix("unknown(").rstrip(")") if not account.startswith("unknown(") else _named(account),
        host=event.node or context.host,
        session=_session(fields),
        origin=origin if origin != "?" else "",
        processes=(Process(pid=_number(fields.get("pid")), program=fields.get("exe", "")),),
        path=fields.get("terminal", ""),
        note=kind,
    )


def _writes(name: str, call: dict[str, str], event: _Event) -> bool:
    if any(fields.get("nametype") == "CREATE" for kind, fields in event.records if kind == "PATH"):
        return True
    if name == "openat2":
        flags = _number(event.first("OPENAT2").get("oflag"), 8)
    elif name in _OPENS:
        flags = _number(call.get(f"a{_OPENS[name]}"), 16)
    else:
        return True
    return flags >= 0 and bool(flags & (_WRITING | _CREATING))


def _path(act: Act, paths: list[dict[str, str]], cwd: str) -> tuple[str, str]:
    """What was acted on, and of a rename what it was called before."""
    kinds = {fields.get("nametype", ""): fields.get("name", "") for fields in paths}
    order = ("CREATE", "NORMAL", "DELETE", "UNKNOWN") if act is not Act.DELETE else ("DELETE", "NORMAL")
    name = next((kinds[kind] for kind in order if kinds.get(kind)), "")
    if act is Act.EXECUTE and paths:
        name = paths[0].get("name", "")
    old = kinds.get("DELETE", "") if act is Act.RENAME else ""
    return _absolute(name, cwd), f"was {_absolute(old, cwd)}" if old else ""


def _absolute(name: str, cwd: str) -> str:
    if not name or name == "(null)":
        return ""
    return posixpath.normpath(posixpath.join(cwd, name)) if cwd else name


def _processes(event: _Event, call: dict[str, str]) -> tuple[Process, ...]:
    execve = event.first("EXECVE")
    argv = tuple(_unhexed(execve[f"a{i}"]) for i in range(min(_number(execve.get("argc")), 64)) if f"a{i}" in execve)
    if not argv and (title := event.first("PROCTITLE").get("proctitle", "")):
        argv = tuple(title.split("\0"))
    own = Process(pid=_number(call.get("pid")), program=call.get("exe") or call.get("comm", ""), argv=argv)
    return own, Process(pid=_number(call.get("ppid")))


def _session(fields: dict[str, str]) -> str:
    ses = fields.get("ses", "")
    return "" if ses in ("4294967295", "-1") else ses


def _who(fields: dict[str, str], key: str, context: Context) -> str:
    name = fields.get(f"{key.upper()}:", "")
    if name == "unset":
        return ""
    return _named(name) if name else user_name(fields.get(key, ""), context)


def _named(name: str) -> str:
    """`unknown(1001)` is how auparse writes a user id without a name."""
    return f"uid:{name[8:-1]}" if name.startswith("unknown(") else name


def _number(text: str | None, base: int = 10) -> int:
    try:
        return int(text or "", base)
    except ValueError:
        return -1


# --------------------------------------------------------------------------- csv


def _read_csv(file: BinaryIO, context: Context) -> Iterator[Item]:
    names: list[str] = []
    for number, line in numbered_lines(file):
        text = line.decode("utf-8", "backslashreplace")
        if line.startswith(_HEADER):
            names = next(csv.reader([text]))
            continue
        try:
            values = next(csv.reader([text]), [])
            if not values:
                continue
            if len(values) != len(names):
                raise BadLine(f"{len(values)} columns, {len(names)} expected")
            yield _row(number, dict(zip(names, values, strict=True)), context)
        except (BadLine, ValueError, KeyError, csv.Error) as e:
            yield Unread(line=number, reason=str(e)[:200])


def _row(number: int, row: dict[str, str], context: Context) -> CustodyEvent | None:
    act = _CSV_ACTS.get(row["ACTION"])
    if act is None:
        return None
    failed = row["RESULT"] not in ("success", "")
    if failed and act is not Act.LOGIN:
        return None
    login, account = _named(row["SUBJ_PRIME"]), _named(row["SUBJ_SEC"])
    account = account or login
    time_ns, error_ns = _row_time(row, context)
    return CustodyEvent(
        source=context.source,
        line=number,
        time_ns=time_ns,
        error_ns=error_ns,
        act=Act.LOGIN_FAILED if failed else act,
        account=login if act in (Act.LOGIN, Act.LOGOUT) else account,
        login=login if login not in (account, "unset", "") and act not in (Act.LOGIN, Act.LOGOUT) else "",
        host=row["NODE"] or context.host,
        session="" if row["SESSION"] in ("unset", "4294967295") else row["SESSION"],
        processes=(Process(program=row["HOW"]),),
        path=row["OBJ_PRIME"],
        note="opened; the CSV does not tell reading from writing" if row["ACTION"] == "opened-file" else "",
    )


def _row_time(row: dict[str, str], context: Context) -> tuple[int, int]:
    if "MILLI" in row:
        date = f"{row['YEAR']}-{row['MONTH']}-{row['DAY']}"
        return stamp_ns(f"{date}T{row['TIME']}.{int(row['MILLI']):03}{row['GMT_OFFSET']}"), MILLI
    for form in ("%m/%d/%y", "%m/%d/%Y", "%Y-%m-%d"):
        try:
            when = datetime.strptime(f"{row['DATE']} {row['TIME']}", f"{form} %H:%M:%S")
        except ValueError:
            continue
        return int(when.replace(tzinfo=context.zone).timestamp()) * SECOND, SECOND
    raise BadLine(f"not a date: {row['DATE'][:20]!r}")


READER = Reader(kind=SourceKind.AUDIT, recognise=recognise, read=read, editors=("root",))
