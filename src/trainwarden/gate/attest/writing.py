"""Writes the attestations of a clearance into a folder, by default the store's `gate/attestations/<digest>/`.

model.sig            OpenSSF model signature: a sigstore bundle; verified with model.sig.pem
model.sig.pem        its public key (P-256), made from the keeper's
provenance.json      in-toto statement with SLSA provenance in a DSSE envelope, signed by the keeper's key
provenance.pem       the keeper's public key (Ed25519)
bom.cdx.json         CycloneDX 1.6 bill of materials
"""

from __future__ import annotations

from pathlib import Path

from trainwarden.durable import hint_for, write_atomically
from trainwarden.errors import UsageError
from trainwarden.gate.attest.bom import bill_of_materials
from trainwarden.gate.attest.envelopes import ed25519_pem, model_bundle, signed_statement
from trainwarden.gate.attest.statements import model_signature, provenance
from trainwarden.gate.manifest import read_manifest
from trainwarden.keys import SigningKey
from trainwarden.model import CheckpointCleared, SignedSeal
from trainwarden.seal.seal import read_seal
from trainwarden.store import Store


def usual_folder(store: Store, digest: str) -> Path:
    """Where the attestations of a checkpoint lie if nothing else is said: scripts read what lies beside checkpoints."""
    return store.path / "gate" / "attestations" / digest


def write_attestations(
    store: Store, path: Path, clearance: CheckpointCleared, key: SigningKey, folder: Path
) -> tuple[Path, ...]:
    """Write them all; the files that were written.

    Raises:
        MissingExtra: the library for the bill of materials is not installed.
        UsageError: the folder cannot be written.
        StoreError, SealBroken, SignatureInvalid: manifest or seals cannot be had.
    """
    manifest = read_manifest(store, clearance.digest)
    name, seals = path.absolute().name, _seals(store, clearance)
    pem = key.p256_pem
    contents = {
        "model.sig": model_bundle(model_signature(name, manifest, lone=not path.is_dir()), key),
        "model.sig.pem": pem,
        "provenance.json": signed_statement(provenance(manifest, clearance, seals, key.public, pem), key),
        "provenance.pem": ed25519_pem(key),
        "bom.cdx.json": bill_of_materials(name, manifest, clearance, seals),
    }
    try:
        folder.mkdir(parents=True, exist_ok=True)
        for file, data in contents.items():
            write_atomically(folder / file, data)
    except OSError as e:
        raise UsageError(
            f"it is cleared, but its attestations cannot be written to {folder}: {e.strerror}",
            hint=hint_for(e) or "name another folder: --attest DIR",
        ) from e
    return tuple(folder / file for file in contents)


def _seals(store: Store, clearance: CheckpointCleared) -> dict[str, SignedSeal]:
    found: dict[str, SignedSeal] = {}
    for seen in clearance.runs:
        found[seen.run] = read_seal(store.run(seen.run).seal_file, seen.key)
    return found
