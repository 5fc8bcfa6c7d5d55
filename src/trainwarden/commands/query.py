"""`trainwarden query RUN "SELECT …"`: SQL over a run's step records, or all of them as a Parquet file."""

from __future__ import annotations

import argparse
import datetime
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Any

from trainwarden.commands.common import CLEAN, Subparsers, add_verb, open_store, print_json
from trainwarden.errors import UsageError

if TYPE_CHECKING:
    from trainwarden.query import Answer


def add(subparsers: Subparsers[Any]) -> None:
    """Declare the verb."""
    parser = add_verb(
        subparsers,
        "query",
        "Ask a run's step records in SQL, or write them as a Parquet file.",
        run=run,
        examples=(
            'trainwarden query last "SELECT rank, count(*), avg(loss) FROM records GROUP BY rank"',
            "trainwarden query last --parquet records.parquet",
            "trainwarden query last --samples samples.txt",
        ),
        exit_codes=(
            "the view is called records; DESCRIBE is spelled: SELECT * FROM records LIMIT 0\n\n"
            "exit codes:\n  0  answered\n  1  the run's log contradicts its signed head\n"
            "  3  the call, the query or its input is wrong"
        ),
    )
    parser.add_argument("run_name", metavar="RUN", help='a run\'s id, its beginning or end, or "last"')
    parser.add_argument("sql", metavar="SQL", nargs="?", default="", help="one SELECT over the view `records`")
    parser.add_argument("--parquet", type=Path, metavar="FILE", help="write every record as a Parquet file")
    parser.add_argument(
        "--samples", type=Path, metavar="FILE", help="write what each sample of the data was, for `[data] samples`"
    )


def run(args: argparse.Namespace) -> int:
    """Answer the query, write the file, or both."""
    if args.samples is not None:
        return _samples(args)
    if not args.sql and args.parquet is None:
        raise UsageError("no query and no file to write", hint="trainwarden query RUN 'SELECT count(*) FROM records'")
    from trainwarden.query import export, read_records, select

    folder = open_store(args).run(args.run_name)
    found = read_records(folder, _progress(args))
    if found.left_out:
        print(f"{found.left_out} records have numbers that fit no column and are left out", file=sys.stderr)
    told: dict[str, Any] = {"run": folder.id, "records": found.table.num_rows, "left_out": found.left_out}
    answer = select(found.table, args.sql) if args.sql else None
    if args.parquet is not None:
        told |= {"file": str(args.parquet), "bytes": export(found.table, args.parquet)}
    if answer is not None:
        rows = [[_plain(value) for value in row] for row in answer.rows]
        told |= {"columns": answer.columns, "rows": rows}
    if args.json:
        print_json(told)
        return CLEAN
    if answer is not None:
        _print(answer)
    if args.parquet is not None:
        print(f"{told['records']:,} records in {args.parquet} ({told['bytes']:,} bytes)", file=sys.stderr)
    return CLEAN


def _samples(args: argparse.Namespace) -> int:
    """Write the manifest of the samples that a run was seen to train on."""
    from trainwarden.durable import hint_for, write_atomically
    from trainwarden.supervise.samples import kept_in, read_manifest

    if args.sql or args.parquet is not None:
        raise UsageError("--samples goes alone", hint="ask for records in a call of its own")
    folder = open_store(args).run(args.run_name)
    if not kept_in(folder.private).exists():
        raise UsageError(f"run {folder.id} kept no samples", hint="it drew no tensors by index from a data loader")
    table, data = read_manifest(kept_in(folder.private))
    if table.varying:
        raise UsageError(
            f"the samples of run {folder.id} differ from pass to pass in {', '.join(sorted(table.varying))}",
            hint="make the manifest from a run without random augmentation",
        )
    try:
        write_atomically(args.samples, data)
    except OSError as e:
        raise UsageError(f"cannot write {args.samples}: {e.strerror}", hint=hint_for(e)) from e
    seen = sum(table.seen)
    if args.json:
        print_json({"run": folder.id, "file": str(args.samples), "samples": table.size, "listed": seen})
        return CLEAN
    print(f"{seen:,} of {table.size:,} samples in {args.samples}: name it as `[data] samples`", file=sys.stderr)
    return CLEAN


def _print(answer: Answer) -> None:
    from rich.console import Console
    from rich.table import Column, Table
    from rich.text import Text

    table = Table(*(Column(Text(name)) for name in answer.columns))
    for row in answer.rows:
        table.add_row(*(Text("" if value is None else str(_plain(value))) for value in row))
    Console(highlight=False).print(table)


def _plain(value: object) -> object:
    """A value as JSON and people read it: bytes in hex, what JSON has no form for as text."""
    if isinstance(value, bytes | bytearray | memoryview):
        return bytes(value).hex()
    if value is None or isinstance(value, bool | int | float | str):
        return value
    if isinstance(value, datetime.datetime | datetime.date | datetime.time):
        return value.isoformat()
    if isinstance(value, list | tuple):
        return [_plain(v) for v in value]
    if isinstance(value, dict):
        return {str(k): _plain(v) for k, v in value.items()}
    return str(value)


def _progress(args: argparse.Namespace) -> Any:
    """Say on a terminal's stderr how far the log was read."""
    if args.json or not sys.stderr.isatty():
        return lambda done, total: None
    return lambda done, total: print(
        f"\r\x1b[Kreading {done:,} of {total:,} entries …\r", end="", file=sys.stderr, flush=True
    )
