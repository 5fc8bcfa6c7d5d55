"""Learning rate and other settings against what is declared, against torch's scheduler, and against themselves.

Rules
-----
* What `[expect]` declares is compared at every update. Rates are compared with the schedule at the record's step and at
  the next one, since scripts differ in when they step their schedule.
* Without a declaration, a scheduler of torch whose closed form is known and held for `HELD` updates is followed: each
  rate must be its rate at the present number of scheduler steps or a few more.
* Else the rate must not make a sudden change that comes back. What changes at every update from the start, or
  smoothly, is a schedule; any other setting that changes suddenly is told.
* Ranks that had equal settings go on having equal settings.
* `--lr X` on the sealed command line says what the highest rate should be; that is a note, as scripts scale it.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass, field
from typing import Any

from trainwarden.detect import values
from trainwarden.detect.interface import Facts
from trainwarden.detect.schedules import Schedule, declared, of_torch
from trainwarden.detect.settings import rate as rate_of
from trainwarden.model import Confidence, Detail, Entry, Finding, ScheduleSeen, Severity, Stage, StepRecord

HELD = 5  # updates that a scheduler's closed form, or a setting's constancy, must have held
SMOOTH = 8  # updates without a jump before one says something
LONGEST = 256  # updates after which a jump that has not come back is a new level
MAX_KEPT = 4_096  # optimizers of ranks that are followed
MAX_GROUPS = 64  # of one optimizer
MAX_STEPS = 128  # steps for which ranks are compared
_AHEAD = 64  # scheduler steps between two updates, at most (accelerate steps once for each rank)
_JUMP = 0.02  # of the rate
_RATES = ("lr", "initial_lr", "max_lr", "min_lr", "swa_lr")
_OPTIONS = ("--lr", "--learning-rate", "--learning_rate")
_BENIGN_EDIT = "the script changes its settings by itself, in a way that its seal does not show"


@dataclass
class _Rate:
    """One group's learning rate over the updates."""

    last: float = -1.0
    before: float = -1.0
    smooth: int = 0
    level: float = 0.0  # before a jump
    slope: float = 0.0
    jumped_at: int = -1
    since: int = 0
    jump_index: int = -1
    peak: float = 0.0


@dataclass
class _Optimizer:
    index: int
    groups: tuple[dict[str, Any], ...]
    updates: int = 1
    rates: list[_Rate] = field(default_factory=list)
    constant: dict[tuple[int, str], int] = field(default_factory=dict)
    scheduler: ScheduleSeen | None = None
    forms: list[Schedule | None] = field(default_factory=list)
    at: int = 0  # scheduler steps done
    held: int = 0
    told: bool = False


class ScheduleDetector:
    """Follows every optimizer's settings."""

    id = "schedule"

    def __init__(self, facts: Facts) -> None:
        self._expect = {k: v for k, v in facts.expect.items() if k != "lr"}
        text = facts.expect.get("lr")
        self._declared = declared(text) if isinstance(text, str) and text else None
        self._option = _option(facts.argv)
        self._optimizers: dict[tuple[int, int, int], _Optimizer] = {}
        self._schedulers: dict[tuple[int, int, int], ScheduleSeen] = {}
        self._alike: dict[tuple[int, int, int], tuple[int, StepRecord]] = {}
        self._unlike: set[tuple[int, int]] = set()
        self._compared: set[tuple[int, int]] = set()
        self._departed: set[tuple[int, int]] = set()
        self._peak = (0.0, -1, -1)  # rate, step, index
        self._over = False

    def observe(self, index: int, entry: Entry, detail: Mapping[Stage, Detail] | None) -> Iterable[Finding]:
        if isinstance(entry, ScheduleSeen):
            if len(self._schedulers) < MAX_KEPT:
                self._scheduled(entry)
            return ()
        if not isinstance(entry, StepRecord) or not entry.hyper:
            return ()
        return tuple(self._record(index, entry))

    def finish(self) -> Iterable[Finding]:
        peak, step, index = self._peak
        if self._option <= 0 or index < 0 or self._over or peak >= self._option * (1 - values.NEAR):
            return ()
        return (
            Finding(
                detector=self.id,
                severity=Severity.INFO,
                confidence=Confidence.LOW,
                seen=f"The highest learning rate was {peak:.6g}; the sealed command says {self._option:.6g}.",
                expected="The highest learning rate is the one on the command line.",
                step=step,
                stage=Stage.HYPERPARAMETERS,
                evidence=(index,),
                benign=("the run ended within its warm-up, or the script scales the rate",),
            ),
        )

    def _scheduled(self, note: ScheduleSeen) -> None:
        where = (note.attempt, note.rank, note.optimizer)
        # Several schedulers of one optimizer multiply each other's rates: no closed form.
        self._schedulers[where] = ScheduleSeen(kind="several") if where in self._schedulers else note

    def _record(self, index: int, record: StepRecord) -> Iterator[Finding]:
        groups = record.hyper[:MAX_GROUPS]
        yield from self._across_ranks(index, record)
        yield from self._against_declared(index, record, groups)
        yield from self._against_option(index, record, groups)
        where = (record.attempt, record.rank, record.optimizer)
        one = self._optimizers.get(where)
        if one is None:
            if len(self._optimizers) < MAX_KEPT:
                one = self._optimizers[where] = _Optimizer(index, groups)
                one.rates = [_Rate(last=rate_of(g)) for g in groups]
            return
        one.updates += 1
        if len(groups) != len(one.groups):
            sentence = (
                f"{_who(record)} has {len(groups)} parameter groups at step {record.step}, it had {len(one.groups)}."
            )
            yield _finding(record, (one.index, index), sentence, "Groups stay as they are.", Severity.LOW)
            one.rates, one.constant = [_Rate(last=rate_of(g)) for g in groups], {}
        else:
            yield from self._settings(index, one, record, groups)
            if not self._follows(one, where, groups):
                yield from self._rates(index, one, record, groups)
        one.index, one.groups = index, groups

    # -- what is declared

    def _against_declared(
        self, index: int, record: StepRecord, groups: tuple[dict[str, Any], ...]
    ) -> Iterator[Finding]:
        for n, group in enumerate(groups):
            for key, wanted in self._expect.items():
                found = group.get(key)
                if key in group and not values.same(found, wanted):
                    yield _finding(
                        record,
                        (index,),
                        f"{_who(record)} uses {key} = {values.text(found)} in group {n} at step {record.step}.",
                        f"[expect] declares {key} = {values.text(wanted)}.",
                        Severity.HIGH,
                        ("the declaration is out of date",),
                    )
        run = (record.attempt, record.optimizer)
        if self._declared is not None and not record.skipped and run not in self._departed:
            rate, wants = rate_of(groups[0]), (self._declared(record.step), self._declared(record.step + 1))
            if not any(values.near(rate, want) for want in wants):
                self._departed.add(run)
                yield _finding(
                    record,
                    (index,),
                    f"{_who(record)} uses another learning rate than is declared at step {record.step}: {rate:.6g} in "
                    f"place of {wants[0]:.6g}.",
                    "The learning rate follows the schedule that [expect] declares.",
                    Severity.HIGH,
                    ("the declaration is out of date, or the run resumed with another count of steps",),
                )

    def _against_option(self, index: int, record: StepRecord, groups: tuple[dict[str, Any], ...]) -> Iterator[Finding]:
        rate = max(rate_of(g, otherwise=0.0) for g in groups)
        if rate <= self._peak[0]:
            return
        self._peak = (rate, record.step, index)
        if self._over or self._option <= 0 or rate <= self._option * (1 + values.NEAR):
            return
        self._over = True
        yield _finding(
            record,
            (index,),
            f"{_who(record)} uses the learning rate {rate:.6g} at step {record.step}; the sealed command says "
            f"{self._option:.6g}.",
            "No learning rate is above the one on the command line.",
            Severity.INFO,
            ("the script scales the rate with the number of ranks or the batch size, or has other groups",),
        )

    # -- between ranks

    def _across_ranks(self, index: int, record: StepRecord) -> Iterator[Finding]:
        digest = record.stages.get(Stage.HYPERPARAMETERS)
        if digest is None or not digest.root or record.world < 2:
            return
        step, pair = (record.attempt, record.step, record.optimizer), (record.attempt, record.optimizer)
        first = self._alike.get(step)
        if first is None:
            self._alike[step] = (index, record)
            while len(self._alike) > MAX_STEPS:
                del self._alike[next(iter(self._alike))]
            return
        other = first[1]
        if other.rank == record.rank or pair in self._unlike:
            return
        if other.stages[Stage.HYPERPARAMETERS].root == digest.root:
            self._compared.add(pair)
            return
        if pair not in self._compared:
            self._unlike.add(pair)  # stages of a pipeline have groups of their own
            return
        self._unlike.add(pair)
        what = values.difference(other.hyper, record.hyper)
        yield _finding(
            record,
            (first[0], index),
            f"Ranks {other.rank} and {record.rank} have different settings at step {record.step}{what}.",
            "Ranks that began with equal settings keep equal settings.",
            Severity.HIGH,
            ("the script gives its ranks different settings on purpose",),
            ranks=tuple(sorted((other.rank, record.rank))),
        )

    # -- one optimizer over its updates

    def _settings(
        self, index: int, one: _Optimizer, record: StepRecord, groups: tuple[dict[str, Any], ...]
    ) -> Iterator[Finding]:
        """Settings other than rates: sudden changes of what had been constant."""
        for n, (old, new) in enumerate(zip(one.groups, groups, strict=True)):
            if old == new:
                one.constant[n, ""] = one.constant.get((n, ""), 0) + 1
                continue
            whole = one.constant.get((n, ""), 0)
            for key in new:
                if key in _RATES or key in self._expect:
                    continue
                if old.get(key) == new[key]:
                    one.constant[n, key] = one.constant.get((n, key), 0) + 1
                    continue
                constant, one.constant[n, key] = one.constant.get((n, key), 0) + whole, -whole
                if constant < HELD or values.smoothly(old.get(key), new[key]):
                    continue
                yield _finding(
                    record,
                    (one.index, index),
                    f"{_who(record)} changed {key} of group {n} from {values.text(old.get(key))} to "
                    f"{values.text(new[key])} at step {record.step}.",
                    "Settings other than the learning rate stay as they are, or follow a smooth schedule.",
                    Severity.MEDIUM,
                )

    def _follows(self, one: _Optimizer, where: tuple[int, int, int], groups: tuple[dict[str, Any], ...]) -> bool:
        """Whether every group's rate is the one that torch's scheduler gives; it may be some steps further."""
        note = self._schedulers.get(where)
        if note is None:
            return False
        if note is not one.scheduler:
            one.scheduler, one.at, one.held = note, _count(note.state.get("last_epoch")), 0
            one.forms = _forms(note, groups)
        if not one.forms or any(form is None for form in one.forms):
            return False
        for at in range(max(0, one.at - 1), one.at + _AHEAD):
            if all(values.near(rate_of(g), form(at)) for g, form in zip(groups, one.forms, strict=False) if form):
                one.at, one.held = at, one.held + 1
                for group, rate in zip(groups, one.rates, strict=True):
                    rate.before, rate.last, rate.smooth = rate.last, rate_of(group), SMOOTH
                return True
        if one.held < HELD:
            one.forms = []
        return False

    def _rates(
        self, index: int, one: _Optimizer, record: StepRecord, groups: tuple[dict[str, Any], ...]
    ) -> Iterator[Finding]:
        if one.held >= HELD and one.forms and one.forms[0] is not None:
            name = one.scheduler.kind.rpartition(".")[2] if one.scheduler else ""
            wanted = one.forms[0](one.at)
            if not one.told:
                one.told = True
                yield _finding(
                    record,
                    (one.index, index),
                    f"{_who(record)} uses the learning rate {rate_of(groups[0]):.6g} at step {record.step}, where "
                    f"{name} gives {wanted:.6g}.",
                    f"The learning rate follows {name}, as it did for {one.held} updates.",
                    Severity.MEDIUM,
                )
            return
        for n, (group, rate) in enumerate(zip(groups, one.rates, strict=True)):
            yield from self._jumps(index, n, rate, rate_of(group), record)

    def _jumps(self, index: int, n: int, rate: _Rate, now: float, record: StepRecord) -> Iterator[Finding]:
        """A sudden change of a rate that comes back to where it would have been."""
        expected = 2 * rate.last - rate.before if rate.before >= 0 else rate.last
        rate.peak = max(rate.peak, now)
        small = max(now, rate.last) < 0.05 * rate.peak
        off = abs(now - expected)
        kink = off <= 4 * abs(rate.last - rate.before)  # a slope that turns
        jump = off > _JUMP * max(abs(now), abs(expected)) and not small and not kink
        rate.since += 1
        if rate.jumped_at >= 0:
            level = rate.level + rate.slope * rate.since
            if jump and abs(now - level) <= _JUMP * abs(level) + abs(rate.slope):
                level = rate.level + rate.slope * (rate.since - 1)
                times = rate.last / level if level else 0.0
                yield _finding(
                    record,
                    (rate.jump_index, index),
                    f"The learning rate of group {n} of {_who(record)} was {times:.2g} times what it was before and "
                    f"after, from step {rate.jumped_at} on for {rate.since - 1} updates.",
                    "A learning rate does not change suddenly and come back.",
                    Severity.MEDIUM,
                    confidence=Confidence.MEDIUM,
                )
                rate.jumped_at, rate.smooth = -1, 0
            elif rate.since > LONGEST:
                rate.jumped_at = -1
        elif jump and rate.smooth >= SMOOTH:
            rate.jumped_at, rate.jump_index, rate.since = record.step, index, 1
            rate.level, rate.slope = rate.last, rate.last - rate.before
        rate.smooth = 0 if jump and rate.jumped_at < 0 else rate.smooth + 1
        rate.before, rate.last = (rate.last, now) if not jump else (now, now)


def _forms(note: ScheduleSeen, groups: tuple[dict[str, Any], ...]) -> list[Schedule | None]:
    try:
        initial = [float(g["initial_lr"]) for g in groups]
        return [of_torch(note.kind, note.state, rate) for rate in initial]
    except (KeyError, TypeError, ValueError, ArithmeticError, AttributeError):
        return []


def _option(argv: tuple[str, ...]) -> float:
    """The number after `--lr` on a command line, 0 where there is none."""
    for n, word in enumerate(argv):
        name, _, value = word.partition("=")
        if name in _OPTIONS:
            try:
                return float(value or argv[n + 1])
            except (ValueError, IndexError):
                return 0.0
    return 0.0


def _count(value: object) -> int:
    return value if isinstance(value, int) and 0 <= value < 1 << 53 else 0


def _who(record: StepRecord) -> str:
    return f"optimizer {record.optimizer} of rank {record.rank}"


def _finding(
    record: StepRecord,
    evidence: tuple[int, ...],
    seen: str,
    expected: str,
    severity: Severity,
    benign: tuple[str, ...] = (_BENIGN_EDIT,),
    *,
    ranks: tuple[int, ...] = (),
    confidence: Confidence = Confidence.HIGH,
) -> Finding:
    return Finding(
        detector=ScheduleDetector.id,
        severity=severity,
        confidence=Confidence.LOW if severity is Severity.INFO else confidence,
        seen=seen[0].upper() + seen[1:],
        expected=expected,
        step=record.step,
        attempt=record.attempt,
        ranks=ranks or (record.rank,),
        stage=Stage.HYPERPARAMETERS,
        evidence=tuple(i for i in evidence if i >= 0),
        benign=benign,
        wall_ns=record.wall_ns,
    )
