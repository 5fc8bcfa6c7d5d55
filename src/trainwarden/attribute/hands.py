"""Items of evidence on whose hand used an account: absence, origins, second factors, access and its end. Pure.

Rules: as `pieces`. A statement is strong only if the account that it is about could not have made it.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence

from trainwarden.attribute.facts import Facts, all_told, at
from trainwarden.attribute.nouns import Access, Deed, Hypothesis, Kind, Piece, Presence
from trainwarden.attribute.opportunity import DAY_NS, NEAR_NS, during
from trainwarden.attribute.scales import AGAINST, FOR, MANY, STRONGLY_AGAINST, STRONGLY_FOR, weights
from trainwarden.model import Act, Binding

_USUAL = 5  # logins that make an origin familiar


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
            proven = any(
                e.binding is Binding.IN_PERSON and not facts.could_edit(account, e.source, "") for e, _ in covered
            )
            yield Piece(
                sentence=f"the holder of {account} was absent at {len({id(d) for _, d in covered})} of {len(deeds)} "
                f"deeds: {covered[0][0].note or 'as stated'}",
                weights=weights(
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
                weights=weights(
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
                weights=weights(
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
    mine = [
        s
        for s in sessions
        if s.who == deed.who
        and s.begun_ns <= deed.time_ns
        and s.host in (deed.host, "")
        and facts.out_of_reach(s.at.source, s.host, deed.who)
    ]
    holder = facts.opportunity.holders.get(deed.who, "")
    seen = [
        e.binding
        for e in facts.opportunity.statements
        if e.act is Act.PRESENT
        and during(e, deed)
        and facts.out_of_reach(e.source, "", deed.who)
        and (e.account == deed.who or (holder and e.person == holder))
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
                    weights=weights(hypotheses, (FOR, Kind.STOLEN, who), (AGAINST, Kind.INSIDER, who)),
                    told=(*deed.told, *(s.at for s in others)),
                    exculpates=(who,),
                )
                break


def access(facts: Facts, hypotheses: Sequence[Hypothesis]) -> Iterator[Piece]:
    """An account whose access had been taken away before."""
    for who in facts.pointed:
        row = facts.row(who)
        if row and row.cells and all(c.access is Access.NO for c in row.cells):
            firm = not any(facts.could_edit(who, told.source, "") for told in row.cells[0].told)
            yield Piece(
                sentence=f"the access of {who} had been taken away before every deed",
                weights=weights(hypotheses, (STRONGLY_AGAINST if firm else AGAINST, Kind.INSIDER, who)),
                told=row.cells[0].told,
                exculpates=(who,),
                independent=int(firm),
            )


def revocation(facts: Facts, hypotheses: Sequence[Hypothesis]) -> Iterator[Piece]:
    """What happened once an account's access was taken away."""
    for row in facts.opportunity.rows:
        if not row.revoked_ns or row.account not in (*facts.writers, *facts.pointed):
            continue
        said = [e for e in facts.opportunity.statements if e.act is Act.REVOKE and e.account == row.account]
        firm = any(not facts.could_edit(row.account, e.source, "") for e in said)
        if row.deeds_after:
            yield Piece(
                sentence=f"{row.deeds_after} deeds came after the access of {row.account} was taken away",
                weights=weights(
                    hypotheses,
                    (STRONGLY_AGAINST if firm else AGAINST, Kind.INSIDER, row.account),
                    (FOR, Kind.OTHER, None),
                ),
                told=tuple(at(e) for e in said),
                exculpates=(row.account,),
                independent=int(firm),
            )
        elif row.deeds_before >= MANY:
            yield Piece(
                sentence=f"{row.deeds_before} deeds came before the access of {row.account} was taken away, none after",
                weights=weights(hypotheses, (FOR, Kind.INSIDER, row.account), (FOR, Kind.STOLEN, row.account)),
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
            weights=weights(
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
                weights=weights(hypotheses, (AGAINST, Kind.INSIDER, who), (FOR, Kind.FRAMING, who)),
                exculpates=(who,),
            )
