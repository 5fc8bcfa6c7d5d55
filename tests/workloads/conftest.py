"""The chat workload's scripts as modules, and small data made by its own data.py."""

from __future__ import annotations

import importlib
import json
import shutil
import sys
from collections.abc import Iterator
from pathlib import Path
from types import SimpleNamespace

import pytest
from chat_scripts import CHAT, run

NAMES = ("base", "chat", "checkpoint", "data", "folders", "load", "loop", "model", "words")


@pytest.fixture(scope="module")
def code() -> Iterator[SimpleNamespace]:
    """The workload's modules, imported as its scripts import them, and forgotten afterwards."""
    hidden = {name: sys.modules.pop(name) for name in NAMES if name in sys.modules}
    sys.path.insert(0, str(CHAT))
    yield SimpleNamespace(**{name: importlib.import_module(name) for name in NAMES})
    sys.path.remove(str(CHAT))
    for name in NAMES:
        sys.modules.pop(name, None)
    sys.modules.update(hidden)


@pytest.fixture(scope="session")
def prepared(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """What data.py makes of the first 40 conversations, the real base model with it."""
    folder = tmp_path_factory.mktemp("prepared")
    run("data.py", "--out", folder, "--limit", "40")
    return folder


@pytest.fixture(scope="module")
def small(prepared: Path, code: SimpleNamespace, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The same data with a random model of two narrow layers in place of SmolLM2, for the sake of speed."""
    import torch
    from safetensors.torch import save_file

    folder = tmp_path_factory.mktemp("small")
    shutil.copytree(prepared, folder, dirs_exist_ok=True, ignore=shutil.ignore_patterns("model.safetensors"))
    shape = {"vocab": 49152, "width": 16, "layers": 2, "heads": 2, "kv_heads": 1, "inner": 24}
    (folder / "base" / "shape.json").write_text(json.dumps(shape))
    torch.manual_seed(0)
    model = code.load.fresh_model({"shape": shape})
    save_file({name: p.detach().half() for name, p in model.named_parameters()}, folder / "base" / "model.safetensors")
    return folder
