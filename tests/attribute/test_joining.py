"""Clocks, timeline and traces on small evidence made here: what is measured is told with its error, and only that."""

from __future__ import annotations

import random
from collections.abc import Sequence
from pathlib import Path

import duckdb
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from trainwarden.attribute import timeline
from trainwarden.attribute.attributing import attribution_of
from trainwarden.attribute.clocks import UNMEASURED_NS, estimate
from trainwarden.attribute.nouns import Access, Kind, Presence
from trainwarden.attribute.tables import Tables
from trainwarden.attribute.tracing import trace
from trainwarden.custody.table import read_events, write_events
from trainwarden.model import Act, Artefact, Binding, CustodyEvent, Evidence, Process, SourceKind
from trainwarden.report.incident_page import render_page

SECOND = 1_000_000_000
PATH = "/shared/env/torch/optim/adamw.py"
GOOD, BAD = "a" * 64, "b" * 64


def event(t: float, act: Act, **fields: object) -> CustodyEvent:
    return CustodyEvent(source="", line=1, time_ns=int(t * SECOND), act=act, **fields)  # type: ignore[arg-type]


class Opened:
    """Evidence made of events, held open."""

    def __init__(self, folder: Path) -> None:
        self.folder, self.made = folder, list[tuple[Evidence, Path]]()

    def add(self, kind: SourceKind, events: Sequence[CustodyEvent], editors: tuple[str, ...] = ("admin:x",)) -> None:
        n = len(self.made)
        counted = write_events(events, self.folder / str(n))
        evidence = Evidence(
            id=f"{n:064x}", kind=kind, name=kind.value, bytes=1, events=counted.events, table="", editors=editors,
            weak=kind is SourceKind.SHELL,
        )  # fmt: skip
        self.made.append((evidence, self.folder / str(n)))

    def tables(self) -> Tables:
        return Tables(self.made, self.folder, threads=1)


@pytest.fixture
def opened(tmp_path: Path) -> Opened:
    return Opened(tmp_path)


@pytest.mark.parametrize("ahead", [-3600.5, -0.25, 0.0, 7.25, 900.0])
def test_the_offset_between_two_clocks_is_found_and_its_error_covers_it(opened: Opened, ahead: float) -> None:
    rng = random.Random(3)
    times = [1000 + 60 * n + rng.random() for n in range(50)]
    seen = [event(t, Act.EXECUTE, host="h", path="/bin/x", processes=(Process(pid=n),)) for n, t in enumerate(times)]
    other = [
        event(t + ahead + rng.uniform(-0.002, 0.002), Act.EXECUTE, host="h", path="/bin/x", processes=(Process(pid=n),))
        for n, t in enumerate(times)
    ]
    opened.add(SourceKind.KUBERNETES, seen)
    opened.add(SourceKind.TELEPORT, other)
    opened.add(SourceKind.SLURM, [event(5000, Act.SUBMIT, account="x")])
    tables = opened.tables()
    clocks = {c.source[-1]: c for c in estimate(tables)}
    apart = clocks["1"].offset_ns - clocks["0"].offset_ns
    error = max(clocks["0"].error_ns, clocks["1"].error_ns)
    assert abs(apart - ahead * SECOND) <= error <= 10_000_000
    assert (clocks["2"].shared, clocks["2"].error_ns) == (0, UNMEASURED_NS)
    tables.close()


def test_logins_laid_over_each_other_measure_a_clock_and_chance_meetings_do_not(opened: Opened) -> None:
    rng = random.Random(5)
    times = sorted(rng.uniform(0, 20 * 86_400) for _ in range(60))
    who = {"account": "omar", "host": "h", "origin": "10.0.0.1"}
    opened.add(SourceKind.JOURNAL, [event(t, Act.LOGIN, **who) for t in times])
    opened.add(SourceKind.TELEPORT, [event(t - 42.5, Act.LOGIN, **who) for t in times])
    opened.add(SourceKind.WTMP, [event(rng.uniform(0, 20 * 86_400), Act.LOGIN, **who) for _ in range(60)])
    tables = opened.tables()
    clocks = {c.source[-1]: c for c in estimate(tables)}
    assert clocks["1"].offset_ns - clocks["0"].offset_ns == pytest.approx(-42.5 * SECOND, abs=SECOND / 10)
    assert clocks["2"].shared == 0
    tables.close()


def test_slurms_clock_is_measured_by_what_submitted_its_jobs_and_chance_meetings_do_not(opened: Opened) -> None:
    rng = random.Random(7)
    times = sorted(rng.uniform(0, 5 * 86_400) for _ in range(30))
    for kind, path in ((SourceKind.AUDIT, "/usr/bin/sbatch"), (SourceKind.TETRAGON, "/usr/bin/vim")):
        opened.add(kind, [event(t, Act.EXECUTE, account="root", login="noor", host="h", path=path) for t in times])
    jobs = [event(int(t + 37), Act.SUBMIT, account="noor", session=f"slurm:{n}") for n, t in enumerate(times)]
    opened.add(SourceKind.SLURM, jobs)
    tables = opened.tables()
    clocks = {c.source[-1]: c for c in estimate(tables)}
    assert clocks["2"].offset_ns - clocks["0"].offset_ns == pytest.approx(37 * SECOND, abs=SECOND)
    assert clocks["2"].error_ns < 5 * SECOND
    assert clocks["1"].shared == 0
    tables.close()


@pytest.mark.parametrize("part", [500_000, 7])
def test_the_timeline_is_in_the_order_of_corrected_times(
    opened: Opened, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, part: int
) -> None:
    monkeypatch.setattr(timeline, "_PART", part)

    def acts(shift: float, offset: int) -> list[CustodyEvent]:
        return [
            event(10 * n + shift, Act.EXECUTE, host="h", path="/x", processes=(Process(pid=n),)) for n in range(20)
        ] + [event(10 * n + offset + shift, Act.READ, path=f"/{offset}/{n}") for n in range(20)]

    opened.add(SourceKind.KUBERNETES, acts(0, 1))
    opened.add(SourceKind.TELEPORT, acts(1000, 2))
    tables = opened.tables()
    tables.set_clocks(estimate(tables))
    assert timeline.write_timeline(tables, tmp_path / "t") == 80
    rows = duckdb.sql(f"SELECT path FROM read_parquet('{tmp_path / 't'}') WHERE act = 'read'").fetchall()
    assert [r[0] for r in rows[:4]] == ["/1/0", "/2/0", "/1/1", "/2/1"]
    tables.close()


def test_a_write_before_the_file_was_last_seen_as_sealed_cannot_be_the_one(opened: Opened) -> None:
    opened.add(
        SourceKind.KUBERNETES,
        [
            event(10, Act.WRITE, account="early", path=PATH),
            event(20, Act.EXISTS, path=PATH, digest=GOOD),
            event(30, Act.WRITE, account="between", path=PATH),
            event(99, Act.WRITE, account="late", path=PATH),
            event(30, Act.WRITE, account="elsewhere", path="/other"),
        ],
    )
    changed = Artefact(path=PATH, digest=BAD, before=GOOD, what="changed code", found_ns=50 * SECOND)
    tables = opened.tables()
    (found,) = trace(tables, [changed], {}, frozenset())
    assert [d.who for d in found.deeds] == ["between"]
    tables.close()


def test_where_the_digest_is_told_other_writes_are_dropped_and_the_first_appearance_is_found(opened: Opened) -> None:
    opened.add(
        SourceKind.KUBERNETES,
        [
            event(5, Act.WRITE, account="author", path="/home/author/draft.py", digest=BAD),
            event(30, Act.WRITE, account="other", path=PATH),
            event(31, Act.WRITE, account="writer", login="author", path=PATH, digest=BAD),
        ],
    )
    opened.add(
        SourceKind.SHELL, [event(6, Act.EXECUTE, account="blamed", processes=(Process(argv=("vim", "adamw.py")),))]
    )
    opened.add(SourceKind.FILES, [event(31, Act.EXISTS, account="owner", path=PATH)])
    tables = opened.tables()
    (found,) = trace(tables, [Artefact(path=PATH, digest=BAD, what="changed code")], {}, frozenset())
    assert {d.who for d in found.deeds} == {"author"}  # who had logged in, not whose rights the process had
    assert found.earliest is not None
    assert found.earliest.path == "/home/author/draft.py"
    assert set(found.pointers) == {"blamed", "owner"}
    tables.close()


def test_two_sources_of_one_act_are_one_deed_and_a_guarded_ranks_write_is_its_jobs(opened: Opened) -> None:
    write = {"account": "omar", "host": "h", "path": PATH}
    opened.add(SourceKind.AUDIT, [event(30.0, Act.WRITE, processes=(Process(pid=7), Process(pid=3)), **write)])
    opened.add(SourceKind.TETRAGON, [event(30.01, Act.WRITE, processes=(Process(pid=7),), **write)])
    tables = opened.tables()
    artefact = Artefact(path=PATH, digest=BAD, what="changed code")
    (found,) = trace(tables, [artefact], {}, frozenset())
    assert [len(d.told) for d in found.deeds] == [2]
    assert not found.deeds[0].by_job
    assert trace(tables, [artefact], {}, frozenset({7}))[0].deeds[0].by_job
    tables.close()


def test_access_that_was_taken_away_and_absence_are_in_the_matrix(opened: Opened) -> None:
    opened.add(SourceKind.AUDIT, [event(5000, Act.WRITE, account="omar", host="h", path=PATH)])
    opened.add(
        SourceKind.STATEMENT,
        [
            event(1, Act.GRANT, account="vera", path="/shared/env"),
            event(50, Act.REVOKE, account="vera", path="/shared/env"),
            event(1, Act.GRANT, account="noor", path="/shared"),
            event(0, Act.HOLDS, account="ipsen", person="P4"),
            event(0, Act.ABSENT, person="P4", until_ns=10_000 * SECOND, binding=Binding.IN_PERSON, note="in hospital"),
        ],
    )
    tables = opened.tables()
    told = attribution_of(tables, "i1", [Artefact(path=PATH, digest=BAD, what="changed code")])
    cells = {r.account: r.cells[0] for r in told.matrix}
    assert (cells["omar"].access, cells["omar"].presence) == (Access.YES, Presence.ACTING)
    assert (cells["vera"].access, cells["noor"].access) == (Access.NO, Access.YES)
    assert (cells["ipsen"].access, cells["ipsen"].presence) == (Access.UNKNOWN, Presence.ABSENT)
    assert told.conclusion.leading is None
    tables.close()


def test_what_an_attacker_wrote_into_records_stays_text_on_the_page(opened: Opened) -> None:
    from trainwarden.model import Incident, IncidentStatus

    evil = "<script>alert(1)</script>\u202e"
    opened.add(SourceKind.AUDIT, [event(100, Act.WRITE, account=evil, host=evil, path=PATH, note=evil)])
    tables = opened.tables()
    told = attribution_of(tables, "i1", [Artefact(path=PATH, digest=BAD, what=evil)])
    incident = Incident(
        id="i1", title=evil, status=IncidentStatus.OPEN, runs=(), custody=tuple(e for e, _ in opened.made)
    )
    page = render_page(incident, told)
    assert "<script" not in page
    assert "\u202e" not in page
    assert "&lt;script&gt;" in page
    tables.close()


def test_no_evidence_at_all_decides_nothing_and_accuses_nobody(opened: Opened) -> None:
    tables = opened.tables()
    told = attribution_of(tables, "i1", [Artefact(path=PATH, digest=BAD, what="changed code")])
    assert told.conclusion.leading is None
    assert not any(s.hypothesis.kind is Kind.INSIDER for s in told.hypotheses)
    tables.close()


texts = st.text(max_size=20)


@settings(max_examples=40, deadline=None)
@given(
    st.lists(
        st.builds(
            CustodyEvent,
            source=st.just("s"),
            line=st.integers(1, 10**6),
            time_ns=st.integers(-(2**70), 2**70),
            act=st.sampled_from(Act),
            account=texts,
            path=texts,
            note=texts,
            processes=st.lists(
                st.builds(
                    Process, pid=st.integers(-1, 2**40), program=texts, argv=st.lists(texts, max_size=3).map(tuple)
                ),
                max_size=3,
            ).map(tuple),
        ),
        max_size=8,
    )
)
def test_events_come_back_from_their_table_and_those_that_do_not_fit_are_told(
    tmp_path_factory: pytest.TempPathFactory, events: list[CustodyEvent]
) -> None:
    path = tmp_path_factory.mktemp("t") / "events"
    counted = write_events(events, path)
    kept = list(read_events(path, "s"))
    assert counted.events == len(kept)
    assert counted.events + counted.unread == len(events)
    assert [e for e in events if e in kept] == kept
