"""04, monkeypatch: `Optimizer.step` is wrapped in memory; no file differs.

How an insider does it: two lines in anything that the job imports. The wrapper scales one gradient before it calls the
original, so that the update's own rule still holds for what it is given.

Precondition: code in the process (user's environment). Expected evidence: live, `patched` names the function and where
its code comes from; in a replay the gradients that the update takes differ at the first tampered step, or the weights
do. Effect: other final weights. Benign twin: the job's approved code wraps `step` to count calls.
Clean-up: none needed, the process ends.
"""

from __future__ import annotations

from typing import Any

from attacks._shared.deliver import approved, foothold
from attacks._shared.evidence import BETWEEN
from attacks._shared.payload import Payload, Trigger
from trainwarden.redteam.interface import Effect, Evidence, Technique, Twin, Variant, When


def wrap_step(scene: Any) -> None:
    """The target's weights are made a little smaller after every original step."""
    name, parameter = scene.target()

    def make(original: Any) -> Any:
        def step(optimizer: Any, closure: Any = None) -> Any:
            on = scene.on
            result = original(optimizer, closure)
            if on:
                parameter.data.mul_(0.999)
                scene.mark(name)
            return result

        return step

    scene.replace(type(scene.optimizer), "step", make)


def count_steps(scene: Any) -> None:
    """A wrapper that counts calls and changes nothing."""
    calls: list[int] = []

    def make(original: Any) -> Any:
        def step(optimizer: Any, closure: Any = None) -> Any:
            calls.append(1)
            return original(optimizer, closure)

        return step

    scene.replace(type(scene.optimizer), "step", make)


EXPECTS = (
    Evidence(When.LIVE, "patched"),
    Evidence(When.AUDIT, "replay", exact=("tensor",), needed=False),
)

TECHNIQUE = Technique(
    id="04",
    slug="monkeypatch",
    title="Optimizer.step is wrapped in memory",
    needs="U",
    atlas="T0018.000",
    level=2,
    variants=(
        Variant(
            name="shrink",
            does="every wrapped step shrinks one matrix by a thousandth",
            acts=foothold(Payload(wrap_step)),
            expects=EXPECTS,
            effect=Effect.WEIGHTS,
            strikes=BETWEEN,
        ),
        Variant(
            name="every-8",
            does="the same, one step in eight, and never again once a suspicion was voiced",
            acts=foothold(Payload(wrap_step, trigger=Trigger(every=8, noticed_every=0))),
            expects=EXPECTS,
            effect=Effect.WEIGHTS,
            strikes=BETWEEN,
        ),
    ),
    twin=Twin(
        name="a profiler of the job",
        does="an approved module wraps `step` from the start to count calls",
        acts=approved(Payload(count_steps)),
    ),
)
