"""Slurm's accounting: `sacct -P` with a header, and `sacct --json`, in which no name can be taken for another column.

Formats: sacct(1); times as Slurm prints them, or with `SLURM_TIME_FORMAT=%s`; dbv0.0.38 (Slurm 22.05) and later JSON.
The separator is not escaped: a job called `x|root|…` moves its neighbours. A line with more columns than names is read
only if there is one way to read it, by where its times are; otherwise it is told as unread, since the other way might
name another account. A job that was cancelled says by whose user id.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterator, Mapping, Sequence
from functools import partial
from typing import Any, BinaryIO

import msgspec

from trainwarden.custody.readers.interface import (
    SECOND,
    BadLine,
    Context,
    Item,
    Reader,
    epoch_ns,
    guarded,
    numbered_lines,
    stamp_ns,
    user_name,
)
from trainwarden.model import Act, CustodyEvent, Process, SourceKind, Unread

_LARGEST_JSON = 1 << 28  # it is one document, so it is held whole
_TIMES = ("Submit", "Start", "End")
_FREE = ("JobName", "WorkDir", "SubmitLine", "Comment", "AdminComment")  # columns that a user writes
_CANCELLED = re.compile(r"CANCELLED by (\S+)")


def recognise(head: bytes, name: str) -> bool:
    """Does the file begin with a header of `sacct -P`, or like `sacct --json`?"""
    if head.lstrip().startswith(b"{"):
        return b'"Slurm"' in head[:4096] and b'"meta"' in head[:4096]
    columns = head.split(b"\n", 1)[0].strip().split(b"|")
    return b"JobID" in columns and b"User" in columns and (b"Start" in columns or b"Submit" in columns)


def read(file: BinaryIO, context: Context) -> Iterator[Item]:
    """Every job: that it was submitted, that it ran, and by whom it was cancelled; its steps are part of it."""
    start = file.read(1)
    file.seek(0)
    return _read_json(file, context) if start == b"{" else _read_text(file, context)


def _read_text(file: BinaryIO, context: Context) -> Iterator[Item]:
    names: list[str] = []
    for number, line in numbered_lines(file):
        if not names:
            names = line.decode("utf-8", "backslashreplace").split("|")
        elif line:
            yield from _acts(number, line, partial(_columns, names), context)


def _acts(number: int, line: bytes, row_of: Callable[[str], Mapping[str, str]], context: Context) -> Iterator[Item]:
    for act in (Act.SUBMIT, Act.JOB, Act.SIGNAL):
        item = guarded(number, line, partial(_job, act=act, row_of=row_of, context=context))
        if item is not None:
            yield item
        if isinstance(item, Unread):
            return


def _columns(names: Sequence[str], text: str) -> Mapping[str, str]:
    """The columns of one line by name.

    Raises:
        BadLine: there are too few, or not just one way to read it.
    """
    values = text.split("|")
    free = [n for n, name in enumerate(names) if name in _FREE]
    if len(values) == len(names) + 1 and not values[-1] and len(names) - 1 not in free:
        values.pop()  # `sacct -p` ends its lines with the separator
    surplus = len(values) - len(names)
    if surplus < 0 or (surplus and not free):
        raise BadLine(f"{len(values)} columns, {len(names)} expected")
    if not surplus:
        return dict(zip(names, values, strict=True))
    ways = {_merged(values, free[0], early, free[-1], surplus - early) for early in range(surplus + 1)}
    rows = [dict(zip(names, way, strict=True)) for way in ways]
    rows = [row for row in rows if all(_is_time(row.get(name, "")) for name in _TIMES)]
    if len(rows) != 1:
        raise BadLine(f"a name with | in it, and {len(rows)} ways to read the line: use `sacct --json`")
    return rows[0]


def _merged(values: Sequence[str], first: int, early: int, last: int, late: int) -> tuple[str, ...]:
    """The values, if `early` separators are in the column `first` and `late` ones in the column `last`."""
    whole = "|".join(values[first : first + early + 1])
    joined = [*values[:first], whole, *values[first + early + 1 :]]
    return (*joined[:last], "|".join(joined[last : last + late + 1]), *joined[last + late + 1 :])


def _is_time(text: str) -> bool:
    try:
        _time(text, Context(source=""))
    except BadLine:
        return False
    return True


def _job(
    number: int, text: str, *, act: Act, row_of: Callable[[str], Mapping[str, str]], context: Context
) -> CustodyEvent | None:
    row = row_of(text)
    if "." in row["JobID"]:
        return None
    stopped = _CANCELLED.fullmatch(row.get("State", ""))
    if act is Act.SIGNAL and stopped is None:
        return None
    begun = _time(row.get({Act.SUBMIT: "Submit", Act.JOB: "Start"}.get(act, "End"), ""), context)
    if begun == 0:
        return None
    hosts = row.get("NodeList", "")
    argv = tuple(row.get("SubmitLine", "").split())
    by = stopped[1] if act is Act.SIGNAL and stopped else ""
    by = user_name(by, context) if by.isdecimal() else by
    return CustodyEvent(
        source=context.source,
        line=number,
        time_ns=begun,
        error_ns=SECOND,
        until_ns=_time(row.get("End", ""), context) if act is Act.JOB else 0,
        act=act,
        account=by or row["User"],
        host=hosts if act is Act.JOB and not hosts.startswith("None") else "",
        session=f"slurm:{row['JobID']}",
        processes=() if by else (Process(program=row.get("JobName", ""), argv=argv),),
        path=f"job {row['JobID']}" if by else row.get("WorkDir", "") or f"job {row['JobID']}",
        note=f"cancelled a job of {row['User']}" if by else row.get("State", ""),
    )


def _time(text: str, context: Context) -> int:
    if text in ("", "Unknown", "None", "N/A"):
        return 0
    return epoch_ns(text) if text.isdecimal() else stamp_ns(text, context.zone)


# --------------------------------------------------------------------------- JSON


def _read_json(file: BinaryIO, context: Context) -> Iterator[Item]:
    data = file.read(_LARGEST_JSON + 1)
    if len(data) > _LARGEST_JSON:
        yield Unread(line=1, reason=f"more than {_LARGEST_JSON >> 20} MiB of JSON: ask sacct for fewer jobs at a time")
        return
    try:
        jobs = msgspec.json.decode(data, type=dict[str, Any])["jobs"]
        rows = [msgspec.json.encode(job) for job in jobs]
    except (ValueError, KeyError, TypeError, RecursionError) as e:  # DecodeError is a ValueError
        yield Unread(line=1, reason=f"not what `sacct --json` writes: {str(e)[:200]}")
        return
    for number, row in enumerate(rows, 1):
        yield from _acts(number, row, _from_json, context)


def _from_json(text: str) -> Mapping[str, str]:
    """One job of the document as the columns that sacct would print; `line` counts jobs."""
    job: dict[str, Any] = msgspec.json.decode(text)
    state, time = job["state"]["current"], job["time"]
    states = [state] if isinstance(state, str) else list(state)  # a list since Slurm 23.11
    by = job.get("kill_request_user")
    array, task = job["array"]["job_id"], job["array"].get("task_id")
    task = task.get("number") if isinstance(task, dict) else task
    return {
        "JobID": f"{array}_{task}" if array and task is not None else str(job["job_id"]),
        "JobName": str(job["name"]),
        "User": str(job["user"]),
        "Submit": str(time["submission"]),
        "Start": str(time["start"] or ""),
        "End": str(time["end"] or ""),
        "State": " ".join(states) + (f" by {by}" if by and states == ["CANCELLED"] else ""),
        "NodeList": str(job.get("nodes") or ""),
        "WorkDir": str(job.get("working_directory") or ""),
        "SubmitLine": str(job.get("submit_line") or ""),
    }


READER = Reader(kind=SourceKind.SLURM, recognise=recognise, read=read, editors=("admin:slurm",))
