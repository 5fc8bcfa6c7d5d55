"""What was done about it: each act is an entry of the log of the run that it concerns."""

from __future__ import annotations

from trainwarden.model.base import Noun


class Recovered(Noun, tag="recovered"):
    """A run was taken back to `from_step` and resumed as run `new_run` in the sealed environment."""

    from_step: int
    new_run: str
    checkpoint: str
    wall_ns: int = 0


class Quarantined(Noun, tag="quarantined"):
    """An artefact moved out of the way, by digest; nothing is ever deleted."""

    path: str
    digest: str
    reason: str
    wall_ns: int = 0


class Restored(Noun, tag="restored"):
    """A file put back from the store: as it was sealed, or as a cleared checkpoint had it."""

    path: str
    digest: str
    wall_ns: int = 0
