"""The weights that a step began with, tensor by tensor, out of a record's `before` and `found`.

Rules
-----
* A record commits to them with one root (`before`) and names only the tensors that were no longer as the record
  before it left them (`found`). Both are a rank's word: the digests are used only when they give the root.
* What was not looked at again in that step (docs/format.md) counts as left alone, in the record as in its replay.
"""

from __future__ import annotations

from trainwarden.model import BUFFERS, Detail, StepRecord
from trainwarden.record.fingerprint import stage_root


def begun(key: bytes, record: StepRecord, left: Detail | None) -> Detail | None:
    """The weights as the step's first forward found them; None when that is not known, or does not give the root.

    `left` is the weights stage of the same rank's and optimizer's record before, None where there is none.
    """
    try:
        found = {name: bytes.fromhex(digest) for name, digest in record.found.items()}
    except ValueError:
        return None
    were = zip(left.names, left.digests, strict=True) if left else ()
    now = {name: digest for name, digest in were if not name.startswith(BUFFERS)} | found
    if not record.before or stage_root(key, now, now.values()) != record.before:
        return None
    return Detail(names=tuple(now), digests=tuple(now.values()))
