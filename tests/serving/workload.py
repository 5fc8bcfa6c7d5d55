"""The workloads' modules, imported as their scripts import them, and their servers on a free port."""

from __future__ import annotations

import importlib
import sys
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from types import ModuleType, SimpleNamespace
from typing import Any

import uvicorn

WORKLOADS = Path(__file__).resolve().parents[2] / "workloads"
NAMES = ("chat", "checkpoint", "export", "flow", "folders", "load", "model", "sample", "serve", "web", "words")


@contextmanager
def modules(workload: str) -> Iterator[SimpleNamespace]:
    """Those of NAMES that the workload has; the modules of others are put back afterwards."""
    folder = WORKLOADS / workload
    hidden = {name: sys.modules.pop(name) for name in NAMES if name in sys.modules}
    sys.path.insert(0, str(folder))
    try:
        found: dict[str, ModuleType] = {
            name: importlib.import_module(name) for name in NAMES if (folder / f"{name}.py").exists()
        }
        yield SimpleNamespace(**found)
    finally:
        sys.path.remove(str(folder))
        for name in NAMES:
            sys.modules.pop(name, None)
        sys.modules.update(hidden)


@contextmanager
def listening(app: Any) -> Iterator[str]:
    """The application on a free port of loopback; its URL."""
    config = uvicorn.Config(app, port=0, log_level="warning", access_log=False)
    server = uvicorn.Server(config)
    thread = threading.Thread(target=server.run, daemon=True)
    thread.start()
    deadline = time.monotonic() + 60
    while not server.started:
        assert time.monotonic() < deadline
        assert thread.is_alive()
        time.sleep(0.01)
    try:
        yield f"http://127.0.0.1:{server.servers[0].sockets[0].getsockname()[1]}"
    finally:
        server.should_exit = True
        thread.join(60)
