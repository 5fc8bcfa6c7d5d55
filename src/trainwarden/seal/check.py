"""What is on disk now against what was sealed.

Rules
-----
* A sealed file that is gone or has other bytes is a change; other times, owners or modes are not.
* A *new* file is a change where it can change what runs: in the environment anything that Python can load
  (modules, bytecode, native libraries, `.pth`, entry points, programs), in the code folder anything importable
  beside sealed sources (`imports.py` says which new folders are), in a data folder anything at all. Logs and
  results beside the code are no change.
* Of files that are surely the ones that the seal's own walk saw (`walked.Walked`), nothing is asked again.
* A new or changed file in `__pycache__` is no change if it is what Python writes there from the sealed source
  (`pyc.py`). A sealed cache that was stale and has been made to look fresh is a change, though no byte is.

Trust: the seal is verified by its reader, manifests by their digests. Digests come from the cache (see there
for what it cannot see) unless `deep`.
"""

from __future__ import annotations

import os
import time
from collections.abc import Collection, Iterator, Mapping, Sequence
from contextlib import ExitStack

import msgspec

from trainwarden.model import FileChanged, FileEntry, Manifest, ManifestRef, Seal, SignedSeal
from trainwarden.seal.cache import (
    Digest,
    DigestCache,
    Item,
    Progress,
    digest_files,
    item_of,
)
from trainwarden.seal.command import named_paths
from trainwarden.seal.imports import namespace_files
from trainwarden.seal.latent import library_folders, pycache_prefix
from trainwarden.seal.manifest import decode_manifest, entries, join, path_real, path_text
from trainwarden.seal.pyc import fits_source, is_cache_of, is_half_written, source_of
from trainwarden.seal.scan import SINGLES, importable_beside
from trainwarden.seal.walked import SealWalk, Walked
from trainwarden.seal.walking import Boundaries, loadable, walk, walk_libraries
from trainwarden.store import Store

KINDS = ("environment", "code", "data")


class Expected(msgspec.Struct, frozen=True):
    """One manifest laid out for comparison: real absolute path → entry."""

    kind: str
    files: dict[str, FileEntry]
    roots: tuple[str, ...]  # real folders, without the root of single files
    libraries: tuple[str, ...] = ()  # those of them that only the dynamic loader looks into
    prefix: str = ""  # where Python keeps its caches, if not beside the sources
    code: dict[str, FileEntry] = {}  # sources of another kind whose caches lie in `prefix`
    singles: tuple[str, ...] = ()  # files that are sealed by themselves

    @property
    def below_roots(self) -> dict[str, FileEntry]:
        """The files without those that are sealed by themselves, beside which nothing is looked for."""
        alone = frozenset(self.singles)
        return {path: entry for path, entry in self.files.items() if path not in alone}

    def source(self, path: str) -> FileEntry | None:
        """The sealed source at `path`, whichever kind it is of."""
        return self.files.get(path) or self.code.get(path)


def load_manifest(store: Store, ref: ManifestRef) -> Manifest:
    """The manifest that a seal names.

    Raises:
        SealBroken, StoreError, StoreTampered: it is missing or is not what the seal names.
    """
    return decode_manifest(store.get(ref.digest), ref)


def unsigned(seal: Seal | SignedSeal) -> Seal:
    """The seal itself."""
    return seal.seal if isinstance(seal, SignedSeal) else seal


def expected(store: Store, seal: Seal | SignedSeal, kind: str) -> Expected:
    """What the seal expects of one kind.

    Raises:
        SealBroken, StoreError, StoreTampered: as `load_manifest`.
    """
    plain = unsigned(seal)
    manifest = load_manifest(store, getattr(plain, kind))
    files = {path_real(path): entry for path, entry in entries(manifest)}
    singles = tuple(
        path_real(join(root, entry.path))
        for root, tree in zip(manifest.roots, manifest.trees, strict=True)
        if root == SINGLES
        for entry in tree
    )
    found = Expected(kind, files, roots_of(plain, kind), singles=singles)
    if kind != "environment":
        return found
    prefix = pycache_prefix(plain.argv, plain.env_vars, plain.cwd)
    code = expected(store, plain, "code").files if prefix else {}
    return msgspec.structs.replace(found, libraries=libraries_of(plain), prefix=prefix, code=code)


def roots_of(seal: Seal, kind: str) -> tuple[str, ...]:
    """The real folders and places that the seal covers of one kind."""
    ref: ManifestRef = getattr(seal, kind)
    return tuple(path_real(r) for r in ref.roots if r != SINGLES)


def libraries_of(seal: Seal) -> tuple[str, ...]:
    """Those roots of the environment that only the dynamic loader looks into."""
    roots = roots_of(seal, "environment")
    return tuple(f for f in library_folders(seal.env_vars, seal.cwd) if f in roots)


def boundaries_of(store: Store, seal: Seal) -> Boundaries:
    """The folders that no walk of this seal's files enters, as when it was sealed."""
    return Boundaries(frozenset({str(store.path), *roots_of(seal, "environment"), *roots_of(seal, "code")}))


def cache_of(store: Store) -> DigestCache:
    """The store's digest cache, opened."""
    return DigestCache(store.path / "cache" / "files.sqlite")


def check_seal(
    store: Store,
    seal: Seal | SignedSeal,
    kinds: Sequence[str] = KINDS,
    deep: bool = False,
    progress: Progress | None = None,
    walk: SealWalk | None = None,
) -> list[FileChanged]:
    """Compare the disk with the seal, sorted by kind and path; `deep` hashes every file again.

    `walk` is what was seen when this seal was made, if that is at hand.

    Raises:
        SealBroken, StoreError, StoreTampered: the seal's manifests cannot be had.
        UsageError: a sealed folder cannot be listed.
    """
    plain = unsigned(seal)
    changes: list[FileChanged] = []
    with ExitStack() as stack:
        cache = None if deep else stack.enter_context(cache_of(store))
        for kind in kinds:
            walked = walk.of(getattr(plain, kind)) if walk and not deep else None
            changes += _changed(store, plain, kind, cache, walked, progress)
    return changes


def _changed(
    store: Store, seal: Seal, kind: str, cache: DigestCache | None, walked: Walked | None, progress: Progress | None
) -> list[FileChanged]:
    expect = None if walked else expected(store, seal, kind)
    sealed: Mapping[str, object] = walked.items if walked else expect.files if expect else {}
    items = _present(store, seal, kind, sealed)
    asked = sorted(_unlike(seal, walked, items) if walked else sealed.keys() | items.keys())
    if not asked:
        return []
    expect = expect or expected(store, seal, kind)
    present = [items[path] for path in asked if path in items]
    digests = digest_files(present, cache, strict=False, progress=progress, label=f"checking {kind}")
    found = (judge(store, expect, path, items.get(path), digests.get(path)) for path in asked)
    return [change for change in found if change]


def _unlike(seal: Seal, walked: Walked, items: Mapping[str, Item]) -> set[str]:
    """The paths of files that are not surely the ones that were sealed."""
    unlike = {path for path, item in items.items() if not walked.same(item)}
    unlike |= walked.items.keys() - items.keys()
    return unlike.union(walked.revivable(unlike, pycache_prefix(seal.argv, seal.env_vars, seal.cwd)))


def _present(store: Store, seal: Seal, kind: str, sealed: Mapping[str, object]) -> dict[str, Item]:
    """Files that are there now and could matter: sealed ones, and new ones where new ones are looked for."""
    items = {item.path: item for item in _listed(store, seal, kind, sealed)}
    items.update((path, item) for path in sealed.keys() - items.keys() if (item := item_of(path)))
    return items


def _listed(store: Store, seal: Seal, kind: str, sealed: Collection[str]) -> Iterator[Item]:
    bounds = boundaries_of(store, seal)
    roots = roots_of(seal, kind)
    if kind == "code":
        for root in roots:
            inside = [p for p in sealed if p.startswith(root.rstrip("/") + "/")]
            yield from importable_beside(root, inside, bounds)
        code = expected(store, seal, "code").below_roots
        yield from namespace_files(store, code, bounds, lambda: expected(store, seal, "environment"))
        return
    if kind == "data":
        code = expected(store, seal, "code").files
        bounds = bounds.with_(named_paths(seal.argv[1:], seal.cwd)[1])
        for root in roots:
            yield from (i for i in walk(root, bounds) if i.path not in code)
        return
    libraries = libraries_of(seal)
    for root in roots:
        if root in libraries:
            yield from walk_libraries(root, bounds)
        else:
            yield from (i for i in walk(root, bounds) if i.path in sealed or i.path == root or loadable(i))


def judge(store: Store, expect: Expected, path: str, item: Item | None, digest: Digest | None) -> FileChanged | None:
    """Is this file a change? `item` is None when it is gone, `digest` when it could not be read."""
    entry = expect.files.get(path)
    if entry is None and (item is None or is_half_written(path)):
        return None
    found = digest.digest if digest else ""
    if entry is not None and entry.digest == found and bool(entry.link) == bool(item and item.link):
        if not (entry.inert and digest and _revived(path, digest, expect.prefix)):
            return None
    elif item is not None and item.link is None and _is_python_cache(store, expect, path):
        return None
    return FileChanged(
        path=path_text(path),
        kind=expect.kind,
        sealed=entry.digest if entry else "",
        found=found,
        wall_ns=time.time_ns(),
        uid=_owner(path),
        mtime_ns=item.mtime_ns if item else 0,
    )


def _owner(path: str) -> int:
    try:
        return os.lstat(path).st_uid
    except OSError:
        return -1


def _revived(path: str, digest: Digest, prefix: str) -> bool:
    """A cache that did not fit its source when it was sealed fits it now: Python would load it."""
    source = source_of(path, prefix)
    item = item_of(source[0]) if source else None
    return item is not None and fits_source(digest.head, item.mtime_ns, item.size)


def _is_python_cache(store: Store, expect: Expected, path: str) -> bool:
    source = source_of(path, expect.prefix)
    entry = expect.source(source[0]) if source else None
    if source and entry and entry.link:
        entry = expect.source(os.path.realpath(source[0]))
    if source is None or entry is None or entry.link or not store.has(entry.digest):
        return False
    try:
        with open(path, "rb") as f:
            data = f.read(64 * 1024 * 1024)
    except OSError:
        return False
    return is_cache_of(data, store.get(entry.digest), source[0], source[1])
