"""`trainwarden log serve`: run the log server that hosts append to."""

from __future__ import annotations

import argparse
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Any

from trainwarden.commands.common import EXIT_CODES, Subparsers, print_json
from trainwarden.errors import MissingExtra, UsageError

if TYPE_CHECKING:
    from trainwarden.model import TreeHead


def add(subparsers: Subparsers[Any]) -> None:
    """Declare the command."""
    summary = "Run a log server: hosts append signed batches, anybody reads tiles and checks them."
    parser = subparsers.add_parser(
        "serve",
        help=summary[0].lower() + summary[1:].rstrip("."),
        description=summary,
        epilog=(
            "examples:\n"
            "  trainwarden log serve --origin log.example/training --tiles /srv/log --hosts hosts.toml\n"
            "  trainwarden log serve --origin log.example/training --tiles s3://bucket/log --hosts hosts.toml \\\n"
            "    --index postgresql+psycopg://log@db/log --bind 0.0.0.0 --tls-certificate c.pem --tls-key k.pem\n\n"
            + EXIT_CODES
        ),
        formatter_class=argparse.RawDescriptionHelpFormatter,
        allow_abbrev=False,
    )
    parser.add_argument("--origin", required=True, help="the log's name, also of its key")
    parser.add_argument(
        "--tiles", required=True, metavar="WHERE", help="a folder, or s3://BUCKET/PREFIX (AWS_* variables)"
    )
    parser.add_argument("--endpoint", default="", metavar="URL", help="of the object store, when it is not AWS")
    parser.add_argument(
        "--hosts", required=True, type=Path, metavar="FILE", help="hosts.toml: who may append, read again on change"
    )
    parser.add_argument(
        "--index", default="", metavar="URL", help="the run index (default: SQLite in the folder of the tiles)"
    )
    parser.add_argument(
        "--key", type=Path, metavar="FILE", help="the log's signing key, made on first use (default: your own)"
    )
    parser.add_argument("--bind", default="127.0.0.1", metavar="ADDRESS", help="where to listen (default: %(default)s)")
    parser.add_argument("--port", type=int, default=8471, help="default: %(default)s; 0 takes a free one")
    parser.add_argument("--tls-certificate", type=Path, metavar="FILE", help="PEM; without it, plain HTTP")
    parser.add_argument("--tls-key", type=Path, metavar="FILE", help="PEM")
    parser.add_argument("--rebuild-index", action="store_true", help="make the run index anew from the log")
    parser.add_argument("--json", action="store_true", help="print one JSON object when it listens")
    parser.set_defaults(run=run)


def run(args: argparse.Namespace) -> int:
    """Serve until stopped."""
    try:
        from trainwarden.log.server.serve import Settings, serve
    except ImportError as e:
        raise MissingExtra(
            f"the log server needs {e.name}, which is not installed", hint="pip install 'trainwarden[server]'"
        ) from None
    from trainwarden.keys import SigningKey

    if bool(args.tls_certificate) != bool(args.tls_key):
        raise UsageError(
            "--tls-certificate and --tls-key go together: one of them is missing", hint="name both, or none"
        )
    key = SigningKey.load_or_create(args.key)
    settings = Settings(
        origin=args.origin,
        store=args.tiles,
        hosts=args.hosts,
        index=args.index,
        endpoint=args.endpoint,
        bind=args.bind,
        port=args.port,
        tls_certificate=args.tls_certificate,
        tls_key=args.tls_key,
        rebuild_index=args.rebuild_index,
    )

    def listening(url: str, head: TreeHead) -> None:
        if args.json:
            print_json({"url": url, "origin": head.origin, "size": head.size, "key": key.public})
            return
        print(f"log {head.origin}, {head.size} entries, key {key.public}\nlistening on {url}", flush=True)

    try:
        serve(settings, key, listening)
    except KeyboardInterrupt:
        print("stopped", file=sys.stderr)
    return 0
