"""Hypotheses side by side, and what can be concluded: pure, in the manner of an analysis of competing hypotheses.

Heuer, "Psychology of Intelligence Analysis", chapter 8: a hypothesis stands by how little contradicts it, not by how
much fits it.

Rules
-----
* What contradicts counts first. A hypothesis with a strong item against it is "contradicted", whatever speaks for it.
* There is no probability anywhere; grades are words.
* Nothing leads unless it is at least likely and clearly ahead of the next. Then the answer is that the evidence does
  not decide, and which record would.
* That an account did it with no sign of another hand is said only with two sources that the account could not edit,
  with nothing exculpatory, with use by somebody else and framing contradicted (a second factor, a record of the deed
  kept off the host), and with a mistake opposed by evidence.
* That one account did it and that records were made to point at another do not compete.
* It is said of an account. Of a person only where a record binds one to the very deeds.
"""

from __future__ import annotations

from collections.abc import Sequence

from trainwarden.attribute.facts import Facts
from trainwarden.attribute.hands import bindings
from trainwarden.attribute.nouns import Conclusion, Grade, Hypothesis, Kind, Piece, Presence, Standing, Weight
from trainwarden.attribute.pieces import PIECES
from trainwarden.attribute.scales import ENOUGH
from trainwarden.model import Binding

_AHEAD = 2
_GOOD = (Grade.LIKELY, Grade.STRONG)
_BY_ACCOUNT = (Kind.INSIDER, Kind.STOLEN, Kind.INSTRUCTED)
_POINTS = {Weight.STRONGLY_FOR: 2, Weight.FOR: 1, Weight.NEUTRAL: 0, Weight.AGAINST: -2, Weight.STRONGLY_AGAINST: -6}


def hypotheses_of(facts: Facts) -> tuple[Hypothesis, ...]:
    """The standing hypotheses about these facts."""
    found = [Hypothesis(kind=Kind.MISTAKE), Hypothesis(kind=Kind.HARDWARE)]
    runners = sorted({d.who for d in facts.deeds if d.by_job} - set(facts.writers) - set(facts.pointed))
    found += [Hypothesis(kind=Kind.INSIDER, account=a) for a in (*facts.writers, *facts.pointed, *runners)]
    found += [Hypothesis(kind=Kind.STOLEN, account=a) for a in facts.writers]
    found += [Hypothesis(kind=Kind.FRAMING, account=a) for a in (*facts.writers, *facts.pointed)]
    found += [Hypothesis(kind=Kind.INSTRUCTED, account=a) for a in facts.agents]
    return (*found, Hypothesis(kind=Kind.OTHER))


def weigh(facts: Facts, hypotheses: Sequence[Hypothesis]) -> tuple[tuple[Piece, ...], tuple[Standing, ...]]:
    """Every item of evidence, and the hypotheses from the best standing to the worst."""
    pieces = tuple(piece for make in PIECES for piece in make(facts, hypotheses))
    standings = [_standing(h, pieces) for h in hypotheses]
    return pieces, tuple(sorted(standings, key=lambda s: (-s.score, len(s.opposing))))


def _standing(hypothesis: Hypothesis, pieces: Sequence[Piece]) -> Standing:
    said = {k: p.weights.get(hypothesis.id, Weight.NEUTRAL) for k, p in enumerate(pieces)}
    supporting = tuple(k for k, w in said.items() if w in (Weight.FOR, Weight.STRONGLY_FOR))
    opposing = tuple(k for k, w in said.items() if w in (Weight.AGAINST, Weight.STRONGLY_AGAINST))
    return Standing(
        hypothesis=hypothesis,
        grade=_grade(list(said.values())),
        supporting=supporting,
        opposing=opposing,
        score=sum(_POINTS[w] for w in said.values()),
    )


def _grade(weights: Sequence[Weight]) -> Grade:
    if Weight.STRONGLY_AGAINST in weights:
        return Grade.EXCLUDED
    gain = sum(max(_POINTS[w], 0) for w in weights)
    loss = weights.count(Weight.AGAINST)
    if gain == 0:
        return Grade.UNSUPPORTED
    if gain >= 3 and loss == 0 and Weight.STRONGLY_FOR in weights:
        return Grade.STRONG
    return Grade.LIKELY if gain >= 2 and gain > 2 * loss else Grade.POSSIBLE


# --------------------------------------------------------------------------- concluding


def conclude(facts: Facts, pieces: Sequence[Piece], standings: Sequence[Standing]) -> Conclusion:
    """What can be said, how well, and what would say more."""
    first = next((s for s in standings if s.hypothesis.kind is not Kind.FRAMING and s.grade in _GOOD), standings[0])
    rival = _rival(first, standings)
    reasons = _why_not(facts, pieces, standings, first, rival)
    leading = None if reasons else first.hypothesis
    level = _level(facts, first.hypothesis) if leading is not None else ""
    return Conclusion(
        leading=leading,
        grade=first.grade if leading is not None or first.grade not in _GOOD else Grade.POSSIBLE,
        level=level,
        sentence=_sentence(leading, first, rival, level),
        reasons=tuple(reasons),
        missing=tuple(_missing(facts, first.hypothesis, rival.hypothesis)),
        unknown=tuple(_unknown(facts)),
    )


def _rival(first: Standing, standings: Sequence[Standing]) -> Standing:
    """The hypothesis that stands in the way of the first: that another hand used the account, or the next best."""
    next_best = next(s for s in standings if s is not first and not _compatible(first.hypothesis, s.hypothesis))
    if first.hypothesis.kind is not Kind.INSIDER or first.score - next_best.score < _AHEAD:
        return next_best
    hands = [s for s in standings if s.hypothesis.kind in (Kind.STOLEN, Kind.FRAMING) and s.grade is not Grade.EXCLUDED]
    return next((s for s in hands if s.hypothesis.account == first.hypothesis.account), next_best)


def _compatible(a: Hypothesis, b: Hypothesis) -> bool:
    """Can both be true: one account did it, and records were made to point at another?"""
    framing, other = (a, b) if a.kind is Kind.FRAMING else (b, a)
    return framing.kind is Kind.FRAMING and other.kind in _BY_ACCOUNT and framing.account != other.account


def _why_not(
    facts: Facts, pieces: Sequence[Piece], standings: Sequence[Standing], first: Standing, rival: Standing
) -> list[str]:
    """Why nothing leads; empty when `first` does."""
    reasons = []
    if first.grade not in _GOOD:
        reasons.append(f"the best standing hypothesis is only {first.grade}: {first.hypothesis.words}")
    if first.score - rival.score < _AHEAD:
        reasons.append(f"as much stands for another: {rival.hypothesis.words}")
    if first.hypothesis.kind in (Kind.INSIDER, Kind.INSTRUCTED):
        reasons += _not_enough_to_name(facts, pieces, standings, first.hypothesis)
    return reasons


def _not_enough_to_name(
    facts: Facts, pieces: Sequence[Piece], standings: Sequence[Standing], hypothesis: Hypothesis
) -> list[str]:
    """What is missing before an account, or an agent and whoever instructs it, can be named."""
    reasons, account = [], hypothesis.account
    deeds = [d for d in facts.written if d.who == account]
    if facts.independent(deeds, account) < ENOUGH:
        reasons.append(f"fewer than {ENOUGH} sources tell of it that {account} could not have edited")
    if any(account in p.exculpates for p in pieces):
        reasons.append(f"there is exculpatory evidence for {account}")
    grades = {(s.hypothesis.kind, s.hypothesis.account): s.grade for s in standings}
    if hypothesis.kind is Kind.INSIDER and grades[Kind.STOLEN, account] is not Grade.EXCLUDED:
        reasons.append(f"use of {account} by somebody else is not contradicted")
    if grades[Kind.FRAMING, account] is not Grade.EXCLUDED:
        reasons.append(f"every record that names {account} lies where others could have made it")
    if hypothesis.kind is Kind.INSTRUCTED:
        return reasons
    if grades[Kind.MISTAKE, ""] in _GOOD or not any(s.opposing for s in standings if s.hypothesis.kind is Kind.MISTAKE):
        reasons.append("nothing speaks against a mistake")
    return reasons


def _level(facts: Facts, hypothesis: Hypothesis) -> str:
    deeds = [d for d in facts.written if d.who == hypothesis.account]
    if hypothesis.kind is not Kind.INSIDER or not deeds:
        return "account" if hypothesis.account else ""
    bound = [bindings(facts, d) for d in deeds]
    if all(Binding.IN_PERSON in b for b in bound) and hypothesis.account in facts.opportunity.holders:
        return "person"
    return "account and its second factor" if all(Binding.SECOND_FACTOR in b for b in bound) else "account"


def _sentence(leading: Hypothesis | None, first: Standing, rival: Standing, level: str) -> str:
    if leading is None:
        return f"The evidence does not decide between: {first.hypothesis.words}; and: {rival.hypothesis.words}."
    cap = " This is about the account; no record here binds a person." if leading.account else ""
    if level == "person":
        cap = " Records also bind the holder of the account to every deed; that, too, is alleged."
    if level == "account and its second factor":
        cap = " This is about the account and its second factor; a device can be in other hands."
    return f"{first.grade.capitalize()}: {leading.words}.{cap}"


_SESSION = "the second factor and the device of the session that {who} acted in (login service)"
_WRITES = "a write audit of {host} that is kept on another host"
_NOBODY = "a write audit of {path}: two sources that say who wrote it"
_SAID = "what was said of the change when it was made: review, ticket, message"
_PROMPTS = "the agent's own log of prompts and tool calls"
_COUNTERS = "the error counters (ECC, Xid) of the hosts, and a replay on another machine"
_DECIDING: tuple[tuple[frozenset[Kind], str], ...] = (  # the first that is among the leading two, or is both of them
    (frozenset({Kind.INSIDER, Kind.STOLEN}), _SESSION),
    (frozenset({Kind.INSTRUCTED}), _PROMPTS),
    (frozenset({Kind.HARDWARE}), _COUNTERS),
    (frozenset({Kind.MISTAKE, Kind.OTHER}), _NOBODY),
    (frozenset({Kind.MISTAKE}), _SAID),
    (frozenset({Kind.FRAMING}), _WRITES),
    (frozenset({Kind.STOLEN}), _SESSION),
    (frozenset({Kind.OTHER}), _NOBODY),
    (frozenset({Kind.INSIDER}), "who was logged in behind each account on {host} (login service, auid)"),
)


def _missing(facts: Facts, first: Hypothesis, second: Hypothesis) -> list[str]:
    """The records that would decide between two hypotheses."""
    deed = facts.written[0] if facts.written else facts.deeds[0] if facts.deeds else None
    places = {
        "who": first.account or second.account or "the account",
        "host": (deed.host if deed else "") or "the host",
        "path": facts.traces[0].artefact.path if facts.traces else "the artefact",
    }
    found = [next(text for kinds, text in _DECIDING if kinds <= {first.kind, second.kind}).format(**places)]
    nobody = _NOBODY.format(**places)
    if not facts.written and nobody not in found and Kind.HARDWARE not in (first.kind, second.kind):
        found.insert(0, nobody)
    return found


def _unknown(facts: Facts) -> list[str]:
    unknown = []
    blank = [t.artefact.path or t.artefact.digest[:12] for t in facts.traces if not t.deeds]
    if blank:
        unknown.append(f"who wrote {', '.join(blank[:5])}{' …' if len(blank) > 5 else ''}: no source tells")
    jobs = [d for d in facts.deeds if d.by_job]
    if jobs:
        unknown.append(f"who wrote what the jobs ran that did {len(jobs)} of the deeds")
    cells = [c for r in facts.opportunity.rows for c in r.cells]
    dark = sum(c.presence is Presence.UNKNOWN for c in cells)
    if dark:
        unknown.append(
            f"where {dark} of {len(cells)} pairs of account and deed were: no record of sessions covers them"
        )
    numbers = sorted({r.account for r in facts.opportunity.rows if r.account.startswith("uid:")})
    if numbers:
        unknown.append(f"whose numbers {', '.join(numbers[:5])} are: no list of users was given with those records")
    for run in facts.replayed.broken:
        unknown.append(f"what the log of run {run} says: it does not verify, or is not here")
    unread = sum(e.unread for e in facts.evidence.values())
    if unread:
        unknown.append(f"what {unread} lines say that could not be read")
    if not any(facts.opportunity.holders.get(w) for w in facts.writers):
        unknown.append("who holds the accounts that wrote: nothing tells")
    return unknown
