"""What a record says of one update: the digests of its stages, and what was measured beside them."""

from __future__ import annotations

import time
import weakref
from typing import TYPE_CHECKING

import torch

from trainwarden.model import BUFFERS, Detail, Stage, StepRecord
from trainwarden.record import names as naming
from trainwarden.record import rng, stages
from trainwarden.record.fingerprint import stage_root, value_digest

if TYPE_CHECKING:
    from trainwarden.record.recorder import Recorder


def details_of(recorder: Recorder, optimizer: torch.optim.Optimizer, index: int) -> dict[Stage, Detail | str]:
    """The digests of every stage of the update that just happened, or why a stage was not seen.

    What the update left of the weights is kept in `recorder.last_weights`.
    """
    g, key, names = recorder.gathered, recorder.key, recorder.names
    local = g.local_gradients
    own = [p for p in stages.parameters(optimizer) if id(p) in local]
    weights = stages.weights(optimizer, names)
    roots = [r for ref in recorder.roots if (r := ref()) is not None]
    buffers = [(f"{BUFFERS}{n}", b) for n, b in naming.buffers(roots)] if index == 0 else []
    weight_detail = stages.digest_all(key, [*weights, *buffers])
    n = len(weights)
    recorder.last_weights[index] = (
        weight_detail.names[:n],
        list(weight_detail.digests[:n]),
        [weakref.ref(p) for p in stages.parameters(optimizer)],
    )
    scaler_state = [(f"scaler{i}/{k}", v) for s, i in recorder.scalers.items() for k, v in s.state_dict().items()]
    groups = stages.settings(optimizer)
    return {
        Stage.BATCH: _pairs(g.batch) if g.batch else "no loader and no watched forward pass",
        Stage.RNG: _pairs(g.rng or _rng_now(key)),
        Stage.ACTIVATIONS: _pairs(g.activations) if g.activations else "backward was not called",
        Stage.LOCAL_GRADIENTS: Detail(names=tuple(names[id(p)] for p in own), digests=tuple(local[id(p)] for p in own))
        if own
        else "no reduction across ranks was seen",
        Stage.REDUCED_GRADIENTS: g.reduced,
        Stage.HYPERPARAMETERS: Detail(
            names=tuple(f"group{i}" for i in range(len(groups))),
            digests=tuple(stages.settings_digest(key, group) for group in groups),
        ),
        Stage.OPTIMIZER_STATE: stages.digest_all(key, [*stages.optimizer_state(optimizer, names), *scaler_state]),
        Stage.WEIGHTS: weight_detail,
    }


def record_of(
    recorder: Recorder, optimizer: torch.optim.Optimizer, index: int, details: dict[Stage, Detail | str], skipped: bool
) -> StepRecord:
    """The record of the update that just happened; `details` are its stages'."""
    wall, cpu = time.time_ns(), time.process_time_ns()
    names, digests, _ = recorder.last_weights[index]
    record = StepRecord(
        attempt=recorder.joined.attempt if recorder.joined else 0,
        rank=recorder.rank,
        world=recorder.world,
        step=recorder.step,
        optimizer=index,
        seq=recorder.seq,
        stages=stages.commit(recorder.key, details),
        loss=recorder.gathered.loss,
        hyper=tuple(stages.settings(optimizer)),
        skipped=skipped,
        micro_batches=max(recorder.gathered.forwards, recorder.gathered.losses),
        wall_ns=wall,
        duration_ns=wall - recorder.last_wall,
        cpu_ns=cpu - recorder.last_cpu,
        recorder_ns=recorder.spent_ns,
        before=recorder.gathered.before.get(index, ""),
        found=recorder.gathered.found.get(index, {}),
        left=stage_root(recorder.key, names, digests) if stages.count(details, Stage.WEIGHTS) > len(names) else "",
        share=recorder.share(optimizer),
        began=recorder.gathered.began.get(index, ""),
    )
    recorder.measured(wall, cpu)
    return record


def _pairs(pairs: list[tuple[str, bytes]]) -> Detail:
    return Detail(names=tuple(n for n, _ in pairs), digests=tuple(d for _, d in pairs))


def _rng_now(key: bytes) -> list[tuple[str, bytes]]:
    """Generator states at the update, where no forward pass was seen."""
    return [(f"update/{n}", value_digest(key, b)) for n, b in rng.as_bytes(rng.states()).items()]
