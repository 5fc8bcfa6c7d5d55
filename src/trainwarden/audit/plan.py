"""What the auditor tells a replaying rank: where to start, what to run, what to keep, what to change."""

from __future__ import annotations

from typing import Any

import msgspec

REPLAYER = "trainwarden.audit.inrank:Replayer"


class Plan(msgspec.Struct, frozen=True, kw_only=True, omit_defaults=True):
    """One rank's part of a replay. Steps are indexes within the recorded process (0 = its first step).

    `first`: the recorded index of the first step compared. `last`: the last one to run, with so many
    `updates` of optimizers in it. `complement`: the
    recorder's sidecar or full snapshot to restore. `weights`: the full snapshot that holds the replicas' state.
    `warmup`: steps that this process runs before the snapshot is put in; 0 = not a substitution. `again`: a second
    snapshot, one step later, for scripts that fetch a batch one step ahead. `entropy`: what the rank's unseeded
    generators began with, for a rank that its parent starts. `follow`: after the last step it asks how far to go on.
    """

    first: int = 0
    last: int = -1
    updates: int = 1
    complement: str = ""
    weights: str = ""
    again: str = ""
    again_weights: str = ""
    warmup: int = 0
    entropy: str = ""
    follow: bool = False
    held: bool = False  # with `follow`: it asks for its plan as soon as it has joined
    epochs: tuple[dict[str, Any], ...] = ()
    hyper: dict[str, tuple[dict[str, Any], ...]] = {}  # "step/optimizer" → recorded settings, given and not checked
    layouts: tuple[tuple[int, tuple[tuple[str, ...], ...]], ...] = ()
    capture_step: int = -1
    capture: str = ""
    capture_optimizer: int = 0  # of several that move in the step, the one whose update is captured
    capture_samples: bool = False  # the sealed data set's samples as well
    seek: str = ""  # the recorded digest of the step's loss, where an unrecorded edit of the weights is looked for
    perturbations: str = ""  # JSON, `perturb.encode`
    perturb_step: int = -1


def encode(plan: Plan) -> bytes:
    """The plan's JSON."""
    return msgspec.json.encode(plan)


def decode(data: bytes) -> Plan:
    """Parse `encode`'s bytes. Raises msgspec.DecodeError when they are not a plan."""
    return msgspec.json.decode(data, type=Plan)
