"""The engine: one telling for each cause, and no silence by crashing a detector."""

from __future__ import annotations

import subprocess
import sys
from collections.abc import Iterable, Mapping

from records import step

from trainwarden.detect import Engine, all_detectors
from trainwarden.model import Confidence, Detail, Entry, Finding, RunEnded, Severity, Stage, StepRecord


class Speaks:
    """Raises the same thing at every step."""

    id = "speaks"

    def observe(self, index: int, entry: Entry, detail: Mapping[Stage, Detail] | None) -> Iterable[Finding]:
        if isinstance(entry, StepRecord):
            yield finding(f"Step {entry.step} is odd: at step {entry.step} of {len(entry.stages)}.", entry.step, index)

    def finish(self) -> Iterable[Finding]:
        return ()


class Fails(Speaks):
    id = "fails"

    def observe(self, index: int, entry: Entry, detail: Mapping[Stage, Detail] | None) -> Iterable[Finding]:
        raise KeyError("a hostile entry")


def finding(seen: str, step: int, index: int) -> Finding:
    return Finding(
        detector="speaks", severity=Severity.LOW, confidence=Confidence.LOW, seen=seen, expected="", step=step,
        evidence=(index,),
    )  # fmt: skip


def test_a_cause_is_told_at_once_and_its_repetitions_are_counted() -> None:
    class Odd(Speaks):
        def observe(self, index: int, entry: Entry, detail: Mapping[Stage, Detail] | None) -> Iterable[Finding]:
            if isinstance(entry, StepRecord):
                yield finding(f"At step {entry.step} it is odd.", entry.step, index)

    engine = Engine([Odd()])
    told = [f.seen for i in range(10) for f in engine.observe(i, step(i)[0], None)]
    assert told == ["At step 0 it is odd."]
    (again,) = engine.finish()
    assert again.seen == "The same was seen 9 more times, last at step 9: At step 0 it is odd."
    assert again.evidence == tuple(range(1, 10))


def test_different_causes_are_each_told() -> None:
    class Names(Speaks):
        def observe(self, index: int, entry: Entry, detail: Mapping[Stage, Detail] | None) -> Iterable[Finding]:
            yield finding(f"The file /lib/m{index}.py was changed.", -1, index)

    engine = Engine([Names()])
    assert len([f for i in range(5) for f in engine.observe(i, step(i)[0], None)]) == 5
    assert engine.finish() == []


def test_a_detector_that_can_be_crashed_is_a_finding_and_the_others_go_on() -> None:
    engine = Engine([Fails(), Speaks()])
    first = engine.observe(0, step(0)[0], None)
    assert [f.detector for f in first] == ["fails", "speaks"]
    assert "is switched off: KeyError" in first[0].seen
    assert [f.detector for f in engine.observe(1, step(1)[0], None)] in ([], ["speaks"])


def test_a_flood_of_causes_is_bounded_and_that_is_said() -> None:
    class Flood(Speaks):
        def observe(self, index: int, entry: Entry, detail: Mapping[Stage, Detail] | None) -> Iterable[Finding]:
            yield finding(f"The file /{index} was changed.", -1, index)

    engine = Engine([Flood()])
    record = step(0)[0]
    assert sum(len(engine.observe(i, record, None)) for i in range(3_000)) == 1_000
    assert engine.finish()[-1].seen.startswith("2000 further findings")


def test_findings_in_the_log_raise_no_findings() -> None:
    engine = Engine(all_detectors())
    assert engine.observe(0, finding("x", 0, 0), None) == []
    engine.observe(1, RunEnded(code=0, records=0, wall_ns=0), None)


def test_detectors_are_pure() -> None:
    code = (
        "import sys, trainwarden.detect as d; d.all_detectors(); print('torch' in sys.modules, 'numpy' in sys.modules)"
    )
    assert subprocess.check_output([sys.executable, "-c", code], text=True) == "False False\n"
