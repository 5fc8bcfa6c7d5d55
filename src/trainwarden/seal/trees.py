"""From walked files to manifests in the store: hashed, copied, listed.

Rules
-----
* Files of which the store has no copy are read and copied while they are hashed, all others come from the digest cache.
* Where a walk saw exactly what an earlier one saw (`walked.state_of`), the manifest is the earlier one. It is used only
  if its own bytes are still what they were and the store has an object of every file that is kept.
"""

from __future__ import annotations

import os
from collections.abc import Mapping
from pathlib import Path

from trainwarden.model import FileEntry, ManifestRef, canonical
from trainwarden.seal.cache import Digest, DigestCache, Item, Known, Progress, digest_files, digest_open
from trainwarden.seal.check import cache_of
from trainwarden.seal.manifest import make_manifest, manifest_ref, path_text
from trainwarden.seal.pyc import fits_source, source_of
from trainwarden.seal.scan import SINGLES, Trees
from trainwarden.seal.walked import SealWalk, state_of
from trainwarden.store import Store


def stored_objects(store: Store) -> set[str]:
    """The names of all objects, listed at once: asking for forty thousand one by one takes longer."""
    found: set[str] = set()
    with os.scandir(store.objects) as folders:
        for folder in folders:
            if len(folder.name) == 2:
                with os.scandir(folder.path) as objects:
                    found.update(folder.name + entry.name for entry in objects)
    return found


def put_trees(
    store: Store,
    stored: set[str],
    kinds: Mapping[str, Trees],
    walk: SealWalk,
    keep_data: int,
    progress: Progress | None,
    prefix: str,
) -> dict[str, ManifestRef]:
    """Hash and store all files but those that are `stored`, and the manifests; the references by kind.

    `walk` is told what was seen.

    Raises:
        UsageError: a file cannot be read.
        StoreError: the store cannot be written.
        StoreTampered: it has a manifest of these files with other bytes.
    """
    states = _states(kinds, keep_data, prefix)
    sizes = {kind: sum(i.size for i in _files(trees)) for kind, trees in kinds.items()}
    before = 0
    refs: dict[str, ManifestRef] = {}
    with cache_of(store) as cache:
        for kind, trees in kinds.items():
            known = cache.manifest(states[kind]) if states[kind] else None
            if known is None or not _is_stored(known, stored):
                shown = _shifted(progress, before, sum(sizes.values()))
                known = _made(store, cache, kinds, kind, stored, keep_data, shown, prefix)
                if states[kind] and walk.settled(trees) and cache.holds(_files(trees)):
                    cache.remember_manifest(states[kind], known)
            if known.ref.digest in stored:
                store.check(known.ref.digest)
            before += sizes[kind]
            refs[kind] = known.ref
            walk.saw(known.ref, trees, known.inert)
    return refs


def _files(trees: Trees) -> list[Item]:
    return [item for tree in trees.values() for item in tree.values() if item.link is None]


def _states(kinds: Mapping[str, Trees], keep_data: int, prefix: str) -> dict[str, bytes]:
    """By kind, the digest of all that its manifest is made of: its files, and the sources that its caches may be of.

    A cache lies beside its source, in the same walk; only one below `prefix`, or one that is sealed by itself, may be
    that of a source of another kind.
    """
    code = state_of(kinds["code"])
    apart = bool(prefix) or any(path.endswith(".pyc") for path in kinds["environment"].get(SINGLES, ()))
    environment = state_of(kinds["environment"], "environment", prefix, code if apart else b"")
    return {
        "environment": environment,
        "code": state_of(kinds["code"], "code", prefix, environment),
        "data": state_of(kinds["data"], "data", prefix, environment, code, keep_data),
    }


def _is_stored(known: Known, stored: set[str]) -> bool:
    kept = (known.kept[at : at + 32].hex() for at in range(0, len(known.kept), 32))
    return known.ref.digest in stored and stored.issuperset(kept)


def _made(
    store: Store,
    cache: DigestCache,
    kinds: Mapping[str, Trees],
    kind: str,
    stored: set[str],
    keep_data: int,
    progress: Progress | None,
    prefix: str,
) -> Known:
    """One manifest, made file by file and put into the store with its files."""
    trees = kinds[kind]
    everything = {path: item for t in kinds.values() for tree in t.values() for path, item in tree.items()}
    items = [item for tree in trees.values() for item in tree.values()]
    kept = _within(items, keep_data) if kind == "data" else {item.path for item in items}
    digests = _digest_and_store(store, cache, items, kept, stored, progress, kind)
    found = {root: _entries(root, tree, digests, everything, prefix) for root, tree in trees.items()}
    manifest = make_manifest(kind, {path_text(root): entries for root, entries in found.items()})
    store.put_bytes(canonical(manifest), fsync=False)
    inert = [p for root, tree in trees.items() for p, entry in zip(tree, found[root], strict=True) if entry.inert]
    needed = {bytes.fromhex(digests[item.path].digest) for item in _files(trees) if item.path in kept}
    return Known(manifest_ref(manifest), tuple(inert), b"".join(sorted(needed)))


def _shifted(progress: Progress | None, before: int, total: int) -> Progress | None:
    if progress is None:
        return None
    return lambda done, _total, label: progress(before + done, total, label)


def _within(items: list[Item], budget: int) -> set[str]:
    """The files that are kept: in order of path, each that still fits."""
    kept: set[str] = set()
    for item in sorted(items):
        if item.size <= budget:
            budget -= item.size
            kept.add(item.path)
    return kept


def _digest_and_store(
    store: Store,
    cache: DigestCache,
    items: list[Item],
    kept: set[str],
    stored: set[str],
    progress: Progress | None,
    kind: str,
) -> dict[str, Digest]:
    def read(path: str, fd: int) -> Digest:
        if path not in kept:
            return digest_open(path, fd)
        digest = store.put_file(Path(f"/proc/self/fd/{fd}"), fsync=False)
        return Digest(digest, _head(store, digest) if path.endswith(".pyc") else b"")

    return digest_files(
        items,
        cache,
        read=read,
        must_read=lambda item, digest: item.path in kept and digest.digest not in stored,
        progress=progress,
        label=f"sealing {kind}",
    )


def _head(store: Store, digest: str) -> bytes:
    with store.object_path(digest).open("rb", buffering=0) as f:
        return f.read(16)


def _entries(
    root: str, tree: dict[str, Item], digests: dict[str, Digest], everything: dict[str, Item], prefix: str
) -> list[FileEntry]:
    start = 1 if root == SINGLES else len(root) + 1
    return [
        FileEntry(
            path=path_text(path[start:]),
            digest=digests[path].digest,
            size=item.size,
            mode=item.mode & 0o7777,
            link=path_text(item.link) if item.link is not None else "",
            inert=path.endswith(".pyc") and _is_inert(path, digests[path].head, everything, prefix),
        )
        for path, item in tree.items()
    ]


def _is_inert(path: str, head: bytes, everything: dict[str, Item], prefix: str) -> bool:
    source = source_of(path, prefix)
    item = everything.get(source[0]) if source else None
    return item is not None and item.link is None and not fits_source(head, item.mtime_ns, item.size)
