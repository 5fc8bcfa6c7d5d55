"""What a host keeps of logins: journald and sshd (JSON or text), wtmp, and shell history, which its subject can write.

Formats: `journalctl -o json`, `-o short`, `-o short-iso[-precise]`, and /var/log/auth.log, with the sentences of
OpenSSH, pam_unix and sudo; utmp(5) records of 384 bytes (x86-64, as glibc writes them on other machines too); bash with
HISTTIMEFORMAT, zsh with EXTENDED_HISTORY, fish.
"""

from __future__ import annotations

import re
import struct
from collections.abc import Iterator
from datetime import datetime
from pathlib import PurePosixPath
from typing import Any, BinaryIO

import msgspec

from trainwarden.custody.readers.interface import (
    MICRO,
    SECOND,
    BadLine,
    Context,
    Item,
    Reader,
    each_line,
    epoch_ns,
    numbered_lines,
    stamp_ns,
)
from trainwarden.model import Act, CustodyEvent, Process, SourceKind, Unread

_decode = msgspec.json.Decoder(dict[str, Any]).decode

# --------------------------------------------------------------------------- journald and sshd

_ISO = re.compile(r"(\d{4}-\d\d-\d\dT\S+) (\S+) ([^\s:\[]+)(?:\[(\d+)\])?: ?(.*)", re.DOTALL)
_SHORT = re.compile(r"([A-Z][a-z]{2} [ \d]\d \d\d:\d\d:\d\d) (\S+) ([^\s:\[]+)(?:\[(\d+)\])?: ?(.*)", re.DOTALL)
_ACCEPTED = re.compile(r"Accepted (\S+) for (\S+) from (\S+) port \d+")
_FAILED = re.compile(r"Failed (\S+) for (?:invalid user )?(\S+) from (\S+) port \d+")
_INVALID = re.compile(r"Invalid user (\S+) from (\S+) port \d+")  # all that is told where no password was tried
_CLOSED = re.compile(r"pam_unix\(([\w-]+):session\): session closed for user (\S+)")
_SUDO = re.compile(r"\s*(\S+) : (?:.*? ; )?PWD=(.*?) ; USER=(\S+)(?: ; .*?)? ; COMMAND=(.*)", re.DOTALL)
_SSHD = ("sshd", "sshd-session")
_FAULT = re.compile(
    r"(?:mce: )?\[Hardware Error\]|NVRM: Xid|EDAC .*[CU]E|Uncorrected .*error|MCE.*error", re.IGNORECASE
)


def recognise_journal(head: bytes, name: str) -> bool:
    """Does the file begin like a journal, as JSON or as text?"""
    if head.startswith(b"{"):
        return b'"__REALTIME_TIMESTAMP"' in head[:8192]
    first = head.split(b"\n", 1)[0].decode("utf-8", "replace")
    return bool(_ISO.match(first) or _SHORT.match(first)) or first.startswith("-- ")


def read_journal(file: BinaryIO, context: Context) -> Iterator[Item]:
    """Every login, refusal, end of a session and use of sudo."""
    return each_line(file, lambda n, text: _journal(n, text, context), lambda line: line.startswith(b"-- "))


def _journal(number: int, text: str, context: Context) -> CustodyEvent | None:
    if text.startswith("{"):
        raw = _decode(text)
        time_ns, error_ns = int(raw["__REALTIME_TIMESTAMP"]) * 1000, MICRO
        message = raw.get("MESSAGE")
        if not isinstance(message, str):  # bytes that are no text come as a list of numbers
            return None
        program, pid = str(raw.get("SYSLOG_IDENTIFIER") or raw.get("_COMM", "")), int(raw.get("_PID", -1))
        host, session = str(raw.get("_HOSTNAME", "")), str(raw.get("_AUDIT_SESSION", ""))
        return _said(number, (time_ns, error_ns), (host or context.host, program, pid, session), message, context)
    found = _ISO.match(text)
    if found is not None:
        stamp = found[1]
        when = stamp_ns(stamp, context.zone), MICRO if "." in stamp or "," in stamp else SECOND
    elif (found := _SHORT.match(text)) is not None:
        when = _short_ns(found[1], context), SECOND
    else:
        raise BadLine("no line of a journal")
    return _said(number, when, (found[2], found[3], int(found[4] or -1), ""), found[5], context)


def _short_ns(text: str, context: Context) -> int:
    when = datetime.strptime(f"{context.year} {text}", "%Y %b %d %H:%M:%S")
    return int(when.replace(tzinfo=context.zone).timestamp()) * SECOND


def _said(
    number: int, when: tuple[int, int], who: tuple[str, str, int, str], message: str, context: Context
) -> CustodyEvent | None:
    host, program, pid, session = who

    def event(
        act: Act,
        account: str,
        *,
        login: str = "",
        origin: str = "",
        path: str = "",
        note: str = "",
        argv: tuple[str, ...] = (),
    ) -> CustodyEvent:
        return CustodyEvent(
            source=context.source, line=number, time_ns=when[0], error_ns=when[1], act=act, account=account,
            login=login, host=host, session=session, origin=origin,
            processes=(Process(pid=pid, program=program, argv=argv),), path=path, note=note,
        )  # fmt: skip

    if program in _SSHD and (found := _ACCEPTED.match(message)):
        return event(Act.LOGIN, found[2], origin=found[3], note=f"{found[1]}{message.partition('ssh2')[2]}")
    if program in _SSHD and (found := _FAILED.match(message)):
        return event(Act.LOGIN_FAILED, found[2], origin=found[3], note=found[1])
    if program in _SSHD and (found := _INVALID.match(message)):
        return event(Act.LOGIN_FAILED, found[1], origin=found[2], note="no such user")
    if (found := _CLOSED.match(message)) and found[1] in _SSHD:
        return event(Act.LOGOUT, found[2])
    if program == "kernel" and _FAULT.search(message):
        return event(Act.OTHER, "", path="hardware", note=message[:200])
    if program == "sudo" and (found := _SUDO.match(message)):
        argv = tuple(found[4].split())
        return event(
            Act.EXECUTE, found[3], login=found[1], path=argv[0] if argv else "", note=f"sudo in {found[2]}", argv=argv
        )
    return None


JOURNAL = Reader(kind=SourceKind.JOURNAL, recognise=recognise_journal, read=read_journal, editors=("root",))

# --------------------------------------------------------------------------- wtmp

_UTMP = struct.Struct("<hxxi32s4s32s256s4xiii16s20x")
_BOOT, _NEW_TIME, _OLD_TIME, _USER, _DEAD = 2, 3, 4, 7, 8
_CLOCKS = {_BOOT: "boot", _NEW_TIME: "the clock was set to this", _OLD_TIME: "the clock was set from this"}


def recognise_wtmp(head: bytes, name: str) -> bool:
    """Is the file made of utmp records?"""
    if len(head) < _UTMP.size or head[: _UTMP.size].count(0) < _UTMP.size // 2:
        return False
    kind = int.from_bytes(head[:2], "little")
    return (
        0 <= kind <= 9 and head[2:4] == b"\0\0" and (kind > 0 or PurePosixPath(name).name.startswith(("wtmp", "utmp")))
    )


def read_wtmp(file: BinaryIO, context: Context) -> Iterator[Item]:
    """Logins, their ends, and settings of the clock; `line` counts records."""
    lines: dict[str, str] = {}  # terminal → account; an end names the terminal alone
    number = 0
    while record := file.read(_UTMP.size):
        number += 1
        if len(record) < _UTMP.size:
            yield Unread(line=number, reason=f"a record of {len(record)} bytes, {_UTMP.size} expected")
            return
        kind, pid, line, _, user, host, session, seconds, micros, _ = _UTMP.unpack(record)
        terminal, account, origin = _c_text(line), _c_text(user), _c_text(host)
        if kind == _USER:
            act, lines[terminal] = Act.LOGIN, account
        elif kind == _DEAD and terminal in lines:
            act, account = Act.LOGOUT, lines.pop(terminal)
        elif kind in _CLOCKS:
            act = Act.OTHER
            lines = {} if kind == _BOOT else lines
        else:
            continue
        if seconds < 0 or not 0 <= micros < 1_000_000:
            yield Unread(line=number, reason=f"not a time: {seconds} s, {micros} µs")
            continue
        yield CustodyEvent(
            source=context.source, line=number, time_ns=seconds * SECOND + micros * 1000, error_ns=MICRO, act=act,
            account=account if act is not Act.OTHER else "", host=context.host, session=str(session) if session else "",
            origin=origin if act is Act.LOGIN else "", processes=(Process(pid=pid),) if pid > 0 else (), path=terminal,
            note=_CLOCKS.get(kind, ""),
        )  # fmt: skip


def _c_text(raw: bytes) -> str:
    return raw.split(b"\0", 1)[0].decode("utf-8", "backslashreplace")


WTMP = Reader(kind=SourceKind.WTMP, recognise=recognise_wtmp, read=read_wtmp, editors=("root",))

# --------------------------------------------------------------------------- shell history

_ZSH = re.compile(r": (\d{6,11}):\d+;(.*)", re.DOTALL)
_BASH_TIME = re.compile(r"#(\d{6,11})")
_FISH_TIME = re.compile(r"  when: (\d{6,11})")
_FISH_ESCAPE = re.compile(r"\\([n\\])")


def recognise_shell(head: bytes, name: str) -> bool:
    """Is it a history file, by its name or its first line?"""
    first = head.split(b"\n", 1)[0].decode("utf-8", "replace")
    named = PurePosixPath(name).name.lstrip(".") in ("bash_history", "zsh_history", "histfile", "fish_history")
    return named or bool(_BASH_TIME.fullmatch(first) or _ZSH.match(first)) or first.startswith("- cmd: ")


def read_shell(file: BinaryIO, context: Context) -> Iterator[Item]:
    """Every command that has a time."""
    stamped, command = "", ""
    for number, text in _whole(file):
        if found := _BASH_TIME.fullmatch(text):
            stamped = found[1]
        elif found := _ZSH.match(text):
            yield _command(number, found[1], found[2], context)
        elif text.startswith("- cmd: "):
            command = _FISH_ESCAPE.sub(lambda m: "\n" if m[1] == "n" else m[1], text[7:])
        elif command and (found := _FISH_TIME.fullmatch(text)):
            yield _command(number, found[1], command, context)
            command = ""
        elif stamped and text:
            yield _command(number, stamped, text, context)
            stamped = ""
        elif text and not text.startswith("  "):
            yield Unread(line=number, reason="a command without a time: HISTTIMEFORMAT was not set")


def _whole(file: BinaryIO) -> Iterator[tuple[int, str]]:
    """Lines by number; a command of zsh over several, each but the last with a backslash at its end, is one."""
    begun, held = 0, ""
    for number, line in numbered_lines(file):
        text = line.decode("utf-8", "backslashreplace")
        if held:
            text = f"{held}\n{text}"
        elif not _ZSH.match(text):
            yield number, text
            continue
        else:
            begun = number
        held = text[:-1] if text.endswith("\\") else ""
        if not held:
            yield begun, text
    if held:
        yield begun, held


def _command(number: int, seconds: str, text: str, context: Context) -> CustodyEvent:
    argv = tuple(text.split())
    return CustodyEvent(
        source=context.source, line=number, time_ns=epoch_ns(seconds), error_ns=SECOND, act=Act.EXECUTE,
        account=context.account, host=context.host, processes=(Process(program=argv[0] if argv else "", argv=argv),),
        path=argv[0] if argv else "", note="from a history file, which its owner can write",
    )  # fmt: skip


SHELL = Reader(kind=SourceKind.SHELL, recognise=recognise_shell, read=read_shell, editors=("self", "root"), weak=True)
