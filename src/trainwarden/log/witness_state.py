"""A witness's memory: for every log the last head that it cosigned, as the file that it also serves.

    <sha256 of the origin>/checkpoint      the head with the log's signature and the witness's
    <sha256 of the origin>/evidence/<sha256 of the note>   a head that contradicts it, and the one that it contradicts

Rules
-----
* A head is durable here before its cosignature leaves. Stopped in between, the witness knows the head and the log
  asks again: no two heads of one size, and no smaller one, are ever cosigned.
* Checking and keeping are one step per witness; one process has the folder, others are refused.
* A kept head that cannot be read stops the witness for that log: it never begins again from nothing.
* The time of a cosignature never goes back, even when the clock does.

Trust: who can write the folder can make the witness forget. Put it where the log's operators have no access.
"""

from __future__ import annotations

import fcntl
import hashlib
import os
import threading
from collections.abc import Callable, Sequence
from pathlib import Path

import msgspec

from trainwarden.durable import hint_for, make_folder, write_atomically
from trainwarden.errors import LogError, LogLocked, LogTampered
from trainwarden.keys import SigningKey
from trainwarden.log.cosignature import cosign, cosignatures
from trainwarden.log.notes import parse_head, signature_line, split_note
from trainwarden.log.vkeys import COSIGNATURE, KEY_ID_SIZE, VerifierKey
from trainwarden.log.witness import Accepted, Decision, KeysOf, SplitView, Submission, judge
from trainwarden.model import TreeHead

CHECKPOINT, EVIDENCE, LOCK = "checkpoint", "evidence", "lock"
MAX_EVIDENCE = 1000  # files for one log


class Answer(msgspec.Struct, frozen=True):
    """What was decided, and the cosignature's line where the head was accepted."""

    decision: Decision
    line: str = ""


class Witness:
    """A witness held open: its key, the logs it knows and its folder; threads may share it."""

    def __init__(self, folder: Path, name: str, key: SigningKey, keys_of: KeysOf, clock: Callable[[], int]) -> None:
        """Open the folder, making it on first use.

        Raises:
            LogLocked: another process has it.
            LogError: it cannot be written.
        """
        self.key = VerifierKey(name, key.public, COSIGNATURE)
        self._signer, self._keys_of, self._clock = key, keys_of, clock
        self._folder, self._guard = folder, threading.Lock()
        try:
            make_folder(folder)
            self._lock = os.open(folder / LOCK, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
        except OSError as e:
            raise _failed(f"use {folder}", e) from e
        try:
            fcntl.flock(self._lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            os.close(self._lock)
            raise LogLocked(
                f"another process is the witness of {folder}", hint="one folder has one witness: stop the other one"
            ) from None

    def close(self) -> None:
        """Give up the folder."""
        os.close(self._lock)

    def submit(self, submission: Submission) -> Answer:
        """Decide about a head, keep it, and cosign it.

        Raises:
            LogTampered: what was kept for this log cannot be read.
            LogError: the head cannot be kept; it is not cosigned.
        """
        with self._guard:
            decision = judge(submission, self._keys_of, self._latest)
            if isinstance(decision, SplitView):
                self._keep_evidence(decision, submission.note)
            if not isinstance(decision, Accepted):
                return Answer(decision)
            origin = decision.head.origin
            time = max(self._clock(), self._last_time(origin))
            line = cosign(split_note(submission.note)[0], self.key.name, self._signer, time)
            self._keep(origin, _log_signed(submission.note, self._keys_of(origin)) + line.encode())
            return Answer(decision, line)

    def checkpoint(self, origin_hash: str) -> bytes | None:
        """The last cosigned head of the log whose origin has this SHA-256 (hex), or None."""
        if len(origin_hash) != 64 or set(origin_hash) - set("0123456789abcdef"):
            return None
        return self._read(self._folder / origin_hash / CHECKPOINT)

    def _latest(self, origin: str) -> TreeHead | None:
        note = self._read(self._place(origin))
        if note is None:
            return None
        head = parse_head(note)
        if head.origin != origin or not cosignatures(note, [self.key]):
            raise LogTampered(
                f"the head that was kept for {origin!r} is of {head.origin!r}, or not cosigned by {self.key.name}",
                hint="the witness's folder was changed, or its key: it will not go on from there",
            )
        return head

    def _last_time(self, origin: str) -> int:
        note = self._read(self._place(origin))
        return cosignatures(note, [self.key])[0].time if note is not None else 1

    def _keep(self, origin: str, note: bytes) -> None:
        path = self._place(origin)
        try:
            make_folder(path.parent)
            write_atomically(path, note)
        except OSError as e:
            raise _failed(f"keep the head of {origin!r}", e) from e

    def _keep_evidence(self, found: SplitView, note: bytes) -> None:
        folder = self._place(found.head.origin).parent / EVIDENCE
        name = hashlib.sha256(split_note(note)[0].encode()).hexdigest()
        try:
            make_folder(folder)
            if not (folder / name).exists() and sum(1 for _ in folder.iterdir()) < MAX_EVIDENCE:
                write_atomically(folder / name, found.kept.note.encode() + b"\n" + note)
        except OSError as e:
            raise _failed(f"keep the evidence against {found.head.origin!r}", e) from e

    def _place(self, origin: str) -> Path:
        return self._folder / hashlib.sha256(origin.encode()).hexdigest() / CHECKPOINT

    def _read(self, path: Path) -> bytes | None:
        try:
            return path.read_bytes()
        except FileNotFoundError:
            return None
        except OSError as e:
            raise _failed(f"read {path}", e) from e


def _log_signed(note: bytes, keys: Sequence[VerifierKey]) -> bytes:
    """The note with the signatures that were verified: others' lines are not ours to pass on."""
    text, lines = split_note(note)
    known = {(key.name, key.id) for key in keys}
    verified = (signature_line(name, blob) for name, blob in lines if (name, blob[:KEY_ID_SIZE]) in known)
    return f"{text}\n{''.join(dict.fromkeys(verified))}".encode()


def _failed(what: str, error: OSError) -> LogError:
    return LogError(f"cannot {what}: {error.strerror or error}", hint=hint_for(error))
