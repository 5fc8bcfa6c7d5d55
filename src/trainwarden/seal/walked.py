"""What was on disk when a seal was made: kept while the run goes on, so that nothing is looked at twice for nothing.

A guarded start compares the disk with the seal before anything of it is imported. The walk that seals the environment
is that comparison as well, and no second one follows, because:

1. Each folder is watched before it is listed (`inotify.Folders`), and a file is looked at after its folder is listed. A
   change before the look is in the seal. A change after it is in an event, which the kernel queues before the call that
   makes the change returns.
2. `FileWatch.settle` reads these events before the command is started, and hashes what they name without the cache.
3. What no watched folder tells of is looked at again there: files sealed by themselves, places that are empty, roots
   that lead elsewhere than when they were entered, mounts above or below a root.
4. Where a folder could not be watched, events were dropped, the seal is not the one that this walk made (an approved
   one may be older), or the walk began over two seconds ago (a first seal reads every byte), all is compared again.

So it is as if a second walk had been made at the instant of the first. What a walk cannot see *after* it has passed a
file, and no event tells (a write through a mapping, through a hard link elsewhere, on another host of a network file
system), a second walk does not see either once it has passed. It is seen by the next one: before a rank's start once
the last is two seconds old, and at the end.

Later walks compare identities with the ones seen here (device, inode, ctime, size, mtime, mode, link): equal and old
enough means the sealed bytes, by the rule of `cache`. Only what differs is hashed and judged.
"""

from __future__ import annotations

import time
from collections.abc import Collection

import msgspec
from blake3 import blake3

from trainwarden.model import ManifestRef
from trainwarden.seal.cache import Item, settled_before
from trainwarden.seal.inotify import Folders
from trainwarden.seal.pyc import source_of
from trainwarden.seal.scan import SINGLES, Trees

_VERSION = 1  # of how a manifest is made of items
_encoder = msgspec.msgpack.Encoder()


class Walked(msgspec.Struct, frozen=True):
    """The files of one manifest as they were seen when it was made."""

    ref: ManifestRef
    items: dict[str, Item]
    singles: tuple[str, ...]  # paths of files that are sealed by themselves
    inert: tuple[str, ...]  # caches that did not fit their sources
    settled_ns: int  # a file changed later than this may have changed again in the same tick

    def same(self, item: Item) -> bool:
        """Is this file surely the one that was sealed?"""
        return self.items.get(item.path) == item and item.ctime_ns < self.settled_ns

    def revivable(self, changed: Collection[str], prefix: str) -> list[str]:
        """Inert caches whose source is among the changed, or is not one of these files."""
        found = ((path, source_of(path, prefix)) for path in self.inert)
        return [path for path, of in found if of and (of[0] in changed or of[0] not in self.items)]


class SealWalk:
    """What one sealing saw, kind by kind; `folders` are told of those of its environment."""

    def __init__(self, folders: Folders | None = None) -> None:
        self.folders = folders
        self.began = time.monotonic()
        self._settled_ns = settled_before()
        self._walked: dict[str, Walked] = {}

    def saw(self, ref: ManifestRef, trees: Trees, inert: tuple[str, ...]) -> None:
        """These files are the manifest `ref`."""
        items: dict[str, Item] = {}
        for tree in trees.values():
            items.update(tree)
        self._walked[ref.kind] = Walked(ref, items, tuple(trees.get(SINGLES, ())), inert, self._settled_ns)

    def of(self, ref: ManifestRef) -> Walked | None:
        """What was seen of the files of this manifest; None when it is another one."""
        walked = self._walked.get(ref.kind)
        return walked if walked is not None and walked.ref == ref else None

    def settled(self, trees: Trees) -> bool:
        """Was no file so young that it may have changed again within the tick of the clock?"""
        return all(item.ctime_ns < self._settled_ns for tree in trees.values() for item in tree.values())


def state_of(trees: Trees, *more: object) -> bytes:
    """The digest of all that a walk saw of these files, and of what else decides their manifest; b"" when a name is not
    UTF-8, which the encoding cannot hold.
    """
    seen = [(root, list(tree.values())) for root, tree in trees.items()]
    try:
        return blake3(_encoder.encode((_VERSION, seen, more))).digest()
    except UnicodeEncodeError:
        return b""
