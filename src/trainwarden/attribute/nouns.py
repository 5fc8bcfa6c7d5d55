"""What attribution says: clocks, deeds, opportunity, items of evidence, hypotheses, and a conclusion that may be none.

"Who" is an account: the one that had logged in where a source tells it, else the one whose rights a process had. It is
a person only where a source of its own binds one, and a person is a pseudonym here.
"""

from __future__ import annotations

from enum import StrEnum

from trainwarden.model import Act, ActorKind, Artefact, Binding, CustodyEvent, Noun, Process


class Clock(Noun):
    """How far the clock of a source (on one host, where a source has several) is ahead of the reference."""

    source: str
    host: str
    offset_ns: int
    error_ns: int
    shared: int  # events that it shares with the clock it was compared with; 0 = not measured
    through: str = ""  # the source that it was compared with


class At(Noun):
    """A line of a source."""

    source: str
    line: int


class Deed(Noun):
    """One act on an artefact, as one or more sources tell it."""

    artefact: int  # which of the incident's
    act: Act
    time_ns: int  # corrected
    error_ns: int
    who: str
    account: str  # whose rights it had
    kind: ActorKind | None
    host: str
    session: str
    origin: str
    processes: tuple[Process, ...]
    told: tuple[At, ...]
    digest: str
    certain: bool  # a source tells the digest that was found
    by_job: bool  # a process of a job did it: that tells who ran it, not who wrote what it ran
    binding: Binding


class Trace(Noun):
    """Where an artefact comes from."""

    artefact: Artefact
    earliest: CustodyEvent | None  # the first line of any source that has its digest
    deeds: tuple[Deed, ...]
    pointers: tuple[str, ...]  # accounts that weak sources name: owners, authors as text, history files


class Access(StrEnum):
    YES = "yes"
    NO = "no"
    UNKNOWN = "not known"


class Presence(StrEnum):
    ACTING = "acting"  # the record of the deed itself names the account
    SESSION = "session open"
    ACTIVE = "active elsewhere"
    ABSENT = "absent"
    NOT_SEEN = "not seen"  # there are records of sessions there and then, and none of this account
    UNKNOWN = "not known"


class Cell(Noun):
    """One account and one deed."""

    access: Access
    presence: Presence
    why: str = ""
    told: tuple[At, ...] = ()


class Row(Noun):
    """One account in the matrix of opportunity."""

    account: str
    kind: ActorKind | None
    holder: str  # a pseudonym, "" when nothing tells
    cells: tuple[Cell, ...]
    revoked_ns: int = 0
    deeds_before: int = 0  # deeds by anybody before its access was revoked
    deeds_after: int = 0
    disclosures: int = 0  # of something, to this account
    followed: int = 0  # of these, that a deed followed within a day
    expected: float = 0.0  # that many would be followed by chance


class Kind(StrEnum):
    """The standing hypotheses."""

    MISTAKE = "honest mistake"
    HARDWARE = "hardware fault"
    INSIDER = "insider"
    STOLEN = "stolen account"
    FRAMING = "framing"
    INSTRUCTED = "agent on instruction"
    OTHER = "somebody else"


class Weight(StrEnum):
    """What an item of evidence says of a hypothesis."""

    STRONGLY_FOR = "++"
    FOR = "+"
    NEUTRAL = "0"
    AGAINST = "-"
    STRONGLY_AGAINST = "--"


class Hypothesis(Noun):
    """One of the standing hypotheses; `account` is the one that it is about."""

    kind: Kind
    account: str = ""

    @property
    def id(self) -> str:
        """Its kind, and the account after a colon."""
        return f"{self.kind}:{self.account}" if self.account else self.kind.value

    @property
    def words(self) -> str:
        """It in words; no sentence says that a person did anything."""
        match self.kind:
            case Kind.INSIDER:
                return f"the account {self.account} did it, with no sign of another hand"
            case Kind.STOLEN:
                return f"somebody else used the account {self.account}"
            case Kind.FRAMING:
                return f"records were made to point at {self.account}"
            case Kind.INSTRUCTED:
                return f"the agent {self.account} did it on somebody's instruction"
            case Kind.MISTAKE:
                return "a mistake, made openly and in good faith"
            case Kind.HARDWARE:
                return "a fault of hardware"
            case Kind.OTHER:
                return "somebody else, whom no record names"


class Piece(Noun):
    """One item of evidence: what it says of each hypothesis, and whom it exculpates."""

    sentence: str
    weights: dict[str, Weight]  # `Hypothesis.id` → what it says; neutral ones are left out
    told: tuple[At, ...] = ()
    exculpates: tuple[str, ...] = ()  # accounts
    independent: int = 0  # sources that nobody whom it speaks against could edit


class Grade(StrEnum):
    """How well a hypothesis stands, in words."""

    EXCLUDED = "contradicted"
    UNSUPPORTED = "not supported"
    POSSIBLE = "possible"
    LIKELY = "likely"
    STRONG = "strongly supported"


class Standing(Noun):
    """One hypothesis with what speaks for and against it."""

    hypothesis: Hypothesis
    grade: Grade
    supporting: tuple[int, ...]  # places among the pieces
    opposing: tuple[int, ...]
    score: int  # strong counts two; what opposes counts first


class Conclusion(Noun):
    """What can be said. `leading` is None where the evidence does not decide."""

    leading: Hypothesis | None
    grade: Grade
    level: str  # "account" | "account and its second factor" | "person": what the evidence binds
    sentence: str
    reasons: tuple[str, ...] = ()  # why it is not more
    missing: tuple[str, ...] = ()  # records that would decide between the leading two
    unknown: tuple[str, ...] = ()  # what is not known


class Attribution(Noun):
    """Everything that attribution says of an incident."""

    incident: str
    events: int
    sources: int
    clocks: tuple[Clock, ...]
    traces: tuple[Trace, ...]
    deeds: tuple[Deed, ...]
    matrix: tuple[Row, ...]
    hypotheses: tuple[Standing, ...]
    pieces: tuple[Piece, ...]
    conclusion: Conclusion
