"""Checks a dossier offline, from its bytes, the maker's public key and the witnesses'. Bytes in, checks out.

Rules
-----
* A check passes, fails with the name of what is wrong, or was not made, with a reason. What an edition hides or does
  not carry is *not checked*, and never a pass.
* After a failure of the container or the manifest nothing inside is believed, and the rest is not checked.
* The page, drafts and exports are made again from the register and compared: they cannot say anything else.

Trust: the key that is given. That the items of entries which are hidden in part are those of the logs is the maker's
word until an edition shows them: under the same root they can then be nothing else.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from blake3 import blake3

from trainwarden.checks import Check, Failed, NotChecked, Passed, Result
from trainwarden.custody.folding import signed_bytes
from trainwarden.dossier.commitments import plain, register_root
from trainwarden.dossier.container import check_structure, unpack
from trainwarden.dossier.logbook import CUSTODY, entry_fields
from trainwarden.dossier.nouns import FORMAT, LogHead, Manifest, Proof, Shown
from trainwarden.dossier.pages import PRINTED, REGISTER, derived, pages_of
from trainwarden.dossier.signing import check_members, decode_register, read_manifest
from trainwarden.dossier.software import software
from trainwarden.errors import DossierTampered, TrainWardenError
from trainwarden.keys import verify_signature
from trainwarden.log.cosignature import Enough, TooFew
from trainwarden.log.merkle import leaf_hash, verify_inclusion
from trainwarden.log.notes import parse_head, verify_head
from trainwarden.log.policy import NONE, Policy, judge
from trainwarden.model import UNREADABLE, DossierMade, Signature, TreeHead, decode_custody_entry

AFTER = ("register", "custody", "logs", "entries", "pages", "records", "hidden")


def verify_zip(data: bytes, key: str = "", policy: Policy | None = None) -> tuple[Manifest | None, list[Check]]:
    """Check a dossier as one zip file."""
    try:
        files = unpack(data)
        check_structure(data, files)
    except DossierTampered as e:
        wrong = _named_within(data, key)
        checks = [Check("container", Failed(f"{e}{f'; {wrong}' if wrong else ''}")), _unknown("manifest")]
        return None, checks + [_unknown(name) for name in AFTER]
    manifest, checks = verify_files(files, key, policy)
    return manifest, [Check("container", Passed(f"{len(data):,} bytes, each as it was written")), *checks]


def _named_within(data: bytes, key: str) -> str:
    """Which members are wrong as well, as far as the file can be read at all."""
    try:
        files = unpack(data)
        return "; ".join(check_members(read_manifest(files, key), files)[:3])
    except TrainWardenError as e:
        return str(e)


def verify_files(
    files: Mapping[str, bytes], key: str = "", policy: Policy | None = None
) -> tuple[Manifest | None, list[Check]]:
    """Check a dossier's members."""
    try:
        manifest = read_manifest(files, key)
        if manifest.format != FORMAT:
            raise DossierTampered(f"format {manifest.format}, this version reads {FORMAT}")
        wrong = check_members(manifest, files)
    except TrainWardenError as e:
        return None, [Check("manifest", Failed(str(e))), *(_unknown(name) for name in AFTER)]
    signer = Check(
        "key", Passed(key) if key else NotChecked(f"{manifest.key} as the dossier names it; give yours with --key")
    )
    if wrong:
        more = f"; and {len(wrong) - 3} more" if len(wrong) > 3 else ""
        failed = Check("manifest", Failed("; ".join(wrong[:3]) + more))
        return manifest, [signer, failed, *(_unknown(name) for name in AFTER)]
    checks = [signer, Check("manifest", Passed(f"{len(manifest.members)} members, for: {manifest.audience}"))]
    try:
        items = decode_register(files[REGISTER])
    except (DossierTampered, KeyError) as e:
        return manifest, [*checks, Check("register", Failed(str(e))), *(_unknown(name) for name in AFTER[1:])]
    return manifest, checks + _inside(files, manifest, items, policy)


def _unknown(name: str) -> Check:
    return Check(name, NotChecked("what comes before it does not hold"))


def _inside(
    files: Mapping[str, bytes], manifest: Manifest, items: Sequence[Shown], policy: Policy | None
) -> list[Check]:
    heads: dict[str, TreeHead] = {}
    return [
        Check("register", _register(manifest, items)),
        Check("logs", _logs(manifest, heads)),
        Check("custody", _custody(manifest, heads)),
        Check("entries", _entries(items, heads)),
        Check("pages", _pages(files, manifest, items)),
        Check("records", _records(files, items)),
        Check("hidden", _hidden(manifest, items)),
        Check("witnesses", _witnesses(manifest, policy)),
    ]


# --------------------------------------------------------------------------- register and logs


def _register(manifest: Manifest, items: Sequence[Shown]) -> Result:
    try:
        root = register_root(items)
    except DossierTampered as e:
        return Failed(str(e))
    if len(items) != manifest.items or root != manifest.register:
        return Failed(
            f"{len(items)} items give the root {root}, signed were {manifest.items} under {manifest.register}"
        )
    known = {item.id for item in items}
    if len(known) != len(items):
        return Failed("two items have one id")
    loose = next(((i.id, r) for i in items for r in _evidence(i) if r not in known), None)
    if loose:
        return Failed(f"{loose[0]} names {loose[1]} as its evidence, which is no item")
    fields = sum(len(i.shown) for i in items)
    return Passed(f"{fields:,} fields of {len(items):,} items under the root {root[:16]}…")


def _evidence(item: Shown) -> list[str]:
    told = item.shown.get("evidence")
    return [str(v) for v in told.value if v] if told is not None and isinstance(told.value, list) else []


def _logs(manifest: Manifest, heads: dict[str, TreeHead]) -> Result:
    """Every head against the key of its log; those that hold are kept in `heads`."""
    others = []
    for log in manifest.logs:
        try:
            heads[log.name] = verify_head(log.note.encode(), log.key)
            _same_head(log, heads[log.name])
        except TrainWardenError as e:
            heads.pop(log.name, None)
            return Failed(f"the head of the log of {log.name}: {e}")
        if log.key != manifest.key:
            others.append(log.name)
    if others:
        return NotChecked(f"signed under another key, which the maker names: the logs of {', '.join(others)}")
    return Passed(f"{len(heads)} heads, all by the key that signed the dossier")


def _same_head(log: LogHead, head: TreeHead) -> None:
    """A cosigned head beside it is of the same log, and not of a larger one."""
    if not log.cosigned:
        return
    other = parse_head(log.cosigned.encode())
    if other.origin != head.origin or other.size > head.size or (other.size == head.size and other.root != head.root):
        raise DossierTampered(f"witnesses cosigned size {other.size}, root {other.root}; it has size {head.size}")


def _custody(manifest: Manifest, heads: Mapping[str, TreeHead]) -> Result:
    """The entry of the log of custody that binds the root."""
    data = manifest.entry.encode()
    try:
        entry = decode_custody_entry(data)
        if not isinstance(entry, DossierMade) or manifest.custody.log != CUSTODY:
            return Failed("what binds the root is no entry that a dossier was made")
        _in_log(data, manifest.custody, heads)
        verify_signature(Signature(key=entry.key, signature=entry.signature), signed_bytes(entry), entry.key)
    except (TrainWardenError, *UNREADABLE) as e:
        return Failed(str(e))
    told = (entry.register, entry.items, entry.incident, entry.wall_ns, entry.index)
    if told != (manifest.register, manifest.items, manifest.incident, manifest.made_ns, manifest.custody.index):
        return Failed(f"entry {entry.index} binds the root {entry.register} of incident {entry.incident}")
    if entry.actor:
        return Passed(
            f"entry {entry.index} binds the root; signed by {entry.key[:16]}…, which the log of "
            f"custody has as {entry.actor}"
        )
    return Passed(f"entry {entry.index} binds the root; signed by the keeper of the log")


def _in_log(data: bytes, proof: Proof, heads: Mapping[str, TreeHead]) -> None:
    head = heads.get(proof.log)
    if head is None:
        raise DossierTampered(f"there is no verified head of the log of {proof.log}")
    try:
        path = [bytes.fromhex(h) for h in proof.hashes]
    except ValueError:
        raise DossierTampered(f"the proof of entry {proof.index} of the log of {proof.log} is malformed") from None
    verify_inclusion(leaf_hash(data), proof.index, head.size, path, bytes.fromhex(head.root))


def _entries(items: Sequence[Shown], heads: Mapping[str, TreeHead]) -> Result:
    """Every entry that is shown whole: in its log, and its fields those of its bytes."""
    shown = [i for i in items if i.kind == "entry" and "leaf" in i.shown]
    for item in shown:
        try:
            if item.proof is None:
                return Failed(f"{item.id} is shown whole without a proof")
            data = str(item.shown["leaf"].value).encode()
            _in_log(data, item.proof, heads)
            told = {n: d.value for n, d in item.shown.items()}
            if told != plain(entry_fields(item.proof.log, item.proof.index, data)):
                return Failed(f"the fields of {item.id} are not those of entry {item.proof.index}")
        except (TrainWardenError, *UNREADABLE) as e:
            return Failed(f"{item.id}: {e}")
    return Passed(f"{len(shown)} entries of {len(heads)} logs, each with a proof to its signed head")


# --------------------------------------------------------------------------- pages, records, what is hidden


def _pages(files: Mapping[str, bytes], manifest: Manifest, items: Sequence[Shown]) -> Result:
    if manifest.software != software():
        return NotChecked(f"they were made by version {manifest.software}, this is {software()}")
    again = pages_of(items, manifest)
    for path in sorted({*again, *(p for p in files if derived(p))}):
        if files.get(path) != again.get(path):
            return Failed(f"{path} does not say what the register says")
    printed = f"; {PRINTED} is a print, signed and not made again" if PRINTED in files else ""
    return Passed(f"{len(again)} files, made again from the register byte for byte{printed}")


def _records(files: Mapping[str, bytes], items: Sequence[Shown]) -> Result:
    told = [i for i in items if i.kind in ("records", "statement")]
    digests = {str(i.shown["digest"].value): i.id for i in told if "digest" in i.shown}
    here = {path.removeprefix("records/"): data for path, data in files.items() if path.startswith("records/")}
    for digest, data in here.items():
        if digest not in digests or blake3(data).hexdigest() != digest:
            return Failed(f"records/{digest} is not what was taken in")
    if missing := len(told) - len(here):
        return NotChecked(f"{len(here)} records are as they were taken in; {missing} are not in this edition")
    return Passed(f"{len(here)} records, as they were taken in") if told else Passed("no record was taken in")


def _hidden(manifest: Manifest, items: Sequence[Shown]) -> Result:
    fields = sum(len([n for n in i.hidden if "@" not in n]) for i in items)
    entries = [i for i in items if i.kind == "entry" and "leaf" in i.hidden]
    if not fields:
        return Passed("nothing")
    return NotChecked(
        f"{fields:,} fields, {len(entries)} entries among them in part; they are bound by commitments under the root, "
        "and an edition that shows them can be checked against this one"
    )


def _witnesses(manifest: Manifest, policy: Policy | None) -> Result:
    if policy is None or policy.quorum == NONE:
        return NotChecked("no cosignature was asked for; name witnesses with --witness or --policy")
    log = next((x for x in manifest.logs if x.name == CUSTODY), None)
    if log is None:
        return Failed("there is no head of the log of custody")
    try:
        found = judge(policy, (log.cosigned or log.note).encode())
    except TrainWardenError as e:
        return Failed(str(e))
    match found:
        case Enough(needed, there):
            same = parse_head((log.cosigned or log.note).encode()).size == parse_head(log.note.encode()).size
            if not same:
                return Failed("an earlier head of the log of custody is cosigned, this one is not")
            return Passed(f"{len(there)} cosignatures, {needed} needed, on the head of the log of custody")
        case TooFew(needed, there, missing):
            return Failed(f"{len(there)} of {needed} cosignatures on the log of custody; missing: {', '.join(missing)}")
        case _:
            return NotChecked("the policy asks for none")
