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
from trainwarden.attribute.nouns import Access, Deed, Hypothesis, Kind, Piece, Presence, Weight
from trainwarden.attribute.opportunity import DAY_NS, NEAR_NS, during
from trainwarden.model import Act, Binding

FOR, STRONGLY_FOR, AGAINST, STRONGLY_AGAINST = Weight.FOR, Weight.STRONGLY_FOR, Weight.AGAINST, Weight.STRONGLY_AGAINST
ENOUGH = 2  # independent sources
_USUAL = 5  # logins that make an origin familiar
_MANY = 3  # artefacts that are no slip


def _weights(hypotheses: Sequence[Hypothesis], *rules: tuple[Weight, Kind, str | None]) -> dict[str, Weight]:
    """The weight of each hypothesis by the first rule that names it; an account of None means any."""
    found: dict[str, Weight] = {}
    for h in hypotheses:
        rule = next((r for r in rules if r[1] is h.kind and (r[2] is None or r[2] == h.account)), None)
        if rule is not None and rule[0] is not Weight.NEUTRAL:
            found[h.id] = rule[0]
    return found


def _others(
    hypotheses: Sequence[Hypothesis], account: str, weight: Weight
) -> tuple[tuple[Weight, Kind, str | None], ...]:
    """A rule for every hypothesis of use by a holder that is about another account."""
    return tuple(
        (weight, Kind.INSIDER, h.account) for h in hypotheses if h.kind is Kind.INSIDER and h.account != account
    )


# --------------------------------------------------------------------------- what replay says


def replayed(facts: Facts, hypotheses: Sequence[Hypothesis]) -> Iterator[Piece]:
    """A cause that was reproduced is no fault of hardware; faults that nothing explains may be one."""
    if facts.replayed.explained:
        files = f" ({', '.join(facts.replayed.by_file[:3])})" if facts.replayed.by_file else ""
        yield Piece(
            sentence=f"a clean replay with the change put in reproduces what was recorded, bit for bit{files}",
            weights=_weights(hypotheses, (STRONGLY_AGAINST, Kind.HARDWARE, None)),
            independent=ENOUGH,
        )
    elif facts.replayed.diverged and not facts.deeds:
        yield Piece(
            sentence="replay differs from the record, no tried cause reproduces it, and no artefact was changed",
            weights=_weights(
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
            weights=_weights(hypotheses, (STRONGLY_FOR, Kind.HARDWARE, None)),
            told=tuple(at(e) for e in facts.hardware[:8]),
            independent=1,
        )


# --------------------------------------------------------------------------- who wrote


def writers(facts: Facts, hypotheses: Sequence[Hypothesis]) -> Iterator[Piece]:
    """Each account that wrote artefacts, by so many sources that it could not edit."""
    for who in facts.writers:
        deeds = [d for d in facts.written if d.who == who]
        sources = facts.independent(deeds, [who])
        paths = sorted({facts.traces[d.artefact].artefact.path for d in deeds})
        firm, away = sources >= ENOUGH, facts.kept_away(deeds, who)
        strong, weak = (STRONGLY_FOR, STRONGLY_AGAINST) if firm else (FOR, AGAINST)
        alone = facts.writers == (who,)
        weight = (strong, FOR, weak) if sources else (Weight.NEUTRAL, Weight.NEUTRAL, Weight.NEUTRAL)
        forged = STRONGLY_AGAINST if away else AGAINST if sources else Weight.NEUTRAL
        yield Piece(
            sentence=f"the account {who} wrote {len(paths)} of {len(facts.traces)} artefacts; {sources} sources it "
            f"could not edit tell of the write or its session, {away} of them of the write and kept off the host: "
            f"{', '.join(paths[:3])}{' …' if len(paths) > 3 else ''}",
            weights=_weights(
                hypotheses,
                (weight[0], Kind.INSIDER, who), (weight[1], Kind.STOLEN, who), (weight[1], Kind.INSTRUCTED, who),
                (weight[1], Kind.MISTAKE, None), (forged, Kind.FRAMING, who),
                (weight[2] if alone else Weight.NEUTRAL, Kind.OTHER, None),
                (STRONGLY_AGAINST if sources else Weight.NEUTRAL, Kind.HARDWARE, None),
                *(_others(hypotheses, who, weight[2]) if alone else ()),
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
        sources = facts.independent(against, [who])
        made = [e for e in facts.touched if (e.login or e.account) != who and who in e.note + " ".join(_words(e))]
        if not against:
            yield Piece(
                sentence=f"{who} is named by owners, authors as text, or history files alone, which prove no write",
                weights=_weights(hypotheses, (AGAINST, Kind.INSIDER, who)),
            )
            continue
        yield Piece(
            sentence=f"{who} is named by what can be typed or set, while {', '.join(sorted({d.who for d in against}))} "
            f"wrote, by {sources} sources that {who} could not edit"
            + ("; the owner was set afterwards" if made else ""),
            weights=_weights(
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
            weights=_weights(hypotheses, (AGAINST, Kind.INSIDER, who)),
            told=all_told(deeds),
            exculpates=(who,) if facts.writers else (),
        )


def _words(event: object) -> Iterator[str]:
    for process in getattr(event, "processes", ()):
        yield from process.argv


# --------------------------------------------------------------------------- intent


def concealment(facts: Facts, hypotheses: Sequence[Hypothesis]) -> Iterator[Piece]:
    """Times or owners that were set afterwards."""
    hiding = [e for e in facts.touched if _hides(" ".join(_words(e)) or e.note)]
    for who in sorted({e.login or e.account for e in hiding} & set(facts.writers)):
        mine = [e for e in hiding if (e.login or e.account) == who]
        yield Piece(
            sentence=f"the account {who} set times or the owner of what it had written ({len(mine)} times)",
            weights=_weights(
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
    if len(changed) >= _MANY and max(times) - min(times) >= DAY_NS:
        yield Piece(
            sentence=f"{len(changed)} artefacts were changed over {(max(times) - min(times)) / DAY_NS:.0f} days",
            weights=_weights(hypotheses, (AGAINST, Kind.MISTAKE, None), (STRONGLY_AGAINST, Kind.HARDWARE, None)),
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
                weights=_weights(
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
    rows = [r for r in facts.opportunity.rows if r.followed >= _MANY and r.followed >= 2 * r.expected]
    told_too = {r.account for r in rows}
    for who in facts.writers:
        if who in told_too:
            row = next(r for r in rows if r.account == who)
            yield Piece(
                sentence=f"{row.followed} of {row.disclosures} disclosures to {who} were followed by a deed within a "
                f"day, {row.expected:.1f} by chance"
                + (f"; so were those to {len(rows) - 1} others" if len(rows) > 1 else ""),
                weights=_weights(hypotheses, (FOR, Kind.INSIDER, who), (AGAINST, Kind.MISTAKE, None)),
            )


# --------------------------------------------------------------------------- whose hand


def absence(facts: Facts, hypotheses: Sequence[Hypothesis]) -> Iterator[Piece]:
    """The holder of an account was away while it acted, or while others did."""
    for account in dict.fromkeys((*facts.writers, *facts.pointed)):
        holder = facts.opportunity.holders.get(account, "")
        said = [
            e for e in facts.opportunity.statements
            if e.act is Act.ABSENT and (e.account == account or (holder and e.person == holder))
        ]  # fmt: skip
        deeds = [d for d in facts.written if d.who == account] or list(facts.written)
        covered = [(e, d) for e in said for d in deeds if during(e, d)]
        if covered:
            proven = any(e.binding is Binding.IN_PERSON for e, _ in covered)
            yield Piece(
                sentence=f"the holder of {account} was absent at {len({id(d) for _, d in covered})} of {len(deeds)} "
                f"deeds: {covered[0][0].note or 'as stated'}",
                weights=_weights(
                    hypotheses,
                    (STRONGLY_AGAINST if proven else AGAINST, Kind.INSIDER, account),
                    (STRONGLY_FOR if proven else FOR, Kind.STOLEN, account),
                ),
                told=tuple(dict.fromkeys(at(e) for e, _ in covered)),
                exculpates=(account,),
                independent=int(proven),
            )


def origins(facts: Facts, hypotheses: Sequence[Hypothesis]) -> Iterator[Piece]:
    """From where an account acted: as always, or from somewhere that it had never been."""
    for who in facts.writers:
        mine = [(d, o) for d in facts.written if d.who == who for o in [_origin(facts, d)] if o]
        for deed, origin in mine[:1]:
            known = [g for g in facts.logins if g.who == who and g.first_ns < deed.time_ns - DAY_NS]
            familiar = any(g.origin == origin for g in known)
            if not familiar and sum(g.times for g in known) < _USUAL:
                continue
            yield Piece(
                sentence=f"the account {who} acted from {origin}, "
                + (
                    "as it usually does"
                    if familiar
                    else f"which it had never used in {sum(g.times for g in known)} logins"
                ),
                weights=_weights(
                    hypotheses,
                    (FOR if familiar else AGAINST, Kind.INSIDER, who),
                    (AGAINST if familiar else STRONGLY_FOR, Kind.STOLEN, who),
                    (FOR if familiar else AGAINST, Kind.MISTAKE, None),
                ),
                told=deed.told,
                exculpates=() if familiar else (who,),
            )


def _origin(facts: Facts, deed: Deed) -> str:
    if deed.origin:
        return deed.origin
    n = facts.deeds.index(deed)
    mine = {
        s.origin
        for s in facts.opportunity.sessions.get(n, ())
        if s.who == deed.who and s.host == deed.host and s.origin
    }
    return mine.pop() if len(mine) == 1 else ""


def factors(facts: Facts, hypotheses: Sequence[Hypothesis]) -> Iterator[Piece]:
    """A second factor was asked of the person in the session that did it."""
    for who in facts.writers:
        bound = [d for d in facts.written if d.who == who and Binding.SECOND_FACTOR in bindings(facts, d)]
        if bound:
            yield Piece(
                sentence=f"the sessions of {who} behind {len(bound)} deeds were opened with its second factor",
                weights=_weights(
                    hypotheses,
                    (STRONGLY_AGAINST, Kind.STOLEN, who), (FOR, Kind.INSIDER, who), (AGAINST, Kind.FRAMING, who),
                    (FOR, Kind.MISTAKE, None),
                ),
                told=all_told(bound),
                independent=1,
            )  # fmt: skip


def bindings(facts: Facts, deed: Deed) -> frozenset[Binding]:
    """All that binds a deed: its own record, the session that it was done in, and who was seen there."""
    sessions = facts.opportunity.sessions.get(facts.deeds.index(deed), ())
    mine = [s for s in sessions if s.who == deed.who and s.begun_ns <= deed.time_ns and s.host in (deed.host, "")]
    holder = facts.opportunity.holders.get(deed.who, "")
    seen = [
        e.binding
        for e in facts.opportunity.statements
        if e.act is Act.PRESENT and during(e, deed) and (e.account == deed.who or (holder and e.person == holder))
    ]
    return frozenset((deed.binding, *(Binding(s.binding) for s in mine), *seen))


def concurrency(facts: Facts, hypotheses: Sequence[Hypothesis]) -> Iterator[Piece]:
    """The same account in two places at once."""
    for who in facts.writers:
        for n, deed in enumerate(facts.deeds):
            if deed.who != who or deed.by_job:
                continue
            places = {s.origin: s for s in facts.opportunity.sessions.get(n, ()) if s.who == who and s.origin}
            origin = _origin(facts, deed)
            others = [s for o, s in places.items() if o != origin]
            if origin and others:
                yield Piece(
                    sentence=f"while {who} acted from {origin}, it was logged in from {others[0].origin} as well",
                    weights=_weights(hypotheses, (FOR, Kind.STOLEN, who), (AGAINST, Kind.INSIDER, who)),
                    told=(*deed.told, *(s.at for s in others)),
                    exculpates=(who,),
                )
                break


def access(facts: Facts, hypotheses: Sequence[Hypothesis]) -> Iterator[Piece]:
    """An account whose access had been taken away before."""
    for who in facts.pointed:
        row = facts.row(who)
        if row and row.cells and all(c.access is Access.NO for c in row.cells):
            yield Piece(
                sentence=f"the access of {who} had been taken away before every deed",
                weights=_weights(hypotheses, (STRONGLY_AGAINST, Kind.INSIDER, who)),
                told=row.cells[0].told,
                exculpates=(who,),
                independent=1,
            )


def revocation(facts: Facts, hypotheses: Sequence[Hypothesis]) -> Iterator[Piece]:
    """What happened once an account's access was taken away."""
    for row in facts.opportunity.rows:
        if not row.revoked_ns or row.account not in (*facts.writers, *facts.pointed):
            continue
        if row.deeds_after:
            yield Piece(
                sentence=f"{row.deeds_after} deeds came after the access of {row.account} was taken away",
                weights=_weights(hypotheses, (STRONGLY_AGAINST, Kind.INSIDER, row.account), (FOR, Kind.OTHER, None)),
                exculpates=(row.account,),
                independent=1,
            )
        elif row.deeds_before >= _MANY:
            yield Piece(
                sentence=f"{row.deeds_before} deeds came before the access of {row.account} was taken away, none after",
                weights=_weights(hypotheses, (FOR, Kind.INSIDER, row.account), (FOR, Kind.STOLEN, row.account)),
            )


def instruction(facts: Facts, hypotheses: Sequence[Hypothesis]) -> Iterator[Piece]:
    """An agent did it shortly after somebody had it do something."""
    for agent in facts.agents:
        deeds = [d for d in facts.written if d.who == agent]
        asked = [
            e
            for e in facts.instructions
            if e.path == agent and any(0 <= d.time_ns - e.time_ns <= 4 * NEAR_NS for d in deeds)
        ]
        by = sorted({e.login or e.account for e in asked})
        yield Piece(
            sentence=f"{agent} is an AI agent"
            + (f", instructed by {', '.join(by)} within the hour before" if by else "; nobody is told to have asked"),
            weights=_weights(
                hypotheses,
                (STRONGLY_FOR if by else FOR, Kind.INSTRUCTED, agent),
                (STRONGLY_AGAINST if by else AGAINST, Kind.INSIDER, agent),
            ),
            told=tuple(at(e) for e in asked),
            exculpates=(),
        )  # fmt: skip


def presence(facts: Facts, hypotheses: Sequence[Hypothesis]) -> Iterator[Piece]:
    """Accounts that weak sources name and that no record sees there and then."""
    for who in facts.pointed:
        row = facts.row(who)
        if row and row.cells and all(c.presence is Presence.NOT_SEEN for c in row.cells):
            yield Piece(
                sentence=f"records of sessions cover every deed, and none of them is of {who}",
                weights=_weights(hypotheses, (AGAINST, Kind.INSIDER, who), (FOR, Kind.FRAMING, who)),
                exculpates=(who,),
            )


PIECES: tuple[Callable[[Facts, Sequence[Hypothesis]], Iterator[Piece]], ...] = (
    replayed, hardware, writers, pointers, ran, concealment, repeated, openness, adaptation, absence, origins, factors,
    concurrency, access, revocation, instruction, presence,
)  # fmt: skip
