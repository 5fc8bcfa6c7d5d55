"""Bytes that are verified while they are read, once, into memory of this process.

Rules
-----
* A file is opened once and read once. What is hashed is the memory that is handed out: a file that is exchanged,
  truncated or written to while it is read, or afterwards, changes nothing of it.
* Nothing is handed out before the digest over all of it is the one that was cleared.
* Reading goes one piece ahead of hashing, in a thread; both release the interpreter.

Trust: the process itself. Whoever can write its memory needs no checkpoint.
"""

from __future__ import annotations

import errno
import mmap
import os
import stat
from collections.abc import Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import contextmanager
from pathlib import Path

from blake3 import blake3

from trainwarden.durable import hint_for
from trainwarden.errors import CheckpointTampered
from trainwarden.model import CheckpointFile

PIECE = 4 << 20
_THREADED = 1 << 20  # files below it are not worth a thread
_HASHING = 64 << 20  # from this size on hashing takes all cores


def read_verified(path: Path, file: CheckpointFile) -> memoryview:
    """The bytes of `path`, which are those of `file`: private memory of this process, writable as tensors want it.

    Raises:
        CheckpointTampered: it cannot be read, or its bytes are not those that were cleared.
    """
    with _opened(path) as fd:
        found = os.fstat(fd).st_size
        if found != file.size:
            raise _differs(path, f"has {found:,} bytes, cleared were {file.size:,}")
        if not file.size:
            return memoryview(bytearray())
        memory = memoryview(private(file.size))
        digest, got = _filled(fd, memory)
    if got != file.size:
        raise _differs(path, f"ended after {got:,} of {file.size:,} bytes: it was cut while it was read")
    if digest != file.digest:
        raise _differs(path, f"has the digest {digest}, cleared was {file.digest}")
    return memory


def private(size: int) -> mmap.mmap:
    """Anonymous memory; in huge pages, as small ones cost more to map than the bytes to hash."""
    memory = mmap.mmap(-1, size, mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS)
    if size >= _THREADED:
        try:
            memory.madvise(mmap.MADV_HUGEPAGE)
        except OSError:
            pass  # a kernel without them
    return memory


def _filled(fd: int, memory: memoryview) -> tuple[str, int]:
    """Fill `memory` from the file; the digest of what came, and how much that was."""
    size = len(memory)
    hasher = blake3(max_threads=blake3.AUTO if size >= _HASHING else 1)
    if size < _THREADED:
        got = _read(fd, memory, 0)
        return hasher.update(memory[:got]).hexdigest(), got
    at = 0
    with ThreadPoolExecutor(1, "trainwarden-read") as ahead:
        coming: Future[int] = ahead.submit(_read, fd, memory, 0)
        while got := coming.result():
            begin, at = at, at + got
            whole = got == len(memory[begin : begin + PIECE])
            if at < size and whole:
                coming = ahead.submit(_read, fd, memory, at)
            hasher.update(memory[begin:at])
            if at == size or not whole:
                break
    return hasher.hexdigest(), at


def _read(fd: int, memory: memoryview, at: int) -> int:
    """Read one piece to its place in `memory`; less than the piece only at the file's end."""
    end, start = min(at + PIECE, len(memory)), at
    while at < end and (got := os.preadv(fd, [memory[at:end]], at)):
        at += got
    return at - start


@contextmanager
def _opened(path: Path) -> Iterator[int]:
    """The file, held open; what is none (a pipe that never answers, a device) is refused, not waited for."""
    try:
        fd = os.open(path, os.O_RDONLY | os.O_CLOEXEC | os.O_NONBLOCK)
        try:
            if not stat.S_ISREG(os.fstat(fd).st_mode):
                raise _differs(path, "is not a file")
            yield fd
        finally:
            os.close(fd)
    except OSError as e:
        hint = _HINT if e.errno == errno.ENOENT else hint_for(e) or _HINT
        raise CheckpointTampered(f"{path} cannot be read: {e.strerror or e}", hint=hint) from e


_HINT = "put back what was cleared, or clear and promote what is there now: trainwarden clear, trainwarden promote"


def _differs(path: Path, how: str) -> CheckpointTampered:
    return CheckpointTampered(f"{path} {how}", hint=_HINT)
