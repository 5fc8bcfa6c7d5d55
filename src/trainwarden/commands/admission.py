"""`trainwarden admission`: the validating webhook that keeps pods away whose models are not cleared and promoted."""

from __future__ import annotations

import argparse
import sys
from pathlib import Path
from typing import Any

from trainwarden.commands.common import Subparsers, add_verb, open_store, print_json
from trainwarden.errors import MissingExtra, UsageError


def add(subparsers: Subparsers[Any]) -> None:
    """Declare the verb."""
    parser = add_verb(
        subparsers,
        "admission",
        "Answer Kubernetes' admission reviews: a pod's models must be cleared and promoted.",
        run=run,
        examples=(
            "trainwarden admission --bind 0.0.0.0 --tls-certificate tls.crt --tls-key tls.key",
            "trainwarden admission --ignore cache --ignore logs",
        ),
    )
    parser.add_argument("--bind", default="127.0.0.1", metavar="ADDRESS", help="where to listen (default: %(default)s)")
    parser.add_argument("--port", type=int, default=8443, help="default: %(default)s; 0 takes a free one")
    parser.add_argument("--tls-certificate", type=Path, metavar="FILE", help="PEM; without it, plain HTTP")
    parser.add_argument("--tls-key", type=Path, metavar="FILE", help="PEM")
    parser.add_argument(
        "--ignore", action="append", default=[], metavar="VOLUME", help="volumes of this name never hold a model"
    )
    parser.add_argument("--config", type=Path, metavar="FILE", help="trainwarden.toml, for its [gate] and [serving]")


def run(args: argparse.Namespace) -> int:
    """Answer until stopped."""
    try:
        from trainwarden.serving.admission_app import Listening, Lookup, application
        from trainwarden.serving.admission_app import run as serve
    except ImportError as e:
        raise MissingExtra(
            f"the webhook needs {e.name}, which is not installed", hint="pip install 'trainwarden[server]'"
        ) from None
    from trainwarden.config import load_config

    if bool(args.tls_certificate) != bool(args.tls_key):
        raise UsageError(
            "--tls-certificate and --tls-key go together: one of them is missing", hint="name both, or none"
        )
    lookup = Lookup(open_store(args), load_config(args.config, Path.cwd()))
    where = Listening(bind=args.bind, port=args.port, certificate=args.tls_certificate, key=args.tls_key)

    def listening(url: str) -> None:
        if args.json:
            print_json({"url": url})
        else:
            print(f"listening on {url}/validate", flush=True)

    try:
        serve(application(lookup, args.ignore), where, listening)
    except KeyboardInterrupt:
        print("stopped", file=sys.stderr)
    return 0
