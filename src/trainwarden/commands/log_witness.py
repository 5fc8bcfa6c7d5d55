"""`trainwarden log witness`: an independent process that cosigns logs' heads (C2SP tlog-witness)."""

from __future__ import annotations

import argparse
import re
import socket
import sys
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from trainwarden.commands.common import CLEAN, Subparsers, add_verb, print_json
from trainwarden.errors import MissingExtra, UsageError

if TYPE_CHECKING:
    from trainwarden.log.vkeys import VerifierKey

RUNS = "trainwarden/"  # what the origins of runs begin with
_KEY = re.compile(r"[0-9a-fA-F]{64}")


def add(subparsers: Subparsers[Any]) -> None:
    """Declare the command."""
    parser = add_verb(
        subparsers,
        "witness",
        "Be a witness: cosign the heads of logs that only ever grow, over HTTP.",
        run=run,
        examples=(
            "trainwarden log witness --name witness.example/w1 --state /var/lib/witness --runs-of HEX",
            "trainwarden log witness --name witness.example/w1 --state DIR --log 'go.sum database tree VKEY'",
        ),
        exit_codes="exit codes:\n  0  stopped\n  3  the call or its input is wrong",
    )
    parser.add_argument("--name", required=True, help="the witness's key name, by custom its address without https://")
    parser.add_argument(
        "--state", type=Path, required=True, metavar="DIR", help="its memory; keep it on a disk of its own"
    )
    parser.add_argument(
        "--signing-key", type=Path, metavar="FILE", help="its signing key, made on first use (default: DIR/key)"
    )
    parser.add_argument(
        "--log",
        action="append",
        default=[],
        metavar="[ORIGIN ]VKEY",
        help="a log to witness, by its verifier key, with its origin where that is not the key's name; again for each",
    )
    parser.add_argument(
        "--runs-of", action="append", default=[], metavar="HEX", help="witness every run that this public key records"
    )
    parser.add_argument("--host", default="127.0.0.1", help="the address to listen on (default: 127.0.0.1)")
    parser.add_argument("--port", type=int, default=8420, help="the port (default: 8420; 0: any, which is printed)")


def run(args: argparse.Namespace) -> int:
    """Serve until stopped."""
    from trainwarden.keys import SigningKey
    from trainwarden.log.vkeys import is_key_name
    from trainwarden.log.witness_state import Witness

    uvicorn = _server()
    if not is_key_name(args.name):
        raise UsageError(
            f"{args.name!r} cannot name a witness", hint="visible characters without spaces and plus signs"
        )
    keys_of = known_logs(args.log, args.runs_of)
    key = SigningKey.load_or_create(args.signing_key or args.state / "key")
    witness = Witness(args.state, args.name, key, keys_of, lambda: int(time.time()))
    try:
        from trainwarden.log.witness_http import witness_app

        server = uvicorn.Server(
            uvicorn.Config(
                witness_app(witness, _alarm),
                log_level="warning",
                limit_concurrency=1000,
                timeout_keep_alive=10,
                h11_max_incomplete_event_size=16 * 1024,
            )
        )
        listening = _listen(args.host, args.port)
        port = listening.getsockname()[1]
        if args.json:
            print_json({"vkey": witness.key.text, "host": args.host, "port": port})
        else:
            print(f"witness {witness.key.text}\nlistening on http://{args.host}:{port}/", flush=True)
        server.run(sockets=[listening])
    finally:
        witness.close()
    return CLEAN


def known_logs(logs: Sequence[str], runs_of: Sequence[str]) -> Callable[[str], Sequence[VerifierKey]]:
    """The keys trusted for an origin, from `--log` and `--runs-of`.

    Raises:
        UsageError: none is given, or one is malformed.
    """
    from trainwarden.log.vkeys import ED25519, VerifierKey, parse_vkey

    by_origin: dict[str, list[VerifierKey]] = {}
    for text in logs:
        origin, _, vkey = text.rpartition(" ")
        key = parse_vkey(vkey, ED25519)
        by_origin.setdefault(origin or key.name, []).append(key)
    for public in runs_of:
        if not _KEY.fullmatch(public):
            raise UsageError(f"not a public key: {public[:80]!r}", hint="a public key is 64 hex digits")
    if not by_origin and not runs_of:
        raise UsageError("a witness needs to know a log", hint="--runs-of HEX for runs, --log VKEY for any other")

    def keys_of(origin: str) -> Sequence[VerifierKey]:
        runs = [VerifierKey(origin, public.lower()) for public in runs_of] if origin.startswith(RUNS) else []
        return [*by_origin.get(origin, []), *runs]

    return keys_of


def _listen(host: str, port: int) -> socket.socket:
    try:
        return socket.create_server((host, port), family=socket.AF_INET6 if ":" in host else socket.AF_INET)
    except (OSError, OverflowError) as e:
        raise UsageError(f"cannot listen on {host} port {port}: {e}", hint="choose another --host or --port") from e


def _server() -> Any:
    try:
        import starlette  # noqa: F401
        import uvicorn
    except ImportError as e:
        raise MissingExtra(f"the witness needs {e.name}", hint="pip install 'trainwarden[server]'") from e
    return uvicorn


def _alarm(words: str) -> None:
    print(f"ALARM {words}", file=sys.stderr, flush=True)
