"""What a script's own checkpoint may lack, written beside it, and now and then all state, for replays.

Rules
-----
* The complement is what lies outside model and optimizer: generators, loaders, scalers, layouts, settings. The last
  few are kept in memory: another rank may save a checkpoint of a step that this one has left already, and says so
  by a mark in the run's folder.
* Full snapshots are taken in pairs, at most every `snapshot_every` steps, and at a power of two of that where a pair
  costs more than its share of training time. So ranks that settle on other distances still meet.
* The newest ones are kept, up to `FULL_KEPT` and this rank's part of the space. A rank keeps no older state that rank 0
  has let go: the replicas' weights are rank 0's.
"""

from __future__ import annotations

import collections
import os
import time
from typing import TYPE_CHECKING, Any

from trainwarden.record import names as naming
from trainwarden.record import rng, snapshot, stages

if TYPE_CHECKING:
    from trainwarden.record.recorder import Recorder

TICK_NS = 100_000_000  # more than a tick of any file system's clock
FULL_KEPT = 64
_FEWEST_KEPT = 4
_MOST_DOUBLINGS = 24


def spacing(every: int, pair_seconds: float, step_seconds: float, share: float) -> int:
    """Steps between pairs of states: `every`, doubled until a pair takes at most `share` of the time between them."""
    if share <= 0 or step_seconds <= 0:
        return every
    found = every
    for _ in range(_MOST_DOUBLINGS):
        if pair_seconds <= share * step_seconds * found:
            break
        found *= 2
    return found


def too_old(sizes: list[tuple[str, int]], space: int, elsewhere: set[str]) -> list[str]:
    """The names to remove of (name, bytes), oldest first, by count, space and what rank 0 still has (if known)."""
    kept, used, gone = 0, 0, []
    for name, size in reversed(sizes):
        fits = kept < FULL_KEPT and (kept < _FEWEST_KEPT or used + size <= space)
        useful = not elsewhere or name in elsewhere or name > max(elsewhere)
        if fits and useful:
            kept, used = kept + 1, used + size
        else:
            gone.append(name)
    return gone


class Snapshots:
    """The snapshots of one rank."""

    def __init__(self, recorder: Recorder) -> None:
        self._recorder = recorder
        self._beside = -1, ""  # steps done, path below the run's folder
        self._recent: collections.deque[tuple[int, dict[str, Any]]] = collections.deque(maxlen=4)
        self._marks_seen = 0
        self._spacing = 0
        self._pair = 0.0  # seconds that the newest pair of states took
        self._begun = time.perf_counter(), 0  # and the steps done by then

    def boundary(self) -> None:
        """A step is complete on this rank."""
        every = self._recorder.joined.snapshot_every if self._recorder.joined else 0
        self._spacing = self._spacing or every
        if self._recorder.done == 1:
            self._begun = time.perf_counter(), 1  # what the first step compiles and allocates is none of the others
        # In pairs: a script that fetches a batch one step ahead is put into two states in a row.
        if every > 0 and self._recorder.done >= every and (place := self._recorder.done % self._spacing) in (0, 1):
            self._timed_full(first=place == 0)
        self._recent.append((self._recorder.done, self.complement()))
        self.follow_marks()

    def follow_marks(self) -> None:
        """Write this rank's complement for steps at which another rank has saved a checkpoint."""
        if self._recorder.world < 2 or self._recorder.joined is None:
            return
        marks = self._recorder.folder.parent / f"marks-a{self._recorder.joined.attempt}"
        try:
            changed = marks.stat().st_mtime_ns
        except FileNotFoundError:
            return
        if changed == self._marks_seen:
            return
        # The kernel's time stamps are coarse: a mark made in the same tick as this look does not change the stamp.
        if time.time_ns() - changed > TICK_NS:
            self._marks_seen = changed
        marked = {int(name) for name in os.listdir(marks)}
        for done, complement in self._recent:
            path = self._recorder.folder / f"side-{done:08d}.safetensors"
            if done in marked and not path.exists():
                snapshot.write(path, complement)

    def complement(self) -> dict[str, Any]:
        """What lies outside model and optimizer: generators, loaders, scalers, layouts."""
        return {
            "done": self._recorder.done,
            "rng": rng.states(),
            "loaders": self._recorder.loaders.state(),
            "epochs": [{"loader": b["loader"], "epoch": b["epoch"]} for b in self._recorder.loaders.begins],
            "scalers": [s.state_dict() for s in self._recorder.scalers],
            "layouts": self._recorder.layouts,
            "hyper": [stages.settings(o) for o in self._recorder.optimizers],
        }

    def beside(self) -> str:
        """Write the complement beside a checkpoint of the script's own; its path below the run's folder."""
        if self._recorder.joined is None:
            return ""
        now = self._recorder.done
        if self._beside[0] != now:
            self._beside = now, self._write(now, self.complement())
        return self._beside[1]

    def beside_earlier(self, done: int) -> str:
        """The same for a step kept from before, "" when it no longer is; any thread may ask."""
        complement = dict(self._recent).get(done)
        return self._write(done, complement) if complement else ""

    def _write(self, done: int, complement: dict[str, Any]) -> str:
        if self._recorder.joined is None:
            return ""
        path = self._recorder.folder / f"side-{done:08d}.safetensors"
        snapshot.write(path, complement)
        if self._recorder.world > 1:
            marks = self._recorder.folder.parent / f"marks-a{self._recorder.joined.attempt}"
            marks.mkdir(parents=True, exist_ok=True)
            (marks / str(done)).touch()
        return str(path.relative_to(self._recorder.joined.run_dir))

    def _timed_full(self, *, first: bool) -> None:
        """Write a state, and after the second of a pair settle how far the next is."""
        begin = time.perf_counter()
        since, done = self._begun
        steps = self._recorder.done - done
        self._write_full()
        self._pair = time.perf_counter() - begin + (0.0 if first else self._pair)
        joined = self._recorder.joined
        if joined is not None and steps > 0 and (not first or self._spacing == 1):
            pair = self._pair * (2 if first else 1)
            self._spacing = spacing(joined.snapshot_every, pair, (begin - since) / steps, joined.snapshot_share)

    def _write_full(self) -> None:
        """Write everything needed to put another process of this script into this state."""
        snapshot.write(
            self._recorder.folder / f"full-{self._recorder.done:08d}.safetensors",
            self.complement() | self._full_state(),
        )
        self._prune()

    def _prune(self) -> None:
        folder, rank = self._recorder.folder, self._recorder.rank
        replica = rank > 0 and bool(self._recorder.layouts)
        first = folder.with_name(f"{folder.name.rpartition('-r')[0]}-r0")
        elsewhere = {p.name for p in first.glob("full-*.safetensors")} if replica else set()
        mib = self._recorder.joined.snapshot_mib if self._recorder.joined else 0
        ranks = int(os.environ.get("LOCAL_WORLD_SIZE", self._recorder.world) or 1)
        sizes = [(p.name, p.stat().st_size) for p in sorted(folder.glob("full-*.safetensors"))]
        for name in too_old(sizes, mib * (1 << 20) // max(1, ranks), elsewhere):
            (folder / name).unlink(missing_ok=True)

    def _full_state(self) -> dict[str, Any]:
        """Parameters, buffers and optimizer state by name; left to rank 0 where DDP keeps replicas."""
        if self._recorder.rank and self._recorder.layouts:
            return {}
        roots = [r for ref in self._recorder.roots if (r := ref()) is not None]
        return {
            "weights": {n: t for o in self._recorder.optimizers for n, t in stages.weights(o, self._recorder.names)},
            "buffers": dict(naming.buffers(roots)),
            "state": {
                str(i): dict(stages.optimizer_state(o, self._recorder.names))
                for o, i in self._recorder.optimizers.items()
            },
        }
