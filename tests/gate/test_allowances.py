"""A refused file is loaded only by an actor's signed decision on its very bytes, and the decision stays refused."""

from __future__ import annotations

import json
from pathlib import Path

import msgspec
import pytest
import torch

import trainwarden
from tests.gate.corpus.assemble import pickled
from tests.gate.corpus.gadgets import GADGETS
from tests.gate.corpus.payloads import torch_zip
from trainwarden.actors import registry as reg
from trainwarden.cli import main
from trainwarden.errors import CheckpointRefused, KeyUnusable, UsageError
from trainwarden.gate.allowances import allow, allowance_of, with_allowance
from trainwarden.gate.results import Refused
from trainwarden.gate.scan import scan_file
from trainwarden.keys import SigningKey, ring
from trainwarden.model import ActorKind
from trainwarden.store import Store

OWNER, ADA, EVE = (SigningKey(bytes([n]) * 32) for n in range(3))


@pytest.fixture
def store(tmp_path: Path) -> Store:
    store = Store.open(tmp_path / "store", create=True)
    reg.enrol(store, OWNER, "ada", ActorKind.PERSON, ADA.public)
    return store


@pytest.fixture
def custom(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A file that makes a folder when it is loaded."""
    monkeypatch.chdir(tmp_path)
    path = tmp_path / "custom.pt"
    path.write_bytes(torch_zip(pickled(GADGETS["os-mkdir"])))
    return path


def test_what_an_actor_allowed_is_loaded_and_still_reported_refused(store: Store, custom: Path) -> None:
    with pytest.raises(CheckpointRefused):
        trainwarden.load(custom, store=store)
    made = allow(store, custom, "ada", ADA, "it only makes a folder")
    assert "os.mkdir" in made.found[0]
    assert not Path("fired").exists()
    told = with_allowance(store, scan_file(custom))
    assert isinstance(told.decision, Refused)
    assert told.allowed == made
    trainwarden.load(custom, store=store)
    assert Path("fired").exists()


def test_one_other_byte_is_not_allowed(store: Store, custom: Path) -> None:
    allow(store, custom, "ada", ADA, "read")
    custom.write_bytes(torch_zip(pickled(GADGETS["os-mkdir"]), extra={"data/0": b"x"}))
    assert with_allowance(store, scan_file(custom)).allowed is None
    with pytest.raises(CheckpointRefused):
        trainwarden.load(custom, store=store)
    assert not Path("fired").exists()


def test_an_allowance_of_a_key_that_was_revoked_forged_or_moved_counts_no_more(store: Store, custom: Path) -> None:
    made = allow(store, custom, "ada", ADA, "read")
    (kept,) = (store.path / "gate" / "allowed").iterdir()
    for forged in (
        msgspec.structs.replace(made, why="another reason"),
        msgspec.structs.replace(made, key=EVE.public),
        msgspec.structs.replace(made, digest="0" * 64),
    ):
        kept.write_bytes(msgspec.json.encode(forged))
        assert allowance_of(store, made.digest) is None
    kept.write_bytes(b"no JSON")
    assert allowance_of(store, made.digest) is None
    allow(store, custom, "ada", ADA, "read")
    assert allowance_of(store, made.digest) is not None
    reg.revoke(store, OWNER, "ada", "left")
    assert allowance_of(store, made.digest) is None


def test_who_is_not_enrolled_gives_no_reason_or_has_another_key_allows_nothing(store: Store, custom: Path) -> None:
    torch.save({"w": torch.ones(1)}, "clean.pt")
    for path, actor, key, why, error in (
        (custom, "eve", EVE, "read", UsageError),
        (custom, "ada", EVE, "read", KeyUnusable),
        (custom, "ada", ADA, " ", UsageError),
        (Path("clean.pt"), "ada", ADA, "read", UsageError),
    ):
        with pytest.raises(error):
            allow(store, path, actor, key, why)
    assert not (store.path / "gate").exists()


def test_the_verbs_record_an_allowance_and_honour_it(
    store: Store, custom: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(ring, "load", lambda *_: ADA)
    told = ["--store", str(store.path)]
    assert main(["load", *told, str(custom)]) == 1
    assert main(["scan", *told, "--allow", str(custom)]) == 3
    assert main(["scan", *told, "--allow", "--as", "ada", "--why", "read it", str(custom)]) == 0
    assert main(["scan", *told, str(custom)]) == 0
    assert "0 clean, 0 refused, 0 undecided, 1 allowed by name" in (said := capsys.readouterr().out)
    assert "allowed  by ada, these very bytes: read it" in said
    assert main(["scan", *told, "--json", str(custom)]) == 0
    (file,) = json.loads(capsys.readouterr().out)["files"]
    assert (file["decision"]["type"], file["allowed"]["actor"]) == ("refused", "ada")
    assert main(["load", *told, str(custom)]) == 0
    assert main(["scan", str(custom)]) == 1
