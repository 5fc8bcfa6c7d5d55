"""What all nouns share, and the stages of a step."""

from __future__ import annotations

from enum import StrEnum

import msgspec


class Stage(StrEnum):
    """The stages of one optimizer step, in the order in which a step computes them."""

    BATCH = "batch"
    RNG = "rng"
    ACTIVATIONS = "activations"
    LOCAL_GRADIENTS = "local_gradients"
    REDUCED_GRADIENTS = "reduced_gradients"
    HYPERPARAMETERS = "hyperparameters"
    OPTIMIZER_STATE = "optimizer_state"
    WEIGHTS = "weights"
    CHECKPOINT = "checkpoint"


STAGES: tuple[Stage, ...] = tuple(Stage)


class Noun(msgspec.Struct, frozen=True, kw_only=True, omit_defaults=True):
    """A frozen record; the canonical form leaves out what has its default."""
