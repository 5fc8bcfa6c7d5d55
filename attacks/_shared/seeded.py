"""The honest twin of changed data and order: the same job with another seed, by its own option."""

from __future__ import annotations

from trainwarden.redteam.interface import Twin

OTHER_SEED = Twin(name="another seed", does="the same job with another seed by its own option", seed=7)
