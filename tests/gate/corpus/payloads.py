"""The corpus of payloads: what is written to a folder, and which loader it is alive in.

Everything is made here; nothing was taken from other scanners' corpora. `prove.py` shows that each one is alive.
"""

from __future__ import annotations

import bz2
import gzip
import io
import lzma
import os
import pickle
import struct
import tarfile
import zipfile
import zlib
from collections.abc import Iterator
from dataclasses import dataclass

import joblib
import numpy as np
import torch

from tests.gate.corpus.assemble import Call, Ref, call, pickled, value
from tests.gate.corpus.gadgets import GADGETS

MKDIR = GADGETS["os-mkdir"]


@dataclass(frozen=True)
class Payload:
    """One file, and the loader that it is alive in (a key of `prove.LOADERS`)."""

    name: str
    data: bytes
    loader: str


def torch_zip(stream: bytes, *, extra: dict[str, bytes] | None = None, method: int = zipfile.ZIP_STORED) -> bytes:
    """torch's archive around a stream."""
    out = io.BytesIO()
    with zipfile.ZipFile(out, "w", method) as archive:
        for name, data in {"data.pkl": stream, "byteorder": b"little", "version": b"3\n", **(extra or {})}.items():
            archive.writestr(f"archive/{name}", data)
    return out.getvalue()


def legacy(stream: bytes) -> bytes:
    """torch's form before archives around a stream."""
    heads = (0x1950A86A20F9469CFC6C, 1001, {"protocol_version": 1001, "little_endian": True, "type_sizes": {}})
    return b"".join(pickle.dumps(h, 2) for h in heads) + stream + pickle.dumps([], 2)


def npy(stream: bytes) -> bytes:
    """An array of objects whose pickle is a stream."""
    header = b"{'descr': '|O', 'fortran_order': False, 'shape': (1,), }"
    header += b" " * (-(len(header) + 11) % 64) + b"\n"
    return b"\x93NUMPY\x01\x00" + struct.pack("<H", len(header)) + header + stream


def _zip(members: dict[str, bytes]) -> bytes:
    out = io.BytesIO()
    with zipfile.ZipFile(out, "w", zipfile.ZIP_DEFLATED) as archive:
        for name, data in members.items():
            archive.writestr(name, data)
    return out.getvalue()


def _tar(members: dict[str, bytes]) -> bytes:
    out = io.BytesIO()
    with tarfile.open(fileobj=out, mode="w") as archive:
        for name, data in members.items():
            info = tarfile.TarInfo(name)
            info.size = len(data)
            archive.addfile(info, io.BytesIO(data))
    return out.getvalue()


def payloads() -> Iterator[Payload]:
    """Every payload; names are unique."""
    for n, (name, gadget) in enumerate(GADGETS.items()):
        yield Payload(f"gadget-{name}", pickled(gadget, 2 + n % 3), "pickle")
    yield from _containers()
    yield from _forms()
    yield from _tricks()
    yield from _templates()


def _containers() -> Iterator[Payload]:
    for name in ("os-system", "builtins-exec", "functools-partial", "importlib-import", "map-list"):
        stream = pickled(GADGETS[name])
        inner = pickled({"weights": Call(Ref("collections", "OrderedDict"), ()), "x": GADGETS[name]})
        yield Payload(f"torch-zip-{name}", torch_zip(inner), "torch")
        yield Payload(f"torch-legacy-{name}", legacy(inner), "torch")
        yield Payload(f"npy-{name}", npy(stream), "numpy")
        yield Payload(f"npz-{name}", _zip({"a.npy": npy(stream)}), "npz")
    yield from _joblibs()
    stream = pickled(MKDIR)
    yield Payload("gzip", gzip.compress(stream), "gzip")
    yield Payload("bz2", bz2.compress(stream), "bz2")
    yield Payload("xz", lzma.compress(stream), "lzma")
    yield Payload("zlib-joblib", zlib.compress(stream), "zlib")
    yield Payload("gzip-gzip", gzip.compress(gzip.compress(stream)), "gzip2")
    yield Payload("tar-member", _tar({"pickle": stream}), "tar")
    yield Payload("zip-in-zip", _zip({"inner.zip": _zip({"m.pkl": stream})}), "zip2")
    yield Payload("torch-bytes", pickled(call("torch.storage:_load_from_bytes", legacy(stream)), 4), "pickle")
    yield Payload("torch-compressed", torch_zip(stream, method=zipfile.ZIP_DEFLATED), "torch")
    yield Payload("torch-wrong-extension.safetensors", torch_zip(stream), "torch")
    yield Payload("pickle-as-text.txt", pickled(MKDIR, 0).replace(b"X\x05\0\0\0fired", b"Vfired\n"), "pickle")
    yield Payload("pickle-as-json.json", b"(V{}\ncos\nmkdir\n(Vfired\ntR.", "pickle")
    yield Payload("pickle-as-image.png", stream, "pickle")


class _Mkdir:
    def __reduce__(self) -> tuple[object, tuple[str]]:
        return os.mkdir, ("fired",)


def _joblibs() -> Iterator[Payload]:
    """Inside of joblib's array of objects, and padding that joblib skips and an unpickler reads as instructions."""
    yield Payload("joblib-objects", _joblib(np.array([_Mkdir(), None], dtype=object)), "joblib")
    data = _joblib(np.arange(40, dtype=np.uint8))
    at = data.find(b"\xff" * 2) - 1
    padding = (b"0" + value(MKDIR) + b".").ljust(ord("N"), b"\xff")
    yield Payload("joblib-padding", data[:at] + b"N" + padding + data[at + 1 + data[at] :], "pickle")


def _joblib(array: np.ndarray) -> bytes:
    out = io.BytesIO()
    joblib.dump(array, out)
    return out.getvalue()


def _forms() -> Iterator[Payload]:
    mkdir, name = value(Ref("os", "mkdir")), value("fired")
    yield Payload("form-inst", b"(Vfired\nios\nmkdir\n.", "pickle")
    yield Payload("form-obj", b"\x80\x02(" + mkdir + name + b"o.", "pickle")
    yield Payload(
        "form-memo",
        b"\x80\x02" + value("os") + b"q\x07" + b"0h\x07" + value("mkdir") + b"\x93" + value(("fired",)) + b"R.",
        "pickle",
    )
    yield Payload(
        "form-dotted",
        b"\x80\x04" + value("os") + value("path.os.mkdir") + b"\x93" + value(("fired",)) + b"R.",
        "pickle",
    )
    yield Payload(
        "form-dotted-torch",
        b"\x80\x04" + value("torch") + value("os.mkdir") + b"\x93" + value(("fired",)) + b"R.",
        "pickle",
    )
    yield Payload("form-python2", pickled(call("__builtin__:eval", "open('fired','w').close()"), 2), "pickle")
    yield Payload("form-dup", b"\x80\x02" + mkdir + b"2" + value(("fired",)) + b"R0N.", "pickle")
    yield Payload("form-in-key", b"\x80\x02}" + value(MKDIR) + b"Ns.", "pickle")
    yield Payload(
        "form-in-state",
        b"\x80\x02" + value(Call(Ref("collections", "OrderedDict"), ())) + value({"a": MKDIR}) + b"b.",
        "pickle",
    )
    yield Payload("form-popped", b"\x80\x02" + value(MKDIR) + b"0N.", "pickle")
    yield Payload("form-second-stream", pickle.dumps({"a": 1}) + pickled(MKDIR), "pickle-all")
    yield Payload("form-extension", b"\x80\x02\x82\x07" + value(("fired",)) + b"R.", "pickle-extension")
    yield Payload("form-ext4", b"\x80\x02\x84\x07\0\0\0" + value(("fired",)) + b"R.", "pickle-extension")
    yield Payload("form-build-namespace", b"\x80\x02" + value(Ref("planted_state", "State")) + b")\x81}b.", "pickle")
    yield Payload(
        "form-slots-setattr",
        b"\x80\x02" + value(Ref("planted_state", "Slots")) + b")\x81N}" + value("mark") + value("fired") + b"s\x86b.",
        "pickle",
    )
    yield Payload("form-import-only", b"\x80\x02" + value(Ref("planted", "x")) + b".", "pickle-error")


def _tricks() -> Iterator[Payload]:
    good, bad = pickle.dumps({"a": torch.zeros(1).tolist()}, 2), pickled(MKDIR)
    yield Payload("trick-truncated", pickled(MKDIR)[:-1] + b"X\xff\0\0\0", "pickle-error")
    yield Payload("trick-garbage-behind", bad + b"\xff" * 64, "pickle")
    yield Payload("trick-stop-missing", bad[:-1], "pickle-error")
    yield Payload("trick-frame", b"\x80\x04\x95" + struct.pack("<Q", len(bad) - 3) + bad[2:-1] + b".", "pickle-error")
    yield Payload("trick-frame-straddled", b"\x80\x04\x95\x05\0\0\0\0\0\0\0" + value(MKDIR) + b".", "pickle")
    out = io.BytesIO()
    with zipfile.ZipFile(out, "w") as archive:
        archive.writestr("archive/version", b"3\n")
        for stream in (good, bad):
            archive.writestr("archive/data.pkl", stream)
    yield Payload("trick-duplicate-member", out.getvalue(), "zip-last")
    yield Payload("trick-second-zip-behind", torch_zip(good) + torch_zip(bad), "zip-last")
    yield Payload("trick-zip-behind-pickle", bad + torch_zip(good), "pickle")
    yield Payload("trick-zip-behind-good-pickle", good + torch_zip(bad), "zip-last")
    yield Payload("trick-crc", _patched(torch_zip(bad), b"PK\1\2", 16, b"\1\2\3\4"), "raw-member")
    yield Payload(
        "trick-encrypted-flag",
        _patched(_patched(torch_zip(bad), b"PK\3\4", 6, b"\1\0"), b"PK\1\2", 8, b"\1\0"),
        "raw-member",
    )
    yield Payload(
        "trick-name-differs", torch_zip(bad).replace(b"archive/data.pkl", b"archive/data.bin", 1), "raw-member"
    )
    yield Payload("trick-comment", torch_zip(bad)[:-2] + b"\5\0abcde", "torch-or-raw")
    yield Payload("trick-safetensors-prefix", _safetensors_polyglot(), "pickle-error")
    yield Payload("trick-gguf-prefix", b"GGUF\x03\0\0\0\0" + value(MKDIR) + b".", "pickle")
    objects = np.array([1, 2], dtype=np.int64)
    yield Payload("trick-npy-behind-array", _npy_plain(objects) + bad, "npy-then-pickle")


def _patched(data: bytes, signature: bytes, offset: int, new: bytes) -> bytes:
    at = data.find(signature) + offset
    return data[:at] + new + data[at + len(new) :]


def _npy_plain(array: np.ndarray) -> bytes:
    out = io.BytesIO()
    np.save(out, array)
    return out.getvalue()


def _safetensors_polyglot() -> bytes:
    """A header length that reads as PROTO 2 and a float, and a header that reads as a pickle behind it."""
    size = 0x470280
    text = b'{"a":1' + b" "  # the float eats its first bytes
    stream = value(MKDIR)
    body = b"{" + b'"a' + stream + text
    return struct.pack("<Q", size) + body.ljust(size, b" ")


TEMPLATES = {
    "globals": "{{ cycler.__init__.__globals__.os.mkdir('fired') }}",
    "lipsum": "{{ lipsum.__globals__['os'].mkdir('fired') }}",
    "attr-filter": "{{ (lipsum|attr('__globals__'))['os'].mkdir('fired') }}",
    "joined-index": "{{ lipsum['__glo' ~ 'bals__']['os'].mkdir('fired') }}",
    "subclasses": "{% for c in ''.__class__.__mro__[1].__subclasses__() %}{% if c.__name__ == '_wrap_close' %}"
    "{{ c.__init__.__globals__['mkdir']('fired') }}{% endif %}{% endfor %}",
    "map-attribute": "{{ ([lipsum]|map(attribute='__globals__')|list)[0]['os'].mkdir('fired') }}",
    "set-name": "{% set k = '__globals__' %}{{ lipsum[k]['os'].mkdir('fired') }}",
    "joiner": "{{ joiner.__init__.__globals__.os.mkdir('fired') }}",
}


def _templates() -> Iterator[Payload]:
    import json

    for name, text in TEMPLATES.items():
        yield Payload(f"template-{name}.jinja", f"{{% if true %}}{{% endif %}}{text}".encode(), "jinja")
    for name in ("globals", "attr-filter", "subclasses"):
        config = json.dumps({"tokenizer_class": "X", "chat_template": TEMPLATES[name]})
        yield Payload(f"template-config-{name}.json", config.encode(), "jinja-config")
        yield Payload(f"template-gguf-{name}.gguf", gguf_file(TEMPLATES[name]), "jinja-gguf")


def gguf_file(template: str) -> bytes:
    key, text = b"tokenizer.chat_template", template.encode()
    pair = struct.pack("<Q", len(key)) + key + struct.pack("<IQ", 8, len(text)) + text
    return b"GGUF" + struct.pack("<IQQ", 3, 0, 1) + pair
