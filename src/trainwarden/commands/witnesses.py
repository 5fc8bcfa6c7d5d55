"""How witnesses are named on the command line: `--witness` with `--cosignatures`, or a policy file."""

from __future__ import annotations

import argparse
from pathlib import Path
from typing import TYPE_CHECKING

import msgspec

from trainwarden.errors import UsageError

if TYPE_CHECKING:
    from trainwarden.log.policy import Policy
    from trainwarden.log.vkeys import VerifierKey


def add_witnesses(parser: argparse.ArgumentParser) -> None:
    """Add `--witness`, `--cosignatures` and `--policy`."""
    parser.add_argument(
        "--witness",
        action="append",
        default=[],
        metavar="NAME+ID+KEY",
        help="a witness by its verifier key, with =URL where it has to be asked; again for each",
    )
    parser.add_argument(
        "--cosignatures", type=int, metavar="K", help="how many of the witnesses have to cosign (default: all)"
    )
    parser.add_argument("--policy", type=Path, metavar="FILE", help="witnesses and quorum in a C2SP tlog-policy file")


def read_policy(args: argparse.Namespace) -> Policy | None:
    """The policy that the options give; None where they name no witness.

    Raises:
        UsageError: they contradict each other or are malformed.
    """
    from trainwarden.log.policy import k_of, parse_policy
    from trainwarden.log.vkeys import COSIGNATURE, parse_vkey

    if args.policy is not None:
        if args.witness or args.cosignatures is not None:
            raise UsageError(
                "--policy says who has to cosign; --witness and --cosignatures do not go with it",
                hint="leave out either",
            )
        try:
            with open(args.policy, "rb") as f:
                return parse_policy(f.read(1 << 20))
        except OSError as e:
            raise UsageError(f"cannot read the policy {args.policy}: {e.strerror}", hint="check the path") from e
    if not args.witness:
        if args.cosignatures is not None:
            raise UsageError("--cosignatures without a witness", hint="name them with --witness, or a --policy file")
        return None
    keys: list[VerifierKey] = []
    urls: dict[str, str] = {}
    for text in args.witness:
        vkey, at, url = _split(text)
        keys.append(parse_vkey(vkey, COSIGNATURE))
        urls |= {keys[-1].public: url} if at else {}
    policy = k_of(keys, len(keys) if args.cosignatures is None else args.cosignatures)
    return msgspec.structs.replace(policy, urls=urls)


def _split(text: str) -> tuple[str, str, str]:
    """The verifier key and the address: base64 of 33 bytes has no `=`, so the first one begins it.

    Raises:
        UsageError: the address is not one of the web.
    """
    key, at, url = text.partition("=")
    if at and not url.startswith(("http://", "https://")):
        raise UsageError(
            f"a witness's address is not a web address: {url[:120]!r}", hint="NAME+ID+KEY=http://… or =https://…"
        )
    return key, at, url
