"""The training loss that the script reports to its tracker is not the one that was recorded.

Both are claims of the rank, by two ways: the recorder takes the loss where `backward` is called, the observer where the
script hands a value to its tracker. A reported value is accounted for when it is one of: the rank's own loss of a step
just made or being made, the mean of all ranks', a mean over the last steps (fewer at the beginning) or over those since
the last report, an exponential average. Which of them a metric is, its first reports say: the ways that fit all of them
are kept, and only these count later. Told is a metric that fitted and then did not, `MISSES` times running (medium).

A metric that never fits is something else than this loss (a part of it, one micro-batch), and is said not to be
checked; when it is a fixed share of the recorded loss all the time it is told as low.
"""

from __future__ import annotations

import math
from collections import OrderedDict, deque
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass, field

from trainwarden.model import (
    Confidence,
    Detail,
    Entry,
    Finding,
    Reported,
    Severity,
    Stage,
    StepRecord,
    TrackerSeen,
)

FITS, MISSES, TRIES = 3, 3, 6
SURE = 8  # fits after which the ways that are left are not narrowed down any more
KEPT = 512  # losses of a rank
MAX_STREAMS, MAX_RANKS = 256, 4_096
_PATIENCE = 8  # steps that a report waits for other ranks
_LAGS = (-1, 0, 1, 2)
_MEANS = (*range(2, 33), 40, 50, 64, 100, 128, 200, 250, 256, 500, 512)
_BETAS = (0.5, 0.6, 0.8, 0.9, 0.95, 0.97, 0.98, 0.99, 0.995, 0.999)
_MOST_TIMES = 64
_BENIGN = (
    "the script changed what it reports under this name",
    "the reported loss is averaged or rounded in another way than before",
)


@dataclass
class _History:
    """The losses of one rank in one attempt: `losses[-1]` is that of step `last`."""

    losses: deque[float] = field(default_factory=lambda: deque(maxlen=KEPT))
    last: int = -1
    averages: dict[str, float] = field(default_factory=dict)

    def add(self, step: int, loss: float) -> None:
        if step != self.last + 1:
            self.losses.clear()
            self.averages.clear()
        for beta in _BETAS:
            first, zero = f"average {beta}", f"average {beta} from 0"
            self.averages[first] = beta * self.averages.get(first, loss) + (1 - beta) * loss
            self.averages[zero] = beta * self.averages.get(zero, 0.0) + (1 - beta) * loss
        self.last = step
        self.losses.append(loss)

    def at(self, step: int) -> float | None:
        place = len(self.losses) - 1 - (self.last - step)
        return self.losses[place] if 0 <= place < len(self.losses) else None

    def up_to(self, done: int) -> list[float]:
        """The losses of the steps before number `done`, oldest first."""
        return list(self.losses)[: max(0, len(self.losses) - (self.last + 1 - done))]


class _Means:
    """The mean loss of all ranks, by step."""

    def __init__(self) -> None:
        self._sums: OrderedDict[int, tuple[float, int]] = OrderedDict()

    def add(self, step: int, loss: float) -> None:
        total, count = self._sums.get(step, (0.0, 0))
        self._sums[step] = total + loss, count + 1
        while len(self._sums) > KEPT:
            self._sums.popitem(last=False)

    def at(self, step: int, world: int) -> float | None:
        total, count = self._sums.get(step, (0.0, 0))
        return total / count if count and count >= world else None


@dataclass
class _Waiting:
    index: int
    entry: Reported
    averages: dict[str, float]  # as they stood when it was reported


@dataclass
class _Stream:
    """One metric of one rank in one attempt."""

    kinds: frozenset[str] = frozenset()
    fits: int = 0
    misses: list[Finding] = field(default_factory=list)  # running; the first is told
    tries: int = 0
    last: int = 0  # steps done at the report before
    shares: list[float] = field(default_factory=list)
    waiting: deque[_Waiting] = field(default_factory=lambda: deque(maxlen=64))
    done: bool = False  # told, or given up


class Metrics:
    """Compares reported losses with recorded ones."""

    id = "metrics"

    def __init__(self) -> None:
        self._histories: dict[tuple[int, int], _History] = {}
        self._means: dict[int, _Means] = {}
        self._streams: dict[tuple[int, int, str], _Stream] = {}
        self._of_rank: dict[tuple[int, int], list[_Stream]] = {}
        self._world = 1
        self._unchecked_told = False

    def observe(self, index: int, entry: Entry, detail: Mapping[Stage, Detail] | None) -> Iterable[Finding]:
        match entry:
            case StepRecord():
                return self._record(entry)
            case Reported():
                self._report(index, entry)
            case TrackerSeen() if not self._unchecked_told:
                self._unchecked_told = True
                return (_unchecked(index, entry),)
            case _:
                pass
        return ()

    def finish(self) -> Iterable[Finding]:
        return [f for s in self._streams.values() for w in list(s.waiting) for f in self._judge(s, w)]

    def _record(self, entry: StepRecord) -> Iterable[Finding]:
        if entry.loss is None or entry.optimizer or not math.isfinite(entry.loss):
            return ()
        key = entry.attempt, entry.rank
        history = self._histories.get(key)
        if history is None:
            if len(self._histories) >= MAX_RANKS:
                return ()
            history = self._histories[key] = _History()
        self._world = entry.world
        history.add(entry.step, entry.loss)
        self._means.setdefault(entry.attempt, _Means()).add(entry.step, entry.loss)
        streams = self._of_rank.get(key)
        return list(self._due(entry, streams)) if streams else ()

    def _report(self, index: int, entry: Reported) -> None:
        key = entry.attempt, entry.rank, f"{entry.tracker}/{entry.name}"
        history = self._histories.get(key[:2])
        stream = self._streams.get(key)
        if stream is None:
            if len(self._streams) >= MAX_STREAMS:
                return
            stream = self._streams[key] = _Stream()
            self._of_rank.setdefault(key[:2], []).append(stream)
        if history is not None and history.losses and not stream.done:
            stream.waiting.append(_Waiting(index, entry, dict(history.averages)))

    def _due(self, record: StepRecord, streams: list[_Stream]) -> Iterator[Finding]:
        """Judge what was reported before this step was made, once all ranks' losses are there or took too long."""
        means = self._means[record.attempt]
        for stream in streams:
            while stream.waiting and stream.waiting[0].entry.step <= record.step:
                done = stream.waiting[0].entry.step
                if means.at(done - 1, record.world) is None and record.step < done + _PATIENCE:
                    break
                yield from self._judge(stream, stream.waiting.popleft())

    def _judge(self, stream: _Stream, waiting: _Waiting) -> Iterator[Finding]:
        entry = waiting.entry
        candidates = self._candidates(self._histories[entry.attempt, entry.rank], stream, waiting)
        if stream.fits >= SURE and not stream.misses and self._fits_again(stream, entry.value, candidates):
            stream.last = entry.step
            return
        known = dict(self._candidates(self._histories[entry.attempt, entry.rank], stream, waiting))
        stream.last = entry.step
        if stream.done or not known:
            return
        fitting = frozenset(_fitting(entry.value, known))
        if stream.fits < FITS:
            yield from self._learn(stream, waiting, fitting, known)
            return
        if fitting & stream.kinds:
            stream.kinds &= fitting
            stream.fits += 1
            stream.misses.clear()
            return
        expected = min((known[k] for k in stream.kinds if k in known), key=_away(entry.value), default=math.nan)
        stream.misses.append(_differs(waiting, expected))
        if len(stream.misses) >= MISSES:
            stream.done = True
            yield stream.misses[0]

    def _fits_again(self, stream: _Stream, value: float, candidates: Iterator[tuple[str, float]]) -> bool:
        """Whether a way that is known by now fits: most metrics are the loss of a step, which is looked at first."""
        return any(_close(value, expected) for kind, expected in candidates if kind in stream.kinds)

    def _learn(
        self, stream: _Stream, waiting: _Waiting, fitting: frozenset[str], known: dict[str, float]
    ) -> Iterator[Finding]:
        """Find out which way of recomputing fits this metric."""
        kinds = stream.kinds & fitting if stream.fits else fitting
        if kinds:
            stream.kinds, stream.fits = kinds, stream.fits + 1
            return
        stream.tries += 1
        stream.kinds, stream.fits = fitting, int(bool(fitting))
        loss = known.get("step 0")
        stream.shares.append(waiting.entry.value / loss if loss else math.nan)
        if stream.tries >= TRIES:
            stream.done = True
            yield _a_share(waiting, stream.shares) if _steady(stream.shares) else _never_fits(waiting)

    def _candidates(self, history: _History, stream: _Stream, waiting: _Waiting) -> Iterator[tuple[str, float]]:
        """Every value that an honest report could have, by the way in which it is computed."""
        done = waiting.entry.step
        means = self._means[waiting.entry.attempt]
        for lag in _LAGS:
            if (loss := history.at(done - 1 - lag)) is not None:
                yield f"step {lag}", loss
            if (mean := means.at(done - 1 - lag, self._world)) is not None:
                yield f"ranks {lag}", mean
        own = history.up_to(done)
        ranks = [means.at(s, self._world) for s in range(done - len(own), done)]
        for name, values in (("mean", own), ("ranks mean", [v for v in ranks if v is not None])):
            if name == "ranks mean" and len(values) != len(own):
                continue
            yield from _of_spans(name, values, done - stream.last, whole=len(values) == done)
        for name, value in waiting.averages.items():
            yield name, value
            if name.endswith("from 0"):
                yield f"{name}, corrected", value / (1 - float(name.split()[1]) ** done)


def _of_spans(name: str, values: list[float], since: int, *, whole: bool) -> Iterator[tuple[str, float]]:
    """Means over the last values; where there are no more (`whole`), a longer span has the mean of all."""
    sums = [0.0]
    for value in reversed(values):
        sums.append(sums[-1] + value)
    for count in _MEANS:
        filled = min(count, len(values)) if whole else count
        if 0 < filled < len(sums):
            yield f"{name} {count}", sums[filled] / filled
    if 0 < since < len(sums):
        yield f"{name} since", sums[since] / since


def _fitting(value: float, known: dict[str, float]) -> Iterator[str]:
    for kind, expected in known.items():
        if _close(value, expected):
            yield kind
        elif kind in ("step 0", "step -1", "ranks 0", "mean since", "ranks mean since"):
            yield from _as_multiple(kind, value, expected)


def _as_multiple(kind: str, value: float, recorded: float) -> Iterator[str]:
    """A gradient scaler or a number of micro-batches stands between the loss that is reported and the one recorded."""
    if value == 0 or recorded == 0 or (value > 0) != (recorded > 0):
        return
    ratio = recorded / value
    power = round(math.log2(ratio))
    if power >= 5 and _close(ratio, 2.0**power):
        yield f"{kind}, scaled"
    for times, text in ((ratio, "times"), (1 / ratio, "parts")):
        if 2 <= round(times) <= _MOST_TIMES and _close(times, round(times)):
            yield f"{kind}, {round(times)} {text}"


def _close(value: float, expected: float) -> bool:
    return abs(value - expected) <= max(6e-5, 2e-4 * abs(expected))


def _away(value: float) -> Callable[[float], float]:
    return lambda expected: abs(expected - value)


def _steady(shares: list[float]) -> bool:
    """Whether all are one share: not 1, and the same to a thousandth."""
    middle = sorted(shares)[len(shares) // 2]
    return all(abs(share - middle) <= 1e-3 * abs(middle) for share in shares)


def _differs(waiting: _Waiting, expected: float) -> Finding:
    entry = waiting.entry
    return _finding(
        waiting,
        Severity.MEDIUM,
        f"Rank {entry.rank} reports {entry.name} = {entry.value:.6g} to {entry.tracker} after step {entry.step - 1}, "
        f"where the recorded losses come to {expected:.6g}; it fitted before.",
        _BENIGN,
    )


def _a_share(waiting: _Waiting, shares: list[float]) -> Finding:
    entry = waiting.entry
    return _finding(
        waiting,
        Severity.LOW,
        f"What rank {entry.rank} reports as {entry.name} to {entry.tracker} is always {shares[-1]:.4f} of the "
        "recorded loss.",
        ("the script reports in another unit than it trains on (bits), or a weighted loss",),
    )


def _never_fits(waiting: _Waiting) -> Finding:
    entry = waiting.entry
    return _finding(
        waiting,
        Severity.INFO,
        f"{entry.name}, which is reported to {entry.tracker}, is not computed from recorded losses in any way that is "
        "known here: it is not checked.",
        ("it is a part of the loss, that of one micro-batch, or averaged in a way of the script's own",),
    )


def _unchecked(index: int, entry: TrackerSeen) -> Finding:
    return Finding(
        detector=Metrics.id,
        severity=Severity.INFO,
        confidence=Confidence.HIGH,
        seen=f"{entry.unchecked} and perhaps other metrics that are reported to {entry.tracker} are not checked.",
        expected="Only metrics that are named as the training loss are recomputed.",
        step=entry.step,
        attempt=entry.attempt,
        ranks=(entry.rank,),
        evidence=(index,),
        benign=("most metrics are no training loss",),
    )


def _finding(waiting: _Waiting, severity: Severity, seen: str, benign: tuple[str, ...]) -> Finding:
    entry = waiting.entry
    return Finding(
        detector=Metrics.id,
        severity=severity,
        confidence=Confidence.MEDIUM,
        seen=seen,
        expected="The training loss that is reported is the one that was trained on.",
        step=entry.step,
        attempt=entry.attempt,
        ranks=(entry.rank,),
        evidence=(waiting.index,),
        benign=benign,
    )
