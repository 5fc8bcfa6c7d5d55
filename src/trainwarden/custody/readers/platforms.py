"""What platforms log of their users: the Kubernetes API server, Teleport.

Formats: audit.k8s.io/v1 Event, JSON lines (only the last stage of a request tells of an act); Teleport's audit
events as JSON lines (events.proto).
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any, BinaryIO

import msgspec

from trainwarden.custody.readers.interface import (
    MILLI,
    Context,
    Item,
    Reader,
    each_line,
    kind_of,
    stamp_ns,
)
from trainwarden.model import Act, ActorKind, Binding, CustodyEvent, Process, SourceKind

_decode = msgspec.json.Decoder(dict[str, Any]).decode

# --------------------------------------------------------------------------- Kubernetes

_VERBS = {
    "get": Act.READ, "list": Act.READ, "watch": Act.READ, "create": Act.WRITE, "update": Act.WRITE,
    "patch": Act.WRITE, "delete": Act.DELETE, "deletecollection": Act.DELETE,
}  # fmt: skip
_FAILED = 400


def recognise_kubernetes(head: bytes, name: str) -> bool:
    """Does the file begin with an audit event of a Kubernetes API server?"""
    return head.startswith(b"{") and b"audit.k8s.io/" in head[:4096]


def read_kubernetes(file: BinaryIO, context: Context) -> Iterator[Item]:
    """Every request that was answered."""
    return each_line(file, lambda number, text: _kubernetes(number, _decode(text), context))


def _kubernetes(number: int, raw: dict[str, Any], context: Context) -> CustodyEvent | None:
    if raw.get("stage", "ResponseComplete") not in ("ResponseComplete", "Panic"):
        return None
    who, acting = raw["user"]["username"], (raw.get("impersonatedUser") or {}).get("username", "")
    target: dict[str, Any] = raw.get("objectRef") or {}
    code = int((raw.get("responseStatus") or {}).get("code", 0))
    act = _VERBS.get(raw["verb"], Act.OTHER)
    if target.get("subresource") in ("exec", "attach", "ephemeralcontainers"):
        act = Act.EXECUTE
    names = (target.get("namespace"), target.get("resource"), target.get("name"), target.get("subresource"))
    account = acting or who
    return CustodyEvent(
        source=context.source,
        line=number,
        time_ns=stamp_ns(raw.get("requestReceivedTimestamp") or raw["stageTimestamp"]),
        error_ns=MILLI,
        act=Act.OTHER if code >= _FAILED else act,
        kind=kind_of(account),
        account=account,
        login=who if acting else "",
        host=context.host,
        session=str(raw.get("auditID", "")),
        origin=str((raw.get("sourceIPs") or [""])[0]),
        processes=(Process(program=str(raw.get("userAgent", ""))),) if raw.get("userAgent") else (),
        path="/".join(str(n) for n in names if n) or str(raw.get("requestURI", "")).partition("?")[0],
        note=f"{raw['verb']} {'refused' if code in (401, 403) else 'failed'} ({code})"
        if code >= _FAILED
        else str(raw["verb"]),
    )


KUBERNETES = Reader(
    kind=SourceKind.KUBERNETES, recognise=recognise_kubernetes, read=read_kubernetes, editors=("admin:kubernetes",)
)

# --------------------------------------------------------------------------- Teleport

_BOT = 2  # user_kind
_O_WRITES = 0o3 | 0o100 | 0o1000


def recognise_teleport(head: bytes, name: str) -> bool:
    """Does the file begin with an audit event of Teleport?"""
    first = head.split(b"\n", 1)[0]
    return first.startswith(b"{") and all(key in first for key in (b'"event"', b'"code"', b'"time"'))


def read_teleport(file: BinaryIO, context: Context) -> Iterator[Item]:
    """Every event of the file, with what earlier ones told of its session and its server."""
    logins: dict[str, str] = {}
    hosts: dict[str, str] = {}
    return each_line(file, lambda number, text: _teleport(number, _filled(_decode(text), logins, hosts), context))


def _filled(raw: dict[str, Any], logins: dict[str, str], hosts: dict[str, str]) -> dict[str, Any]:
    """The event with its login and host, which 6.1 tells where a session begins and leaves out later.

    Who leaves a session is told with a number that no session has: the login is that of the user's last one.
    """
    name, session, user = raw["event"], str(raw.get("sid", "")), str(raw.get("user", ""))
    if name in ("session.start", "session.join"):
        logins[session] = logins[user] = str(raw.get("login", ""))
    elif name in ("session.end", "session.leave") and not raw.get("login"):
        raw["login"] = logins.get(session) or logins.get(user, "")
    if name == "session.end":
        logins.pop(session, None)
    if (server := str(raw.get("server_id", ""))) and not raw.get("server_hostname"):
        raw["server_hostname"] = hosts.get(server, "")
    elif server:
        hosts[server] = str(raw["server_hostname"])
    return raw


def _teleport(number: int, raw: dict[str, Any], context: Context) -> CustodyEvent | None:
    name, user, login = str(raw["event"]), str(raw.get("user", "")), str(raw.get("login", ""))
    told = _teleport_act(name, raw)
    if told is None:
        return None
    act, path = told
    factor = raw.get("with_mfa") or raw.get("mfa_device")
    account = _subject(raw) if act in (Act.GRANT, Act.REVOKE) else login or user
    program = str(raw.get("program", ""))
    return CustodyEvent(
        source=context.source,
        line=number,
        time_ns=stamp_ns(raw["time"]),
        error_ns=MILLI,
        act=act,
        kind=ActorKind.SERVICE if raw.get("user_kind") == _BOT else kind_of(user),
        account=account,
        login=user if user != account else "",
        host=str(raw.get("server_hostname") or context.host),
        session=str(raw.get("sid", "")),
        origin=_address(str(raw.get("addr.remote", ""))),
        processes=(
            (Process(pid=int(raw.get("pid", -1)), program=program, argv=tuple(str(a) for a in raw.get("argv") or ())),)
            if program
            else ()
        ),
        path=path,
        binding=Binding.SECOND_FACTOR if factor and act is Act.LOGIN else Binding.NONE,
        note=name,
    )


def _subject(raw: dict[str, Any]) -> str:
    """Whose access was given or taken away; a lock is named by a number of its own, and says whom it is of."""
    target = raw.get("target")
    return str((target.get("user") if isinstance(target, dict) else "") or raw["name"])


def _teleport_act(name: str, raw: dict[str, Any]) -> tuple[Act, str] | None:
    match name:
        case "user.login":
            return (Act.LOGIN if raw.get("success", True) else Act.LOGIN_FAILED), str(raw.get("cluster_name", ""))
        case "auth":  # it tells of refusals alone
            return Act.LOGIN_FAILED, str(raw.get("server_hostname", ""))
        case "session.start" | "session.join":
            return Act.LOGIN, str(raw.get("server_hostname", ""))
        case "session.end" | "session.leave":
            return Act.LOGOUT, str(raw.get("server_hostname", ""))
        case "session.command" | "exec":
            return Act.EXECUTE, str(raw.get("path") or raw.get("command", ""))
        case "session.disk":
            return (Act.WRITE if int(raw.get("flags", 0)) & _O_WRITES else Act.READ), str(raw["path"])
        case "session.network":
            return Act.CONNECT, f"{raw.get('dst_addr', '?')}:{raw.get('dst_port', '?')}"
        case "scp" | "sftp":
            return (Act.WRITE if raw.get("action") in ("upload", 2) else Act.READ), str(raw.get("path", ""))
        case "user.locked" | "lock.created" | "user.delete":
            return Act.REVOKE, "teleport"
        case "user.create":
            return Act.GRANT, "teleport"
        case _:
            return None


def _address(text: str) -> str:
    """An address without its port, which is another one each time."""
    host, _, port = text.rpartition(":")
    return host.strip("[]") if port.isdecimal() and host else text


TELEPORT = Reader(
    kind=SourceKind.TELEPORT, recognise=recognise_teleport, read=read_teleport, editors=("admin:teleport",)
)
