"""Senders of signals from the records of Linux audit, where a rule for `kill` is set and its log can be read.

A record is several lines of one serial number: SYSCALL names the sender (pid, uid, login auid, comm, exe) and the
arguments in hexadecimal, OBJ_PID the receiver (`opid`). The signal is argument 1 of kill and tkill, 2 of tgkill.
"""

from __future__ import annotations

import os
import re

import msgspec

from trainwarden.model import Writer
from trainwarden.supervise import proc
from trainwarden.supervise.senders.interface import Sent

LOG = "/var/log/audit/audit.log"
_TAIL = 1 << 20
_UNSET = 0xFFFFFFFF
_SERIAL = re.compile(r"msg=audit\(([\d.]+:\d+)\)")
_FIELD = re.compile(r'(\w+)=("[^"]*"|\S+)')


class Kill(msgspec.Struct, frozen=True):
    """One signal that Linux audit recorded."""

    pid: int  # the receiver
    arguments: tuple[int, ...]
    sender: Writer


def parse(text: str) -> list[Kill]:
    """The signals in audit records, in their order; lines that are none, or incomplete, are passed over."""
    calls: dict[str, dict[str, str]] = {}
    targets: dict[str, list[int]] = {}
    for line in text.splitlines():
        serial = _SERIAL.search(line)
        kind = line.partition("type=")[2].partition(" ")[0]
        if serial is None or kind not in ("SYSCALL", "OBJ_PID"):
            continue
        fields = {name: value.strip('"') for name, value in _FIELD.findall(line)}
        if kind == "SYSCALL" and fields.get("success", "yes") == "yes":
            calls[serial[1]] = fields
        elif fields.get("opid", "").isdecimal():
            targets.setdefault(serial[1], []).append(int(fields["opid"]))
    return [
        Kill(pid, _arguments(calls[s]), _sender(calls[s])) for s, pids in targets.items() if s in calls for pid in pids
    ]


def _arguments(fields: dict[str, str]) -> tuple[int, ...]:
    found = []
    for name in ("a0", "a1", "a2"):
        try:
            found.append(int(fields.get(name, "0"), 16))
        except ValueError:
            found.append(-1)
    return tuple(found)


def _sender(fields: dict[str, str]) -> Writer:
    def number(name: str) -> int:
        value = fields.get(name, "")
        return int(value) if value.isdecimal() and int(value) != _UNSET else -1

    return Writer(
        pid=number("pid"),
        uid=number("uid"),
        login_uid=number("auid"),
        program=fields.get("exe", fields.get("comm", ""))[:1000],
    )


class Audited:
    """Reads what the audit log gained since the start."""

    def __init__(self, log: str = LOG) -> None:
        self._log = log
        self._from = 0

    def start(self) -> str:
        if not proc.kernels_own_ids():
            return f"no audit log: {proc.NOT_OURS}"
        try:
            with open(self._log, "rb") as f:
                self._from = f.seek(0, os.SEEK_END)
        except OSError as e:
            return f"no audit log: {e.strerror}"
        return ""

    def sent(self, pid: int, signal: int) -> Sent | None:
        for kill in reversed(parse(self._new())):
            if kill.pid == pid and (not signal or signal in kill.arguments[1:]):
                return Sent(by="Linux audit", sender=kill.sender)
        return None

    def _new(self) -> str:
        try:
            with open(self._log, "rb") as f:
                end = f.seek(0, os.SEEK_END)
                f.seek(max(0 if end < self._from else self._from, end - _TAIL))  # shorter: it was rotated
                return f.read(_TAIL).decode("utf-8", "replace")
        except OSError:
            return ""

    def close(self) -> None:
        pass
