"""How an item of evidence says what it speaks for: rules that give a weight to each hypothesis. Pure."""

from __future__ import annotations

from collections.abc import Sequence

from trainwarden.attribute.nouns import Hypothesis, Kind, Weight

FOR, STRONGLY_FOR, AGAINST, STRONGLY_AGAINST = Weight.FOR, Weight.STRONGLY_FOR, Weight.AGAINST, Weight.STRONGLY_AGAINST
NEUTRAL = Weight.NEUTRAL
ENOUGH = 2  # independent sources
MANY = 3  # artefacts, or deeds, that are no slip


def weights(hypotheses: Sequence[Hypothesis], *rules: tuple[Weight, Kind, str | None]) -> dict[str, Weight]:
    """The weight of each hypothesis by the first rule that names it; an account of None means any."""
    found: dict[str, Weight] = {}
    for h in hypotheses:
        rule = next((r for r in rules if r[1] is h.kind and (r[2] is None or r[2] == h.account)), None)
        if rule is not None and rule[0] is not Weight.NEUTRAL:
            found[h.id] = rule[0]
    return found


def others(
    hypotheses: Sequence[Hypothesis], account: str, weight: Weight
) -> tuple[tuple[Weight, Kind, str | None], ...]:
    """A rule for every hypothesis of use by a holder that is about another account."""
    return tuple(
        (weight, Kind.INSIDER, h.account) for h in hypotheses if h.kind is Kind.INSIDER and h.account != account
    )
