"""What a reader of one kind of records is, and what all of them share: lines, times, names of accounts.

Rules
-----
* A reader takes bytes that anybody may have written. A line that it cannot read is an `Unread` with its number and
  reason, and costs no other line; a line that tells of no act is `None`.
* It says what the line says and no more: no account is guessed from an owner, no time from its neighbours.
* It streams: nothing is kept but what an unfinished record needs.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterator, Mapping
from datetime import UTC, datetime, tzinfo
from typing import BinaryIO, TypeAlias

import msgspec

from trainwarden.model import ActorKind, CustodyEvent, SourceKind, Unread

Item: TypeAlias = CustodyEvent | Unread | None
LONGEST_LINE = 1 << 20
SECOND, MILLI, MICRO = 1_000_000_000, 1_000_000, 1_000
NOBODY = ("?", "(unknown)", "(invalid user)")  # what audit has where sshd does not know a name
ONE_LOGIN = 10 * SECOND  # two records of the login of one session lie less apart
_LOGIN_PROGRAMS = frozenset(
    {"sshd", "sshd-session", "login", "gdm-session-worker", "lightdm", "sddm-helper", "xrdp-sesman"}
)
_CRI = re.compile(r"\d{4}-\d\d-\d\dT\S+ std(?:out|err) F (?=\{)", re.ASCII)
_STAMP = re.compile(
    r"(\d{4})-(\d\d)-(\d\d)[T ](\d\d):(\d\d)(?::(\d\d))?(?:[.,](\d{1,9})\d*)?\s?(Z|[+-]\d\d:?\d\d)?", re.ASCII
)


class Context(msgspec.Struct, frozen=True, kw_only=True):
    """What a reader is told of the file."""

    source: str  # digest of the file
    host: str = ""  # where it was written, if its lines do not say
    account: str = ""  # whose it is, if its lines do not say (shell history)
    users: Mapping[int, str] = {}  # names of user ids
    zone: tzinfo = UTC  # of times without one
    year: int = 1970  # of times without one


class Reader(msgspec.Struct, frozen=True, kw_only=True):
    """The reader of one kind of records."""

    kind: SourceKind
    recognise: Callable[[bytes, str], bool]  # the file's first bytes and its name
    read: Callable[[BinaryIO, Context], Iterator[Item]]
    editors: tuple[str, ...]  # who can edit such a file where it is written: "root", "self", "admin:…", "*"
    weak: bool = False


class BadLine(Exception):
    """A line that cannot be read; the text says why."""


def numbered_lines(file: BinaryIO) -> Iterator[tuple[int, bytes]]:
    """Every line without its end, from 1; one longer than `LONGEST_LINE` is cut there, and its reader will say so."""
    number = 0
    while line := file.readline(LONGEST_LINE + 1):
        number += 1
        if len(line) > LONGEST_LINE and not line.endswith(b"\n"):
            while rest := file.readline(LONGEST_LINE):
                if rest.endswith(b"\n"):
                    break
        yield number, line.rstrip(b"\r\n")


def each_line(
    file: BinaryIO,
    read_line: Callable[[int, str], CustodyEvent | None],
    skip: Callable[[bytes], bool] = lambda _: False,
) -> Iterator[Item]:
    """`read_line(number, text)` of every line that is not empty, its failures told."""
    for number, line in numbered_lines(file):
        if not line or skip(line):
            continue
        yield guarded(number, line, read_line)


def without_cri(line: str) -> str:
    """The line as the program wrote it, without what a container's runtime puts before it (`kubectl logs` does not)."""
    return _CRI.sub("", line, count=1)


def guarded(number: int, line: bytes, read_line: Callable[[int, str], CustodyEvent | None]) -> Item:
    """What `read_line` makes of one line, or why it could not be read."""
    if len(line) > LONGEST_LINE:
        return Unread(line=number, reason=f"longer than {LONGEST_LINE} bytes")
    try:
        return read_line(number, line.decode("utf-8", "backslashreplace"))
    except (BadLine, KeyError, IndexError, ValueError, TypeError, AttributeError, OverflowError, RecursionError) as e:
        return Unread(
            line=number, reason=(f"{type(e).__name__}: " if not isinstance(e, BadLine) else "") + str(e)[:200]
        )


def stamp_ns(text: str, zone: tzinfo = UTC) -> int:
    """Nanoseconds of an ISO 8601 or RFC 3339 time; one without an offset is of `zone`.

    Raises:
        BadLine: it is none.
    """
    found = _STAMP.fullmatch(text.strip())
    if found is None:
        raise BadLine(f"not a time: {text[:60]!r}")
    *parts, fraction, offset = found.groups()
    try:
        year, month, day, hour, minute, second = (int(p or 0) for p in parts)
        when = datetime(year, month, day, hour, minute, second)
        if offset is None:
            when = when.replace(tzinfo=zone)
        elif offset == "Z":
            when = when.replace(tzinfo=UTC)
        else:
            when = when.replace(tzinfo=datetime.strptime(offset.replace(":", ""), "%z").tzinfo)
        seconds = int(when.timestamp())
    except (ValueError, OverflowError) as e:
        raise BadLine(f"not a time: {text[:60]!r}") from e
    return seconds * SECOND + int((fraction or "").ljust(9, "0"))


def epoch_ns(text: str) -> int:
    """Nanoseconds of seconds since the epoch with a fraction of any length.

    Raises:
        BadLine: it is no such number.
    """
    whole, _, fraction = text.partition(".")
    if not whole.lstrip("-").isdecimal() or (fraction and not fraction.isdecimal()) or len(whole) > 11:
        raise BadLine(f"not a time: {text[:60]!r}")
    return int(whole) * SECOND + int((fraction + "000000000")[:9])


def user_name(uid: object, context: Context) -> str:
    """The account with this user id; "" for none (−1, unset)."""
    try:
        number = int(str(uid))
    except ValueError:
        return ""
    if number in (-1, 4294967295):
        return ""
    return context.users.get(number) or ("root" if number == 0 else f"uid:{number}")


def audited_name(name: str) -> str:
    """The account that auparse names: `unknown(1001)` is how it writes a user id without a name."""
    return f"uid:{name[8:-1]}" if name.startswith("unknown(") else name


def opens_session(program: str) -> bool:
    """Does somebody log in through this program? sudo, su and cron open sessions too, of whoever is in already."""
    return program.rpartition("/")[2] in _LOGIN_PROGRAMS


def kind_of(account: str) -> ActorKind | None:
    """What an account's very name says it is for; None for most."""
    if account.startswith(("system:serviceaccount:", "system:node:", "system:kube-", "system:apiserver")):
        return ActorKind.SERVICE
    if account.startswith(("bot-", "agent-")) or account.endswith(("[bot]", "-agent", "-bot")):
        return ActorKind.AGENT
    return None
