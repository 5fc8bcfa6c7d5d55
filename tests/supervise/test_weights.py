"""Saved files against recorded weights, from outside; hostile files included."""

from __future__ import annotations

import json
import struct
from pathlib import Path

import pytest

from trainwarden.model import Detail
from trainwarden.record.fingerprint import digest_bytes
from trainwarden.supervise.weights import WeightCheck

KEY = bytes(range(32))
WEIGHTS = {"model.a": b"\x01" * 16, "model.b": b"\x02" * 16, "buffer/count": b"\x03" * 8}


def recorded(weights: dict[str, bytes] = WEIGHTS) -> Detail:
    return Detail(
        names=tuple(weights),
        digests=tuple(digest_bytes(KEY, "float32", (len(d) // 4,), d) for d in weights.values()),
    )


def file(path: Path, tensors: dict[str, bytes], dtype: str = "F32", width: int = 4) -> Path:
    header: dict[str, object] = {"__metadata__": {"format": "pt"}}
    at = 0
    for name, data in tensors.items():
        header[name] = {"dtype": dtype, "shape": [len(data) // width], "data_offsets": [at, at + len(data)]}
        at += len(data)
    head = json.dumps(header).encode()
    path.write_bytes(struct.pack("<Q", len(head)) + head + b"".join(tensors.values()))
    return path


@pytest.mark.parametrize(
    "names",
    [
        ("model.a", "model.b", "count"),
        ("a", "b", "count"),  # the file's names are endings of the recorded ones
        ("module.model.a", "module.model.b", "module.count"),  # and the other way round
    ],
)
def test_a_file_with_the_recorded_weights_matches(tmp_path: Path, names: tuple[str, ...]) -> None:
    path = file(tmp_path / "f", dict(zip(names, WEIGHTS.values(), strict=True)))
    assert WeightCheck(KEY).compare(path, recorded()) == "matches"


def test_one_changed_bit_is_named(tmp_path: Path) -> None:
    for at in (0, 7, 15):
        data = bytearray(b"\x02" * 16)
        data[at] ^= 1
        path = file(tmp_path / "f", {"model.a": WEIGHTS["model.a"], "model.b": bytes(data)})
        assert WeightCheck(KEY).compare(path, recorded()) == "differs: model.b"


def test_swapped_tensors_are_named(tmp_path: Path) -> None:
    weights = {**WEIGHTS, "model.c": b"\x04" * 16}
    swapped = {**weights, "model.b": weights["model.c"], "model.c": weights["model.b"]}
    assert WeightCheck(KEY).compare(file(tmp_path / "f", swapped), recorded(weights)) == "differs: model.b"


def test_a_file_cast_to_another_dtype_or_with_other_names_is_not_judged(tmp_path: Path) -> None:
    cast = file(tmp_path / "f", {n: d[::2] for n, d in WEIGHTS.items()}, "BF16", 2)
    assert WeightCheck(KEY).compare(cast, recorded()) == ""
    others = file(tmp_path / "g", {f"ema_{n}_x": d for n, d in WEIGHTS.items()})
    assert WeightCheck(KEY).compare(others, recorded()) == ""


def test_every_tensor_edited_is_seen_once_the_file_was_comparable(tmp_path: Path) -> None:
    check = WeightCheck(KEY)
    edited = file(tmp_path / "g", {n: bytes(len(d)) for n, d in WEIGHTS.items() if "/" not in n})
    assert check.compare(edited, recorded()) == ""
    assert check.compare(file(tmp_path / "f", dict(WEIGHTS)), recorded()) == "matches"
    assert check.compare(edited, recorded()) == "differs: model.a"


def average() -> dict[str, bytes]:
    """Every parameter other than the model's, the buffer the same."""
    return {n: d if n == "count" else bytes(len(d)) for n, d in plain().items()}


def plain() -> dict[str, bytes]:
    return {n.removeprefix("buffer/"): d for n, d in WEIGHTS.items()}


def test_a_weight_average_under_the_parameters_names_is_not_judged_by_the_models_own_file(tmp_path: Path) -> None:
    check = WeightCheck(KEY)
    model, ema = file(tmp_path / "f", plain()), file(tmp_path / "g", average())
    for step in (5, 10):
        assert check.compare(model, recorded(), f"/out/step-{step}/model.safetensors") == "matches"
        assert check.compare(ema, recorded(), f"/out/step-{step}/ema.safetensors") == ""
        assert check.compare(ema, recorded(), f"/out/step-{step}/ema/model.safetensors") == ""


def test_an_average_in_the_place_of_the_model_differs(tmp_path: Path) -> None:
    check = WeightCheck(KEY)
    assert check.compare(file(tmp_path / "f", plain()), recorded(), "/out/ck-3fa2b1c09d/model.safetensors") == "matches"
    swapped = file(tmp_path / "g", average())
    assert check.compare(swapped, recorded(), "/out/ck-77aa01bcde/model.safetensors") == "differs: model.a"


def test_one_edited_tensor_is_named_wherever_the_file_lies(tmp_path: Path) -> None:
    edited = file(tmp_path / "f", {**plain(), "model.b": b"\x09" * 16})
    assert WeightCheck(KEY).compare(edited, recorded(), "/out/ema.safetensors") == "differs: model.b"


def test_an_ending_that_fits_two_names_is_not_judged(tmp_path: Path) -> None:
    weights = {"one.a": b"\x01" * 16, "two.a": b"\x02" * 16}
    assert WeightCheck(KEY).compare(file(tmp_path / "f", {"a": b"\x02" * 16}), recorded(weights)) == ""


def header(text: bytes, tail: bytes = b"") -> bytes:
    return struct.pack("<Q", len(text)) + text + tail


@pytest.mark.parametrize(
    "data",
    [
        b"",
        b"\x01",
        struct.pack("<Q", 1 << 62) + b"{}",
        header(b"not json"),
        header(b'{"\xff": 1}'),
        header(b"[]"),
        header(b'{"a": {"dtype": "F32", "shape": [4], "data_offsets": [0, 16]}}'),  # beyond the end
        header(b'{"a": {"dtype": "F32", "shape": [-4], "data_offsets": [16, 0]}}', b"x" * 64),
        header(b'{"a": {"dtype": "F32", "shape": [4], "data_offsets": [-16, 0]}}', b"x" * 64),
        header(b'{"a": {"dtype": "F32", "shape": [4], "data_offsets": [0, 8]}}', b"x" * 64),
        header(b'{"a": {"dtype": "F32", "shape": [4294967296, 4294967296], "data_offsets": [0, 16]}}', b"x" * 64),
        header(b'{"a": {"dtype": "EVIL", "shape": [4], "data_offsets": [0, 16]}}', b"x" * 64),
    ],
)
def test_a_hostile_file_is_an_error_and_reads_nothing_outside(tmp_path: Path, data: bytes) -> None:
    (tmp_path / "f").write_bytes(data)
    with pytest.raises(ValueError):
        WeightCheck(KEY).compare(tmp_path / "f", recorded())


def test_a_real_file_of_the_safetensors_library_matches(tmp_path: Path) -> None:
    torch = pytest.importorskip("torch")
    from safetensors.torch import save_file

    from trainwarden.record.fingerprint import tensor_digest

    tensors = {
        "w": torch.randn(3, 5),
        "half": torch.randn(7).to(torch.bfloat16),
        "count": torch.tensor(3),
        "mask": torch.tensor([True, False]),
        "none": torch.empty(0),
    }
    save_file(tensors, tmp_path / "f")
    detail = Detail(names=tuple(tensors), digests=tuple(tensor_digest(KEY, t) for t in tensors.values()))
    assert WeightCheck(KEY).compare(tmp_path / "f", detail) == "matches"
