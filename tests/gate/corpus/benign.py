"""Files that people really have: every one must be found clean, but for the few that a scan may rather not decide."""

from __future__ import annotations

import argparse
import bz2
import collections
import datetime
import decimal
import fractions
import gzip
import io
import json
import lzma
import pathlib
import pickle
import struct
import subprocess
import sys
import tarfile
import types
import zipfile
import zlib
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import torch
from PIL import Image
from safetensors.torch import save

from tests.gate.corpus.libraries import h5py, joblib, onnx

CHAT = (
    "{% for message in messages %}{% if message['role'] == 'user' %}{{ '<|user|>' + message['content'] | trim }}"
    "{% elif not loop.last %}{{ raise_exception('no') }}{% endif %}{% endfor %}"
    "{% if add_generation_prompt %}{{ '<|assistant|>' }}{% endif %}"
)


def _saved(value: object, **how: Any) -> bytes:
    out = io.BytesIO()
    torch.save(value, out, **how)
    return out.getvalue()


def _model() -> torch.nn.Module:
    torch.manual_seed(1)
    return torch.nn.Sequential(torch.nn.Linear(4, 8), torch.nn.BatchNorm1d(8), torch.nn.Linear(8, 2))


def _trained(make: Callable[..., torch.optim.Optimizer], **how: Any) -> dict[str, Any]:
    model = _model()
    optimizer = make(model.parameters(), **how)
    model(torch.ones(3, 4)).sum().backward()
    optimizer.step()
    return {"model": model.state_dict(), "optimizer": optimizer.state_dict(), "step": 7, "loss": 0.5}


def _lightning() -> dict[str, Any]:
    home = "lightning_fabric.utilities.data"
    for name in ("lightning_fabric", "lightning_fabric.utilities", home):
        sys.modules.setdefault(name, types.ModuleType(name))
    module = sys.modules[home]
    attributes = type("AttributeDict", (dict,), {"__module__": module.__name__})
    module.AttributeDict = attributes  # type: ignore[attr-defined]
    state = _trained(torch.optim.AdamW)
    return {
        "epoch": 1,
        "global_step": 10,
        "pytorch-lightning_version": "2.5.0",
        "state_dict": state["model"],
        "optimizer_states": [state["optimizer"]],
        "lr_schedulers": [{"last_epoch": 1, "base_lrs": [0.1], "_last_lr": [0.1]}],
        "callbacks": {"ModelCheckpoint{'monitor': None}": {"best_model_score": torch.tensor(1.0), "dirpath": "/x"}},
        "hyper_parameters": attributes({"lr": 0.1, "layers": [1, 2]}),
        "loops": {"fit_loop": {"state_dict": {}}},
    }


def _training_args() -> bytes:
    """What Hugging Face's `Trainer` saves beside each checkpoint, made in a process of its own: it sets variables."""
    code = (
        "import io, sys, torch, transformers; out = io.BytesIO();"
        "args = transformers.TrainingArguments(output_dir='out', use_cpu=True, report_to=[]); args.device;"
        "torch.save(args, out); sys.stdout.buffer.write(out.getvalue())"
    )
    return subprocess.run([sys.executable, "-c", code], stdout=subprocess.PIPE, check=True).stdout


def _dcp(folder: Path) -> dict[str, bytes]:
    import torch.distributed.checkpoint as dcp

    dcp.save({"model": _model().state_dict(), "step": 3}, checkpoint_id=folder, no_dist=True)
    return {f"dcp-{p.name}": p.read_bytes() for p in sorted(folder.iterdir())}


def _npy(value: object) -> bytes:
    out = io.BytesIO()
    np.save(out, value, allow_pickle=True)
    return out.getvalue()


def joblib_file(compress: object = 0) -> bytes:
    arrays = {"w": np.arange(1000.0).reshape(10, 100), "f": np.asfortranarray(np.ones((3, 4), np.float32))}
    out = io.BytesIO()
    joblib.dump({**arrays, "o": np.array([{"a": 1}, None], dtype=object), "s": np.float32(2)}, out, compress=compress)
    return out.getvalue()


# config.json of a model that Keras 3.15 saved: convolution, normalisation, AdamW, compiled with a loss and a metric.
KERAS = (Path(__file__).parent / "keras_functional.json").read_text(encoding="utf-8")


def h5_file(**attributes: str) -> bytes:
    out = io.BytesIO()
    with h5py.File(out, "w") as file:
        file["layers/dense/vars/0"] = np.ones((4, 2), np.float32)
        file.attrs.update(attributes)
    return out.getvalue()


def keras_file(config: str) -> bytes:
    """A `.keras` file of this architecture."""
    out = io.BytesIO()
    with zipfile.ZipFile(out, "w") as archive:
        archive.writestr("metadata.json", json.dumps({"keras_version": "3.15.1", "date_saved": "2026-11-28@18:00:00"}))
        archive.writestr("config.json", config)
        archive.writestr("model.weights.h5", h5_file())
    return out.getvalue()


def onnx_file(domain: str = "") -> bytes:
    """A model of two operators, the second of this domain, with its weights inside."""
    make, kind = onnx.helper, onnx.TensorProto.FLOAT
    nodes = [make.make_node("Gemm", ["x", "w"], ["y"]), make.make_node("Relu", ["y"], ["z"], domain=domain)]
    ends = [[make.make_tensor_value_info(n, kind, [1, size])] for n, size in (("x", 4), ("z", 3))]
    weights = onnx.numpy_helper.from_array(np.ones((4, 3), np.float32), "w")
    opsets = [make.make_opsetid(d, 17) for d in dict.fromkeys(("", domain))]
    return bytes(
        make.make_model(make.make_graph(nodes, "g", *ends, [weights]), opset_imports=opsets).SerializeToString()
    )


def onnx_beside(location: str, offset: int, length: int) -> bytes:
    """The same model with its weights in another file."""
    model = onnx.load_model_from_string(onnx_file())
    tensor = model.graph.initializer[0]
    tensor.ClearField("raw_data")
    tensor.data_location = onnx.TensorProto.EXTERNAL
    for key, value in (("location", location), ("offset", str(offset)), ("length", str(length))):
        tensor.external_data.add(key=key, value=value)
    return bytes(model.SerializeToString())


def sentencepiece_file() -> bytes:
    """A vocabulary of three pieces, with a trainer's name (sentencepiece_model.proto)."""
    pieces = [(b"<unk>", 0.0, 2), (b"\xe2\x96\x81the", -1.5, 1), (b"\xe2\x96\x81", -2.0, 1)]
    bodies = [
        b"\x0a" + bytes([len(t)]) + t + b"\x15" + struct.pack("<f", score) + bytes([0x18, k]) for t, score, k in pieces
    ]
    trainer = b"\x12\x06\x12\x04name"
    return b"".join(b"\x0a" + bytes([len(body)]) + body for body in bodies) + trainer


def _picture(kind: str) -> bytes:
    out = io.BytesIO()
    Image.new("RGB", (5, 3), (200, 10, 10)).save(out, kind)
    return out.getvalue()


def png_file() -> bytes:
    return _picture("png")


def jpeg_file() -> bytes:
    return _picture("jpeg")


def _gguf(folder: Path) -> bytes:
    import gguf

    path = folder / "model.gguf"
    writer = gguf.GGUFWriter(path, "llama")
    writer.add_block_count(1)
    writer.add_token_list(["a", "b"])
    writer.add_chat_template(CHAT)
    writer.add_tensor("w", np.ones((8, 8), np.float32))
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    return path.read_bytes()


def npz() -> bytes:
    out = io.BytesIO()
    np.savez_compressed(out, a=np.arange(9), b=np.array([{"a": 1}, None], dtype=object))
    return out.getvalue()


def tar_file(data: bytes) -> bytes:
    out = io.BytesIO()
    with tarfile.open(fileobj=out, mode="w") as archive:
        info = tarfile.TarInfo("model.pt")
        info.size = len(data)
        archive.addfile(info, io.BytesIO(data))
    return out.getvalue()


def benign(folder: Path) -> dict[str, bytes]:
    """Names and bytes; `folder` is an empty one to work in."""
    model = _model()
    shared = torch.arange(12.0).reshape(3, 4)
    plain = pickle.dumps({"a": [1, 2.5, "x", None, True], "b": {1, 2}, "c": b"y" * 300})
    made = {
        "state-dict.pt": _saved(model.state_dict()),
        "state-dict-legacy.pt": _saved(model.state_dict(), _use_new_zipfile_serialization=False),
        "state-dict-proto4.pt": _saved(model.state_dict(), pickle_protocol=4),
        "adam.pt": _saved(_trained(torch.optim.Adam)),
        "adamw-amsgrad.pt": _saved(_trained(torch.optim.AdamW, amsgrad=True)),
        "sgd-momentum.pt": _saved(_trained(torch.optim.SGD, lr=0.1, momentum=0.9)),
        "adagrad-legacy.pt": _saved(_trained(torch.optim.Adagrad), _use_new_zipfile_serialization=False),
        "rmsprop.pt": _saved(_trained(torch.optim.RMSprop)),
        "namespace.pt": _saved(
            {"args": argparse.Namespace(lr=0.1, out=pathlib.Path("/x")), "model": model.state_dict()}
        ),
        "numpy-scalars.pt": _saved({"best": np.float64(0.5), "step": np.int64(4), "hist": np.arange(600.0)}),
        "numpy-rng.pt": _saved({"numpy": np.random.RandomState(1).get_state(), "torch": torch.get_rng_state()}),
        "python-rng.pt": _saved({"python": __import__("random").Random(1).getstate()}),
        "parameters.pt": _saved({"p": torch.nn.Parameter(torch.ones(2)), "l": list(model.parameters())}),
        "shared-and-views.pt": _saved({"a": shared, "t": shared.t(), "part": shared[1:, ::2]}),
        "bf16-fp8.pt": _saved({"b": torch.ones(3, dtype=torch.bfloat16), "f": torch.ones(3).to(torch.float8_e4m3fn)}),
        "kinds.pt": _saved(
            {str(d): torch.zeros(2, dtype=d) for d in (torch.int8, torch.bool, torch.complex64, torch.half)}
        ),
        "buffers.pt": _saved(
            {"b": torch.nn.Buffer(torch.ones(2)), "n": torch.nn.Buffer(torch.ones(1), persistent=False)}
        ),
        "slices.pt": _saved({"part": slice(0, 4), "ratio": fractions.Fraction(1, 3)}),
        "training_args.bin": _training_args(),
        "sparse.pt": _saved({"s": torch.eye(3).to_sparse()}),
        "scalar.pt": _saved(torch.tensor(3.0)),
        "empty-tensors.pt": _saved({"e": torch.empty(0), "z": torch.empty(2, 0, 3)}),
        "size-device-dtype.pt": _saved({"s": torch.Size([1, 2]), "d": torch.device("cpu"), "t": torch.float32}),
        "collections.pt": _saved({"d": collections.defaultdict(list, a=[1]), "c": collections.Counter("aab")}),
        "deque.pt": _saved({"window": collections.deque([1.0, 2.0], maxlen=10), "o": collections.OrderedDict(a=1)}),
        "scheduler.pt": _saved({"scheduler": {"base_lrs": [0.1], "last_epoch": 3, "verbose": False}}),
        "scaler.pt": _saved({"scale": 65536.0, "growth_factor": 2.0, "_growth_tracker": 0}),
        "dates.pt": _saved(
            {"t": datetime.datetime(2026, 1, 1), "d": datetime.timedelta(1), "x": decimal.Decimal("1.5")}
        ),
        "simple-namespace.pt": _saved({"cfg": types.SimpleNamespace(a=1, b="x")}),
        "unicode.pt": _saved({"名前": "é" * 3000, "k": "\U0001f600"}),
        "deep.pt": _saved({"a": {"b": {"c": {"d": [[[[torch.ones(1)]]]]}}}}),
        "lightning.ckpt": _saved(_lightning()),
        "hf-pytorch_model.bin": _saved({f"layer.{i}.weight": torch.zeros(4) for i in range(200)}),
        "tensors.pkl": pickle.dumps(model.state_dict()),
        "numpy.pkl": pickle.dumps({"x": np.arange(100.0), "s": np.float32(1), "u": np.array(["ab", "c"])}),
        "numpy-proto5.pkl": pickle.dumps({"x": np.arange(1000.0)}, 5),
        "objects.npy": _npy(np.array([{"a": 1}, [1, 2]], dtype=object)),
        "plain.npy": _npy(np.arange(12).reshape(3, 4)),
        "arrays.npz": npz(),
        "several.pkl": pickle.dumps({"a": 1}) + pickle.dumps([2]),
        "proto0.pkl": pickle.dumps({"a": [1, "x", None]}, 0),
        "proto1.pkl": pickle.dumps({"a": [1, "x", 1.5]}, 1),
        "plain.pkl.gz": gzip.compress(plain),
        "plain.pkl.bz2": bz2.compress(plain),
        "plain.pkl.xz": lzma.compress(plain),
        "plain.joblib": zlib.compress(plain),
        "arrays.joblib": joblib_file(),
        "arrays-zlib.joblib": joblib_file(3),
        "arrays.joblib.lzma": joblib_file(("lzma", 3)),
        "model.keras": keras_file(KERAS),
        "model.h5": h5_file(model_config=json.dumps(json.loads(KERAS)), keras_version="3.15.1"),
        "model.weights.h5": h5_file(),
        "model.onnx": onnx_file(),
        "model.gguf": _gguf(folder),
        "model.tar": tar_file(_saved(model.state_dict())),
        "model.safetensors": save(model.state_dict()),
        "config.json": json.dumps({"model_type": "llama", "hidden_size": 8, "torch_dtype": "float32"}).encode(),
        "tokenizer_config.json": json.dumps({"tokenizer_class": "X", "chat_template": CHAT}).encode(),
        "chat_template.jinja": CHAT.encode(),
        "keras-config.json": json.dumps(
            {"class_name": "Dense", "module": "keras.layers", "config": {"units": 1}}
        ).encode(),
        "tokenizer.model": sentencepiece_file(),
        "picture.png": png_file(),
        "picture.jpg": jpeg_file(),
        "README.md": b"# A model\n\n```python\nimport torch\n```\n",
        "vocab.txt": b"[PAD]\n[UNK]\nhello\n",
    }
    (folder / "dcp").mkdir()
    return made | _dcp(folder / "dcp")
