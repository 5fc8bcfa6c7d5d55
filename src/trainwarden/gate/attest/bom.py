"""A CycloneDX 1.6 bill of materials of a cleared checkpoint: the model, its files, what it was made from, its figures.

The library (extra `attest`) writes the document; it knows no model card, so that part of the schema is added to it.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from datetime import UTC, datetime
from typing import TYPE_CHECKING
from uuid import UUID

from trainwarden.errors import MissingExtra
from trainwarden.model import CheckpointCleared, CheckpointManifest, SignedSeal

if TYPE_CHECKING:
    from cyclonedx.model import Property
    from cyclonedx.model.component import Component


def check_installed() -> None:
    """Is there what writes the document?

    Raises:
        MissingExtra: there is not.
    """
    try:
        import cyclonedx  # noqa: F401
    except ImportError:
        raise MissingExtra(
            "cyclonedx-python-lib is not installed: the bill of materials cannot be written",
            hint="pip install 'trainwarden[attest]'; or `--no-attest`",
        ) from None


def bill_of_materials(
    name: str, manifest: CheckpointManifest, clearance: CheckpointCleared, seals: Mapping[str, SignedSeal]
) -> bytes:
    """The document as JSON.

    Raises:
        MissingExtra: the library is not installed.
    """
    check_installed()
    from cyclonedx.model.bom import Bom, BomMetaData
    from cyclonedx.model.component import Component, ComponentType
    from cyclonedx.output.json import JsonV1Dot6

    model = Component(
        type=ComponentType.MACHINE_LEARNING_MODEL,
        name=name,
        version=clearance.digest[:12],
        bom_ref=f"model:{clearance.digest}",
        properties=_properties(clearance),
    )
    parts = [*_files(manifest), *_inputs(seals)]
    bom = Bom(
        metadata=BomMetaData(component=model, timestamp=datetime.fromtimestamp(clearance.wall_ns / 1e9, UTC)),
        components=parts,
        serial_number=UUID(clearance.digest[:32]),
    )
    bom.register_dependency(model, parts)
    document = json.loads(JsonV1Dot6(bom).output_as_string())
    if clearance.evaluated is not None:
        metrics = [{"type": k, "value": str(v)} for k, v in clearance.evaluated.figures.items()]
        document["metadata"]["component"]["modelCard"] = {"quantitativeAnalysis": {"performanceMetrics": metrics}}
    return json.dumps(document, indent=1, sort_keys=True).encode() + b"\n"


def _files(manifest: CheckpointManifest) -> list[Component]:
    """The checkpoint's own files."""
    from cyclonedx.model import HashAlgorithm, HashType
    from cyclonedx.model.component import Component, ComponentType

    return [
        Component(
            type=ComponentType.FILE,
            name=f.path,
            bom_ref=f"file:{f.digest}",
            hashes=[
                HashType(alg=HashAlgorithm.SHA_256, content=f.sha256),
                HashType(alg=HashAlgorithm.BLAKE3, content=f.digest),
            ],
        )
        for f in manifest.files
    ]


def _properties(clearance: CheckpointCleared) -> list[Property]:
    """What the checkpoint was cleared by."""
    from cyclonedx.model import Property

    return [
        Property(name="trainwarden:manifest", value=clearance.digest),
        Property(name="trainwarden:policy", value=clearance.policy),
        Property(name="trainwarden:segments-matched", value=str(clearance.segments)),
        *(Property(name="trainwarden:run", value=r.run) for r in clearance.runs),
        *(Property(name=f"trainwarden:{d.how}", value=" ".join(d.sources)) for d in clearance.sources),
        *(Property(name="trainwarden:approved-by", value=a.actor) for a in clearance.approvals),
    ]


def _inputs(seals: Mapping[str, SignedSeal]) -> list[Component]:
    """Code, environment and data of the runs that it was made by."""
    from cyclonedx.model import HashAlgorithm, HashType
    from cyclonedx.model.component import Component, ComponentType

    return [
        Component(
            type=ComponentType.DATA if ref.kind == "data" else ComponentType.FILE,
            name=f"{run}/{ref.kind}",
            bom_ref=f"{run}/{ref.kind}:{ref.digest}",
            hashes=[HashType(alg=HashAlgorithm.BLAKE3, content=ref.digest)],
        )
        for run, signed in sorted(seals.items())
        for ref in (signed.seal.code, signed.seal.environment, signed.seal.data)
    ]
