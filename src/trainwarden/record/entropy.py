"""What Python's and numpy's default generators were seeded with by the operating system when they were imported.

A script that never seeds them draws from these; a replay gives them the same beginning. Whether a generator was
touched since is seen by the rng stage as for every other.
"""

from __future__ import annotations

import json
import os
import random
import sys
from pathlib import Path
from typing import Any

FILE_ENV = "TRAINWARDEN_ENTROPY"
FILE_NAME = "entropy.json"

_begun: dict[str, Any] = {}


def python_ready() -> None:
    """Note the state of Python's generator, or give it the recorded one in a replay."""
    given = _given().get("python")
    if given is not None:
        random.setstate((given[0], tuple(given[1]), given[2]))
    version, words, gauss = random.getstate()
    _begun["python"] = [version, list(words), gauss]
    if "numpy.random" in sys.modules:
        numpy_ready(sys.modules["numpy.random"])


def numpy_ready(module: Any) -> None:
    """The same for numpy's, once it is imported."""
    given = _given().get("numpy")
    if given is not None:
        _give_numpy(module, given)
    kind, keys, position, has_gauss, cached = module.get_state()
    _begun["numpy"] = [kind, keys.tolist(), position, has_gauss, cached]


def give_late(path: str) -> None:
    """Give generators that still stand at their beginning the recorded one; a replay that learns late which it is."""
    given = json.loads(Path(path).read_text(encoding="utf-8"))
    version, words, gauss = random.getstate()
    if "python" in given and _begun.get("python") == [version, list(words), gauss]:
        random.setstate((given["python"][0], tuple(given["python"][1]), given["python"][2]))
    module = sys.modules.get("numpy.random")
    if module is None or "numpy" not in given:
        return
    kind, keys, *rest = module.get_state()
    if _begun.get("numpy") == [kind, keys.tolist(), *rest]:
        _give_numpy(module, given["numpy"])


def write(folder: Path) -> None:
    """Keep what was noted beside the rank's snapshots."""
    folder.mkdir(parents=True, exist_ok=True)
    (folder / FILE_NAME).write_text(json.dumps(_begun), encoding="utf-8")


def _give_numpy(module: Any, given: list[Any]) -> None:
    import numpy

    module.set_state((given[0], numpy.array(given[1], dtype=numpy.uint32), *given[2:]))


def _given() -> dict[str, Any]:
    path = os.environ.get(FILE_ENV, "")
    found: dict[str, Any] = json.loads(Path(path).read_text(encoding="utf-8")) if path else {}
    return found
