"""What hypotheses are weighed by: traces, deeds, opportunity, and what replay says of the runs."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import msgspec

from trainwarden.attribute.nouns import At, Deed, Row, Trace
from trainwarden.attribute.opportunity import Opportunity
from trainwarden.model import Act, ActorKind, CustodyEvent, Evidence, SourceKind

_NEAR = {"root", "*", "self", "committer", "owner"}  # editors who are where the deed was done


class Replayed(msgspec.Struct, frozen=True, kw_only=True):
    """What the runs' own logs establish."""

    diverged: int = 0
    explained: int = 0  # explanations with a cause, reproduced bit for bit
    unexplained: int = 0
    by_file: tuple[str, ...] = ()  # tampered files that reproduce a divergence
    broken: tuple[str, ...] = ()  # runs whose log does not verify, or is not here: nothing is taken from it


class Login(msgspec.Struct, frozen=True):
    """From where an account logged in, how often, and when first and last."""

    who: str
    origin: str
    times: int
    first_ns: int
    last_ns: int


class Facts(msgspec.Struct, frozen=True, kw_only=True):
    """Everything that a weighing looks at."""

    traces: tuple[Trace, ...]
    deeds: tuple[Deed, ...]
    opportunity: Opportunity
    evidence: Mapping[str, Evidence]
    replayed: Replayed
    logins: tuple[Login, ...] = ()
    touched: tuple[CustodyEvent, ...] = ()  # changes of an artefact's owner or times
    hardware: tuple[CustodyEvent, ...] = ()  # faults that a kernel told
    instructions: tuple[CustodyEvent, ...] = ()  # what somebody had an agent do

    @property
    def written(self) -> tuple[Deed, ...]:
        """Deeds that tell who wrote, and not just whose job ran."""
        return tuple(d for d in self.deeds if not d.by_job)

    @property
    def writers(self) -> tuple[str, ...]:
        """Accounts that wrote an artefact, by the records; those with most deeds first."""
        whos = [d.who for d in self.written]
        return tuple(sorted(dict.fromkeys(whos), key=lambda w: (-whos.count(w), w)))

    @property
    def pointed(self) -> tuple[str, ...]:
        """Accounts that weak sources name and no deed does."""
        return tuple(dict.fromkeys(p for t in self.traces for p in t.pointers if p not in self.writers))

    @property
    def agents(self) -> tuple[str, ...]:
        """Writers that are AI agents."""
        kinds = {r.account: r.kind for r in self.opportunity.rows}
        return tuple(w for w in self.writers if kinds.get(w) is ActorKind.AGENT)

    def row(self, account: str) -> Row | None:
        """The account's row of the matrix."""
        return next((r for r in self.opportunity.rows if r.account == account), None)

    def could_edit(self, account: str, source: str, host: str) -> bool:
        """Could this account have edited that source before it was taken in? Root on a host can edit what it wrote."""
        evidence = self.evidence[source]
        hosts = self.opportunity.roots.get(account, frozenset())
        for editor in evidence.editors:
            if editor in ("*", "self", account):
                return True
            if editor == "root" and (account == "root" or host in hosts or evidence.host in hosts):
                return True
            if editor.startswith("admin:") and self._granted(account, editor):
                return True
        return False

    def _granted(self, account: str, editor: str) -> bool:
        return any(
            e.act is Act.GRANT and e.account == account and e.path == editor for e in self.opportunity.statements
        )

    def independent(self, deeds: Sequence[Deed], who: str) -> int:
        """The kinds of sources that tell of these deeds, or of the sessions they were done in, and that `who` could not
        edit. Several files of one program are one source."""
        told = [(deed, at.source) for deed in deeds for at in self.witnesses([deed])]
        return len({self.evidence[s].kind for deed, s in told if not self.could_edit(who, s, deed.host)})

    def kept_away(self, deeds: Sequence[Deed], who: str) -> int:
        """The kinds of sources of these very deeds that neither root of the host nor another account could forge."""
        told = [(deed, at.source) for deed in deeds for at in deed.told]
        return len({self.evidence[s].kind for deed, s in told if self.out_of_reach(s, deed.host, who)})

    def out_of_reach(self, source: str, host: str, but: str = "") -> bool:
        """Was a source kept where nobody in scope but one account could edit it?"""
        editors = set(self.evidence[source].editors)
        others = (self._powerful | {e for e in editors if not e.startswith("admin:")}) - {but}
        return not editors & _NEAR and not any(self.could_edit(other, source, host) for other in others)

    @property
    def _powerful(self) -> set[str]:
        """Accounts that were root somewhere, or administer some source."""
        granted = {e.account for e in self.opportunity.statements if e.act is Act.GRANT and e.path.startswith("admin:")}
        return granted | set(self.opportunity.roots)

    def witnesses(self, deeds: Sequence[Deed]) -> frozenset[At]:
        """The lines that tell of these deeds, and of the sessions on that host in which they were done."""
        found = set(all_told(deeds))
        for deed in deeds:
            sessions = self.opportunity.sessions.get(self.deeds.index(deed), ())
            found |= {s.at for s in sessions if s.who == deed.who and s.host == deed.host}
        return frozenset(found)

    def has(self, *kinds: SourceKind) -> bool:
        """Is any source of these kinds among the evidence?"""
        return any(e.kind in kinds for e in self.evidence.values())


def at(event: CustodyEvent) -> At:
    """Where an event is told."""
    return At(source=event.source, line=event.line)


def all_told(deeds: Sequence[Deed]) -> tuple[At, ...]:
    """Every line that tells of these deeds."""
    return tuple(dict.fromkeys(place for deed in deeds for place in deed.told))
