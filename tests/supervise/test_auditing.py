"""The process that audits samples beside a run: heard, never waited for, and missed when it is gone."""

from __future__ import annotations

import os
import sys
import threading
from pathlib import Path

import pytest

from trainwarden.model import Entry, Finding, SampledAudit, Severity, UnitsDrawn
from trainwarden.store import Store
from trainwarden.supervise.auditing import Auditing, Ranks

DRAW = '{"type":"units_drawn","source":"system","randomness":"00","first":0,"last":1,"chances":{},"of":{}}'
TELLS = f'print(\'{DRAW}\', flush=True); print(\'{{"type":"used","spent_ns":7,"waiting":3}}\', flush=True)\n'
HEARS_THE_END = "import sys\n" + TELLS + "sys.stdin.buffer.read()\n"
IGNORES_THE_END = "import time\n" + TELLS + "time.sleep(600)\n"
DIES = "import os, signal\n" + TELLS + "os.kill(os.getpid(), signal.SIGKILL)\n"


class Desk:
    """An `Auditing` with a stand-in for the auditor, and what it submits."""

    def __init__(
        self, folder: Path, script: str, budget: float = 1.0, start_seconds: float = 0.0, finish: bool = False
    ) -> None:
        store = Store.open(folder / "store", create=True)
        self.entries: list[Entry] = []
        self._came = threading.Condition()
        self.auditing = Auditing(
            store,
            store.create_run(),
            budget,
            self._submit,
            argv=[sys.executable, "-c", script],
            start_seconds=start_seconds,
            look_seconds=0.01,
            finish=finish,
        )
        self.auditing.joined(os.getpid())

    def _submit(self, entry: Entry) -> None:
        with self._came:
            self.entries.append(entry)
            self._came.notify_all()

    def wait_for(self, kind: type[Entry]) -> None:
        with self._came:
            assert self._came.wait_for(lambda: any(isinstance(e, kind) for e in self.entries), 60)

    def end(self) -> SampledAudit:
        self.auditing.close()
        last = self.entries[-1]
        assert isinstance(last, SampledAudit)
        assert last.job_cpu_ns > 0
        return last


@pytest.mark.parametrize("script", [HEARS_THE_END, IGNORES_THE_END])
def test_what_it_draws_is_logged_and_the_end_of_the_run_ends_it(tmp_path: Path, script: str) -> None:
    desk = Desk(tmp_path, script)
    desk.wait_for(UnitsDrawn)
    ended = desk.end()
    assert (ended.spent_ns, ended.waiting, ended.reason) == (7, 3, "the run ended first")
    process = desk.auditing._process
    assert process is not None
    assert process.poll() is not None


def test_one_that_may_finish_is_waited_for_and_what_is_left_is_beyond_the_budget(tmp_path: Path) -> None:
    desk = Desk(tmp_path, HEARS_THE_END, finish=True)
    desk.wait_for(UnitsDrawn)
    ended = desk.end()
    assert (ended.waiting, ended.reason) == (3, "the budget does not pay for more")


def test_a_killed_auditor_is_a_finding_and_the_rest_is_said_to_be_unchecked(tmp_path: Path) -> None:
    desk = Desk(tmp_path, DIES)
    desk.wait_for(Finding)
    (found,) = [e for e in desk.entries if isinstance(e, Finding)]
    assert (found.detector, found.severity) == ("sampled-audit", Severity.MEDIUM)
    assert "signal 9" in found.seen
    assert "nothing later was drawn" in desk.end().reason


def test_an_auditor_that_fails_is_told_with_its_last_words(tmp_path: Path) -> None:
    desk = Desk(tmp_path, TELLS + "raise KeyError('a state that is gone')\n")
    desk.wait_for(Finding)
    (found,) = [e for e in desk.entries if isinstance(e, Finding)]
    assert "(exit code 1: KeyError: 'a state that is gone')" in found.seen
    assert "KeyError" in desk.end().reason


def test_a_run_too_short_for_the_budget_starts_no_auditor_and_says_so(tmp_path: Path) -> None:
    desk = Desk(tmp_path, HEARS_THE_END, budget=0.01, start_seconds=1e6)
    assert "did not buy a unit" in desk.end().reason
    assert desk.auditing._process is None


def test_without_a_budget_nothing_is_said(tmp_path: Path) -> None:
    desk = Desk(tmp_path, HEARS_THE_END, budget=0.0)
    desk.auditing.close()
    assert desk.entries == []


def test_what_a_rank_has_used_is_asked_of_the_kernel_and_kept_when_it_is_gone() -> None:
    ranks = Ranks()
    ranks.joined(os.getpid())
    ranks.joined(2**22 + 1)  # nobody has it
    assert ranks.cpu_ns() > 0
