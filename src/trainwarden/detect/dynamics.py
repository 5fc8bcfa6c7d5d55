"""The loss leaves the band of its own honest noise: the only statistical detector. It may suspect, never conclude.

Of each followed rank and optimizer, the last `WINDOW` losses give a level (their median) and a noise (the median
absolute deviation of each loss from the median of those just before it, Hampel 1974, scaled to a standard deviation of
normal noise). Told are, once `WINDOW` losses are known:

* a loss that is not a number or infinite (medium: whatever its cause, the step was of no use);
* a spike: `SPIKE` noises away from the level in one step, and twice as far as any of the window's losses was;
* a shift: the median of the last `RECENT` losses is `SHIFT` noises away from that of the losses before them.

Positive losses are compared as logarithms, so that noise in proportion to the loss stays one band as it falls. A shift
by a power of two is the gradient scaler's new scale, and is not told. Few sabotages that matter move a loss out of this
band (docs/threat-model.md); honest jobs do at the end of a warm-up or an epoch. So severity and confidence are low.
"""

from __future__ import annotations

import math
from collections import deque
from collections.abc import Iterable, Iterator, Mapping
from statistics import median

from trainwarden.model import Confidence, Detail, Entry, Finding, Severity, Stage, StepRecord

WINDOW, RECENT = 96, 12
SPIKE, SHIFT = 12.0, 8.0
MAX_STREAMS = 8  # (rank, optimizer); what happens to the loss of all ranks shows in these
QUIET = 500  # steps after a finding in which no other of its kind is told: one cause shows in many steps
_LOCAL = 8  # losses that one is compared with for the noise
_LEAST = 0.01  # noise below which a loss counts as smooth: 1 % of it
_NORMAL = 1.4826  # MAD to standard deviation
_BENIGN = (
    "the learning rate, the data or the objective changes here on purpose (end of a warm-up, a new epoch)",
    "an unusual batch, or training that is about to diverge by itself",
)


class _Stream:
    """The losses of one rank and optimizer."""

    def __init__(self) -> None:
        self.losses: deque[float] = deque(maxlen=WINDOW)
        self.noises: deque[float] = deque(maxlen=WINDOW)

    def compare(self, loss: float) -> tuple[str, float, float] | None:
        """What is odd about the next loss (kind, level, noises away), then keep it."""
        odd = self._odd(loss) if len(self.losses) == WINDOW else None
        if len(self.losses) >= _LOCAL:
            near = median(list(self.losses)[-_LOCAL:])
            self.noises.append(abs(_scaled(loss, near) - _scaled(near, near)))
        self.losses.append(loss)
        return odd

    def _odd(self, loss: float) -> tuple[str, float, float] | None:
        noise = max(_NORMAL * median(self.noises), _LEAST)
        held = list(self.losses)
        level = median(held[-WINDOW // 4 :])
        away = abs(_scaled(loss, level) - _scaled(level, level)) / noise
        beyond = away * noise > 2 * max(self.noises)  # small batches have heavy tails
        if away > SPIKE and beyond and not _is_power_of_two(loss, level, noise):
            return "spike", level, away
        before, recent = median(held[: -RECENT + 1][-WINDOW // 2 :]), median([*held[-RECENT + 1 :], loss])
        away = abs(_scaled(recent, before) - _scaled(before, before)) / noise
        if away > SHIFT and recent > before and not _is_power_of_two(recent, before, noise):
            return "shift", before, away
        return None


class Dynamics:
    """Follows the losses of a few ranks."""

    id = "dynamics"

    def __init__(self) -> None:
        self._streams: dict[tuple[int, int], _Stream] = {}
        self._quiet_until: dict[str, int] = {}

    def observe(self, index: int, entry: Entry, detail: Mapping[Stage, Detail] | None) -> Iterable[Finding]:
        if not isinstance(entry, StepRecord) or entry.loss is None or entry.skipped:
            return ()
        key = entry.rank, entry.optimizer
        stream = self._streams.get(key)
        if stream is None:
            if len(self._streams) >= MAX_STREAMS:
                return ()
            stream = self._streams[key] = _Stream()
        return list(self._take_in(index, entry, entry.loss, stream))

    def finish(self) -> Iterable[Finding]:
        return ()

    def _take_in(self, index: int, record: StepRecord, loss: float, stream: _Stream) -> Iterator[Finding]:
        if not math.isfinite(loss):
            if self._tells("number", record.step):
                yield _finding(index, record, Severity.MEDIUM, f"The loss of step {record.step} is {loss}.")
            return
        odd = stream.compare(loss)
        if odd and self._tells(odd[0], record.step):
            kind, level, away = odd
            how = "jumps to" if kind == "spike" else "has shifted and stands at"
            seen = f"The loss {how} {loss:.4g} at step {record.step}, {away:.0f} noises away from {level:.4g}."
            yield _finding(index, record, Severity.LOW, seen)

    def _tells(self, kind: str, step: int) -> bool:
        if step < self._quiet_until.get(kind, -1):
            return False
        self._quiet_until[kind] = step + QUIET
        return True


def _scaled(value: float, level: float) -> float:
    """A loss on the scale that noise is compared on: logarithmic where both are positive, relative elsewhere."""
    if value > 0 and level > 0:
        return math.log(value)
    return value / max(abs(level), 1e-12)


def _is_power_of_two(value: float, level: float, noise: float) -> bool:
    if value <= 0 or level <= 0:
        return False
    times = math.log2(value / level)
    return round(times) != 0 and abs(times - round(times)) * math.log(2) < 2 * noise


def _finding(index: int, record: StepRecord, severity: Severity, seen: str) -> Finding:
    return Finding(
        detector=Dynamics.id,
        severity=severity,
        confidence=Confidence.LOW,
        seen=seen,
        expected="The loss moves within the band of its own noise.",
        step=record.step,
        attempt=record.attempt,
        ranks=(record.rank,),
        stage=Stage.ACTIVATIONS,
        evidence=(index,),
        benign=_BENIGN,
        wall_ns=record.wall_ns,
    )
