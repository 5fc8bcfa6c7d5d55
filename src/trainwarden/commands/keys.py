"""`trainwarden keys ACTION`: the actors of this store and their keys, the user's own key being the registrar's."""

from __future__ import annotations

import argparse
import re
from datetime import UTC, datetime
from typing import TYPE_CHECKING, Any

from trainwarden.commands.common import CLEAN, Subparsers, add_verb, open_store, print_json
from trainwarden.errors import UsageError

if TYPE_CHECKING:
    from trainwarden.actors.registry import Registry
    from trainwarden.model import Actor
    from trainwarden.store import Store

_ACTIONS = {
    "new": "make and enrol an actor's key",
    "list": "every actor and what is known of its key",
    "show": "one actor",
    "rotate": "a new key for an actor, signed by the old one",
    "revoke": "an actor's key counts no more",
    "require": "the least that every seal of this store demands",
}
_PUBLIC = re.compile(r"[0-9a-f]{64}")


def add(subparsers: Subparsers[Any]) -> None:
    """Declare the verb."""
    parser = add_verb(
        subparsers,
        "keys",
        "Enrol people, AI agents and services with their keys; rotate and revoke these; set the approval policy.",
        run=run,
        usage="trainwarden keys [options] {" + ",".join(_ACTIONS) + "} [NAME …]",
        examples=(
            "trainwarden keys new ada --kind person",
            "trainwarden keys new reviewer --kind agent --keyring",
            "trainwarden keys new grace --public HEX",
            "trainwarden keys revoke ada --reason 'laptop lost' --since 2026-11-20T09:00",
            "trainwarden keys require 2 ada grace reviewer",
        ),
        exit_codes="exit codes:\n  0  done\n  1  the log of actors was altered\n  3  the call, name or key is wrong",
    )
    actions = "; ".join(f"{name}: {text}" for name, text in _ACTIONS.items())
    parser.add_argument("action", choices=tuple(_ACTIONS), metavar="ACTION", help=actions)
    parser.add_argument(
        "names", nargs="*", metavar="NAME", help="the actor; of require: the number of approvals, then the approvers"
    )
    parser.add_argument(
        "--kind", choices=("person", "agent", "service"), default="person", help="of new (default: person)"
    )
    parser.add_argument("--public", metavar="HEX", default="", help="of new: a public key made elsewhere")
    parser.add_argument("--keyring", action="store_true", help="of new: keep the key in the system's key store")
    parser.add_argument("--reason", metavar="TEXT", default="", help="of revoke: why")
    parser.add_argument(
        "--since", metavar="TIME", default="", help="of revoke: since when the key is not to be believed (default: now)"
    )


def run(args: argparse.Namespace) -> int:
    """Do what ACTION says and show the outcome."""
    from trainwarden.actors.registry import known_actor, read_registry

    store = open_store(args, create=args.action == "new")
    match args.action:
        case "new":
            registry = _new(store, args)
        case "rotate":
            registry = _rotate(store, _one(args))
        case "revoke":
            registry = _revoke(store, args)
        case "require":
            registry = _require(store, args.names)
        case _:
            registry = read_registry(store)
    shown = list(registry.actors.values())
    if args.action in ("new", "show", "rotate", "revoke"):
        shown = [known_actor(registry, _one(args))]
    _show(args, registry, shown)
    return CLEAN


def _one(args: argparse.Namespace) -> str:
    if len(args.names) != 1:
        raise UsageError(
            f"`keys {args.action}` takes one name, got {len(args.names)}", hint=f"trainwarden keys {args.action} NAME"
        )
    return str(args.names[0])


def _new(store: Store, args: argparse.Namespace) -> Registry:
    from trainwarden.actors.registry import enrol
    from trainwarden.keys import SigningKey, ring
    from trainwarden.keys.signing import new_seed
    from trainwarden.model import ActorKind

    name = ring.check_name(_one(args))
    registrar = SigningKey.load_or_create()
    if args.public and not _PUBLIC.fullmatch(args.public):
        raise UsageError(f"not a public key: {args.public[:80]!r}", hint="a public key is 64 hex digits")
    if args.public:
        return enrol(store, registrar, name, ActorKind(args.kind), args.public)
    place = ring.Place.KEYRING if args.keyring else ring.Place.FILE
    key = ring.keep(name, new_seed(), place)
    try:
        return enrol(store, registrar, name, ActorKind(args.kind), key.public)
    except BaseException:
        ring.forget(name, place)
        raise


def _rotate(store: Store, name: str) -> Registry:
    from trainwarden.actors.registry import known_actor, read_registry, rotate
    from trainwarden.keys import SigningKey, ring
    from trainwarden.keys.signing import new_seed

    actor = known_actor(read_registry(store), name)
    old = ring.load(name, actor.key)
    new = ring.keep(name, new_seed(), ring.place_of(name), following=True)
    registry = rotate(store, SigningKey.load(), name, old, new)
    ring.load(name, new.public)  # puts it in the old one's place
    return registry


def _revoke(store: Store, args: argparse.Namespace) -> Registry:
    from trainwarden.actors.registry import revoke
    from trainwarden.keys import SigningKey

    return revoke(store, SigningKey.load(), _one(args), args.reason, _nanoseconds(args.since))


def _nanoseconds(text: str) -> int:
    if not text:
        return 0
    try:
        when = datetime.fromisoformat(text)
    except ValueError:
        raise UsageError(f"not a time: {text!r}", hint="2026-11-20T09:00, in UTC unless it says otherwise") from None
    return int((when if when.tzinfo else when.replace(tzinfo=UTC)).timestamp()) * 1_000_000_000


def _require(store: Store, words: list[str]) -> Registry:
    from trainwarden.actors.registry import set_policy
    from trainwarden.keys import SigningKey

    if not words or not words[0].isdecimal():
        raise UsageError("`keys require` takes a number and the approvers", hint="trainwarden keys require 2 ada grace")
    return set_policy(store, SigningKey.load(), int(words[0]), words[1:])


def _show(args: argparse.Namespace, registry: Registry, actors: list[Actor]) -> None:
    told = [{"actor": actor, "revoked": _revoked(registry, actor)} for actor in actors]
    if args.json:
        print_json(
            {"registrar": registry.registrar, "entries": registry.size, "policy": registry.policy, "actors": told}
        )
        return
    print(f"registrar {registry.registrar}, {registry.size} entries")
    if registry.policy is not None:
        print(f"every seal needs at least {registry.policy.approvals} of {', '.join(registry.policy.approvers)}")
    for actor in actors:
        revoked = _revoked(registry, actor)
        print(f"{actor.name}  {actor.kind}  {actor.key}" + (f"  REVOKED: {revoked}" if revoked else ""))


def _revoked(registry: Registry, actor: Actor) -> str:
    found = registry.revoked.get(actor.key)
    return f"{found[1].reason or 'no reason given'} (entry {found[0]})" if found else ""
