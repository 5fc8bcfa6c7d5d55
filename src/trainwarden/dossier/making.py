"""Makes a dossier: gathers, commits, binds the root in the log of custody, renders, signs, writes folder and zip file.

Rules
-----
* All editions of one state of the store have one register and one root. The secret of the salts lies in the store,
  readable by its owner alone; who has it can tell what is hidden.
* The root is an entry of the log of custody before an edition is written, signed by whoever makes it.
* The same store gives the same bytes: the date is that of the entry.
* An edition in which a name that it hides still stands is not written.
"""

from __future__ import annotations

import secrets
from collections.abc import Mapping, Sequence
from pathlib import Path

import msgspec

from trainwarden.custody import ledger
from trainwarden.dossier.commitments import disclosures, plain, register_root, shown_of
from trainwarden.dossier.container import MAX_BYTES, pack
from trainwarden.dossier.gathering import Gathered, Given, Progress, gather
from trainwarden.dossier.kit import FOLDER, kit_of
from trainwarden.dossier.logbook import CUSTODY, LogBook
from trainwarden.dossier.masking import Mask, Named, Names, names_for, with_forms
from trainwarden.dossier.nouns import FORMAT, Audience, Disclosure, Item, Manifest, Shown
from trainwarden.dossier.pages import PAGE, PRINTED, REGISTER, pages_of
from trainwarden.dossier.printing import print_page
from trainwarden.dossier.signing import encode_register, members_of, signed
from trainwarden.dossier.software import software
from trainwarden.durable import hint_for, make_folder, write_atomically
from trainwarden.errors import StoreError, UsageError
from trainwarden.keys import SigningKey
from trainwarden.model import DossierMade, Incident
from trainwarden.store import Store, store_errors

_SECRET_BYTES = 32
RECORDS_MB = 256
KIT_MB = 512
_NO_KIT = "none was asked for (--kit)"
_KIT_STAYS = "it tells the ranks' variables and the records' names: only the organisation's edition has one"


class Options(msgspec.Struct, frozen=True, kw_only=True):
    """What whoever makes it asks for."""

    audience: Audience = Audience.ORGANISATION
    hide: tuple[str, ...] = ()  # further words
    pdf: bool = True
    records_mb: int = RECORDS_MB  # of records at most that the organisation's edition carries
    kit: bool = False
    kit_environment: bool = False
    kit_mb: int = KIT_MB


class Made(msgspec.Struct, frozen=True, kw_only=True):
    """An edition, ready to be written."""

    manifest: Manifest
    files: dict[str, bytes]


def make(
    store: Store, by: ledger.Signer, incident: Incident, given: Given, options: Options, progress: Progress
) -> Made:
    """Make one edition of an incident's dossier.

    Raises:
        CustodyTampered, StoreError, LogError, LogLocked: evidence cannot be trusted, or the root cannot be logged.
        UsageError: a name that is to be hidden would still be seen.
    """
    secret = _secret(store)
    with LogBook() as book:
        gathered = gather(store, book, incident, given, progress)
        committed = _committed(gathered, options.hide, secret)
        everything = [shown_of(item, fields, fields) for item, fields in committed]
        entry = ledger.log_dossier(store, by, incident.id, register_root(everything), len(everything))
        book.open(CUSTODY, ledger.folder(store), SigningKey.load_or_create().public)
        items = tuple(_proven(book, shown_of(i, f, names_for(i, options.audience))) for i, f in committed)
        _check_nothing_seen(items, Mask(_with_words(gathered.names, options.hide), options.audience, secret))
        progress("rendering …")
        return _edition(store, book, items, entry, gathered, options)


def _proven(book: LogBook, item: Shown) -> Shown:
    """The item with a proof to the head that its log has now."""
    if item.proof is None or item.proof.log != CUSTODY:
        return item
    return msgspec.structs.replace(item, proof=book.leaf(CUSTODY, item.proof.index)[1])


def _committed(gathered: Gathered, hide: Sequence[str], secret: bytes) -> list[tuple[Item, dict[str, Disclosure]]]:
    names = _with_words(gathered.names, hide)
    masks: dict[Audience, Mask] = {a: Mask(names, a, secret) for a in Audience if a is not Audience.ORGANISATION}
    found = []
    for item in gathered.register.items:
        fields = {n: plain(v) for n, v in item.fields.items()}
        whole = with_forms(msgspec.structs.replace(item, fields=fields), masks)
        found.append((whole, disclosures(secret, whole)))
    return found


def _with_words(names: Names, hide: Sequence[str]) -> Names:
    return msgspec.structs.replace(names, found={**names.found, Named.WORD: frozenset(hide)})


def _check_nothing_seen(items: Sequence[Shown], mask: Mask) -> None:
    """No disclosed value has a name in it that this edition hides."""
    for item in items:
        for name, told in item.shown.items():
            if mask(told.value) != told.value:
                raise UsageError(
                    f"{item.id} would show a name that this edition hides, in its field {name.partition('@')[0]!r}",
                    hint="a pseudonym is somebody's name there too: tell us, and hide the field with --hide WORD",
                )


def _edition(
    store: Store, book: LogBook, items: tuple[Shown, ...], entry: DossierMade, gathered: Gathered, options: Options
) -> Made:
    files: dict[str, bytes] = {REGISTER: encode_register(items)}
    absent: dict[str, str] = {}
    if options.audience is Audience.ORGANISATION:
        _add_records(store, gathered, options.records_mb, files, absent)
    else:
        absent["records/"] = "the records themselves name everybody: they stay with the organisation"
    _add_kit(store, gathered, options, files, absent)
    manifest = _manifest(book, entry, len(items), options.audience, files, absent)
    pages = pages_of(items, manifest)
    printed, why = print_page(pages[PAGE], manifest.made_ns) if options.pdf else (b"", "none was asked for (--no-pdf)")
    files |= pages
    if printed:
        files[PRINTED] = printed
    else:
        absent[PRINTED] = why
    whole = msgspec.structs.replace(manifest, members=members_of(files), absent=absent)
    return Made(manifest=whole, files={**files, **signed(whole, SigningKey.load_or_create())})


def _add_records(
    store: Store, gathered: Gathered, most_mb: int, files: dict[str, bytes], absent: dict[str, str]
) -> None:
    """The records and statements themselves, as they were taken in."""
    left = most_mb * 1_000_000
    for item in gathered.register.items:
        if item.kind not in ("records", "statement"):
            continue
        digest = str(item.fields["digest"])
        path = f"records/{digest}"
        try:
            size = store.object_path(digest).stat().st_size
            if size > left:
                absent[path] = f"{size:,} bytes; --records-mb allows {most_mb:,} MB in all"
                continue
            files[path] = store.get(digest)
            left -= size
        except StoreError as e:
            absent[path] = str(e)


def _add_kit(
    store: Store, gathered: Gathered, options: Options, files: dict[str, bytes], absent: dict[str, str]
) -> None:
    if not options.kit or options.audience is not Audience.ORGANISATION:
        absent[FOLDER] = _KIT_STAYS if options.kit else _NO_KIT
        return
    kit = kit_of(store, gathered.cases, options.kit_mb, environment=options.kit_environment)
    files |= kit.files
    absent |= kit.absent


def _manifest(
    book: LogBook,
    entry: DossierMade,
    items: int,
    audience: Audience,
    files: Mapping[str, bytes],
    absent: dict[str, str],
) -> Manifest:
    """The manifest of what the pages are made from: they themselves come in afterwards."""
    data, proof = book.leaf(CUSTODY, entry.index)
    return Manifest(
        format=FORMAT,
        software=software(),
        incident=entry.incident,
        audience=audience,
        made_ns=entry.wall_ns,
        register=entry.register,
        items=items,
        custody=proof,
        entry=data.decode(),
        key=book.heads[CUSTODY].key,
        logs=tuple(book.heads[name] for name in sorted(book.heads)),
        members=members_of(files),
        absent=dict(absent),
    )


def _secret(store: Store) -> bytes:
    """The secret of the salts, made once."""
    path = store.path / "dossiers" / "secret"
    with store_errors(f"keep the secret of the salts in {path}"):
        make_folder(path.parent, 0o700)
        if not path.exists():
            try:
                write_atomically(path, secrets.token_bytes(_SECRET_BYTES), mode=0o600, replace=False)
            except FileExistsError:
                pass  # another process was first
        return path.read_bytes()


def write(made: Made, folder: Path) -> tuple[Path, Path]:
    """Write an edition as a folder and, beside it, as one zip file.

    Raises:
        UsageError: the folder has something else in it, it cannot be written there, or the edition is too large.
    """
    file = folder.with_name(folder.name + ".zip")
    if sum(map(len, made.files.values())) > MAX_BYTES // 2:
        raise UsageError("the dossier has more than a gigabyte", hint="carry fewer records: --records-mb, or no --kit")
    if folder.exists() and (not folder.is_dir() or {p.name for p in folder.iterdir()} - _ours()):
        raise UsageError(f"{folder} is there, and is no dossier", hint="name a new folder")
    try:
        _clear(folder, made.files)
        for path, data in made.files.items():
            make_folder((folder / path).parent)
            write_atomically(folder / path, data)
        write_atomically(file, pack(made.files))
    except OSError as e:
        raise UsageError(f"cannot write {folder}: {e.strerror}", hint=hint_for(e) or "name another folder") from e
    return folder, file


def _ours() -> set[str]:
    return {"manifest.json", "manifest.sig", REGISTER, PAGE, PRINTED, "records", "exports", "notices", "kit"}


def _clear(folder: Path, files: Mapping[str, bytes]) -> None:
    """Remove what an earlier edition left there and this one does not have."""
    if folder.is_dir():
        for path in sorted(folder.rglob("*")):
            if path.is_file() and str(path.relative_to(folder)) not in files:
                path.unlink()
