"""Other people's tools check what the gate attests, and refuse what was altered since."""

from __future__ import annotations

import json
import sys
from pathlib import Path

import model_signing
import pytest
from cyclonedx.schema import SchemaVersion
from cyclonedx.validation.json import JsonStrictValidator
from securesystemslib.dsse import Envelope
from securesystemslib.exceptions import VerificationError
from securesystemslib.signer import SSlibKey

sys.path.append(str(Path(__file__).parent))

from yard import ACTORS, KEEPER, MALLORY, Yard, yard

from trainwarden import model as m
from trainwarden.errors import SignatureInvalid
from trainwarden.gate.attest.bom import bill_of_materials
from trainwarden.gate.attest.writing import usual_folder, write_attestations
from trainwarden.gate.decision import Cleared
from trainwarden.gate.manifest import read_manifest
from trainwarden.keys import verify_signature

__all__ = ["yard"]


def attested(yard: Yard, path: Path) -> tuple[Path, m.CheckpointCleared]:
    decision = yard.clear(path)
    assert isinstance(decision, Cleared)
    folder = usual_folder(yard.store, decision.clearance.digest)
    write_attestations(yard.store, path, decision.clearance, KEEPER, folder)
    return folder, decision.clearance


def verify(path: Path, folder: Path) -> None:
    """As `model_signing verify key` does."""
    config = model_signing.verifying.Config().use_elliptic_key_verifier(public_key=folder / "model.sig.pem")
    config.verify(path, folder / "model.sig")


def test_openssf_model_signing_verifies_a_folder_and_a_lone_file_and_refuses_every_change(yard: Yard) -> None:
    yard.run()
    path = yard.checkpoint()
    folder, _ = attested(yard, path)
    verify(path, folder)
    lone = path / "model.safetensors"
    verify(lone, attested(yard, lone)[0])
    (path / "extra.json").write_text("{}")
    with pytest.raises(ValueError, match="extra"):
        verify(path, folder)
    (path / "extra.json").unlink()
    data = lone.read_bytes()
    lone.write_bytes(data[:-1] + bytes([data[-1] ^ 1]))
    with pytest.raises(ValueError, match=r"model\.safetensors"):
        verify(path, folder)
    lone.write_bytes(data)
    (folder / "model.sig.pem").write_bytes(MALLORY.p256_pem)
    with pytest.raises(ValueError, match="ey mismatch"):
        verify(path, folder)


def test_provenance_verifies_as_dsse_and_names_the_runs_their_inputs_and_the_model_signatures_key(yard: Yard) -> None:
    run = yard.run()
    yard.enrol()
    yard.derive(yard.out / "avg", m.How.AVERAGE, yard.checkpoint(4), yard.checkpoint(8))
    folder, clearance = attested(yard, yard.out / "avg")
    envelope = Envelope.from_dict(json.loads((folder / "provenance.json").read_bytes()))
    key = SSlibKey(KEEPER.public, "ed25519", "ed25519", {"public": KEEPER.public})
    assert set(envelope.verify([key], 1)) == {KEEPER.public}
    statement = json.loads(envelope.payload)
    assert statement["_type"] == "https://in-toto.io/Statement/v1"
    assert statement["predicateType"] == "https://slsa.dev/provenance/v1"
    manifest = read_manifest(yard.store, clearance.digest)
    assert {s["name"]: s["digest"]["sha256"] for s in statement["subject"]} == {
        f.path: f.sha256 for f in manifest.files
    }
    build, details = statement["predicate"]["buildDefinition"], statement["predicate"]["runDetails"]
    assert [r["run"] for r in build["externalParameters"]["runs"]] == [run]
    assert {d["name"] for d in build["resolvedDependencies"]} == {
        f"{run}/{part}" for part in ("code", "environment", "data", "log")
    }
    assert build["internalParameters"]["derived"][0]["how"] == "average"
    assert details["byproducts"][0]["name"] == "model.sig.pem"
    other = SSlibKey(MALLORY.public, "ed25519", "ed25519", {"public": MALLORY.public})
    with pytest.raises(VerificationError):
        envelope.verify([other], 1)
    altered = Envelope(envelope.payload.replace(b"average", b"merge"), envelope.payload_type, envelope.signatures)
    with pytest.raises(VerificationError):
        altered.verify([key], 1)


def test_the_bill_of_materials_is_valid_cyclonedx_1_6_with_model_files_inputs_and_figures(yard: Yard) -> None:
    yard.run()
    path = yard.checkpoint()
    folder, clearance = attested(yard, path)
    check = JsonStrictValidator(SchemaVersion.V1_6)
    assert check.validate_str((folder / "bom.cdx.json").read_text()) is None
    figures = m.Evaluated(seal="s", figures={"perplexity": 12.5})
    evaluated = m.CheckpointCleared(
        **{f: getattr(clearance, f) for f in clearance.__struct_fields__} | {"evaluated": figures}
    )
    text = bill_of_materials("chat", read_manifest(yard.store, clearance.digest), evaluated, {}).decode()
    assert check.validate_str(text) is None
    bom = json.loads(text)
    model = bom["metadata"]["component"]
    assert (bom["specVersion"], model["type"], model["name"]) == ("1.6", "machine-learning-model", "chat")
    assert model["modelCard"]["quantitativeAnalysis"]["performanceMetrics"] == [{"type": "perplexity", "value": "12.5"}]
    hashes = {c["name"]: {h["alg"] for h in c["hashes"]} for c in bom["components"]}
    assert hashes == {"model.safetensors": {"SHA-256", "BLAKE3"}, "state.json": {"SHA-256", "BLAKE3"}}
    assert check.validate_str(text.replace("machine-learning-model", "brain")) is not None


def test_a_signature_of_one_kind_is_none_of_another() -> None:
    """A statement that an actor signed does not verify as what the gate signs, nor the other way round."""
    signature = KEEPER.sign(b"DSSEv1 1 x 1 y")
    with pytest.raises(SignatureInvalid):
        verify_signature(signature, b"trainwarden/derived/v1\ny", KEEPER.public)
    assert len({KEEPER.p256_pem, *(k.p256_pem for k in ACTORS.values())}) == 4
    assert KEEPER.sign_p256(b"a") == KEEPER.sign_p256(b"a") != KEEPER.sign_p256(b"b")
