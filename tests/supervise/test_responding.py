"""What policy demands is done once for each cause, logged, and told; nothing waits for it."""

from __future__ import annotations

import threading
from collections.abc import Callable

from trainwarden.detect.causes import Causes
from trainwarden.model import Action, Confidence, Entry, Finding, Responded, Severity, Stage, Undelivered
from trainwarden.supervise.responding import Responder, Response, Told


def finding(detector: str, step: int = 1, severity: Severity = Severity.MEDIUM) -> Finding:
    return Finding(
        detector=detector,
        severity=severity,
        confidence=Confidence.HIGH,
        seen=f"{detector} at step {step}.",
        expected="",
        step=step,
        attempt=0,
        stage=Stage.WEIGHTS,
    )


class Job:
    def __init__(self, failed: str = "") -> None:
        self.did: list[str] = []
        self.failed = failed

    def hold(self) -> str:
        self.did.append("hold")
        return self.failed

    def stop(self) -> str:
        self.did.append("stop")
        return self.failed


class Outlet:
    def __init__(self) -> None:
        self.told: list[Told] = []
        self.closed = False

    def open(self, run: str, undelivered: Callable[[Undelivered], None]) -> None:
        self.undelivered = undelivered

    def tell(self, told: Told) -> None:
        self.told.append(told)

    def close(self) -> None:
        self.closed = True


class Desk:
    def __init__(self, job: Job | None = None, **actions: Action) -> None:
        self.job, self.outlet = job or Job(), Outlet()
        self.entries: list[Entry] = []
        self.events: list[Told | Undelivered] = []
        response = Response(Causes(), lambda f: actions.get(f.detector, Action.NOTE), (self.outlet,))
        self.responder = Responder("r", response, self.job, self.entries.append, self.events.append)

    def answer(self, *findings: Finding) -> list[Responded]:
        for index, found in enumerate(findings):
            self.responder.found(index, found)
        self.responder.settle()
        return [e for e in self.entries if isinstance(e, Responded)]


def test_an_alert_is_acted_on_once_and_again_when_more_is_demanded() -> None:
    desk = Desk(a=Action.ALERT, h=Action.HOLD, s=Action.STOP)
    done = desk.answer(finding("a"), finding("a", 2), finding("h"), finding("h"), finding("s"), finding("h"))
    assert [r.action for r in done] == [Action.ALERT, Action.HOLD, Action.STOP]
    assert {r.alert.id for r in done} == {"a1"}
    assert desk.job.did == ["hold", "stop"]
    assert [(t.action, t.update) for t in desk.outlet.told][-1] == (Action.STOP, True)
    assert desk.outlet.closed


def test_what_is_only_noted_is_neither_told_nor_an_entry() -> None:
    desk = Desk()
    assert desk.answer(finding("n")) == []
    assert (desk.outlet.told, desk.events, desk.job.did) == ([], [], [])


def test_an_alert_that_grows_is_told_as_an_update_and_its_repetitions_are_not() -> None:
    desk = Desk(a=Action.ALERT, b=Action.ALERT)
    desk.answer(finding("a"), *(finding("a", s) for s in range(2, 9)), finding("b"), finding("b", 1, Severity.HIGH))
    assert [t.update for t in desk.outlet.told] == [False, True, True]
    assert len({t.alert.id for t in desk.outlet.told}) == 1


def test_recover_outranks_stop_and_the_alert_that_asked_is_kept() -> None:
    desk = Desk(s=Action.STOP, r=Action.RECOVER)
    desk.answer(finding("s", 1), finding("r", 500), finding("s", 900))
    assert desk.responder.asked is not None
    action, alert = desk.responder.asked
    assert (action, alert.first.detector) == (Action.RECOVER, "r")


def test_an_act_that_fails_is_logged_with_its_reason() -> None:
    (done,) = Desk(Job("nothing runs"), h=Action.HOLD).answer(finding("h"))
    assert done.failed == "nothing runs"


def test_a_finding_that_only_informs_is_left_alone() -> None:
    assert Desk(a=Action.STOP).answer(finding("a", severity=Severity.INFO)) == []


def test_what_could_not_be_sent_is_logged_each_time_and_told_once() -> None:
    desk = Desk()
    lost = Undelivered(channel="hook", reason="gone")
    desk.outlet.undelivered(lost)
    desk.outlet.undelivered(lost)
    assert (desk.entries, desk.events) == ([lost, lost], [lost])


def test_the_log_never_waits_for_an_act() -> None:
    class Slow(Job):
        go_on = threading.Event()

        def stop(self) -> str:
            self.go_on.wait(60)
            return super().stop()

    desk = Desk(Slow(), s=Action.STOP)
    for i in range(100):
        desk.responder.found(i, finding("s", i * 100))
    Slow.go_on.set()
    assert len(desk.answer()) == 100


def test_what_was_asked_for_is_known_once_it_has_caught_up() -> None:
    going, desk = threading.Event(), Desk(r=Action.RECOVER)
    desk.job.stop = lambda: "" if going.wait(20) else "never"  # type: ignore[method-assign]
    desk.responder.found(0, finding("r"))
    threading.Timer(0.1, going.set).start()
    desk.responder.catch_up()
    assert desk.responder.asked is not None
    assert [e.failed for e in desk.entries if isinstance(e, Responded)] == [""]
    desk.responder.settle()
