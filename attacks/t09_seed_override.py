"""09, seed override: the generators are seeded again, so that nobody can reproduce anything and draws repeat.

How an insider does it: one call of `torch.manual_seed` in a shared library, at a step of its choice.

Precondition: code in the process (shared environment, user's environment). Expected evidence: live, `rng` with the
place of the call; in a replay the rng stage differs at the first step that begins with the other state.
Effect: other final weights (where the job draws random numbers). Benign twin: an evaluation by approved code that seeds
inside `fork_rng` and puts everything back. Clean-up: none needed, the process ends.
"""

from __future__ import annotations

from typing import Any

from attacks._shared.deliver import approved, foothold
from attacks._shared.payload import Payload
from trainwarden.redteam.interface import Effect, Evidence, Technique, Twin, Variant, When


def reseed(scene: Any) -> None:
    """The default generator is put back to a seed, once."""
    scene.inside_update(lambda args, kwargs: scene.torch.manual_seed(1234) and None, later=1)


def evaluate(scene: Any) -> None:
    """Draws from a seed of its own, and puts the generators back."""

    def act() -> None:
        with scene.torch.random.fork_rng(devices=[]):
            scene.torch.manual_seed(99)
            scene.torch.rand(8)

    scene.between_steps(act)


TECHNIQUE = Technique(
    id="09",
    slug="seed-override",
    title="generators are seeded again in mid-run",
    alleged=True,
    needs="EU",
    atlas="T0018.000",
    level=2,
    variants=(
        Variant(
            name="once",
            does="torch.manual_seed(1234) inside one update, on every rank",
            acts=foothold(Payload(reseed, lasts=1)),
            expects=(Evidence(When.LIVE, "rng"), Evidence(When.AUDIT, "replay", "rng", needed=False)),
            effect=Effect.CODE_RAN,
            strikes=("rng",),
            needs=("adam",),
        ),
    ),
    twin=Twin(
        name="an evaluation with a seed of its own",
        does="approved code seeds and draws inside fork_rng between steps",
        acts=approved(Payload(evaluate, lasts=1_000_000)),
    ),
)
