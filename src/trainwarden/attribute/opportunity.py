"""Who could have: every account, agent and service against every deed, by access and by presence.

Rules
-----
* All accounts that any source names are in scope, not those alone that somebody suspects.
* Access is what was seen (a write in that folder at any time, root on that host) or what was granted and not taken
  away. "No" needs a record that says so; otherwise it is not known.
* "Not seen" is not absence: it says that there are records of sessions there and then, and none of this account.
  Absence needs a statement, and whoever made it is named with it.
* Times are compared with the errors of both clocks.
"""

from __future__ import annotations

import math
import posixpath
from collections.abc import Iterable, Mapping, Sequence

import msgspec

from trainwarden.attribute.nouns import Access, At, Cell, Deed, Presence, Row
from trainwarden.attribute.tables import Tables
from trainwarden.model import Act, ActorKind, Artefact, CustodyEvent

NEAR_NS = 15 * 60 * 1_000_000_000  # activity this near a deed is presence somewhere
DAY_NS = 86_400 * 1_000_000_000
_UNENDED_NS = DAY_NS // 2  # a session whose end no source tells
_ROWS = 20_000  # accounts at most

_SESSIONS = """
CREATE OR REPLACE TEMP TABLE sessions AS
WITH marked AS (
  SELECT *, CASE WHEN session <> '' THEN session WHEN pid >= 0 THEN pid::VARCHAR ELSE path END AS mark
  FROM events WHERE act IN ('login', 'logout')),
ends AS (SELECT account, host, mark, time_ns FROM marked WHERE act = 'logout')
SELECT l.source, l.line, l.who, l.account, l.host, l.session, l.origin, l.binding, l.time_ns AS begun, l.error_ns,
       coalesce(o.time_ns, l.time_ns + {unended}) AS ended
FROM (SELECT * FROM marked WHERE act = 'login') l ASOF LEFT JOIN ends o
  ON l.account = o.account AND l.host = o.host AND l.mark = o.mark AND l.time_ns <= o.time_ns
"""
_DEEDS = "CREATE OR REPLACE TEMP TABLE deeds (deed INT, time_ns BIGINT, error_ns BIGINT, host VARCHAR, bucket BIGINT)"


class Session(msgspec.Struct, frozen=True):
    """A session that was open at a deed."""

    who: str
    host: str
    origin: str
    binding: str
    begun_ns: int
    at: At


class Opportunity(msgspec.Struct, frozen=True, kw_only=True):
    """The matrix, and what it was made from."""

    rows: tuple[Row, ...]
    statements: tuple[CustodyEvent, ...]
    sessions: Mapping[int, tuple[Session, ...]]  # open at each deed
    roots: Mapping[str, frozenset[str]]  # account → hosts on which it was root
    holders: Mapping[str, str]  # account → pseudonym


def matrix(
    tables: Tables, artefacts: Sequence[Artefact], deeds: Sequence[Deed], also: Iterable[str] = ()
) -> Opportunity:
    """Access and presence of every account at every deed; `also` are accounts that only weak sources name."""
    said = tuple(tables.events("act IN ('absent', 'present', 'holds', 'grant', 'revoke', 'disclose', 'approve')"))
    _prepare(tables, deeds)
    sessions = _open_sessions(tables, deeds)
    active = _active(tables)
    wrote = _wrote(tables, artefacts, deeds)
    roots = _roots(tables)
    spans = tables.rows(
        "SELECT host, min(time_ns), max(time_ns) FROM events WHERE act IN ('login', 'logout') GROUP BY host"
    )
    seen = {host: (first, last) for host, first, last in spans}
    holders = {e.account: e.person for e in said if e.act is Act.HOLDS and e.person}
    kinds = _accounts(tables, deeds, also)
    builder = _Builder(artefacts, deeds, said, sessions, active, wrote, roots, seen, holders)
    rows = tuple(builder.row(account, kind) for account, kind in kinds.items())
    return Opportunity(rows=rows, statements=said, sessions=sessions, roots=roots, holders=holders)


def _prepare(tables: Tables, deeds: Sequence[Deed]) -> None:
    tables.db.execute(_SESSIONS.format(unended=_UNENDED_NS))
    tables.db.execute(_DEEDS)
    rows = [
        (n, d.time_ns, d.error_ns, d.host, d.time_ns // NEAR_NS + k) for n, d in enumerate(deeds) for k in (-1, 0, 1)
    ]
    if rows:
        tables.db.executemany("INSERT INTO deeds VALUES (?, ?, ?, ?, ?)", rows)


def _open_sessions(tables: Tables, deeds: Sequence[Deed]) -> dict[int, tuple[Session, ...]]:
    """The sessions open at each deed, one an account, host and origin. A scan a deed: there are few deeds."""
    ids = [e.id for e in tables.evidence]
    found: dict[int, tuple[Session, ...]] = {}
    for n, deed in enumerate(deeds):
        rows = tables.rows(
            "SELECT who, host, origin, binding, min(begun), arg_min(source, begun), arg_min(line, begun) FROM sessions "
            "WHERE begun - error_ns <= ? AND ended + error_ns >= ? "
            "GROUP BY who, host, origin, binding, source ORDER BY ALL",
            [deed.time_ns + deed.error_ns, deed.time_ns - deed.error_ns],
        )
        found[n] = tuple(
            Session(who, host, origin, binding, begun, At(source=ids[source], line=line))
            for who, host, origin, binding, begun, source, line in rows
        )
    return found


def _active(tables: Tables) -> dict[tuple[int, str], tuple[str, At]]:
    """What an account did last within `NEAR_NS` of a deed: the host, and where it is told."""
    ids = [e.id for e in tables.evidence]
    return {
        (deed, who): (host, At(source=ids[source], line=line))
        for deed, who, host, source, line in tables.rows(
            "SELECT d.deed, e.who, arg_min(e.host, abs(e.time_ns - d.time_ns)), "
            "arg_min(e.source, abs(e.time_ns - d.time_ns)), arg_min(e.line, abs(e.time_ns - d.time_ns)) "
            f"FROM events e JOIN deeds d ON e.time_ns // {NEAR_NS} = d.bucket WHERE e.who <> '' AND "
            "e.act IN ('execute', 'write', 'read', 'delete', 'rename', 'attributes', 'signal', 'login', 'submit', "
            f"'push') AND abs(e.time_ns - d.time_ns) <= {NEAR_NS} GROUP BY d.deed, e.who"
        )
    }


def _wrote(tables: Tables, artefacts: Sequence[Artefact], deeds: Sequence[Deed]) -> dict[tuple[str, str], At]:
    """Who was ever seen to write in the folder of an artefact."""
    folders = sorted({posixpath.dirname(artefacts[d.artefact].path) for d in deeds} - {""})
    ids = [e.id for e in tables.evidence]
    if not folders:
        return {}
    tables.db.execute("CREATE OR REPLACE TEMP TABLE folders (folder VARCHAR)")
    tables.db.executemany("INSERT INTO folders VALUES (?)", [(f,) for f in folders])
    return {
        (folder, who): At(source=ids[source], line=line)
        for folder, who, source, line in tables.rows(
            "SELECT f.folder, e.who, arg_min(e.source, e.time_ns), arg_min(e.line, e.time_ns) FROM events e "
            "JOIN folders f ON regexp_replace(e.path, '/[^/]*$', '') = f.folder "
            "WHERE e.act IN ('write', 'rename', 'delete', 'attributes') AND e.who <> '' GROUP BY f.folder, e.who"
        )
    }


def _roots(tables: Tables) -> dict[str, frozenset[str]]:
    """Accounts that acted with root's rights, and where."""
    found: dict[str, set[str]] = {}
    for who, host in tables.rows("SELECT DISTINCT who, host FROM events WHERE account = 'root' AND who <> 'root'"):
        found.setdefault(who, set()).add(host)
    return {who: frozenset(hosts) for who, hosts in found.items() if who}


def _accounts(tables: Tables, deeds: Sequence[Deed], also: Iterable[str]) -> dict[str, ActorKind | None]:
    found: dict[str, ActorKind | None] = {d.who: d.kind for d in deeds}
    for who in also:
        found.setdefault(who, None)
    for who, kind in tables.rows(
        f"SELECT who, max(kind) FROM events WHERE who <> '' GROUP BY who ORDER BY count(*) DESC, who LIMIT {_ROWS}"
    ):
        if found.get(who) is None:
            found[who] = ActorKind(kind) if kind else None
    return found


class _Builder:
    """What rows are made from."""

    def __init__(
        self,
        artefacts: Sequence[Artefact],
        deeds: Sequence[Deed],
        said: Sequence[CustodyEvent],
        sessions: Mapping[int, tuple[Session, ...]],
        active: Mapping[tuple[int, str], tuple[str, At]],
        wrote: Mapping[tuple[str, str], At],
        roots: Mapping[str, frozenset[str]],
        seen: Mapping[str, tuple[int, int]],
        holders: Mapping[str, str],
    ) -> None:
        self.artefacts, self.deeds, self.active = artefacts, deeds, active
        self.wrote, self.roots, self.seen, self.holders = wrote, roots, seen, holders
        self.mine: dict[tuple[int, str], list[Session]] = {}
        for n, open_ in sessions.items():
            for session in open_:
                self.mine.setdefault((n, session.who), []).append(session)
        self.by_account: dict[str, list[CustodyEvent]] = {}
        for event in said:
            for name in {event.account, event.person} - {""}:
                self.by_account.setdefault(name, []).append(event)

    def row(self, account: str, kind: ActorKind | None) -> Row:
        holder = self.holders.get(account, "")
        said = self.by_account.get(account, []) + (self.by_account.get(holder, []) if holder else [])
        revoked = min((e.time_ns for e in said if e.act is Act.REVOKE), default=0)
        followed, told, expected = self._disclosures(said)
        return Row(
            account=account,
            kind=kind,
            holder=holder,
            cells=tuple(self._cell(account, n, said) for n in range(len(self.deeds))),
            revoked_ns=revoked,
            deeds_before=sum(d.time_ns < revoked for d in self.deeds) if revoked else 0,
            deeds_after=sum(d.time_ns > revoked for d in self.deeds) if revoked else 0,
            disclosures=told,
            followed=followed,
            expected=round(expected, 2),
        )

    def _cell(self, account: str, n: int, said: Sequence[CustodyEvent]) -> Cell:
        access, why, told = self._access(account, n, said)
        presence, there, seen = self._presence(account, n, said)
        return Cell(access=access, presence=presence, why="; ".join(w for w in (why, there) if w), told=(*told, *seen))

    def _access(self, account: str, n: int, said: Sequence[CustodyEvent]) -> tuple[Access, str, tuple[At, ...]]:
        deed, path = self.deeds[n], self.artefacts[self.deeds[n].artefact].path
        if deed.who == account:
            return Access.YES, "did it, by the record", ()
        changes = [
            e for e in said if e.act in (Act.GRANT, Act.REVOKE) and e.time_ns <= deed.time_ns and _covers(e.path, path)
        ]
        if changes:
            last = max(changes, key=lambda e: e.time_ns)
            granted = last.act is Act.GRANT
            return (Access.YES if granted else Access.NO), "granted" if granted else "taken away before", (_at(last),)
        if at := self.wrote.get((posixpath.dirname(path), account)):
            return Access.YES, "was seen to write there", (at,)
        if deed.host in self.roots.get(account, ()):
            return Access.YES, "was root on that host", ()
        return Access.UNKNOWN, "", ()

    def _presence(self, account: str, n: int, said: Sequence[CustodyEvent]) -> tuple[Presence, str, tuple[At, ...]]:
        deed = self.deeds[n]
        if deed.who == account:
            return Presence.ACTING, "", deed.told
        absent = next((e for e in said if e.act is Act.ABSENT and during(e, deed)), None)
        if absent is not None:
            return Presence.ABSENT, absent.note, (_at(absent),)
        mine = self.mine.get((n, account), [])
        here = next((s for s in mine if s.host == deed.host), mine[0] if mine else None)
        if here is not None:
            return Presence.SESSION, f"session on {here.host}", (here.at,)
        if found := self.active.get((n, account)):
            return Presence.ACTIVE, f"active on {found[0]}" if found[0] else "active", (found[1],)
        span = self.seen.get(deed.host)
        covered = span is not None and span[0] <= deed.time_ns <= span[1]
        return (Presence.NOT_SEEN if covered else Presence.UNKNOWN), "", ()

    def _disclosures(self, said: Sequence[CustodyEvent]) -> tuple[int, int, float]:
        """How many disclosures were followed by a deed within a day, how many there were, how many by chance."""
        told = [e.time_ns for e in said if e.act is Act.DISCLOSE]
        times = sorted({d.time_ns for d in self.deeds})
        if not told or len(times) < 2:
            return 0, len(told), 0.0
        followed = sum(any(0 < t - at <= DAY_NS for t in times) for at in told)
        span = max(max(times) - min([*times, *told]), DAY_NS)
        return followed, len(told), len(told) * (1 - math.exp(-len(times) * DAY_NS / span))


def _covers(granted: str, path: str) -> bool:
    """Does a grant or its end for `granted` (a folder, or the name of a service) bear on this path?"""
    return not granted.startswith("/") or path == granted or path.startswith(granted.rstrip("/") + "/")


def during(event: CustodyEvent, deed: Deed) -> bool:
    """Does what the event tells last over the deed, whatever the clocks' errors?"""
    slack = event.error_ns + deed.error_ns
    return event.time_ns + slack <= deed.time_ns <= (event.until_ns or event.time_ns) - slack


def _at(event: CustodyEvent) -> At:
    return At(source=event.source, line=event.line)
