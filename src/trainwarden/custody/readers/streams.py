"""Kernel events as JSON lines: Tetragon and Falco.

Formats: Tetragon's events.proto in protojson with `UseProtoNames` (`tetra getevents -o json`, the export file); Falco's
`json_output: true`, whose fields depend on each rule's `output`. Both also as a container's runtime keeps their output.
"""

from __future__ import annotations

import re
import shlex
from collections.abc import Iterator
from typing import Any, BinaryIO

import msgspec

from trainwarden.custody.readers.interface import (
    MICRO,
    BadLine,
    Context,
    Item,
    Reader,
    each_line,
    stamp_ns,
    user_name,
    without_cri,
)
from trainwarden.model import Act, CustodyEvent, Process, SourceKind

_decode = msgspec.json.Decoder(dict[str, Any]).decode

# --------------------------------------------------------------------------- Tetragon

_HOOKS = {
    "security_file_permission": Act.WRITE, "security_file_open": Act.READ, "security_mmap_file": Act.READ,
    "fd_install": Act.READ, "security_path_truncate": Act.WRITE, "sys_write": Act.WRITE, "vfs_write": Act.WRITE,
    "sys_openat": Act.READ, "security_path_rename": Act.RENAME, "security_inode_rename": Act.RENAME,
    "security_path_unlink": Act.DELETE, "security_inode_unlink": Act.DELETE, "sys_kill": Act.SIGNAL,
    "security_task_kill": Act.SIGNAL, "tcp_connect": Act.CONNECT, "security_path_chmod": Act.ATTRIBUTES,
    "security_path_chown": Act.ATTRIBUTES,
}  # fmt: skip
_MAY_WRITE = 2  # of the mask of security_file_permission
_TICK = 10_000_000  # ns: /proc counts a process's begin in hundredths of a second


def _first(head: bytes) -> str:
    return without_cri(head.split(b"\n", 1)[0].decode("utf-8", "replace"))


def recognise_tetragon(head: bytes, name: str) -> bool:
    """Does the file begin with an event of Tetragon?"""
    first = _first(head)
    return first.startswith("{") and '"process_' in first[:4096] and '"process"' in first and '"rule"' not in first[:64]


def read_tetragon(file: BinaryIO, context: Context) -> Iterator[Item]:
    """Every event of the file."""
    return each_line(file, lambda number, text: _tetragon(number, _decode(without_cri(text)), context))


def _tetragon(number: int, raw: dict[str, Any], context: Context) -> CustodyEvent | None:
    kind = next((key for key in raw if key.startswith("process_")), "")
    if not kind:
        if "time" not in raw:
            raise BadLine("no event of Tetragon")
        return None
    event: dict[str, Any] = raw[kind]
    process: dict[str, Any] = event["process"]
    act, path, note, error_ns = Act.OTHER, "", "", MICRO
    if kind == "process_exec":
        act, path = Act.EXECUTE, process.get("binary", "")
        if "procFS" in str(process.get("flags", "")).split():  # found in /proc: it may have been another program first
            note, error_ns = "ran already when Tetragon was started", _TICK
    elif kind in ("process_kprobe", "process_lsm", "process_tracepoint"):
        act, path, note = _hook(event)
    elif kind == "process_exit":
        return None
    tree = (process, event.get("parent") or {}, *(event.get("ancestors") or ()))
    account, login = user_name(process.get("uid", -1), context), user_name(process.get("auid", -1), context)
    return CustodyEvent(
        source=context.source,
        line=number,
        time_ns=stamp_ns(raw.get("time") or process["start_time"]),
        error_ns=error_ns,
        act=act,
        account=account,
        login=login if login != account else "",
        host=raw.get("node_name") or context.host,
        origin=(process.get("pod") or {}).get("name", ""),
        processes=tuple(_process(p) for p in tree if p),
        path=path,
        note=note,
    )


def _process(raw: dict[str, Any]) -> Process:
    return Process(pid=int(raw.get("pid", -1)), program=raw.get("binary", ""), argv=_argv(raw.get("arguments")))


def _argv(arguments: object) -> tuple[str, ...]:
    """Arguments one by one; Tetragon puts one with spaces in quotation marks."""
    text = str(arguments or "")
    if '"' not in text:
        return tuple(text.split())
    try:
        return tuple(shlex.split(text))
    except ValueError:
        return tuple(text.split())


def _hook(event: dict[str, Any]) -> tuple[Act, str, str]:
    name = str(event.get("function_name") or event.get("event") or "").removeprefix("__x64_").removeprefix("__arm64_")
    act = _HOOKS.get(name, Act.OTHER)
    files: list[tuple[str, str]] = []  # path, permissions
    path = ""
    numbers: list[int] = []
    for arg in event.get("args") or ():
        part = arg.get("file_arg") or arg.get("path_arg") or {}
        if part.get("path"):
            files.append((str(part["path"]), str(part.get("permission", ""))))
        path = path or str(arg.get("string_arg") or "")
        if (sock := arg.get("sock_arg")) is not None:
            path = f"{sock.get('daddr', '?')}:{sock.get('dport', '?')}"
        numbers += [int(arg[k]) for k in ("int_arg", "uint_arg", "size_arg") if k in arg]
    if name == "security_file_permission" and numbers and not numbers[0] & _MAY_WRITE:
        act = Act.READ
    if act is Act.SIGNAL:
        return act, *_signal(name, numbers)
    names = _entries(files)
    if act is Act.RENAME and len(names) > 1:
        return act, names[-1], f"was {names[0]}"
    return act, names[0] if names else path, name


def _signal(name: str, numbers: list[int]) -> tuple[str, str]:
    """Whom a signal is for and which one it is; security_task_kill tells no process id of its own."""
    pids, signals = ([], numbers) if name == "security_task_kill" and len(numbers) == 1 else (numbers[:1], numbers[1:])
    return f"pid {pids[0]}" if pids else "", f"signal {signals[0]}" if signals else ""


def _entries(files: list[tuple[str, str]]) -> list[str]:
    """What hooks of paths act on: each tells a folder, then the entry in it from the top of its own file system."""
    names: list[str] = []
    folder = ""
    for path, permission in files:
        above, _, entry = path.rpartition("/")
        if folder and folder.endswith(above):
            names[-1], folder = f"{folder.rstrip('/')}/{entry}", ""
        else:
            names.append(path)
            folder = path if permission.startswith("d") else ""
    return names


TETRAGON = Reader(kind=SourceKind.TETRAGON, recognise=recognise_tetragon, read=read_tetragon, editors=("root",))

# --------------------------------------------------------------------------- Falco

_TYPES = {
    "execve": Act.EXECUTE, "execveat": Act.EXECUTE, "clone": Act.EXECUTE, "kill": Act.SIGNAL, "connect": Act.CONNECT,
    "accept": Act.CONNECT, "accept4": Act.CONNECT, "unlink": Act.DELETE, "unlinkat": Act.DELETE, "rename": Act.RENAME,
    "renameat": Act.RENAME, "renameat2": Act.RENAME, "chmod": Act.ATTRIBUTES, "fchmod": Act.ATTRIBUTES,
    "fchmodat": Act.ATTRIBUTES,
}  # fmt: skip
_PATHS = (
    "fd.name", "ka.target.name", "evt.arg.newpath", "evt.arg.name", "evt.arg.path", "evt.arg.filename",
    "evt.arg.linkpath", "evt.arg.oldpath",
)  # fmt: skip
_ARGS = re.compile(r"\b(?:newpath|name|path)=(.*?)(?= \w+=|$)")  # of evt.args, where a rule tells them as one text
_WRITES = ("for writing", "modified", "tampered", "cron jobs were scheduled")


def recognise_falco(head: bytes, name: str) -> bool:
    """Does the file begin with an alert of Falco?"""
    first = _first(head)
    return first.startswith("{") and '"rule"' in first and '"output_fields"' in first and '"priority"' in first


def read_falco(file: BinaryIO, context: Context) -> Iterator[Item]:
    """Every alert of the file."""
    return each_line(file, lambda number, text: _falco(number, _decode(without_cri(text)), context), _is_no_json)


def _is_no_json(line: bytes) -> bool:
    """Falco writes what it is doing between its alerts."""
    return not line.lstrip().startswith(b"{") and without_cri(text := line.decode("utf-8", "replace")) == text


def _falco(number: int, raw: dict[str, Any], context: Context) -> CustodyEvent | None:
    fields: dict[str, Any] = raw.get("output_fields") or {}
    if "rule" not in raw:
        raise BadLine("no alert of Falco: it names no rule")
    if raw.get("source") == "internal" and raw["rule"] == "Falco internal: metrics snapshot":
        return None
    account = _said(fields, "user.name", "ka.user.name") or user_name(fields.get("user.uid", -1), context)
    login = _said(fields, "user.loginname") or user_name(fields.get("user.loginuid", -1), context)
    own = Process(
        pid=int(fields.get("proc.pid") or -1),
        program=_said(fields, "proc.exepath", "proc.name"),
        argv=tuple(_said(fields, "proc.cmdline").split()),
    )
    parent = Process(pid=int(fields.get("proc.ppid") or -1), program=_said(fields, "proc.pname"))
    return CustodyEvent(
        source=context.source,
        line=number,
        time_ns=int(fields["evt.time"]) if isinstance(fields.get("evt.time"), int) else stamp_ns(raw["time"]),
        error_ns=MICRO,
        act=_falco_act(raw, fields),
        account=account,
        login=login if login != account else "",
        host=str(raw.get("hostname") or context.host),
        origin=_container(fields),
        processes=tuple(p for p in (own, parent) if p.program or p.argv or p.pid >= 0),
        path=_said(fields, *_PATHS) or _named(_said(fields, "evt.args")),
        note=f"{raw['rule']}: {raw.get('output', '')}"[:300],
    )


def _said(fields: dict[str, Any], *keys: str) -> str:
    """The first of these fields that Falco could tell; what it could not is null, empty or `<NA>`."""
    told = (str(fields.get(key) or "") for key in keys)
    return next((text for text in told if text not in ("", "<NA>", "N/A")), "")


def _named(args: str) -> str:
    return match[1] if (match := _ARGS.search(args)) else ""


def _container(fields: dict[str, Any]) -> str:
    name = _said(fields, "k8s.pod.name", "container.name", "container.id")
    return "" if name == "host" else name


def _falco_act(raw: dict[str, Any], fields: dict[str, Any]) -> Act:
    kind = str(fields.get("evt.type") or "")
    if kind in _TYPES:
        return _TYPES[kind]
    words = f"{raw['rule']} {raw.get('output', '')}".lower()
    if fields.get("fd.name") and ("write" in raw["rule"].lower() or any(word in words for word in _WRITES)):
        return Act.WRITE
    if fields.get("fd.name") and ("for reading" in words or raw["rule"].lower().startswith("read ")):
        return Act.READ
    return Act.EXECUTE if "spawned" in words or "shell" in raw["rule"].lower() else Act.OTHER


FALCO = Reader(kind=SourceKind.FALCO, recognise=recognise_falco, read=read_falco, editors=("root",))
