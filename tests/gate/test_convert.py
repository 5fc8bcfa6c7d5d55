"""A converted checkpoint is the same bit for bit, and whatever cannot be is not converted."""

from __future__ import annotations

import argparse
import collections
import datetime
import decimal
import hashlib
import io
import json
import math
import pathlib
import pickle
import struct
import types
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from blake3 import blake3
from safetensors.torch import load_file

import trainwarden
from tests.gate.corpus.assemble import pickled
from tests.gate.corpus.benign import benign
from tests.gate.corpus.gadgets import GADGETS
from tests.gate.corpus.payloads import torch_zip
from trainwarden.cli import main
from trainwarden.errors import CannotDecide, CheckpointRefused, UsageError
from trainwarden.gate.convert import conversion
from trainwarden.gate.convert.conversion import convert
from trainwarden.gate.convert.same import Comparison
from trainwarden.gate.results import Clean
from trainwarden.gate.scan import scan_paths


def bits(x: float) -> bytes:
    return struct.pack(">d", x)


def whole() -> dict[str, Any]:
    """A state of everything that old checkpoints hold."""
    torch.manual_seed(3)
    model = torch.nn.Sequential(torch.nn.Linear(3, 4), torch.nn.BatchNorm1d(4))
    optimizer = torch.optim.AdamW(model.parameters())
    model(torch.randn(5, 3)).sum().backward()
    optimizer.step()
    base = torch.arange(24.0)
    tied = torch.randn(4, 2, dtype=torch.bfloat16)
    return {
        "model": model.state_dict(),
        "optimizer": optimizer.state_dict(),
        "args": argparse.Namespace(lr=1e-3, out=pathlib.Path("/x/y"), inner=types.SimpleNamespace(a=[1])),
        "shared": {"whole": base, "rows": base.view(4, 6)[1:3], "t": base.view(4, 6).t(), "halves": base[12:]},
        "part": torch.randn(6, 6)[:, ::2],
        "tied": [tied, tied, torch.nn.Parameter(torch.ones(2), requires_grad=True)],
        "bytes-as": torch.arange(8, dtype=torch.uint8).view(torch.int16),
        "kinds": {
            str(d): torch.tensor([0, 1, 255]).to(d)
            for d in (torch.float8_e4m3fn, torch.float8_e5m2, torch.half, torch.bool, torch.complex64, torch.complex128)
        },
        "nan": torch.tensor([0x7FC00001, -0x3FFFFF, -0x80000000], dtype=torch.int32).view(torch.float32),
        "empty": [torch.empty(0), torch.empty(2, 0, 3), torch.tensor(3.5)],
        "sparse": torch.eye(3).to_sparse(),
        "numpy": {
            "scalar": [np.float64(0.1), np.int32(-4), np.bool_(True), np.float16(2)],
            "f": np.arange(6.0).reshape(2, 3).T,
            "big": np.arange(3, dtype=">i4"),
            "text": np.array(["ab", "c"]),
            "mixed": np.array([{"a": 1}, None], dtype=object),
            "rng": np.random.RandomState(1).get_state(),
        },
        "numbers": [0, -1, 2**53 + 1, 2**200, True, 0.1, -0.0, math.inf, math.nan, 5e-324, 1 + 2j],
        "collections": [
            *(collections.OrderedDict(a=1), collections.defaultdict(list, b=[2]), collections.Counter("aab")),
            *(collections.deque([1, 2], maxlen=4), {3, 4}, frozenset({5}), (1, (2,)), b"\0\xff", bytearray(b"x")),
        ],
        "times": [datetime.datetime(2026, 1, 2, 3, tzinfo=datetime.UTC), datetime.timedelta(1, 2, 3)],
        "kind-values": [torch.Size([1, 2]), torch.float8_e5m2, torch.device("cpu"), decimal.Decimal("1.10")],
        "keys": {0: "int", 1.5: "float", (1, "a"): "tuple", None: "none", True: "one"},
        "$mark": {"$tensor": "text that looks like ours"},
        "text": ["é\U0001f600", "", "\ud800"],
    }


@pytest.mark.parametrize("how", ["zip", "legacy", "pickle"])
def test_everything_an_old_checkpoint_holds_is_the_same_bit_for_bit(how: str, tmp_path: Path) -> None:
    state, old = whole(), tmp_path / "old.ckpt"
    if how == "pickle":
        state = {k: v for k, v in state.items() if k != "sparse"}
    if how != "zip":  # torch's older form, which is in pickles too, cannot be read back with these, by torch either
        state["kinds"] = {k: t for k, t in state["kinds"].items() if "float8" not in k}
    if how == "pickle":
        old.write_bytes(pickle.dumps(state))
    else:
        torch.save(state, old, _use_new_zipfile_serialization=how == "zip")
    before = old.read_bytes()
    done = convert(old, tmp_path / "new")
    assert old.read_bytes() == before
    again = trainwarden.load(tmp_path / "new")
    assert all(torch.equal(again["model"][k], t) for k, t in state["model"].items())
    assert list(again["model"]) == list(state["model"])
    assert again["model"]._metadata == state["model"]._metadata
    assert again["optimizer"]["state"].keys() == state["optimizer"]["state"].keys() == {0, 1, 2, 3}
    assert again["optimizer"]["param_groups"] == state["optimizer"]["param_groups"]
    assert again["shared"]["rows"].stride() == (6, 1)
    assert again["shared"]["rows"].storage_offset() == 6
    again["shared"]["whole"][6] = -1
    if how != "pickle":  # a plain pickle has each tensor's storage apart
        assert again["shared"]["rows"][0, 0] == again["shared"]["t"][0, 1] == -1
    assert again["tied"][0].untyped_storage().data_ptr() == again["tied"][1].untyped_storage().data_ptr()
    assert again["nan"].view(torch.int32).tolist() == state["nan"].view(torch.int32).tolist()
    numbers = zip(again["numbers"], state["numbers"], strict=True)
    assert all(type(a) is type(b) and (bits(a) == bits(b) if isinstance(a, float) else a == b) for a, b in numbers)
    assert again["args"].state["inner"].state == {"a": [1]}
    assert again["keys"] == state["keys"]
    assert again["$mark"] == state["$mark"]
    assert again["text"] == state["text"]
    assert again["numpy"]["scalar"] == state["numpy"]["scalar"]
    assert [type(x) for x in again["numpy"]["scalar"]] == [np.float64, np.int32, np.bool_, np.float16]
    assert done.tensors_equal >= 20
    assert {type(s.decision) for s in scan_paths([tmp_path / "new"])} == {Clean}


def test_a_plain_state_dict_keeps_its_names_for_any_reader_of_safetensors(tmp_path: Path) -> None:
    state = {"layer.weight": torch.randn(2, 3), "layer.bias": torch.randn(2)}
    torch.save(state, tmp_path / "old.pt")
    assert main(["convert", str(tmp_path / "old.pt"), "-o", str(tmp_path / "new")]) == 0
    loaded = load_file(tmp_path / "new" / "model.safetensors")
    assert {k: t.tolist() for k, t in loaded.items()} == {k: t.tolist() for k, t in state.items()}


def test_the_edge_names_both_sides_by_digest(tmp_path: Path) -> None:
    torch.save({"w": torch.ones(3)}, tmp_path / "old.pt")
    convert(tmp_path / "old.pt", tmp_path / "new")
    edge = json.loads((tmp_path / "new" / "conversion.json").read_bytes())
    source = (tmp_path / "old.pt").read_bytes()
    assert edge["source"]["digest"] == blake3(source).hexdigest()
    assert edge["source"]["sha256"] == hashlib.sha256(source).hexdigest()
    for target in edge["targets"]:
        assert target["digest"] == blake3((tmp_path / "new" / target["path"]).read_bytes()).hexdigest()
    assert edge["bytes_equal"] == 12


def test_every_benign_file_of_torch_converts_or_says_why_not(tmp_path: Path) -> None:
    (tmp_path / "work").mkdir()
    converted = 0
    for name, data in benign(tmp_path / "work").items():
        if name.endswith((".pt", ".ckpt", ".bin")):
            (tmp_path / name).write_bytes(data)
            convert(tmp_path / name, tmp_path / f"new-{name}")
            converted += 1
    assert converted >= 25


def test_a_payload_is_not_converted_and_nothing_is_left(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    Path("evil.pt").write_bytes(torch_zip(pickled(GADGETS["os-mkdir"])))
    with pytest.raises(CheckpointRefused):
        convert(Path("evil.pt"), Path("new"))
    assert sorted(p.name for p in tmp_path.iterdir()) == ["evil.pt"]


@pytest.mark.parametrize(
    "edit",
    [
        lambda s: s["w"].view(torch.int32).__setitem__(0, s["w"].view(torch.int32)[0] ^ 1),
        lambda s: s.update(step=8),
        lambda s: s.update(lr=math.nextafter(0.1, 1)),
        lambda s: s.update(w=s["w"].clone(), v=s["w"].clone()),
        lambda s: s.update(step=np.int64(7)),
        lambda s: s.update(w=s["w"].to(torch.float64)),
        lambda s: s.update(w=s.pop("w")),
    ],
    ids=["one-bit", "integer", "last-place", "no-longer-shared", "kind-of-number", "dtype", "order"],
)
def test_proof_finds_whatever_differs_and_keeps_nothing(
    edit: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def state() -> dict[str, Any]:
        w = torch.randn(4, generator=torch.Generator().manual_seed(1))
        return {"w": w, "v": w[:2], "step": 7, "lr": 0.1}

    edited = state()
    edit(edited)
    assert Comparison().difference(state(), state()) == ""
    assert Comparison().difference(state(), edited) != ""
    torch.save(state(), tmp_path / "old.pt")
    monkeypatch.setattr(conversion, "read_converted", lambda *_: edited)
    with pytest.raises(CannotDecide, match="is not what it holds"):
        convert(tmp_path / "old.pt", tmp_path / "new")
    assert [p.name for p in tmp_path.iterdir()] == ["old.pt"]


def test_what_has_no_form_is_not_converted(tmp_path: Path) -> None:
    loop: list[Any] = []
    loop.append(loop)
    torch.save({"loop": loop}, tmp_path / "loop.pt")
    (tmp_path / "two.pkl").write_bytes(pickle.dumps({"a": 1}) + pickle.dumps({"b": 1}))
    np.save(tmp_path / "a.npy", np.arange(3))
    for name in ("loop.pt", "two.pkl", "a.npy"):
        with pytest.raises(CannotDecide):
            convert(tmp_path / name, tmp_path / "new")
    with pytest.raises(UsageError, match="exists"):
        convert(tmp_path / "loop.pt", tmp_path)
    assert not (tmp_path / "new").exists()


def test_a_converted_state_that_names_more_than_it_may_is_not_loaded(tmp_path: Path) -> None:
    torch.save({"w": torch.ones(1)}, tmp_path / "old.pt")
    convert(tmp_path / "old.pt", tmp_path / "new")
    for told in (
        {"$kind": "os.system", "args": ["true"]},
        {"$name": "builtins.eval"},
        {"$scalar": "O", "hex": "00" * 8},
    ):
        text = json.dumps({"format": "trainwarden-state/1", "state": told})
        (tmp_path / "new" / "state.json").write_text(text)
        with pytest.raises(CannotDecide):
            trainwarden.load(tmp_path / "new")


def test_load_tells_what_was_loaded(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    torch.save({"model": {"w": torch.ones(2, 3)}, "step": 4}, tmp_path / "a.pt")
    assert main(["load", "--json", str(tmp_path / "a.pt")]) == 0
    told = json.loads(capsys.readouterr().out)
    assert told["tensors"] == [{"name": "model.w", "dtype": "float32", "shape": [2, 3], "size": 24}]
    assert told["others"] == 1
    assert main(["load", str(tmp_path / "a.pt")]) == 0
    assert "model.w  float32         2×3" in capsys.readouterr().out
    out = io.BytesIO(pickled(GADGETS["os-mkdir"])).getvalue()
    (tmp_path / "bad.pt").write_bytes(torch_zip(out))
    assert main(["load", str(tmp_path / "bad.pt")]) == 1
