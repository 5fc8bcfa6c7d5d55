"""The cosigned head that lies beside a run's log, and what it says of the log today.

    log/cosigned      the newest head that witnesses cosigned, with their lines

Rules
-----
* Cosignatures are on one head. A log that went on since is not cosigned up to its end, and is not said to be.
* A cosigned head that is larger than the log, or that the log does not continue, is proof that it was rolled back or
  rewritten by someone who had the key: nothing else in the folder shows that.

Trust: the policy's witnesses. Who can write the folder can remove the file; the witnesses still know.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import TypeAlias

import msgspec

from trainwarden.durable import hint_for, write_atomically
from trainwarden.errors import LogError, LogTampered
from trainwarden.log.cosignature import Enough, TooFew, with_cosignatures
from trainwarden.log.notes import MAX_NOTE, parse_head, split_note
from trainwarden.log.policy import Policy, judge
from trainwarden.log.reader import LogReader

COSIGNED = "cosigned"


class OlderHead(msgspec.Struct, frozen=True, tag="older head"):
    """Enough witnesses cosigned the log when it had `size` entries; it has `now`, which are not cosigned."""

    size: int
    now: int


class RolledBack(msgspec.Struct, frozen=True, tag="rolled back"):
    """The log is not the one that was cosigned."""

    reason: str


Witnessed: TypeAlias = Enough | TooFew | OlderHead | RolledBack


def read_cosigned(folder: Path) -> bytes | None:
    """The cosigned head kept in a log's folder, or None.

    Raises:
        LogError: it cannot be read.
    """
    try:
        with open(folder / COSIGNED, "rb") as f:
            return f.read(MAX_NOTE + 1)
    except FileNotFoundError:
        return None
    except OSError as e:
        raise LogError(f"cannot read {folder / COSIGNED}: {e.strerror}", hint=hint_for(e)) from e


def keep_cosigned(folder: Path, note: str, lines: Sequence[str]) -> str:
    """Keep a head with its cosignatures, and those it had already, in a log's folder; gives the note.

    Raises:
        LogTampered: the result is not a note.
        LogError: it cannot be written.
    """
    earlier = read_cosigned(folder)
    if earlier is not None and split_note(earlier)[0] == split_note(note.encode())[0]:
        note = earlier.decode()
    note = with_cosignatures(note, lines)
    try:
        write_atomically(folder / COSIGNED, note.encode())
    except OSError as e:
        raise LogError(f"cannot keep the cosigned head in {folder}: {e.strerror}", hint=hint_for(e)) from e
    return note


def judge_cosigned(log: LogReader, note: bytes | None, policy: Policy) -> Witnessed:
    """What the witnesses of `policy`, which asks for some, say of the log at its head.

    Raises:
        LogError, LogTampered, SignatureInvalid: the log contradicts its head, or the note is malformed or forged.
    """
    answer = judge(policy, note if note is not None else log.head.note.encode())
    if answer is None:
        raise LogTampered("the policy asks for no cosignature, so none was judged")
    if note is None:
        return answer
    head = parse_head(note)
    if (head.origin, head.size, head.root) == (log.head.origin, log.head.size, log.head.root):
        return answer
    if isinstance(answer, TooFew):
        return TooFew(answer.needed, (), tuple(w.name for w in policy.witnesses.values()))
    if head.origin != log.head.origin:
        return RolledBack(f"the cosigned head is of the log {head.origin!r}, this is {log.head.origin!r}")
    if head.size > log.head.size:
        return RolledBack(
            f"the log was rolled back: witnesses cosigned size {head.size}, root {head.root}; "
            f"it has size {log.head.size}, root {log.head.root}"
        )
    if log.root_at(head.size).hex() != head.root:
        return RolledBack(
            f"split view: witnesses cosigned root {head.root} at size {head.size}, "
            f"this log had root {log.root_at(head.size).hex()}"
        )
    return OlderHead(head.size, log.head.size)
