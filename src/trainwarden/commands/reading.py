"""What the verbs that read a run share: which key to check against, and the case itself."""

from __future__ import annotations

import argparse
import re
from typing import TYPE_CHECKING

from trainwarden.commands.common import open_store
from trainwarden.errors import UsageError

if TYPE_CHECKING:
    from pathlib import Path

    from trainwarden.casefile import CaseFile
    from trainwarden.store import Store

_KEY = re.compile(r"[0-9a-fA-F]{64}")


def add_run(parser: argparse.ArgumentParser) -> None:
    """Add `RUN` and `--key`."""
    parser.add_argument("run_name", metavar="RUN", help='a run\'s id, its beginning or end, or "last"')
    add_key(parser)


def add_log(parser: argparse.ArgumentParser) -> None:
    """Add `LOG`, which is a run or one of the store's own logs, and `--key`."""
    shown = 'a run\'s id, its beginning or end, or "last"; "gate" or "custody": the store\'s own log of that name'
    parser.add_argument("run_name", metavar="LOG", help=shown)
    add_key(parser)


def add_key(parser: argparse.ArgumentParser) -> None:
    """Add `--key`."""
    parser.add_argument(
        "--key", metavar="HEX", default="", help="the public key that signed it (default: your own, if you have one)"
    )


def public_key(args: argparse.Namespace) -> str:
    """The key that `--key` gives, else the user's own, else "" (the log is then checked against the key it names).

    Raises:
        UsageError: `--key` is not a public key.
        KeyUnusable: the user's own key cannot be used.
    """
    from trainwarden.keys import SigningKey, key_path

    if args.key:
        return check_key(args.key)
    return SigningKey.load().public if key_path().exists() else ""


def check_key(text: str) -> str:
    """A public key as it was typed, in lower case.

    Raises:
        UsageError: it is none.
    """
    if not _KEY.fullmatch(text):
        raise UsageError(f"not a public key: {text[:80]!r}", hint="a public key is 64 hex digits")
    return text.lower()


def log_named(store: Store, name: str) -> tuple[str, Path]:
    """What to call the log of this name, and its folder.

    Raises:
        UsageError: there is none.
    """
    from trainwarden.custody import ledger as custody
    from trainwarden.gate import ledger as gate

    own = {"gate": gate.folder(store), "custody": custody.folder(store)}
    if name not in own:
        run = store.run(name)
        return f"run {run.id}", run.log
    if not own[name].is_dir():
        raise UsageError(f"this store has no log of {name} yet", hint="trainwarden clear, or trainwarden incident open")
    return f"the log of {name}", own[name]


def read_case(args: argparse.Namespace) -> tuple[Store, CaseFile]:
    """The store and the case of the run that was named.

    Raises:
        UsageError, StoreError, LogTampered: it cannot be read.
    """
    from trainwarden.casefile import load_case

    store = open_store(args)
    return store, load_case(store, args.run_name, public_key(args))
