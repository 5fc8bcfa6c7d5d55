"""Is each payload alive? `python -m tests.gate.corpus.prove FOLDER` prints the names of those that left their mark.

One process loads the libraries once; each payload is loaded in a child of it, in a folder of its own, with little
time, a dozen at once. A mark is the file `fired`, or for the two that change only the process, that change.
"""

from __future__ import annotations

import json
import os
import resource
import signal
import sys
import time
from collections.abc import Callable
from pathlib import Path

from tests.gate.corpus.gadgets import PLANTED
from tests.gate.corpus.payloads import Payload, payloads

AT_ONCE = 12  # children that load at the same time
STATE = """
import os
class State:
    def __setstate__(self, state):
        os.mkdir('fired')
    def fire():
        os.mkdir('fired')
class Slots:
    __slots__ = ('_mark',)
    mark = property(None, lambda self, name: os.mkdir(name))
"""


def _load(loader: str, path: str) -> None:
    import bz2
    import copyreg
    import gzip
    import io
    import lzma
    import pickle
    import tarfile
    import zipfile
    import zlib

    import jinja2
    import joblib
    import numpy as np
    import torch

    with open(path, "rb") as file:
        data = file.read()

    def all_of_it() -> None:
        stream = io.BytesIO(data)
        while stream.tell() < len(data):
            pickle.load(stream)

    def extension() -> None:
        copyreg.add_extension("os", "mkdir", 7)
        pickle.loads(data)

    def last() -> None:
        with zipfile.ZipFile(path) as archive:
            pickle.loads(archive.read("archive/data.pkl"))

    def raw_member() -> None:  # a reader that goes by local headers and skips the checks
        at = data.find(b"\x80", data.find(b"PK\3\4"))
        pickle.loads(data[at:])

    def behind_array() -> None:
        stream = io.BytesIO(data)
        np.load(stream)
        pickle.load(stream)

    def twice_zipped() -> None:
        inner = zipfile.ZipFile(io.BytesIO(zipfile.ZipFile(path).read("inner.zip")))
        pickle.loads(inner.read("m.pkl"))

    def in_tar() -> None:
        with tarfile.open(path) as archive:
            member = archive.extractfile("pickle")
            assert member is not None
            pickle.load(member)

    def rendered(text: str) -> None:
        jinja2.Environment(extensions=["jinja2.ext.do"]).from_string(text).render()

    ways: dict[str, Callable[[], object]] = {
        "pickle": lambda: pickle.loads(data),
        "joblib": lambda: joblib.load(path),
        "pickle-error": lambda: pickle.loads(data),
        "pickle-all": all_of_it,
        "pickle-extension": extension,
        "torch": lambda: torch.load(path, weights_only=False),
        "torch-or-raw": raw_member,
        "numpy": lambda: np.load(path, allow_pickle=True),
        "npz": lambda: np.load(path, allow_pickle=True)["a"],
        "npy-then-pickle": behind_array,
        "gzip": lambda: pickle.loads(gzip.decompress(data)),
        "gzip2": lambda: pickle.loads(gzip.decompress(gzip.decompress(data))),
        "bz2": lambda: pickle.loads(bz2.decompress(data)),
        "lzma": lambda: pickle.loads(lzma.decompress(data)),
        "zlib": lambda: pickle.loads(zlib.decompress(data)),
        "zip2": twice_zipped,
        "zip-last": last,
        "raw-member": raw_member,
        "tar": in_tar,
        "jinja": lambda: rendered(data.decode()),
        "jinja-config": lambda: rendered(json.loads(data)["chat_template"]),
        "jinja-gguf": lambda: rendered(data[data.find(b"{") :].decode()),
    }
    ways[loader]()


def _child(name: str, loader: str, path: str, folder: str) -> None:
    import torch

    os.chdir(folder)
    os.setsid()
    null = os.open(os.devnull, os.O_RDWR)
    for fd in (0, 1, 2):
        os.dup2(null, fd)
    resource.setrlimit(resource.RLIMIT_CPU, (10, 10))
    sys.path.insert(0, folder)
    before = torch.initial_seed(), torch.nn.functional.cross_entropy
    try:
        _load(loader, path)
    except BaseException as e:  # noqa: BLE001 - what matters is the mark
        Path("why").write_text(repr(e))
    if (torch.initial_seed(), torch.nn.functional.cross_entropy) != before:
        os.mkdir("fired")
    if name == "gadget-atexit":
        import atexit

        atexit._run_exitfuncs()
    os._exit(0)


def fired(folder: Path) -> dict[str, str]:
    """Every payload's name, and "" if it left its mark, else why not."""
    import joblib  # noqa: F401
    import numpy  # noqa: F401
    import torch  # noqa: F401

    told: dict[str, str] = {}
    everything = list(payloads())
    for begin in range(0, len(everything), AT_ONCE):
        begun = [(p.name, folder / p.name, _begun(p, folder / p.name)) for p in everything[begin : begin + AT_ONCE]]
        for name, place, pid in begun:
            _await(pid)
            told[name] = _mark(place)
        for _, _, pid in begun:
            try:
                os.killpg(pid, signal.SIGKILL)
            except ProcessLookupError:
                pass
    return told


def _begun(payload: Payload, place: Path) -> int:
    """The process that loads it."""
    place.mkdir()
    for name, text in {**PLANTED, "planted_state.py": STATE}.items():
        (place / name).write_text(text)
    (place / "payload").write_bytes(payload.data)
    pid = os.fork()
    if pid == 0:
        _child(payload.name, payload.loader, str(place / "payload"), str(place))
    return pid


def _mark(place: Path) -> str:
    deadline = time.monotonic() + 2.0
    while not list(place.glob("*fired*")) and time.monotonic() < deadline:
        time.sleep(0.02)  # what was started may still be starting
    why = place / "why"
    return "" if list(place.glob("*fired*")) else why.read_text() if why.exists() else "no mark"


def _await(pid: int) -> None:
    deadline = time.monotonic() + 20.0
    while os.waitpid(pid, os.WNOHANG) == (0, 0):
        if time.monotonic() > deadline:
            os.kill(pid, signal.SIGKILL)
        time.sleep(0.002)


if __name__ == "__main__":
    print(json.dumps(fired(Path(sys.argv[1]))))
