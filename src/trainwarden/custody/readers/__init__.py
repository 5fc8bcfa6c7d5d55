"""One reader a kind of records, each registered here. To add one: reader, its line here, a sample, tests, docs."""

from __future__ import annotations

from trainwarden.custody.readers import artefacts, audit, hosts, ours, platforms, slurm, streams
from trainwarden.custody.readers.interface import Context, Item, Reader
from trainwarden.errors import UsageError
from trainwarden.model import SourceKind

READERS: tuple[Reader, ...] = (
    ours.LOG,
    audit.READER,
    streams.TETRAGON,
    streams.FALCO,
    platforms.KUBERNETES,
    slurm.READER,
    platforms.TELEPORT,
    hosts.WTMP,
    artefacts.GIT,
    artefacts.FILES,
    artefacts.SNAPSHOT,
    ours.STATEMENT,
    hosts.JOURNAL,
    hosts.SHELL,
)
HEAD_BYTES = 16_384

__all__ = ["HEAD_BYTES", "READERS", "Context", "Item", "Reader", "reader_for", "recognised"]


def reader_for(kind: SourceKind) -> Reader:
    """The reader of this kind."""
    return next(reader for reader in READERS if reader.kind is kind)


def recognised(head: bytes, name: str) -> Reader:
    """The reader that knows a file by its first bytes, else by its name.

    Raises:
        UsageError: none does.
    """
    found = next((reader for reader in READERS if reader.recognise(head, name)), None)
    if found is None:
        kinds = ", ".join(reader.kind for reader in READERS)
        raise UsageError(f"{name}: not records that are known here", hint=f"say what they are with --source: {kinds}")
    return found
