"""Checkpoints made from others: making them, recording how, and making them again to compare bit for bit.

Rules
-----
* What is computed is defined to the last bit: floating point tensors are added in order of the sources in float64,
  multiplied by their weight first (an average is divided by their number last), and rounded once to the dtype of the
  first source's. Tensors of other dtypes must be equal in all sources.
* A folder that `trainwarden convert` wrote is converted again, and compared file by file.
* Compared are names, dtypes, shapes and bytes of every tensor; other files must be a source's, byte for byte.
* A quantisation or a fine-tune cannot be made again here: it is somebody's word.

Trust: torch's elementwise operations on this machine. Files are read as `loader` reads them: after the scan.
"""

from __future__ import annotations

import fnmatch
import tempfile
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from trainwarden.errors import CannotDecide, UsageError
from trainwarden.gate.convert.conversion import EDGE, convert, read_edge
from trainwarden.gate.loader import load
from trainwarden.gate.manifest import keep_files, keep_manifest, manifest_of, read_manifest
from trainwarden.gate.stored import holds_tensors
from trainwarden.model import CheckpointManifest, Derived, How
from trainwarden.store import Store

if TYPE_CHECKING:
    import torch

Tensors = Mapping[str, "torch.Tensor"]

_USUAL = "model*.safetensors"
MADE_HERE = (How.AVERAGE, How.MERGE, How.CAST)
TOLD = (How.QUANTISE, How.FINETUNE)


def make(store: Store, out: Path, sources: Sequence[str], how: How, settings: Mapping[str, str]) -> None:
    """Write what these sources (digests of manifests in the store) make: their weights, and the first one's texts.

    Raises:
        UsageError: there is something at `out`, or the settings are wrong.
        CannotDecide: the sources do not fit together.
    """
    if how not in MADE_HERE:
        raise UsageError(f"{out} is not there, and {how} is not made here", hint="make it, then record it")
    from safetensors.torch import save_file

    first = read_manifest(store, sources[0])
    made = _expected(store, sources, how, settings)
    try:
        for path, tensors in made.items():
            place = out if len(first.files) == 1 else out / path
            place.parent.mkdir(parents=True, exist_ok=True)
            save_file(dict(tensors), place)
        for file in first.files:
            if len(first.files) > 1 and file.path not in made and not holds_tensors(store, file):
                (out / file.path).parent.mkdir(parents=True, exist_ok=True)
                (out / file.path).write_bytes(store.get(file.digest))
    except OSError as e:
        raise UsageError(f"cannot write {out}: {e.strerror}", hint="name a place that can be written") from e


def take_in(store: Store, path: Path) -> str:
    """Keep a checkpoint and its manifest in the store; its digest.

    Raises:
        UsageError: it cannot be read.
        StoreError: the store cannot be written.
    """
    manifest = manifest_of(path)
    keep_files(store, path, manifest)
    return keep_manifest(store, manifest)


def difference(store: Store, said: Derived) -> str:
    """How a checkpoint differs from what its sources make in the way that is said; "" when it does not.

    Raises:
        CannotDecide: it cannot be made again.
        StoreError: a file is not in the store.
    """
    if said.how in TOLD:
        raise CannotDecide(f"{said.how} cannot be made again here", hint="train it under `trainwarden run`")
    manifest = read_manifest(store, said.digest)
    if said.how is How.CONVERT and any(f.path == EDGE for f in manifest.files):
        return _unlike_conversion(store, said, manifest)
    expected = _expected(store, said.sources, said.how, said.settings)
    renamed = said.how is How.CONVERT or len(manifest.files) == 1
    found = _weights(store, manifest, _chosen(store, manifest, {}) if renamed else tuple(expected))
    known = {f.digest for source in said.sources for f in read_manifest(store, source).files}
    for file in manifest.files:
        if file.path not in found and file.digest not in known:
            return f"{file.path} is no file of what it was made from"
    return _differing(_merged(expected), _merged(found))


def _unlike_conversion(store: Store, said: Derived, manifest: CheckpointManifest) -> str:
    """How the folder differs from what `trainwarden convert` makes of the file that it names as its source."""
    edge = next(f for f in manifest.files if f.path == EDGE)
    named = read_edge(store.get(edge.digest)).source
    sources = [f for source in said.sources for f in read_manifest(store, source).files if f.digest == named.digest]
    if not sources:
        return f"{EDGE} names {named.path} ({named.digest[:12]}), which is no file of what it was made from"
    with tempfile.TemporaryDirectory(prefix="trainwarden-") as scratch:
        old, new = Path(scratch, named.path.rpartition("/")[2] or "old"), Path(scratch, "new")
        old.symlink_to(store.object_path(named.digest))
        convert(old, new)
        again = {f.path: f.digest for f in manifest_of(new).files}
    for file in manifest.files:
        if again.pop(file.path, "") != file.digest:
            return f"{file.path} is not what a conversion of {named.path} gives"
    return f"{min(again)} is missing" if again else ""


def _expected(
    store: Store, sources: Sequence[str], how: How, settings: Mapping[str, str]
) -> dict[str, dict[str, torch.Tensor]]:
    """File of the first source → its tensors as they should come out."""
    if not sources or (how not in (How.AVERAGE, How.MERGE) and len(sources) != 1):
        raise UsageError(f"{how} is not made from {len(sources)} checkpoints", hint="see trainwarden derive -h")
    manifests = [read_manifest(store, source) for source in sources]
    read = [_weights(store, m, _chosen(store, m, settings)) for m in manifests]
    match how:
        case How.CAST:
            dtype = _dtype(settings.get("dtype", ""))
            return {p: {n: _cast(t, dtype) for n, t in ts.items()} for p, ts in read[0].items()}
        case How.AVERAGE | How.MERGE:
            weights = _numbers(settings.get("weights", ""), len(read)) if how is How.MERGE else None
            merged = [_merged(each) for each in read]
            return {p: {n: _sum(n, merged, weights) for n in ts} for p, ts in read[0].items()}
        case _:
            return read[0]


def _chosen(store: Store, manifest: CheckpointManifest, settings: Mapping[str, str]) -> tuple[str, ...]:
    """The files that hold the weights: those named, else the usual names, else the only one with tensors."""
    names = [f.path for f in manifest.files]
    if pattern := settings.get("files", ""):
        found = fnmatch.filter(names, pattern)
    elif len(names) == 1:
        found = names
    else:
        found = fnmatch.filter(names, _USUAL) or [f.path for f in manifest.files if holds_tensors(store, f)][:2]
        if len(found) != 1 and not all(fnmatch.fnmatch(n, _USUAL) for n in found):
            found = []
    if not found:
        raise CannotDecide("it is not clear which of its files hold the weights", hint="name them: --files 'PATTERN'")
    return tuple(found)


def _weights(store: Store, manifest: CheckpointManifest, chosen: Sequence[str]) -> dict[str, dict[str, torch.Tensor]]:
    found: dict[str, dict[str, torch.Tensor]] = {}
    for file in manifest.files:
        if file.path in chosen:
            store.check(file.digest)
            found[file.path] = dict(_flat(file.path, load(store.object_path(file.digest))))
    if not found:
        raise CannotDecide(f"it has none of the files {', '.join(chosen)}", hint="its weights are named otherwise")
    return found


def _flat(path: str, state: object) -> Iterator[tuple[str, torch.Tensor]]:
    """The tensors of a state dict."""
    import torch

    if not isinstance(state, dict):
        raise CannotDecide(f"{path} is no state dict", hint="save its tensors alone, by state_dict()")
    for name, value in state.items():
        if not isinstance(value, torch.Tensor):
            raise CannotDecide(
                f"{path} holds more than tensors: {name}", hint="save its tensors alone, by state_dict()"
            )
        yield str(name), value


def _merged(files: Mapping[str, Tensors]) -> dict[str, torch.Tensor]:
    found: dict[str, torch.Tensor] = {}
    for path, tensors in files.items():
        if twice := found.keys() & tensors.keys():
            raise CannotDecide(f"{path} has a tensor that another file has too: {min(twice)}")
        found |= tensors
    return found


def _sum(name: str, states: Sequence[Tensors], weights: Sequence[float] | None) -> torch.Tensor:
    import torch

    tensors = [state[name] for state in states if name in state]
    first = tensors[0]
    if len(tensors) != len(states) or any(t.shape != first.shape or t.dtype != first.dtype for t in tensors):
        raise CannotDecide(f"the checkpoints do not fit together: {name}", hint="they are of different models")
    if not first.dtype.is_floating_point:
        if any(not torch.equal(t, first) for t in tensors):
            raise CannotDecide(f"{name} is no floating point tensor, and differs between the checkpoints")
        return first
    total = torch.zeros(first.shape, dtype=torch.float64)
    for i, tensor in enumerate(tensors):
        wide = tensor.to(torch.float64)
        total = total + (wide if weights is None else wide * weights[i])
    return (total / len(tensors) if weights is None else total).to(first.dtype)


def _cast(tensor: torch.Tensor, dtype: torch.dtype) -> torch.Tensor:
    return tensor.to(dtype) if tensor.dtype.is_floating_point else tensor


def _dtype(name: str) -> torch.dtype:
    import torch

    known = {"float64": torch.float64, "float32": torch.float32, "bfloat16": torch.bfloat16, "float16": torch.float16}
    if name not in known:
        raise UsageError(f"--dtype {name or '(none)'} is not known", hint=f"one of {', '.join(known)}")
    return known[name]


def _numbers(text: str, count: int) -> list[float]:
    try:
        numbers = [float(part) for part in text.split(",")]
    except ValueError:
        numbers = []
    if len(numbers) != count:
        raise UsageError(f"--weights {text or '(none)'} are not {count} numbers", hint="one for each --from: 0.7,0.3")
    return numbers


def _differing(expected: Tensors, found: Tensors) -> str:
    import torch

    for name in sorted(expected.keys() | found.keys()):
        if name not in found or name not in expected:
            return f"{name} is {'missing' if name in expected else 'in none of what it was made from'}"
        a, b = expected[name], found[name]
        if a.dtype != b.dtype or a.shape != b.shape:
            return f"{name} is {b.dtype}{tuple(b.shape)}, expected {a.dtype}{tuple(a.shape)}"
        if not torch.equal(_bytes(a), _bytes(b)):
            return f"{name} is not what its sources make"
    return ""


def _bytes(tensor: torch.Tensor) -> torch.Tensor:
    import torch

    return tensor.contiguous().reshape(-1).view(torch.uint8)
