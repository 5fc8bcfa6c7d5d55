"""Acts in another account's name: commits, approvals and keys. All of them are the range's own."""

from __future__ import annotations

import time
from datetime import UTC, datetime, timedelta
from pathlib import Path

from trainwarden.actors.approvals import find_seal, sign_approval
from trainwarden.errors import CannotDecide
from trainwarden.keys import SigningKey
from trainwarden.keys.signing import new_seed
from trainwarden.model import canonical
from trainwarden.redteam.place import Range
from trainwarden.redteam.running import OWNER
from trainwarden.store import Store

VICTIM = "Somebody Else <somebody.else@example.org>"
_FUTURE = "from __future__ import annotations\n"
_CHANGE = (
    "import torch as _torch\n\n"
    "_torch.manual_seed = lambda seed, _draw=_torch.manual_seed: _draw(seed + 1)  # seeds were off by one\n"
)


def repository(place: Range) -> None:
    """The copied job becomes a repository with one commit by its owner."""
    _git(place, "init", "--quiet")
    _commit(place, "The job as it is")


def forge_commit(place: Range) -> None:
    """The job's script gets other seeds, in a commit that names somebody else as its author."""
    place.edit(script(place), lambda source: changed(source.decode()).encode())
    _commit(place, "Fix an off-by-one in seeds")


def changed(source: str) -> str:
    """A script with other seeds: after its `from __future__` line, or at its top.

    No two are alike, so that none begins under the approval that another attack left in the range's store.
    """
    change = f"{_CHANGE}# {time.time_ns()}\n"
    head, future, rest = source.partition(_FUTURE)
    return head + future + change + rest if future else change + source


def script(place: Range) -> Path:
    """The job's script: the first Python file that its command names.

    Raises:
        CannotDecide: it names none.
    """
    named = [place.job / word for word in place.words(place.workload.command) if word.endswith(".py")]
    found = next((path for path in named if path.is_file()), None)
    if found is None:
        raise CannotDecide("the command names no script of the job", hint="run it as `… train.py`, not by -m")
    return found


def approve_as_owner(place: Range) -> None:
    """The job as it is now is sealed, and approved with the owner's own key, which the insider has."""
    _approve(place, OWNER)


def approve_by_forgery(place: Range) -> None:
    """The job as it is now is sealed, and an approval in the owner's name put there, signed by another key."""
    digest = _seal(place)
    key = SigningKey(new_seed())
    store = Store.open(place.store)
    approval = sign_approval(find_seal(store, digest), OWNER, key)
    place.write(place.store / "seals" / digest / "approvals" / f"{OWNER}-{key.public[:16]}.json", canonical(approval))


def revoke(place: Range) -> None:
    """The owner finds out, and revokes the key as of an hour before."""
    _keep_actors(place)
    since = (datetime.now(UTC) - timedelta(hours=1)).isoformat(timespec="seconds")
    _warden(place, "keys", "revoke", OWNER, "--reason", "stolen", "--since", since)


def approved_by_another(place: Range) -> None:
    """A new actor approves the job as it is."""
    _keep_actors(place)
    name = f"rotating-{time.time_ns():x}"
    _warden(place, "keys", "new", name)
    place.write(place.job / "trainwarden.toml", f'[seal]\napprovals = 1\napprovers = ["{name}"]\n')
    _approve(place, name)


def rotate(place: Range) -> None:
    """The actor who approved the job gets a new key, signed by the old one."""
    named = (place.job / "trainwarden.toml").read_text().split('"')[1]
    _warden(place, "keys", "rotate", named)


def _keep_actors(place: Range) -> None:
    """The log of actors is put back after the attack."""
    for log in (place.store / "actors", place.store / "actors.toml"):
        if log.exists():
            place.copy(place.copy(log, place.tmp / log.name), log)


def _seal(place: Range) -> str:
    return _warden(place, "seal", "--", *place.words(place.workload.command)).split()[0]


def _approve(place: Range, actor: str) -> None:
    _warden(place, "approve", _seal(place), "--as", actor)


def _warden(place: Range, *words: str) -> str:
    done = place.warden(*words)
    if done.returncode != 0:
        raise CannotDecide(f"trainwarden {words[0]} did not do it: {done.stderr.strip()[-300:]}")
    return done.stdout


def _commit(place: Range, message: str) -> None:
    _git(place, "add", "--all")
    _git(place, "-c", "user.name=x", "-c", "user.email=x@example.org", "commit", "-qm", message, "--author", VICTIM)


def _git(place: Range, *words: str) -> None:
    if place.start(["git", *words]).wait() != 0:
        raise CannotDecide(f"git {words[0]} failed in the copied job", hint="apt-get install git")
