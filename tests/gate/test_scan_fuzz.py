"""Real files with bytes changed, cut, doubled, put in: a scan decides, never clean of what readers see otherwise."""

from __future__ import annotations

import bz2
import contextlib
import gzip
import io
import json
import lzma
import os
import pickle
import struct
import zipfile
from collections.abc import Callable

import numpy as np
import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from safetensors import SafetensorError
from safetensors.torch import load, save

from tests.gate.corpus.benign import (
    CHAT,
    KERAS,
    h5_file,
    joblib_file,
    jpeg_file,
    keras_file,
    npz,
    onnx_file,
    png_file,
    sentencepiece_file,
    tar_file,
)
from tests.gate.corpus.payloads import gguf_file
from trainwarden.gate.results import Clean, Decision, Refused, Undecided
from trainwarden.gate.scan.files import scan_open

STATE = {"w": torch.arange(6.0).reshape(2, 3), "step": 3, "names": ["a", "b"]}
Edit = tuple[str, float, bytes]
HOW = ("set", "cut", "put", "double", "end")
EDITS = st.lists(
    st.tuples(
        st.sampled_from(["set", "cut", "put", "double", "end"]), st.floats(0, 1), st.binary(min_size=1, max_size=9)
    )
    | st.tuples(st.just("set"), st.floats(0, 1), st.sampled_from([b"\0", b"\xff", b"\xff\xff\xff\xff"])),
    min_size=1,
    max_size=4,
)
FUZZED = settings(max_examples=120, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])


def saved(**how: bool) -> bytes:
    out = io.BytesIO()
    torch.save(STATE, out, **how)
    return out.getvalue()


def npy() -> bytes:
    out = io.BytesIO()
    np.save(out, np.arange(12).reshape(3, 4))
    return out.getvalue()


def zip_file(name: str, data: bytes) -> bytes:
    out = io.BytesIO()
    with zipfile.ZipFile(out, "w", zipfile.ZIP_DEFLATED) as archive:
        archive.writestr(name, data)
    return out.getvalue()


FILES: dict[str, Callable[[], bytes]] = {
    "torch": saved,
    "legacy": lambda: saved(_use_new_zipfile_serialization=False),
    "pickle": lambda: pickle.dumps(STATE | {"a": np.arange(3)}),
    "safetensors": lambda: save({"w": STATE["w"], "b": torch.ones(2)}),  # type: ignore[dict-item]
    "npy": npy,
    "gguf": lambda: gguf_file(CHAT),
    "hdf5": lambda: h5_file(model_config=KERAS, keras_version="3.15.1"),
    "keras": lambda: keras_file(KERAS),
    "onnx": onnx_file,
    "sentencepiece": sentencepiece_file,
    "png": png_file,
    "jpeg": jpeg_file,
    "npz": npz,
    "joblib": joblib_file,
    "joblib-zlib": lambda: joblib_file(3),
    "tar": lambda: tar_file(saved()),
    "gzip": lambda: gzip.compress(pickle.dumps(STATE)),
    "bzip2": lambda: bz2.compress(pickle.dumps(STATE)),
    "xz": lambda: lzma.compress(pickle.dumps(STATE)),
    "zip": lambda: zip_file("model.safetensors", save({"w": STATE["w"]})),  # type: ignore[dict-item]
    "template": lambda: CHAT.encode(),
    "json": lambda: json.dumps({"tokenizer_class": "X", "chat_template": CHAT}).encode(),
    "yaml": lambda: b"# a model card\nmodel:\n  layers: 3\n  names: [a, b]\n",
}


def edited(data: bytes, edits: list[Edit]) -> bytes:
    for how, where, piece in edits:
        at = int(where * len(data))
        match how:
            case "set":
                data = data[:at] + piece + data[at + len(piece) :]
            case "cut":
                data = data[:at] + data[at + len(piece) :]
            case "put":
                data = data[:at] + piece + data[at:]
            case "double":
                data = data[:at] + data[at : at + 40] + data[at:]
            case _:
                data = data[: max(1, len(data) - len(piece))]
    return data


def decided(data: bytes) -> Decision:
    fd = os.memfd_create("fuzzed")
    try:
        os.write(fd, data)
        return scan_open(fd, "fuzzed").decision
    finally:
        os.close(fd)


@pytest.mark.parametrize("kind", FILES)
def test_an_edited_file_is_decided_and_no_reader_fails_on_it(kind: str) -> None:
    whole = FILES[kind]()
    assert isinstance(decided(whole), Clean)

    @FUZZED
    @given(EDITS)
    def fuzz(edits: list[Edit]) -> None:
        decision = decided(edited(whole, edits))
        assert isinstance(decision, Clean | Refused | Undecided)
        if isinstance(decision, Undecided):
            assert "could not be followed" not in decision.why  # a defect of a reader

    fuzz()


@FUZZED
@given(EDITS)
def test_a_clean_archive_is_read_alike_by_torch_and_by_zipfile(edits: list[Edit]) -> None:
    data = edited(saved(), edits)
    decision = decided(data)
    if not isinstance(decision, Clean) or decision.kind != "torch zip":
        return
    reader = torch._C.PyTorchFileReader(io.BytesIO(data))
    with zipfile.ZipFile(io.BytesIO(data)) as archive:
        (name,) = [n for n in archive.namelist() if n.endswith("/data.pkl")]
        assert archive.read(name) == reader.get_record("data.pkl")
        assert {n.partition("/")[2] for n in archive.namelist()} == set(reader.get_all_records())


@FUZZED
@given(EDITS)
def test_a_clean_safetensors_file_is_one_to_its_own_reader(edits: list[Edit]) -> None:
    data = edited(FILES["safetensors"](), edits)
    if isinstance(decision := decided(data), Clean) and decision.kind == "safetensors":
        size = struct.unpack("<Q", data[:8])[0]
        names = set(json.loads(data[8 : 8 + size])) - {"__metadata__"}
        try:
            assert set(load(data)) == names
        except SafetensorError:
            pass  # it reads less than we do, and stops


@FUZZED
@given(EDITS)
def test_a_clean_pickle_loads_by_name_of_nothing_but_the_list(edits: list[Edit]) -> None:
    from trainwarden.gate.scan.pickles.allowed import ALLOWED, PYTHON_2

    named: list[tuple[str, str]] = []

    class Names(pickle.Unpickler):
        def find_class(self, module: str, name: str) -> object:
            named.append((module, name))
            return super().find_class(module, name) if named[-1] in ALLOWED else str

    data = edited(pickle.dumps({"a": np.arange(3), "step": np.float64(1), "x": [1, (2, "b")]}), edits)
    if isinstance(decision := decided(data), Clean) and decision.kind == "pickle":
        with contextlib.suppress(Exception):  # whatever stops the loader, it looked up nothing else before
            Names(io.BytesIO(data)).load()
        assert set(named) <= ALLOWED.keys() | PYTHON_2.keys()
