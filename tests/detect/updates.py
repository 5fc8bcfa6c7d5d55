"""Step records as an optimizer's updates make them, for the detectors that follow updates."""

from __future__ import annotations

from typing import Any

from blake3 import blake3

from trainwarden.model import Detail, Stage, StageDigest, StepRecord


def digest(text: str) -> bytes:
    return blake3(text.encode()).digest(16)


def _detail(tensors: dict[str, str]) -> Detail:
    return Detail(names=tuple(tensors), digests=tuple(map(digest, tensors.values())))


def update(
    step: int,
    *,
    rank: int = 0,
    attempt: int = 0,
    world: int = 1,
    optimizer: int = 0,
    weights: dict[str, str] | None = None,
    gradients: dict[str, str] | None = None,
    state: dict[str, str] | None = None,
    passes: int = 1,
    skipped: bool = False,
    lr: float = 0.1,
    groups: tuple[dict[str, Any], ...] | None = None,
) -> tuple[StepRecord, dict[Stage, Detail]]:
    """An honest update of tensors a, b and c by default; values stand for contents."""
    names = ("a", "b", "c")
    weights = dict.fromkeys(names, f"w{step}") if weights is None else weights
    gradients = dict.fromkeys(weights, f"g{step}") if gradients is None else gradients
    if state is None:
        state = {f"{n}/{k}": f"{k}{step}" for n in weights for k in ("step", "exp_avg")}
    details = {
        Stage.WEIGHTS: _detail(weights),
        Stage.REDUCED_GRADIENTS: _detail(gradients),
        Stage.OPTIMIZER_STATE: _detail(state),
    }
    hyper = groups or ({"lr": lr, "betas": [0.9, 0.999], "weight_decay": 0.01},)
    stages = {
        stage: StageDigest(root=blake3(repr((d.names, d.digests)).encode()).hexdigest(), tensors=len(d.names))
        for stage, d in details.items()
    }
    stages[Stage.HYPERPARAMETERS] = StageDigest(root=blake3(repr(hyper).encode()).hexdigest(), tensors=len(hyper))
    record = StepRecord(
        attempt=attempt,
        rank=rank,
        world=world,
        step=step,
        optimizer=optimizer,
        seq=step,
        stages=stages,
        hyper=hyper,
        skipped=skipped,
        micro_batches=passes,
    )
    return record, details


Updates = list[tuple[StepRecord, dict[Stage, Detail]]]


def changing_settings() -> Updates:
    """A setting that was constant changes suddenly."""
    after = {"lr": 0.1, "betas": [0.9, 0.5], "weight_decay": 0.01}
    return [*(update(i, attempt=7) for i in range(10)), *(update(i, attempt=7, groups=(after,)) for i in range(10, 12))]


def standing_still() -> Updates:
    """An update that changes no weight."""
    return [update(1, attempt=8), update(2, attempt=8, weights=dict.fromkeys("abc", "w1"), gradients={"a": "other"})]
