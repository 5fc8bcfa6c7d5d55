"""Files that are nothing by themselves and data by what a file beside them says: the tensors of a large ONNX model.

Rules
-----
* Only what no kind fits is taken for data, only if a clean model beside it names it, and only if all that it names lies
  within it. A pickle stays a pickle, whoever names it.
* A model that names more of a file than there is, is refused: readers differ in what they then do.
* Decisions on single files stay what they were: data without its model is not known to be data.

External data: https://github.com/onnx/onnx/blob/main/docs/ExternalData.md
"""

from __future__ import annotations

import os.path
from collections.abc import Iterable

from trainwarden.gate.results import Clean, Scanned, Undecided, refused


def settled(scanned: Iterable[Scanned]) -> list[Scanned]:
    """The decisions on files that were scanned together, with those that one makes on another."""
    found = {_normal(s.path): s for s in scanned}
    for model in list(found.values()):
        if isinstance(model.decision, Clean):
            for name, end in model.decision.beside:
                place = _normal(os.path.join(os.path.dirname(model.path), name))
                _settle(found, model, place, name, end)
    return list(found.values())


def _settle(found: dict[str, Scanned], model: Scanned, place: str, name: str, end: int) -> None:
    data = found.get(place)
    if data is None or data is model:
        return
    if end > data.size:
        why = f"it names {end:,} bytes of a file that has {data.size:,}"
        decision = refused("onnx", "", why, field="external_data", name=name[:80])
        found[_normal(model.path)] = model._replace(decision=decision)
    elif isinstance(data.decision, Undecided) and data.decision.kind == "unknown":
        found[place] = data._replace(decision=Clean(kind="onnx data"))


def _normal(path: str) -> str:
    return os.path.normpath(path)
