"""Offsets between the clocks of sources, estimated from events that two of them both tell.

An event is shared when both sources have exactly one of that kind with the same marks: a login by host, process and
account; a program started, or a signal sent, by host, process and path; an artefact by digest and act. Where two
clocks share nothing so marked, logins of one account on one host from one origin are laid over each other, and
Slurm's submissions by an account over the starts of `sbatch`, `srun` and `salloc` by it: the shift at which most of
them meet is the offset, if at least half of them do. The offset is
the median of the differences, its error their median absolute deviation three times over, and no less than the coarser
of both resolutions. From the reference, each clock is reached through the comparisons with the smallest errors
(Dijkstra). A clock that shares nothing is not corrected, and its error is `UNMEASURED_NS`.
"""

from __future__ import annotations

import heapq
from typing import NamedTuple

from trainwarden.attribute.nouns import Clock
from trainwarden.attribute.tables import Tables
from trainwarden.model import SourceKind

UNMEASURED_NS = 60_000_000_000
_SINGLE_NS = 5_000_000_000  # what one shared event alone is worth
_FEW = 3
_SAMPLE = 200_000  # marks that are enough
_WIDEST_NS = 86_400_000_000_000  # two events further apart than a day are no one event

_MARKS = """
CREATE OR REPLACE TEMP TABLE marks AS
SELECT source, clock, key, min(time_ns) AS time_ns, max(error_ns) AS error_ns FROM (
  SELECT source, clock, time_ns, error_ns, CASE
    WHEN act IN ('login', 'logout') AND pid >= 0 AND host <> '' THEN hash(act, host, pid, account)
    WHEN act IN ('execute', 'signal') AND pid >= 0 AND host <> '' THEN hash(act, host, pid, path)
    WHEN act IN ('write', 'commit', 'push') AND digest <> '' THEN hash(act, digest, path)
  END AS key FROM raw)
WHERE key IS NOT NULL AND key % {one_in} = 0 GROUP BY source, clock, key HAVING count(*) = 1
"""
_PAIRS = """
WITH pairs AS (
  SELECT a.source AS a, a.clock AS ac, b.source AS b, b.clock AS bc, b.time_ns - a.time_ns AS apart,
         greatest(a.error_ns, b.error_ns) AS coarse
  FROM marks a JOIN marks b ON a.key = b.key AND (a.source, a.clock) < (b.source, b.clock)
  WHERE abs(b.time_ns - a.time_ns) < {widest}),
middle AS (SELECT a, ac, b, bc, count(*) AS n, median(apart)::BIGINT AS offset_ns, max(coarse) AS coarse
           FROM pairs GROUP BY ALL)
SELECT m.a, m.ac, m.b, m.bc, m.n, m.offset_ns, m.coarse, median(abs(o.apart - m.offset_ns))::BIGINT
FROM middle m JOIN pairs o USING (a, ac, b, bc) GROUP BY ALL
"""
_LAID_OVER = """
WITH met_by AS (
  SELECT source, clock, time_ns, error_ns, CASE
    WHEN act = 'login' AND origin <> '' THEN hash(account, host, origin)
    WHEN act = 'submit' AND starts_with(session, 'slurm:') THEN hash('slurm', who)
    WHEN act = 'execute' AND (ends_with(path, '/sbatch') OR ends_with(path, '/srun') OR ends_with(path, '/salloc'))
      THEN hash('slurm', who)
  END AS key FROM raw),
logins AS (SELECT * FROM met_by WHERE key IS NOT NULL AND key % {one_in} = 0),
counts AS (SELECT source, clock, count(*) AS n FROM logins GROUP BY ALL),
near AS (
  SELECT a.source AS a, a.clock AS ac, b.source AS b, b.clock AS bc, b.time_ns - a.time_ns AS apart,
         greatest(a.error_ns, b.error_ns) AS coarse
  FROM logins a JOIN logins b ON a.key = b.key AND (a.source, a.clock) < (b.source, b.clock)
  WHERE abs(b.time_ns - a.time_ns) < {near}),
bins AS (SELECT a, ac, b, bc, apart // {bin} AS bin, count(*) AS n FROM near GROUP BY ALL),
best AS (SELECT a, ac, b, bc, arg_max(bin, n) AS bin FROM bins GROUP BY ALL),
met AS (SELECT o.* FROM near o JOIN best USING (a, ac, b, bc) WHERE abs(o.apart // {bin} - bin) <= 1),
middle AS (SELECT a, ac, b, bc, count(*) AS n, median(apart)::BIGINT AS offset_ns, max(coarse) AS coarse
           FROM met GROUP BY ALL)
SELECT m.a, m.ac, m.b, m.bc, m.n, m.offset_ns, m.coarse, median(abs(o.apart - m.offset_ns))::BIGINT
FROM middle m JOIN met o USING (a, ac, b, bc)
JOIN counts x ON x.source = m.a AND x.clock = m.ac JOIN counts y ON y.source = m.b AND y.clock = m.bc
WHERE m.n >= {few} AND m.n * 2 >= least(x.n, y.n) GROUP BY ALL
"""
_NEAR_NS, _BIN_NS = 1_800_000_000_000, 1_000_000_000


class _Edge(NamedTuple):
    to: tuple[int, str]
    offset_ns: int
    error_ns: int
    shared: int


def estimate(tables: Tables) -> tuple[Clock, ...]:
    """The clock of every source, against one reference."""
    one_in = max(1, tables.count() // _SAMPLE)
    tables.db.execute(_MARKS.format(one_in=one_in))
    edges: dict[tuple[int, str], list[_Edge]] = {}
    laid_over = _LAID_OVER.format(one_in=one_in, near=_NEAR_NS, bin=_BIN_NS, few=_FEW)
    for sql in (_PAIRS.format(widest=_WIDEST_NS), laid_over):
        for a, ac, b, bc, shared, offset, coarse, spread in tables.rows(sql):
            if any(edge.to == (b, bc) for edge in edges.get((a, ac), ())):
                continue
            error = max(3 * spread, coarse) if shared >= _FEW else max(coarse, _SINGLE_NS)
            edges.setdefault((a, ac), []).append(_Edge((b, bc), offset, error, shared))
            edges.setdefault((b, bc), []).append(_Edge((a, ac), -offset, error, shared))
    every = [(source, clock) for source, clock in tables.rows("SELECT DISTINCT source, clock FROM raw ORDER BY ALL")]
    tables.db.execute("DROP TABLE marks")
    return tuple(_reached(tables, every, edges))


def _reached(tables: Tables, every: list[tuple[int, str]], edges: dict[tuple[int, str], list[_Edge]]) -> list[Clock]:
    kinds = [evidence.kind for evidence in tables.evidence]
    ids = [evidence.id for evidence in tables.evidence]
    found: dict[tuple[int, str], Clock] = {}
    if edges:
        first = min(  # of equals the first, so that the same evidence always gives the same words
            edges,
            key=lambda c: (kinds[c[0]] is not SourceKind.LOG, -len(edges[c]), -sum(e.shared for e in edges[c]), c),
        )
        waiting = [(0, first, 0, 0, "")]
        while waiting:
            error, at, offset, shared, through = heapq.heappop(waiting)
            if at in found:
                continue
            found[at] = Clock(
                source=ids[at[0]], host=at[1], offset_ns=offset, error_ns=error, shared=shared, through=through
            )
            for e in edges[at]:
                heapq.heappush(waiting, (error + e.error_ns, e.to, offset + e.offset_ns, e.shared, ids[at[0]]))
    return [
        found.get(at) or Clock(source=ids[at[0]], host=at[1], offset_ns=0, error_ns=UNMEASURED_NS, shared=0)
        for at in every
    ]
