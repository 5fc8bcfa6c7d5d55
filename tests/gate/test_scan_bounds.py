"""A scan stays within its memory and never fails, whatever a file holds; and the verb says what it found."""

from __future__ import annotations

import io
import json
import os
import pickle
import random
import struct
import subprocess
import sys
import zipfile
from pathlib import Path

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from tests.gate import dying
from tests.gate.corpus.assemble import Call, Ref, pickled, value
from tests.gate.corpus.benign import KERAS, keras_file, onnx_beside, onnx_file
from tests.gate.corpus.gadgets import GADGETS
from tests.gate.corpus.payloads import torch_zip
from trainwarden.cli import main
from trainwarden.gate.results import Clean, Decision, Refused, Undecided
from trainwarden.gate.scan import files, scan_file, scan_paths
from trainwarden.gate.scan.beside import settled
from trainwarden.gate.scan.files import scan_files

MOST_MEMORY = 64 << 20
MEASURED = """
import resource, sys
from pathlib import Path
from trainwarden.gate.scan import scan_file
from trainwarden.gate.scan import texts, templates
before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
for path in sys.argv[1:]:
    print(type(scan_file(Path(path)).decision).__name__)
print((resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before) * 1024)
"""


def decided(data: bytes, folder: Path, name: str = "file") -> Decision:
    path = folder / name
    path.write_bytes(data)
    return scan_file(path).decision


def saved(state: object) -> bytes:
    out = io.BytesIO()
    torch.save(state, out)
    return out.getvalue()


BOMBS = {
    "memo-far-out": b"\x80\x02Nr\xff\xff\xff\xff.",
    "bytearray-of-a-size": pickled(Call(Ref("builtins", "bytearray"), (1 << 30,))),
    "fraction-of-a-power-of-ten": pickled(Call(Ref("fractions", "Fraction"), ("1e999999999",))),
    "key-of-nested-tuples": b"\x80\x02}" + b")" + b"\x85" + b"2\x86" * 40 + b"Ns.",
    "long-number": b"\x80\x02\x8b\x00\x00\x00\x7f" + b"\xff" * 64 + b".",
    "stack": b"\x80\x02" + b"N" * (1 << 19) + b".",
    "marks": b"\x80\x02" + b"(" * (1 << 19) + b".",
    "frame-longer-than-file": b"\x80\x04\x95" + struct.pack("<Q", 1 << 62) + b"N.",
    "bytes-longer-than-file": b"\x80\x04\x8e" + struct.pack("<Q", 1 << 62) + b".",
    "empty-pop": b"\x80\x02" + b"0.",
    "build-of-nothing": b"\x80\x02Nb.",
}


@pytest.mark.parametrize("name", BOMBS)
def test_a_pickle_bomb_is_not_clean(name: str, tmp_path: Path) -> None:
    assert not isinstance(decided(BOMBS[name], tmp_path), Clean)


def test_a_zip_bomb_is_not_clean(tmp_path: Path) -> None:
    out = io.BytesIO()
    with zipfile.ZipFile(out, "w", zipfile.ZIP_DEFLATED) as archive:
        archive.writestr("a.pkl", b"N" * (64 << 20))
    assert not isinstance(decided(out.getvalue(), tmp_path), Clean)


def test_memory_stays_bounded_whatever_the_size(tmp_path: Path) -> None:
    large = saved({"w": torch.zeros(60_000_000), "names": [f"layer {i}" for i in range(20_000)]})
    (tmp_path / "large.pt").write_bytes(large)
    (tmp_path / "bytes.pkl").write_bytes(pickle.dumps({"b": b"x" * (160 << 20)}))
    (tmp_path / "strings.pkl").write_bytes(pickle.dumps([f"{i:0900}" for i in range(100_000)]))
    paths = [str(p) for p in sorted(tmp_path.iterdir())]
    told = subprocess.run([sys.executable, "-c", MEASURED, *paths], capture_output=True, text=True, check=True)
    *decisions, used = told.stdout.split()
    assert decisions == ["Clean", "Clean", "Undecided"]
    assert int(used) <= MOST_MEMORY


@settings(max_examples=150, deadline=None)
@given(st.binary(max_size=400))
def test_any_bytes_behind_a_pickle_head_are_decided(tmp_path_factory: pytest.TempPathFactory, data: bytes) -> None:
    folder = tmp_path_factory.mktemp("fuzz")
    for head in (b"\x80\x02", b"\x80\x04", b"", b"PK\3\4", b"GGUF\3\0\0\0", b"\x93NUMPY\1\0", b"\x08\x07"):
        assert isinstance(decided(head + data, folder), Clean | Refused | Undecided)


def test_no_flipped_byte_makes_a_payload_clean_or_a_scan_fail(tmp_path: Path) -> None:
    picked = random.Random(6)
    stream = b"\x80\x02}(" + value("w") + value(GADGETS["os-mkdir"]) + b"u."
    for whole in (torch_zip(stream), stream):
        for _ in range(200):
            at = picked.randrange(len(whole))
            data = whole[:at] + bytes([picked.randrange(256)]) + whole[at + 1 :]
            decision = decided(data, tmp_path)
            if isinstance(decision, Clean):  # then nothing that runs is left
                assert b"\nmkdir\n" not in data or b"cos" not in data or decision.kind in ("text", "json"), at


def test_a_view_past_its_storage_is_refused_and_one_within_is_not(tmp_path: Path) -> None:
    def state(numel: int) -> bytes:
        storage = b"(" + b"".join(map(value, ("storage", Ref("torch", "FloatStorage"), "0", "cpu", 4))) + b"tQ"
        rest = (
            value(0) + value((numel,)) + value((1,)) + value(False) + value(Call(Ref("collections", "OrderedDict"), ()))
        )
        return b"\x80\x02" + value(Ref("torch._utils", "_rebuild_tensor_v2")) + b"(" + storage + rest + b"tR."

    assert isinstance(decided(torch_zip(state(4), extra={"data/0": b"\0" * 16}), tmp_path), Clean)
    assert isinstance(decided(torch_zip(state(5), extra={"data/0": b"\0" * 16}), tmp_path), Refused)
    assert isinstance(decided(torch_zip(state(4), extra={"data/0": b"\0" * 12}), tmp_path), Undecided)


def test_numpy_flags_that_make_bytes_pointers_are_refused(tmp_path: Path) -> None:
    def array(flags: int) -> bytes:
        dtype = (
            value(Call(Ref("numpy", "dtype"), ("i8", False, True)))
            + value((3, "<", None, None, None, -1, -1, flags))
            + b"b"
        )
        empty = value(Call(Ref("numpy._core.multiarray", "_reconstruct"), (Ref("numpy", "ndarray"), (0,), b"b")))
        return b"\x80\x02" + empty + b"(" + value(1) + value((1,)) + dtype + value(False) + value(b"\0" * 8) + b"tb."

    assert isinstance(decided(array(0), tmp_path), Clean)
    assert isinstance(decided(array(63), tmp_path), Refused)


def test_remote_code_in_a_configuration_is_refused(tmp_path: Path) -> None:
    evil = {"model_type": "x", "auto_map": {"AutoModel": "modeling.Model"}}
    assert isinstance(decided(json.dumps(evil).encode(), tmp_path), Refused)
    escaped = json.dumps(evil).replace("auto_map", "auto\\u005fmap")
    assert isinstance(decided(escaped.encode(), tmp_path), Refused)
    assert isinstance(decided(b'{"a": 1, "a": 2}', tmp_path), Refused)
    keras = {"class_name": "Lambda", "config": {"function": {"class_name": "__lambda__", "config": {"code": "4wE="}}}}
    assert isinstance(decided(json.dumps(keras).encode(), tmp_path), Refused)
    assert isinstance(decided(b"\x89HDF\r\n\x1a\nmodel_config\0" + json.dumps(keras).encode(), tmp_path), Refused)
    assert isinstance(decided(b"\x89HDF\r\n\x1a\nweights only", tmp_path), Clean)


def test_keras_layers_that_run_code_are_refused_in_its_own_files(tmp_path: Path) -> None:
    assert isinstance(decided(keras_file(KERAS), tmp_path), Clean)
    tree = json.loads(KERAS)
    tree["config"]["layers"][1] |= {"class_name": "Lambda", "config": {"function": {"class_name": "__lambda__"}}}
    assert isinstance(decided(keras_file(json.dumps(tree)), tmp_path), Refused)
    tree = json.loads(KERAS)
    tree["config"]["layers"][1] |= {"module": "my_layers", "registered_name": "mine>Conv2D"}
    assert isinstance(decided(keras_file(json.dumps(tree)), tmp_path), Refused)


def test_an_onnx_operator_of_somebody_elses_is_refused(tmp_path: Path) -> None:
    assert isinstance(decided(onnx_file(), tmp_path), Clean)
    assert isinstance(decided(onnx_file("my.ops"), tmp_path), Refused)


def test_data_beside_an_onnx_model_is_what_the_model_says_if_it_lies_within_the_folder(tmp_path: Path) -> None:
    def told(model: bytes, data: bytes, name: str = "weights.bin") -> tuple[Decision, Decision]:
        (tmp_path / "model.onnx").write_bytes(model)
        (tmp_path / name).write_bytes(data)
        found = {Path(s.path).name: s.decision for s in settled(scan_paths([tmp_path]))}
        (tmp_path / name).unlink()
        return found["model.onnx"], found[name]

    raw = struct.pack("<12f", *range(1, 13)) + b"\xff\xfe\x81" * 20
    assert isinstance(told(onnx_file(), raw)[1], Undecided), "nobody names it"
    model, data = told(onnx_beside("./weights.bin", 0, 48), raw)
    assert (type(model), data) == (Clean, Clean(kind="onnx data"))
    assert isinstance(told(onnx_beside("weights.bin", len(raw) - 47, 48), raw)[0], Refused), "past its end"
    assert isinstance(told(onnx_beside("../weights.bin", 0, 48), raw)[0], Refused)
    assert isinstance(told(onnx_beside("weights.bin", 0, -1), raw)[0], Refused)
    payload = pickled(Call(Ref("posix", "system"), ("true",)))
    assert isinstance(told(onnx_beside("weights.bin", 0, 4), payload)[1], Refused), "a pickle stays one"
    assert isinstance(scan_file(tmp_path / "model.onnx").decision, Clean)


def test_a_hubs_cache_is_read_through_its_links_once(tmp_path: Path) -> None:
    blobs, snapshot = tmp_path / "models--a--b" / "blobs", tmp_path / "models--a--b" / "snapshots" / "abc"
    blobs.mkdir(parents=True)
    snapshot.mkdir(parents=True)
    (blobs / "f00d").write_bytes(pickled(GADGETS["os-mkdir"]))
    (snapshot / "pytorch_model.bin").symlink_to("../../blobs/f00d")
    (decision,) = [s.decision for s in scan_paths([tmp_path])]
    assert isinstance(decision, Refused)


def test_what_cannot_be_read_is_never_clean(tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "pipe")
    (tmp_path / "dangling").symlink_to("nowhere")
    (tmp_path / "noise").write_bytes(random.Random(1).randbytes(300))
    assert {type(s.decision) for s in scan_paths([tmp_path])} == {Undecided}


def test_no_name_stops_a_report_or_reaches_the_terminal_as_it_is(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """Half a surrogate in a pickle's global, an escape sequence and a byte that is no UTF-8 in names of files."""
    (tmp_path / "global.pkl").write_bytes(b"\x80\x04\x8c\x02os\x8c\x0asys\xed\xa0\x80\x1b[2J\x93.")
    (tmp_path / "esc\x1b[2J.bin").write_bytes(b"\xff\xfe\x00noise")
    (tmp_path / os.fsdecode(b"byte\xfe.bin")).write_bytes(b"\xff\xfe\x00noise")
    assert main(["scan", str(tmp_path)]) == 1
    told = capsys.readouterr().out
    assert "os.sys\\ud800" in told
    assert "1 refused, 2 undecided" in told
    assert "\x1b" not in told
    assert told.encode()
    assert main(["scan", "--json", str(tmp_path)]) == 1
    names = {os.fsencode(Path(f["path"]).name) for f in json.loads(capsys.readouterr().out)["files"]}
    assert names == {b"global.pkl", b"esc\x1b[2J.bin", b"byte\xfe.bin"}
    assert main(["load", "--json", str(tmp_path / os.fsdecode(b"byte\xfe.bin"))]) == 2
    assert main(["load", "--json", str(tmp_path / "global.pkl")]) == 1
    assert [json.loads(line)["kind"] for line in capsys.readouterr().out.splitlines()] == [
        "CannotDecide",
        "CheckpointRefused",
    ]


def test_the_verb_says_what_it_found_and_leaves_with_the_worst(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "good.pt").write_bytes(saved({"w": torch.ones(2)}))
    assert main(["scan", str(tmp_path)]) == 0
    (tmp_path / "noise").write_bytes(b"\xff\xfe\x00noise")
    assert main(["scan", str(tmp_path)]) == 2
    (tmp_path / "bad.pt").write_bytes(torch_zip(pickled(GADGETS["os-mkdir"])))
    capsys.readouterr()
    assert main(["scan", str(tmp_path)]) == 1
    text = capsys.readouterr().out
    assert "archive/data.pkl at 2: GLOBAL os.mkdir" in text
    assert "1 clean, 1 refused, 1 undecided" in text
    assert main(["scan", "--json", str(tmp_path / "bad.pt")]) == 1
    (file,) = json.loads(capsys.readouterr().out)["files"]
    assert file["decision"]["objections"][0]["offset"] == 2
    assert main(["scan", str(tmp_path / "missing")]) == 3


def test_a_scan_starts_without_what_takes_longer_to_import_than_a_scan_does(tmp_path: Path) -> None:
    (tmp_path / "new.pt").write_bytes(saved({"w": torch.ones(2)}))
    (tmp_path / "one.pkl").write_bytes(pickle.dumps({"step": 1}, protocol=4))
    (tmp_path / "config.json").write_text("{}")
    code = "import sys; from trainwarden.cli import main; print(main(sys.argv[1:]), *sys.modules)"
    done = subprocess.run(
        [sys.executable, "-c", code, "scan", str(tmp_path)], capture_output=True, text=True, check=True
    )
    told, modules = done.stdout.splitlines()
    assert told == "3 clean, 0 refused, 0 undecided"
    assert {"msgspec", "inspect", "dataclasses", "rich"}.isdisjoint(modules.split())


def test_what_a_scanning_process_dies_of_is_not_clean(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    paths = [tmp_path / f"{n}.json" for n in range(40)]
    for path in paths:
        path.write_text("{}")
    assert {type(s.decision) for s in scan_files(paths, jobs=2)} == {Clean}
    monkeypatch.setattr(files, "scan_file", dying.die)
    assert [type(s.decision) for s in scan_files(paths, jobs=2)] == [Undecided] * 40


def test_a_folder_without_files_is_no_pass(tmp_path: Path) -> None:
    assert main(["scan", str(tmp_path)]) == 2
