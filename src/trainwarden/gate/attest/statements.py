"""The in-toto statements (v1) of a clearance (pure): OpenSSF's model signature, and SLSA provenance.

Formats: in-toto attestation framework v1 (Statement), predicate `https://model_signing/signature/v1.0`, predicate
`https://slsa.dev/provenance/v1`.
"""

from __future__ import annotations

import hashlib
from collections.abc import Mapping
from datetime import UTC, datetime

from trainwarden.model import CheckpointCleared, CheckpointManifest, SignedSeal

_STATEMENT = "https://in-toto.io/Statement/v1"
_BUILD = "urn:trainwarden:training:v1"


def model_signature(name: str, manifest: CheckpointManifest, *, lone: bool) -> dict[str, object]:
    """The statement that a model named `name` has these files; `lone` where it is a file and no folder."""
    root = hashlib.sha256()
    for file in manifest.files:
        root.update(bytes.fromhex(file.sha256))
    return {
        "_type": _STATEMENT,
        "subject": [{"name": name, "digest": {"sha256": root.hexdigest()}}],
        "predicateType": "https://model_signing/signature/v1.0",
        "predicate": {
            "serialization": {
                "method": "files",
                "hash_type": "sha256",
                "allow_symlinks": False,
                "ignore_paths": [],
            },
            "resources": [
                {"name": "." if lone else f.path, "algorithm": "sha256", "digest": f.sha256} for f in manifest.files
            ],
        },
    }


def provenance(
    manifest: CheckpointManifest,
    clearance: CheckpointCleared,
    seals: Mapping[str, SignedSeal],
    keeper: str,
    signing_pem: bytes,
) -> dict[str, object]:
    """The statement of how these files came about: run by run (`seals` has each run's seal), and by whose word.

    `signing_pem` is the key of the model signature, which this statement binds to the gate's keeper.
    """
    return {
        "_type": _STATEMENT,
        "subject": [{"name": f.path, "digest": {"sha256": f.sha256}} for f in manifest.files],
        "predicateType": "https://slsa.dev/provenance/v1",
        "predicate": {
            "buildDefinition": {
                "buildType": _BUILD,
                "externalParameters": {
                    "runs": [
                        {"run": run, "command": list(seal.seal.argv), "seal": seal.digest}
                        for run, seal in sorted(seals.items())
                    ],
                },
                "internalParameters": _internal(clearance),
                "resolvedDependencies": _dependencies(clearance, seals),
            },
            "runDetails": {
                "builder": {"id": f"urn:trainwarden:keeper:ed25519:{keeper}"},
                "metadata": {"invocationId": clearance.digest, "finishedOn": _time(clearance.wall_ns)},
                "byproducts": [
                    {"name": "model.sig.pem", "digest": {"sha256": hashlib.sha256(signing_pem).hexdigest()}}
                ],
            },
        },
    }


def _internal(clearance: CheckpointCleared) -> dict[str, object]:
    found: dict[str, object] = {
        "policy": clearance.policy,
        "segmentsMatched": clearance.segments,
        "approvedBy": [a.actor for a in clearance.approvals],
    }
    if clearance.evaluated is not None:
        found["evaluated"] = {"seal": clearance.evaluated.seal, "figures": clearance.evaluated.figures}
    if clearance.sources:
        found["derived"] = [
            {"checkpoint": d.digest, "how": d.how, "from": list(d.sources), "settings": d.settings, "by": d.actor}
            for d in clearance.sources
        ]
    return found


def _dependencies(clearance: CheckpointCleared, seals: Mapping[str, SignedSeal]) -> list[dict[str, object]]:
    found: list[dict[str, object]] = []
    for run, signed in sorted(seals.items()):
        for ref in (signed.seal.code, signed.seal.environment, signed.seal.data):
            found.append(
                {
                    "name": f"{run}/{ref.kind}",
                    "digest": {"blake3": ref.digest},
                    "annotations": {"files": ref.files, "bytes": ref.bytes},
                }
            )
    for seen in clearance.runs:
        annotations = {"entries": seen.size, "key": seen.key}
        found.append({"name": f"{seen.run}/log", "digest": {"rfc6962Sha256": seen.root}, "annotations": annotations})
    return found


def _time(wall_ns: int) -> str:
    return datetime.fromtimestamp(wall_ns // 1_000_000_000, UTC).isoformat().replace("+00:00", "Z")
