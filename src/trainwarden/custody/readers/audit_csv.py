"""Linux audit as `ausearch --format csv` prints it, best with --extra-time: it says less than the raw records.

Format: ausearch(8) of audit 3.0.9. Of a file that was opened it does not tell whether to read or to write, of a
renamed one the old name alone. Times have seconds, with --extra-time milliseconds.
"""

from __future__ import annotations

import csv
from collections.abc import Iterator
from datetime import datetime
from typing import BinaryIO

from trainwarden.custody.readers.interface import (
    MILLI,
    NOBODY,
    ONE_LOGIN,
    SECOND,
    BadLine,
    Context,
    Item,
    audited_name,
    numbered_lines,
    opens_session,
    stamp_ns,
)
from trainwarden.model import Act, CustodyEvent, Process, Unread

HEADER = b"NODE,EVENT,DATE,TIME,"
_ACTS = {
    "opened-file": Act.OTHER, "created-file": Act.WRITE, "changed-file": Act.WRITE, "executed": Act.EXECUTE,
    "renamed": Act.RENAME, "deleted": Act.DELETE, "changed-file-permissions-of": Act.ATTRIBUTES,
    "changed-file-ownership-of": Act.ATTRIBUTES, "changed-timestamp-of": Act.ATTRIBUTES,
    "changed-file-attributes-of": Act.ATTRIBUTES, "killed-pid": Act.SIGNAL, "killed-list-of-pids": Act.SIGNAL,
    "killed-thread": Act.SIGNAL, "connected-to": Act.CONNECT, "logged-in": Act.LOGIN, "started-session": Act.LOGIN,
    "ended-session": Act.LOGOUT,
}  # fmt: skip
_NOTES = {
    "opened-file": "opened; the CSV does not tell reading from writing",
    "renamed": "the CSV tells the old name alone",
}


def read(file: BinaryIO, context: Context) -> Iterator[Item]:
    """Every event of the file."""
    begun: dict[tuple[str, str], int] = {}  # node and session of logins that were told → when
    names: list[str] = []
    for number, line in numbered_lines(file):
        text = line.decode("utf-8", "backslashreplace")
        try:
            values = next(csv.reader([text]), [])
            if line.startswith(HEADER):
                names = values
                continue
            if not values:
                continue
            if len(values) != len(names):
                raise BadLine(f"{len(values)} columns, {len(names)} expected")
            yield _row(number, dict(zip(names, values, strict=True)), begun, context)
        except (BadLine, ValueError, KeyError, csv.Error) as e:
            yield Unread(line=number, reason=str(e)[:200])


def _row(number: int, row: dict[str, str], begun: dict[tuple[str, str], int], context: Context) -> CustodyEvent | None:
    act = _ACTS.get(row["ACTION"])
    if act is None or (row["ACTION"] in ("started-session", "ended-session") and not opens_session(row["HOW"])):
        return None
    session = "" if row["SESSION"] in ("unset", "4294967295") else row["SESSION"]
    time_ns, error_ns = _row_time(row, context)
    if act is Act.LOGIN and session:
        if time_ns - begun.get((row["NODE"], session), 0) < ONE_LOGIN:
            return None  # sshd tells of a session with a terminal twice
        begun[row["NODE"], session] = time_ns
    failed = row["RESULT"] not in ("success", "")
    if failed and act is not Act.LOGIN:
        return None
    login, account = (
        "" if row["SUBJ_PRIME"] in NOBODY else audited_name(row["SUBJ_PRIME"]),
        audited_name(row["SUBJ_SEC"]),
    )
    account = account or login
    return CustodyEvent(
        source=context.source,
        line=number,
        time_ns=time_ns,
        error_ns=error_ns,
        act=Act.LOGIN_FAILED if failed else act,
        account=login if act in (Act.LOGIN, Act.LOGOUT) else account,
        login=login if login not in (account, "unset", "") and act not in (Act.LOGIN, Act.LOGOUT) else "",
        host=row["NODE"] or context.host,
        session=session,
        processes=(Process(program=row["HOW"]),),
        path="" if row["OBJ_PRIME"].endswith("(null)") else row["OBJ_PRIME"],
        note=_NOTES.get(row["ACTION"], ""),
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
