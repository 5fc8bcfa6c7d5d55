"""The items of evidence, each one function: what was found, and what it says of each hypothesis. Pure.

Rules
-----
* An item says what it speaks for and against; one that speaks the same of all of them decides nothing and is not made.
* Strong (++ or --) needs a source that the one whom it is about could not edit.
* What exculpates an account is named as such, and counts whoever else is suspected.
* To add one: a function of `Facts` and the hypotheses, its line in `PIECES`, a scenario that needs it.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence

from trainwarden.attribute.facts import Facts, all_told, at
from trainwarden.attribute.hands import (
    absence,
    access,
    concurrency,
    factors,
    instruction,
    origins,
    presence,
    revocation,
)  # fmt: skip
from trainwarden.attribute.nouns import Hypothesis, Kind, Piece
from trainwarden.attribute.opportunity import DAY_NS
from trainwarden.attribute.scales import (
    AGAINST,
    ENOUGH,
    FOR,
    MANY,
    NEUTRAL,
    STRONGLY_AGAINST,
    STRONGLY_FOR,
    others,
    weights,
)  # fmt: skip
from trainwarden.model import Act

# --------------------------------------------------------------------------- what replay says


def replayed(facts: Facts, hypotheses: Sequence[Hypothesis]) -> Iterator[Piece]:
    """A cause that was reproduced is no fault of hardware; faults that nothing explains may be one."""
    if facts.replayed.explained:
        files = f" ({', '.join(facts.replayed.by_file[:3])})" if facts.replayed.by_file else ""
        yield Piece(
            sentence=f"a clean replay with the change put in reproduces what was recorded, bit for bit{files}",
            weights=weights(hypotheses, (STRONGLY_AGAINST, Kind.HARDWARE, None)),
            independent=ENOUGH,
        )
    elif facts.replayed.diverged and not facts.deeds:
        yield Piece(
            sentence="replay differs from the record, no tried cause reproduces it, and no artefact was changed",
            weights=weights(
                hypotheses,
                (FOR, Kind.HARDWARE, None), (AGAINST, Kind.INSIDER, None), (AGAINST, Kind.STOLEN, None),
                (AGAINST, Kind.MISTAKE, None), (AGAINST, Kind.INSTRUCTED, None),
            ),
            independent=1,
        )  # fmt: skip


def hardware(facts: Facts, hypotheses: Sequence[Hypothesis]) -> Iterator[Piece]:
    """Faults that a kernel told, where nobody wrote anything."""
    if facts.hardware and not facts.written:
        hosts = sorted({e.host for e in facts.hardware})
        yield Piece(
            sentence=f"kernels told faults of hardware on {', '.join(hosts[:4])}: {facts.hardware[0].note}",
            weights=weights(hypotheses, (STRONGLY_FOR, Kind.HARDWARE, None)),
            told=tuple(at(e) for e in facts.hardware[:8]),
            independent=1,
        )


# --------------------------------------------------------------------------- who wrote


def writers(facts: Facts, hypotheses: Sequence[Hypothesis]) -> Iterator[Piece]:
    """Each account that wrote artefacts, by so many sources that it could not edit."""
    for who in facts.writers:
        deeds = [d for d in facts.written if d.who == who]
        sources = facts.independent(deeds, who)
        paths = sorted({facts.traces[d.artefact].artefact.path for d in deeds})
        did = "signalled" if all(d.act is Act.SIGNAL for d in deeds) else "wrote"
        firm, away = sources >= ENOUGH, facts.kept_away(deeds, who)
        strong, weak = (STRONGLY_FOR, STRONGLY_AGAINST) if firm else (FOR, AGAINST)
        alone = facts.writers == (who,)
        weight = (strong, FOR, weak) if sources else (NEUTRAL, NEUTRAL, NEUTRAL)
        forged = STRONGLY_AGAINST if away else AGAINST if sources else NEUTRAL
        yield Piece(
            sentence=f"the account {who} {did} {len(paths)} of {len(facts.traces)} artefacts "
            f"({', '.join(paths[:3])}{' …' if len(paths) > 3 else ''}). Sources it could not edit that tell of this or "
            f"of its session: {sources}; of these, of the act itself and kept off the host: {away}",
            weights=weights(
                hypotheses,
                (weight[0], Kind.INSIDER, who), (weight[1], Kind.STOLEN, who), (weight[1], Kind.INSTRUCTED, who),
                (weight[1], Kind.MISTAKE, None), (forged, Kind.FRAMING, who),
                (weight[2] if alone else NEUTRAL, Kind.OTHER, None),
                (STRONGLY_AGAINST if sources else NEUTRAL, Kind.HARDWARE, None),
                *(others(hypotheses, who, weight[2]) if alone else ()),
            ),
            told=all_told(deeds),
            exculpates=tuple(p for p in facts.pointed if firm and alone),
            independent=sources,
        )  # fmt: skip


def pointers(facts: Facts, hypotheses: Sequence[Hypothesis]) -> Iterator[Piece]:
    """Weak sources name one account while records of the write name another."""
    for who in facts.pointed:
        named = [t for t in facts.traces if who in t.pointers]
        against = [d for t in named for d in t.deeds if not d.by_job and d.who != who]
        sources = facts.independent(against, who)
        made = [e for e in facts.touched if (e.login or e.account) != who and who in e.note + " ".join(_words(e))]
        if not against:
            yield Piece(
                sentence=f"{who} is named by owners, authors as text, or history files alone, which prove no write",
                weights=weights(hypotheses, (AGAINST, Kind.INSIDER, who)),
            )
            continue
        yield Piece(
            sentence=f"{who} is named by what can be typed or set, while {', '.join(sorted({d.who for d in against}))} "
            f"wrote, by {sources} sources that {who} could not edit"
            + ("; the owner was set afterwards" if made else ""),
            weights=weights(
                hypotheses,
                (STRONGLY_FOR if made or sources >= ENOUGH else FOR, Kind.FRAMING, who),
                (STRONGLY_AGAINST if sources else AGAINST, Kind.INSIDER, who),
            ),
            told=(*all_told(against), *(at(e) for e in made)),
            exculpates=(who,) if sources else (),
            independent=sources,
        )


def ran(facts: Facts, hypotheses: Sequence[Hypothesis]) -> Iterator[Piece]:
    """An account's job did it: that says whose job it was."""
    for who in sorted({d.who for d in facts.deeds if d.by_job} - set(facts.writers)):
        deeds = [d for d in facts.deeds if d.by_job and d.who == who]
        yield Piece(
            sentence=f"a job of {who} did {len(deeds)} of the deeds: that tells who ran it, not who wrote what it ran",
            weights=weights(hypotheses, (AGAINST, Kind.INSIDER, who)),
            told=all_told(deeds),
            exculpates=(who,) if facts.writers else (),
        )


def _words(event: object) -> Iterator[str]:
    for process in getattr(event, "processes", ()):
        yield from process.argv


# --------------------------------------------------------------------------- intent


def _times(n: int) -> str:
    return "once" if n == 1 else f"{n} times"


def concealment(facts: Facts, hypotheses: Sequence[Hypothesis]) -> Iterator[Piece]:
    """Times or owners that were set afterwards."""
    hiding = [e for e in facts.touched if _hides(" ".join(_words(e)) or e.note)]
    for who in sorted({e.login or e.account for e in hiding} & set(facts.writers)):
        mine = [e for e in hiding if (e.login or e.account) == who]
        yield Piece(
            sentence=f"the account {who} set times or the owner of what it had written ({_times(len(mine))})",
            weights=weights(
                hypotheses,
                (AGAINST, Kind.MISTAKE, None), (FOR, Kind.INSIDER, who), (FOR, Kind.STOLEN, who),
                (STRONGLY_AGAINST, Kind.HARDWARE, None),
            ),
            told=tuple(at(e) for e in mine),
        )  # fmt: skip


def _hides(words: str) -> bool:
    return any(mark in words for mark in ("touch", "utimensat", "chown", "--date", " -r ", " -d "))


def repeated(facts: Facts, hypotheses: Sequence[Hypothesis]) -> Iterator[Piece]:
    """Several artefacts over more than a day are no slip."""
    times = [d.time_ns for d in facts.written]
    changed = {d.artefact for d in facts.written}
    if len(changed) >= MANY and max(times) - min(times) >= DAY_NS:
        yield Piece(
            sentence=f"{len(changed)} artefacts were changed over {(max(times) - min(times)) / DAY_NS:.0f} days",
            weights=weights(hypotheses, (AGAINST, Kind.MISTAKE, None), (STRONGLY_AGAINST, Kind.HARDWARE, None)),
            told=all_told(facts.written)[:20],
        )


def openness(facts: Facts, hypotheses: Sequence[Hypothesis]) -> Iterator[Piece]:
    """The change was committed under a key, pushed, or approved: it was made in the open."""
    for who in facts.writers:
        open_ = [d for d in facts.written if d.who == who and (d.act in (Act.COMMIT, Act.PUSH))]
        said = [e for e in facts.opportunity.statements if e.act is Act.APPROVE and _about(e.digest, facts)]
        if open_ or said:
            how = ["a signed commit or a push"] * bool(open_) + ["an approval"] * bool(said)
            yield Piece(
                sentence=f"the change was made in the open by {who}: {' and '.join(how)}",
                weights=weights(
                    hypotheses,
                    (STRONGLY_FOR, Kind.MISTAKE, None), (AGAINST, Kind.INSIDER, who), (AGAINST, Kind.STOLEN, who),
                    (AGAINST, Kind.FRAMING, who), (AGAINST, Kind.INSTRUCTED, who), (AGAINST, Kind.OTHER, None),
                ),
                told=(*all_told(open_), *(at(e) for e in said)),
            )  # fmt: skip


def _about(digest: str, facts: Facts) -> bool:
    return bool(digest) and any(digest in (t.artefact.digest, *(d.digest for d in t.deeds)) for t in facts.traces)


def adaptation(facts: Facts, hypotheses: Sequence[Hypothesis]) -> Iterator[Piece]:
    """Deeds that follow what an account was told, more often than by chance, and not what others were told."""
    rows = [r for r in facts.opportunity.rows if r.followed >= MANY and r.followed >= 2 * r.expected]
    told_too = {r.account for r in rows}
    for who in facts.writers:
        if who in told_too:
            row = next(r for r in rows if r.account == who)
            yield Piece(
                sentence=f"{row.followed} of {row.disclosures} disclosures to {who} were followed by a deed within a "
                f"day, {row.expected:.1f} by chance"
                + (f"; so were those to {len(rows) - 1} others" if len(rows) > 1 else ""),
                weights=weights(hypotheses, (FOR, Kind.INSIDER, who), (AGAINST, Kind.MISTAKE, None)),
            )


PIECES: tuple[Callable[[Facts, Sequence[Hypothesis]], Iterator[Piece]], ...] = (
    replayed, hardware, writers, pointers, ran, concealment, repeated, openness, adaptation, absence, origins, factors,
    concurrency, access, revocation, instruction, presence,
)  # fmt: skip
