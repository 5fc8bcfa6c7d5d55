"""Linux audit: raw records (audit.log, `ausearch --format raw`); its CSV is read by `audit_csv`.

Format: audit-userspace, docs of auditd.conf(5) (`log_format = ENRICHED` appends names after the byte 0x1d), and
ausearch(8). `auid` is who had logged in and stays the same through su and sudo; `uid` is as whom a process ran.
Signals carry the target in OBJ_PID. Times have milliseconds. sshd writes USER_LOGIN only for a session with a
terminal, USER_START for every one; sudo and cron write USER_START and USER_END too, which are no logins.
"""

from __future__ import annotations

import posixpath
import re
from collections.abc import Iterator
from typing import BinaryIO

from trainwarden.custody.readers import audit_csv
from trainwarden.custody.readers.interface import (
    LONGEST_LINE,
    MILLI,
    NOBODY,
    ONE_LOGIN,
    BadLine,
    Context,
    Item,
    Reader,
    audited_name,
    epoch_ns,
    numbered_lines,
    opens_session,
    user_name,
)
from trainwarden.model import Act, CustodyEvent, Process, SourceKind, Unread

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
_USERS = {
    "USER_LOGIN": Act.LOGIN, "USER_START": Act.LOGIN, "USER_LOGOUT": Act.LOGOUT, "USER_END": Act.LOGOUT,
}  # fmt: skip
_RECORDING = ("CONFIG_CHANGE", "DAEMON_END")  # what is recorded was changed, or nothing is any more


def recognise(head: bytes, name: str) -> bool:
    """Does the file begin like records of Linux audit?"""
    return (
        head.startswith(audit_csv.HEADER)
        or re.match(rb"(?:----\s)?(?:time->.*\s)?(?:node=\S+ )?type=\S+ msg=audit\(", head) is not None
    )


def read(file: BinaryIO, context: Context) -> Iterator[Item]:
    """Every event of the file; several records make one event."""
    head = file.read(len(audit_csv.HEADER))
    file.seek(0)
    return audit_csv.read(file, context) if head == audit_csv.HEADER else _read_raw(file, context)


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
    begun: dict[tuple[str, str], int] = {}  # host and session of logins that were told → when
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
            yield _told(waiting.pop(at), begun, context)
            continue
        event.records.append((kind, _fields(body)))
        if len(waiting) > _OPEN_EVENTS:
            yield _told(waiting.pop(next(iter(waiting))), begun, context)
    for event in waiting.values():
        yield _told(event, begun, context)


def _fields(body: str) -> dict[str, str]:
    """Fields by name; those inside msg='…' come as they are, the names of an enriched record under `UID:` and so on."""
    plain, _, names = body.partition("\x1d")
    fields: dict[str, str] = {}
    for key, value in _FIELD.findall(plain):
        if value[0] == "'":
            own = fields.keys() & _SENDER
            fields |= {k: _plain(k, v) for k, v in _FIELD.findall(value[1:-1]) if k not in own}
        else:
            fields[key] = _plain(key, value)
    for key, value in _FIELD.findall(names):
        fields[key + ":"] = value.strip('"')
    return fields


def _plain(key: str, value: str) -> str:
    if value[0] == '"':
        return value.strip('"')
    return _unhexed(value) if key in _TEXT else value


def _unhexed(value: str) -> str:
    """What an unquoted value of the kernel says: hexadecimal where it has odd characters."""
    if len(value) % 2 or not _HEX.fullmatch(value):
        return value
    return bytes.fromhex(value).decode("utf-8", "backslashreplace")


def _told(event: _Event, begun: dict[tuple[str, str], int], context: Context) -> Item:
    try:
        return _event(event, begun, context)
    except (BadLine, ValueError, OverflowError) as e:
        return Unread(line=event.line, reason=str(e)[:200])


def _event(event: _Event, begun: dict[tuple[str, str], int], context: Context) -> CustodyEvent | None:
    if call := event.first("SYSCALL"):
        told = _call(event, call, context)
        return told if told is not None else _recording(event, context)
    for kind, act in _USERS.items():
        if fields := event.first(kind):
            return _session_told(_user(event, kind, act, fields, context), begun)
    return _recording(event, context)


def _session_told(told: CustodyEvent, begun: dict[tuple[str, str], int]) -> CustodyEvent | None:
    """A login or logout, told once: of a session with a terminal sshd writes both USER_START and USER_LOGIN."""
    if told.note in ("USER_START", "USER_END") and not opens_session(told.processes[0].program):
        return None
    at = (told.host, told.session)
    if told.act is Act.LOGIN and told.session:
        if told.time_ns - begun.get(at, 0) < ONE_LOGIN:
            return None
        begun[at] = told.time_ns
    return told


def _recording(event: _Event, context: Context) -> CustodyEvent | None:
    """That rules of audit were taken out, that it was switched off, or that its daemon ended."""
    fields = event.first(*_RECORDING)
    if not fields:
        return None
    what = " ".join(f"{key}={fields[key]}" for key in ("op", "key", "audit_enabled", "res") if key in fields)
    return CustodyEvent(
        source=context.source,
        line=event.line,
        time_ns=epoch_ns(event.time),
        error_ns=MILLI,
        act=Act.OTHER,
        account=_who(fields, "auid", context),
        host=event.node or context.host,
        path="the records of audit",
        note=what,
    )


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
    account = "" if account in NOBODY else audited_name(account)
    origin = fields.get("addr", "")
    return CustodyEvent(
        source=context.source,
        line=event.line,
        time_ns=epoch_ns(event.time),
        error_ns=MILLI,
        act=Act.LOGIN_FAILED if failed and act is Act.LOGIN else act,
        account=account,
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
    kinds: dict[str, str] = {}
    for fields in paths:  # a rename over a file has two of DELETE: the old name, then what was overwritten
        kinds.setdefault(fields.get("nametype", ""), fields.get("name", ""))
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
    return audited_name(name) if name else user_name(fields.get(key, ""), context)


def _number(text: str | None, base: int = 10) -> int:
    try:
        return int(text or "", base)
    except ValueError:
        return -1


READER = Reader(kind=SourceKind.AUDIT, recognise=recognise, read=read, editors=("root",))
