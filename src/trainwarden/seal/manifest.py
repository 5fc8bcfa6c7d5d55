"""Manifests: which files are sealed, in one canonical byte form.

Rules
-----
* Pure: no file system here.
* File names are bytes on Linux, manifests are JSON. `path_text` writes a name as text without loss: bytes
  that are not UTF-8 become `\\xNN`, a backslash is doubled. `path_real` takes it back. Every path in a
  manifest, a `FileChanged` or a `Room` mapping is in that form; for ordinary names it is the name itself.
* Entries are sorted by path, roots by name, so that the same files give the same digest.
"""

from __future__ import annotations

import os
import re
from collections.abc import Iterator

import msgspec
from blake3 import blake3

from trainwarden.errors import SealBroken
from trainwarden.model import UNREADABLE, FileChanged, FileEntry, Manifest, ManifestRef, canonical

_ESCAPE = re.compile(r"\\(\\|x([0-9a-f]{2}))")
_decoder = msgspec.json.Decoder(Manifest)


def path_text(path: str) -> str:
    """The lossless text form of a file name as `os` functions give it."""
    if "\\" not in path and path.isascii():
        return path
    return os.fsencode(path).replace(b"\\", b"\\\\").decode("utf-8", "backslashreplace")


def path_real(text: str) -> str:
    """The file name that `path_text` wrote."""
    if "\\" not in text:
        return text
    parts: list[bytes] = []
    at = 0
    for match in _ESCAPE.finditer(text):
        parts.append(text[at : match.start()].encode())
        parts.append(bytes.fromhex(match[2]) if match[2] else b"\\")
        at = match.end()
    parts.append(text[at:].encode())
    return os.fsdecode(b"".join(parts))


def join(root: str, path: str) -> str:
    """An entry's absolute path, in text form like its parts."""
    return f"{root.rstrip('/')}/{path}"


def make_manifest(kind: str, trees: dict[str, list[FileEntry]]) -> Manifest:
    """A manifest with roots and entries in canonical order; empty trees are kept, an empty root is still sealed."""
    roots = tuple(sorted(trees))
    ordered = tuple(tuple(sorted(trees[root], key=lambda e: e.path)) for root in roots)
    return Manifest(kind=kind, roots=roots, trees=ordered)


def manifest_ref(manifest: Manifest) -> ManifestRef:
    """The reference that a seal holds."""
    return ManifestRef(
        kind=manifest.kind,
        digest=blake3(canonical(manifest)).hexdigest(),
        files=sum(map(len, manifest.trees)),
        bytes=sum(entry.size for tree in manifest.trees for entry in tree),
        roots=manifest.roots,
    )


def decode_manifest(data: bytes, ref: ManifestRef) -> Manifest:
    """Parse a manifest and check it against the reference that names it.

    Raises:
        SealBroken: the bytes are not that manifest.
    """
    found = blake3(data).hexdigest()
    if found != ref.digest:
        raise SealBroken(f"the {ref.kind} manifest has digest {found}, the seal names {ref.digest}")
    try:
        manifest = _decoder.decode(data)
    except UNREADABLE as e:
        raise SealBroken(f"the {ref.kind} manifest {ref.digest} cannot be read: {e}") from e
    if manifest.kind != ref.kind or manifest.roots != ref.roots or len(manifest.trees) != len(manifest.roots):
        raise SealBroken(
            f"the {ref.kind} manifest {ref.digest} is of kind {manifest.kind} with {len(manifest.trees)} trees "
            f"for {len(manifest.roots)} roots, the seal names {len(ref.roots)} roots"
        )
    return manifest


def entries(manifest: Manifest) -> Iterator[tuple[str, FileEntry]]:
    """Every entry with its absolute path in text form."""
    for root, tree in zip(manifest.roots, manifest.trees, strict=True):
        for entry in tree:
            yield join(root, entry.path), entry


def compare(sealed: Manifest, found: Manifest) -> list[FileChanged]:
    """What differs between two manifests, sorted by path; modes are not compared."""
    before = {path: entry.digest for path, entry in entries(sealed)}
    after = {path: entry.digest for path, entry in entries(found)}
    return [
        FileChanged(path=path, kind=sealed.kind, sealed=before.get(path, ""), found=after.get(path, ""))
        for path in sorted(before.keys() | after.keys())
        if before.get(path) != after.get(path)
    ]
