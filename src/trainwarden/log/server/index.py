"""The run index: which host gave which item of which run, as rows of SQLite or PostgreSQL.

Rules
-----
* It follows from the log alone: it can be dropped and is then built again from the entries. It is brought up to
  the log before any request is judged, so a resend is always recognised.
* It remembers the size and root that it was last brought to. A log that does not continue that tree was put back
  or rewritten, and is `LogTampered`; `rebuild` is the answer only once that has been explained.

Trust: none is put in a row that is not in the log; rows are a claim about it. They decide which resend is known,
so whoever can write them can have an item logged twice or refused, and both show in the log.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager
from typing import TYPE_CHECKING

import msgspec
import sqlalchemy as sa
from sqlalchemy.exc import SQLAlchemyError

from trainwarden.errors import LogError, LogTampered, UsageError
from trainwarden.log.merkle import leaf_hash
from trainwarden.log.protocol import read_entry
from trainwarden.model import TreeHead

if TYPE_CHECKING:
    from trainwarden.log.server.tilelog import TileLog

_BATCH = 10_000
_tables = sa.MetaData()
_items = sa.Table(
    "trainwarden_items",
    _tables,
    sa.Column("idx", sa.BigInteger, primary_key=True, autoincrement=False),
    sa.Column("host", sa.String(64), nullable=False),
    sa.Column("run", sa.String(64), nullable=False),
    sa.Column("seq", sa.BigInteger, nullable=False),
    sa.Column("leaf_hash", sa.LargeBinary(32), nullable=False),
    sa.Column("object", sa.String(64), nullable=False),
    sa.Column("kind", sa.String(64), nullable=False),
    sa.Column("records", sa.BigInteger, nullable=False),
    sa.Index("trainwarden_items_number", "host", "run", "seq", unique=True),
)
_state = sa.Table(
    "trainwarden_state",
    _tables,
    sa.Column("origin", sa.String(255), primary_key=True),
    sa.Column("size", sa.BigInteger, nullable=False),
    sa.Column("root", sa.String(64), nullable=False),
)


class Logged(msgspec.Struct, frozen=True):
    """An item as the log has it."""

    index: int
    host: str
    run: str
    seq: int
    leaf_hash: bytes
    object: str = ""
    kind: str = ""
    records: int = 0


class RunRow(msgspec.Struct, frozen=True):
    """What a host gave of a run: numbers 0 … `items` − 1, between two indexes of the log."""

    host: str
    run: str
    items: int
    first_index: int
    last_index: int
    records: int
    findings: int


class _Leaf(msgspec.Struct, frozen=True):
    type: str = ""
    count: int = 0
    entry: str = ""


class RunIndex:
    """The index held open; threads may share it."""

    def __init__(self, engine: sa.Engine, origin: str) -> None:
        self._engine, self._origin = engine, origin

    @classmethod
    def open(cls, url: str, origin: str) -> RunIndex:
        """Open the database at an SQLAlchemy URL (`sqlite:///PATH`, `postgresql+psycopg://…`), making its tables.

        Raises:
            UsageError: it is no such URL.
            LogError: the database cannot be reached or is another log's.
        """
        try:
            in_memory = url in ("sqlite://", "sqlite:///:memory:")
            shared = {"poolclass": sa.StaticPool, "connect_args": {"check_same_thread": False}} if in_memory else {}
            engine = sa.create_engine(url, pool_pre_ping=True, **shared)
        except (SQLAlchemyError, ImportError, ValueError) as e:
            raise UsageError(
                f"cannot use the run index {url.partition('@')[0][:60]!r}: {_line(e)}",
                hint="sqlite:///FILE or postgresql+psycopg://USER@HOST/DATABASE",
            ) from e
        if engine.dialect.name == "sqlite":
            sa.event.listen(engine, "connect", _set_pragmas)
        index = cls(engine, origin)
        with index._connection() as connection:
            _tables.create_all(connection)
            found = connection.execute(sa.select(_state.c.origin)).scalars().all()
            if not found:
                connection.execute(_state.insert().values(origin=origin, size=0, root=""))
            elif list(found) != [origin]:
                raise LogError(f"the run index is of the log {found[0]!r}, expected {origin!r}", hint="use another one")
        return index

    def position(self) -> tuple[int, str]:
        """The size and root of the log that it was last brought to ("" before the first).

        Raises:
            LogError: the database cannot be read.
        """
        with self._connection() as connection:
            size, root = connection.execute(sa.select(_state.c.size, _state.c.root)).one()
        return int(size), str(root)

    def add(self, items: Sequence[Logged], head: TreeHead) -> None:
        """Add the items that the log gained up to `head`, all or none.

        Raises:
            LogError: the database cannot be written, or has them already.
        """
        with self._connection() as connection:
            self._insert(connection, items)
            connection.execute(_state.update().values(size=head.size, root=head.root))

    def catch_up(self, log: TileLog) -> int:
        """Bring it up to the log's published head; give the number of entries that it lacked.

        Raises:
            LogTampered: the log does not continue what the index saw of it.
            LogError: the database or the log cannot be read.
        """
        (size, root), head = self.position(), log.head
        if size > head.size or (root and log.root(size).hex() != root):
            found = log.root(size).hex() if size <= head.size else "none"
            raise LogTampered(
                f"the log was put back or rewritten: the index saw size {size}, root {root}; "
                f"the log has size {head.size}, and at size {size} root {found}",
                hint="keep store and index as evidence; --rebuild-index goes on from the store once this is explained",
            )
        for first in range(size, head.size, _BATCH):
            last = min(first + _BATCH, head.size)
            items = [logged(index, entry) for index, entry in log.entries(first, last)]
            root_then = head.root if last == head.size else log.root(last).hex()
            self.add(items, TreeHead(origin=head.origin, size=last, root=root_then, note=""))
        return head.size - size

    def rebuild(self) -> None:
        """Forget everything.

        Raises:
            LogError: the database cannot be written.
        """
        with self._connection() as connection:
            connection.execute(_items.delete())
            connection.execute(_state.update().values(size=0, root=""))

    def next_number(self, host: str, run: str) -> int:
        """The number of the next item of a host's run.

        Raises:
            LogError: the database cannot be read.
        """
        mine = (_items.c.host == host) & (_items.c.run == run)
        with self._connection() as connection:
            last = connection.execute(sa.select(sa.func.max(_items.c.seq)).where(mine)).scalar()
        return 0 if last is None else int(last) + 1

    def known(self, host: str, run: str, first: int, last: int) -> dict[int, tuple[int, bytes]]:
        """Index and leaf hash of the items `first … last − 1` of a host's run.

        Raises:
            LogError: the database cannot be read.
        """
        mine = (_items.c.host == host) & (_items.c.run == run) & (_items.c.seq >= first) & (_items.c.seq < last)
        query = sa.select(_items.c.seq, _items.c.idx, _items.c.leaf_hash).where(mine)
        with self._connection() as connection:
            return {int(seq): (int(idx), bytes(h)) for seq, idx, h in connection.execute(query)}

    def runs(self) -> list[RunRow]:
        """Every run of every host.

        Raises:
            LogError: the database cannot be read.
        """
        c = _items.c
        findings = sa.func.sum(sa.case((c.kind == "finding", 1), else_=0))
        query = (
            sa.select(
                c.host, c.run, sa.func.count(), sa.func.min(c.idx), sa.func.max(c.idx), sa.func.sum(c.records), findings
            )
            .group_by(c.host, c.run)
            .order_by(c.run, c.host)
        )
        with self._connection() as connection:
            return [RunRow(r[0], r[1], *(int(v) for v in r[2:])) for r in connection.execute(query)]

    def close(self) -> None:
        """Give up the connections."""
        self._engine.dispose()

    def _insert(self, connection: sa.Connection, items: Iterable[Logged]) -> None:
        rows = [
            {
                "idx": i.index,
                "host": i.host,
                "run": i.run,
                "seq": i.seq,
                "leaf_hash": i.leaf_hash,
                "object": i.object,
                "kind": i.kind,
                "records": i.records,
            }
            for i in items
        ]
        if rows:
            connection.execute(_items.insert(), rows)

    @contextmanager
    def _connection(self) -> Iterator[sa.Connection]:
        try:
            with self._engine.begin() as connection:
                yield connection
        except SQLAlchemyError as e:
            raise LogError(
                f"the run index fails: {_line(e)}", hint="look at the database; the log itself is whole"
            ) from e


def logged(index: int, entry: bytes) -> Logged:
    """The row of an entry; its kind and number of records are read from a leaf that is one of ours.

    Raises:
        LogTampered: no server wrote this entry.
    """
    bound, leaf = read_entry(entry)
    kind, records = _kind(leaf)
    return Logged(index, bound.host, bound.run, bound.seq, leaf_hash(entry), bound.object, kind, records)


def _kind(leaf: bytes) -> tuple[str, int]:
    """A leaf's type and how many step records it stands for: what the host says, nothing is decided by it."""
    try:
        found = msgspec.json.decode(leaf, type=_Leaf)
        inner = msgspec.json.decode(found.entry, type=_Leaf) if found.type == "entry" and found.entry else found
    except (msgspec.DecodeError, UnicodeDecodeError):
        return "", 0
    records = found.count if found.type == "records" and 0 <= found.count < 1 << 40 else int(inner.type == "step")
    return (inner.type if inner.type.isprintable() else "")[:64], records


def _set_pragmas(connection: object, _record: object) -> None:
    """Write-ahead, and no fsync for each commit: what a crash loses is read from the log again."""
    for pragma in ("journal_mode=WAL", "synchronous=NORMAL", "busy_timeout=10000"):
        connection.execute(f"PRAGMA {pragma}")  # type: ignore[attr-defined]


def _line(error: BaseException) -> str:
    return next((line.strip() for line in str(error).splitlines() if line.strip()), type(error).__name__)[:300]
