"""Are the records complete, do their digests give their roots, and do the draws of the audit follow?"""

from __future__ import annotations

from collections.abc import Sequence

from trainwarden.casefile import indexed
from trainwarden.checks.results import Failed, NotChecked, Passed, Result
from trainwarden.errors import (
    StoreError,
)
from trainwarden.model import (
    BUFFERS,
    Detail,
    Entry,
    Gap,
    RunEnded,
    Stage,
    StepRecord,
    UnitsDrawn,
)
from trainwarden.record.fingerprint import stage_root
from trainwarden.sampling import wrong_draws
from trainwarden.store import RunDir
from trainwarden.supervise.details import DetailReader
from trainwarden.supervise.private import read_digest_key


def check_records(entries: Sequence[Entry]) -> Result:
    """Are the records of each rank numbered without a hole, and as many as the run's end says?"""
    next_seq: dict[tuple[int, int], int] = {}
    for index, r in indexed(entries, StepRecord):
        expected = next_seq.get((r.attempt, r.rank), 0)
        if r.seq != expected:
            return Failed(f"entry {index}: attempt {r.attempt}, rank {r.rank} has record {r.seq}, expected {expected}")
        next_seq[r.attempt, r.rank] = expected + 1
    gaps = indexed(entries, Gap)
    if gaps:
        index, gap = gaps[0]
        return Failed(f"{len(gaps)} gaps; the first is entry {index}, step {gap.step}, rank {gap.rank}: {gap.reason}")
    total = sum(next_seq.values())
    ends = indexed(entries, RunEnded)
    if not ends:
        return NotChecked(f"{total} records and no end of the run: it goes on, or its supervisor was killed")
    if ends[-1][1].records != total:
        return Failed(f"the run's end counts {ends[-1][1].records} records, the log has {total}")
    return Passed(f"{total} records of {len(next_seq)} rank starts, no hole")


def check_details(folder: RunDir, entries: Sequence[Entry]) -> Result:
    """Does every stage root follow from the per-tensor digests kept beside the log?"""
    try:
        key = read_digest_key(folder.private)
    except StoreError as e:
        return NotChecked(str(e))
    reader, roots = DetailReader(folder.details), 0
    for index, r in indexed(entries, StepRecord):
        where = f"entry {index}: attempt {r.attempt}, rank {r.rank}, step {r.step}"
        try:
            under = reader.get(r.attempt, r.rank, r.seq)
        except (StoreError, OSError) as e:
            return Failed(f"{where}: {e}")
        for stage, committed in r.stages.items():
            if not committed.root:
                continue
            detail = under.get(stage)
            if detail is None:
                return Failed(f"{where}: the digests of stage {stage} are missing")
            found = stage_root(key, detail.names, detail.digests)
            if found != committed.root:
                return Failed(f"{where}: stage {stage} is recorded as {committed.root}, its digests give {found}")
            roots += 1
        if r.left and (wrong := _left_wrong(key, r, under.get(Stage.WEIGHTS))):
            return Failed(f"{where}: {wrong}")
    return Passed(f"{roots} stage roots recomputed")


def _left_wrong(key: bytes, record: StepRecord, weights: Detail | None) -> str:
    """What is wrong with a record's root over the weights without buffers."""
    pairs = zip(weights.names, weights.digests, strict=True) if weights else ()
    own = {name: digest for name, digest in pairs if not name.startswith(BUFFERS)}
    found = stage_root(key, own, own.values())
    if found == record.left:
        return ""
    return f"the weights without buffers are recorded as {record.left}, their digests give {found}"


def check_draws(run: str, entries: Sequence[Entry]) -> Result:
    """The draws of the sampled audit, made again from the log."""
    made = [e for e in entries if isinstance(e, UnitsDrawn)]
    try:
        wrong = wrong_draws(run, entries)
    except ValueError as e:
        return Failed(f"a draw's randomness cannot be read: {e}")
    if wrong:
        return Failed("; ".join(wrong[:3]) + (f"; and {len(wrong) - 3} more" if len(wrong) > 3 else ""))
    sources = sorted({e.source for e in made})
    return Passed(f"{len(made)} draws made again from what they name as their randomness ({', '.join(sources)})")
