"""The real gate in a range: what its owner had approved, and what the gate says after the insider was there.

Rules
-----
* `approve` is what an owner does, by the verbs: every run is audited, the checkpoint cleared and promoted to a name of
  this attack's own. The serving host's registry (`REGISTRY`) names the place; whoever asks no gate believes it.
* `asked` asks both walls about the place that the registry names by then: `promote`, which takes nothing but what was
  cleared, and a server of the name, which answers with verified bytes alone. A wall that lets other bytes pass says
  nothing, and counts as silent.
"""

from __future__ import annotations

import json
from pathlib import Path

from trainwarden import serving
from trainwarden.config import Config, ServingConfig
from trainwarden.errors import CannotDecide, TrainWardenError
from trainwarden.gate.manifest import manifest_digest, manifest_of
from trainwarden.redteam.interface import When
from trainwarden.redteam.outcome import Found
from trainwarden.redteam.place import Range

PROMOTE, SERVING = "promote", "serving"
WALLS = frozenset({PROMOTE, SERVING})
REGISTRY = "serving/registry.json"  # in the job's folder


def approve(place: Range, checkpoint: Path) -> None:
    """Audit, clear and promote a checkpoint, and have the registry name it.

    Raises:
        CannotDecide: the gate does not take it.
    """
    for run in place.runs:
        _done(place, "audit", run)
    _done(place, "clear", str(checkpoint), "--no-attest")
    _done(place, "promote", name_of(place), str(checkpoint))
    register(place, checkpoint)


def register(place: Range, checkpoint: Path) -> None:
    """The registry names this checkpoint and its digest, whoever writes it."""
    place.write(place.job / REGISTRY, json.dumps({"production": str(checkpoint), "digest": digest_of(checkpoint)}))


def registered(place: Range) -> Path:
    """The checkpoint that the registry names."""
    return Path(json.loads((place.job / REGISTRY).read_text())["production"])


def digest_of(checkpoint: Path) -> str:
    """What the files of a checkpoint are now, as the gate names them."""
    return manifest_digest(manifest_of(checkpoint))


def name_of(place: Range) -> str:
    """The serving name that this attack's checkpoint is promoted to.

    Raises:
        CannotDecide: no run was recorded.
    """
    if not place.runs:
        raise CannotDecide("no run was recorded", hint="see what the job printed")
    return f"product-{place.runs[-1]}"


def asked(place: Range) -> list[Found]:
    """What both walls have against what the registry names; nothing where nobody approved anything."""
    if not (place.job / REGISTRY).exists():
        return []
    name, there = name_of(place), registered(place)
    found = [_promoted(place, name, there), _served(place, name, there)]
    return [
        Found(when=When.GATE, by=wall, severity="high", sentence=said)
        for wall, said in zip((PROMOTE, SERVING), found, strict=True)
        if said
    ]


def _promoted(place: Range, name: str, there: Path) -> str:
    """Why `promote` refuses it, empty when it does not."""
    done = place.warden("promote", name, str(there))
    return "" if done.returncode == 0 else _error(done.stderr) or f"promote ended with {done.returncode}"


def _served(place: Range, name: str, there: Path) -> str:
    """What a server answers with instead, empty when it answers with these very bytes."""
    settings = Config(serving=ServingConfig(state=str(place.here / "server")))
    held = digest_of(there)
    try:
        with serving.open(name, _reads_all, store=place.store, config=settings) as service:
            answers = service.current().digest
    except TrainWardenError as e:
        return str(e)
    return "" if answers == held else f"a server of {name} answers with {answers[:12]}; {there} holds {held[:12]}"


def _reads_all(files: serving.Files) -> tuple[int, ...]:
    """The shortest model there is: every file, verified."""
    return tuple(len(files.read(name)) for name in files.names)


def _done(place: Range, *words: str) -> None:
    done = place.warden(*words)
    if done.returncode != 0:
        said = _error(done.stderr) or " ".join(done.stdout.split())
        raise CannotDecide(f"{words[0]} does not take the honest checkpoint: {said[-300:]}")


def _error(stderr: str) -> str:
    return next((line for line in stderr.splitlines() if line.startswith("error: ")), "").removeprefix("error: ")
