"""Evaluating a checkpoint anew: a sealed command in its clean room, on files that the gate itself put there.

Rules
-----
* Code, environment and data of the evaluation are what its seal lists, rebuilt from the store. The checkpoint is copied
  from the store, each file hashed as it is written, and `{checkpoint}` in the command is where it lies.
* The last line of its output that is a JSON object has the figures. What was claimed must be among them, equal.
* A command that fails, or prints no figures, decides nothing.

Trust: the seal of the evaluation, which the policy names. Of a figure that is printed by a clean evaluation of hostile
weights the gate knows no more than that it was printed.
"""

from __future__ import annotations

import json
import os
import subprocess
from collections.abc import Mapping
from pathlib import Path

from blake3 import blake3

from trainwarden.actors.approvals import Lacking, approvals_of, judge_approvals, read_kept
from trainwarden.actors.registry import read_registry
from trainwarden.errors import CannotDecide, StoreTampered, UsageError
from trainwarden.model import CheckpointManifest, SignedSeal
from trainwarden.seal.command import is_python
from trainwarden.seal.room import Workspace, build_room, new_workspace
from trainwarden.store import Store

PLACE = "{checkpoint}"
_LONGEST_SECONDS = 3600.0
Figures = dict[str, float | int | str | bool]


def evaluate(store: Store, seal: str, name: str, manifest: CheckpointManifest) -> Figures:
    """The figures of the checkpoint with this manifest, which is called `name`, by the sealed evaluation.

    Raises:
        SealBroken: there is no such seal, or it was altered.
        CannotDecide: it lacks approvals, does not name `{checkpoint}`, fails, or prints no figures.
        StoreError, StoreTampered: room or files cannot be had.
    """
    signed = _admitted(store, seal)
    space = new_workspace(build_room(store, signed))
    try:
        place = space.path / "checkpoint" / name
        _lay_out(store, manifest, place)
        return _figures(_output(signed, space, place))
    finally:
        space.remove()


def read_claims(path: Path) -> Figures:
    """The figures that were claimed.

    Raises:
        UsageError: the file is not a JSON object of plain values.
    """
    try:
        claims = json.loads(path.read_bytes())
    except (OSError, ValueError) as e:
        raise UsageError(f"{path} holds no claimed figures: {e}", hint="a JSON object of names and figures") from e
    if not isinstance(claims, dict) or not claims or any(isinstance(v, dict | list) for v in claims.values()):
        raise UsageError(f"{path} holds no claimed figures", hint="a JSON object of names and figures")
    return claims


def unequal(claims: Mapping[str, object], figures: Mapping[str, object]) -> tuple[str, ...]:
    """What was claimed and is not so."""
    return tuple(
        f"{name} is {figures[name]!r}, claimed was {claim!r}" if name in figures else f"{name} is not evaluated"
        for name, claim in claims.items()
        if name not in figures or type(figures[name]) is not type(claim) or figures[name] != claim
    )


def _admitted(store: Store, digest: str) -> SignedSeal:
    signed = read_kept(store, digest)
    policy = signed.seal.approval
    if policy.approvals:
        judged = judge_approvals(signed, approvals_of(store, digest), read_registry(store, policy.registrar))
        if isinstance(judged, Lacking):
            raise CannotDecide(
                f"the evaluation's seal has {len(judged.approvals)} of {policy.approvals} approvals",
                hint=f"trainwarden approve {digest[:12]} --as ACTOR",
            )
    if not is_python(signed.seal.argv[0]) or not any(PLACE in word for word in signed.seal.argv):
        raise CannotDecide(
            f"the sealed evaluation is no Python command with {PLACE} in it",
            hint=f"trainwarden seal -- python eval.py --checkpoint {PLACE}",
        )
    return signed


def _lay_out(store: Store, manifest: CheckpointManifest, place: Path) -> None:
    """Copy the checkpoint out of the store, as a file or a folder."""
    lone = len(manifest.files) == 1 and place.name == manifest.files[0].path
    for file in manifest.files:
        target = place if lone else place / file.path
        target.parent.mkdir(parents=True, exist_ok=True)
        hasher = blake3()
        with store.object_path(file.digest).open("rb") as source, target.open("wb") as copy:
            while piece := source.read(4 << 20):
                hasher.update(piece)
                copy.write(piece)
        if hasher.hexdigest() != file.digest:
            raise StoreTampered(f"object {file.digest} is not what was stored", hint="keep it as evidence")


def _output(signed: SignedSeal, space: Workspace, place: Path) -> str:
    seal = signed.seal
    words = [w.replace(PLACE, str(place)) if PLACE in w else space.map_argument(w) for w in seal.argv[1:]]
    home = space.path / "home"
    home.mkdir()
    env = space.environ({"PATH": os.defpath} | seal.env_vars) | {"HOME": str(home)}
    try:
        done = subprocess.run(
            [str(space.room.python), *words],
            cwd=space.cwd,
            env=env,
            stdin=subprocess.DEVNULL,
            capture_output=True,
            timeout=_LONGEST_SECONDS,
            check=False,
        )
    except (OSError, subprocess.TimeoutExpired) as e:
        raise CannotDecide(f"the evaluation did not end: {e}") from e
    if done.returncode != 0:
        last = os.fsdecode(done.stderr).strip().splitlines()[-1:]
        raise CannotDecide(
            f"the evaluation ended with {done.returncode}: {''.join(last)[:300]}",
            hint="run the sealed command yourself; its seal must list the data that it reads",
        )
    return os.fsdecode(done.stdout)


def _figures(output: str) -> Figures:
    for line in reversed(output.splitlines()):
        if line.startswith("{"):
            try:
                found = json.loads(line)
            except ValueError:
                continue
            return {k: v for k, v in found.items() if isinstance(v, float | int | str | bool)}
    raise CannotDecide("the evaluation printed no figures", hint="its last line must be a JSON object")
