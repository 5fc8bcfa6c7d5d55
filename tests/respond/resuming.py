"""A small job in a tiny sealed environment that resumes by itself, and the verbs run on it as a user does."""

from __future__ import annotations

import json
import subprocess
import sys
from collections.abc import Sequence
from contextlib import closing
from dataclasses import dataclass
from pathlib import Path

import pytest

SUPERVISE = Path(__file__).parents[1] / "supervise"
sys.path.append(str(SUPERVISE))

from supervised import Ended, Place, entries_of, place  # noqa: E402

from trainwarden.casefile import CaseFile, load_case  # noqa: E402
from trainwarden.keys import SigningKey  # noqa: E402
from trainwarden.log.journal import LogWriter  # noqa: E402
from trainwarden.model import (  # noqa: E402
    Coverage,
    Diverged,
    Entry,
    Location,
    Matched,
    Segment,
    Stage,
    canonical,
)
from trainwarden.store import RunDir, Store  # noqa: E402

__all__ = ["place"]

# Trains to step TOTAL, saves every fourth step, goes on from the newest checkpoint that it finds.
JOB = """
import fake_rank, library, os, re, sys
total, out = int(sys.argv[1]), sys.argv[2]
resume = sys.argv[sys.argv.index("--resume") + 1] if "--resume" in sys.argv else ""
names = [n for n in os.listdir(out)] if os.path.isdir(out) else []
if not resume and names and "fresh" not in sys.argv:
    resume = os.path.join(out, max(names, key=lambda n: int(n[5:])))
done = int(re.findall(r"step-(\\d+)", resume)[-1]) if resume else 0
honest = fake_rank.values
fake_rank.values = lambda step: honest(done + step + library.VALUE - 1)
rank = fake_rank.Rank()
rank.start("")
rank.join("0/1")
if resume:
    rank.load(os.path.join(resume, "model.safetensors"))
for step in range(done + 1, total + 1):
    rank.steps("1")
    if step % 4 == 0:
        folder = os.path.join(out, f"step-{step}")
        os.makedirs(folder, exist_ok=True)
        rank.save(os.path.join(folder, "model.safetensors"))
        for name in ("notes.txt", "untold.txt"):
            with open(os.path.join(folder, name), "w") as f:
                f.write(f"step {step}")
        notes = os.path.join(folder, "notes.txt")
        rank.wire.send(fake_rank.wire.Saved(path=notes, step=rank.step, format="other", weights_seq=rank.seq - 1))
rank.bye("")
print("done from", done, "to", total)
"""


@dataclass
class Guarded:
    """One job folder, its environment and the runs made of it."""

    place: Place
    folder: Path
    out: Path

    @property
    def store(self) -> Store:
        return Store.open(self.place.store)

    @property
    def library(self) -> Path:
        return self.place.site / "library.py"

    def model(self, step: int) -> Path:
        return self.out / f"step-{step}" / "model.safetensors"

    def run(self, total: int = 12, *words: str) -> Ended:
        ended = self.place.run(self.folder, str(self.place.python), "job.py", str(total), str(self.out), *words)
        assert ended.code == 0, ended.err
        return ended

    def verb(self, *words: str, options: Sequence[str] = ()) -> subprocess.CompletedProcess[str]:
        argv = [sys.executable, "-m", "trainwarden.cli", words[0], "--store", str(self.place.store)]
        argv += [*words[1:], *options]
        return subprocess.run(
            argv, cwd=self.folder, env=self.place.env(), capture_output=True, text=True, timeout=120, check=False
        )

    def applied(self, run: str, *words: str) -> dict[str, object]:
        ended = self.verb("recover", run, "--apply", "--json", *words)
        assert ended.returncode == 0, ended.stderr
        return dict(json.loads(ended.stdout.splitlines()[-1]))

    def folder_of(self, run: str) -> RunDir:
        return self.store.run(run)

    def entries(self, run: str) -> list[Entry]:
        return entries_of(self.folder_of(run).log)

    def case(self, run: str) -> CaseFile:
        return load_case(self.store, run)

    def says(self, run: str, *verdicts: Entry) -> None:
        """Append verdicts to a run's log, as an audit does."""
        with closing(LogWriter.open(self.folder_of(run).log, SigningKey.load_or_create(self.place.key))) as log:
            log.append([canonical(v) for v in verdicts])


def matched(first: int, last: int, attempt: int = 0) -> Matched:
    segment = Segment(attempt=attempt, first=first, last=last)
    return Matched(segment=segment, coverage=Coverage(records=last - first + 1, digests=9), mode="start")


def diverged(first: int, last: int, at: int) -> Diverged:
    where = Location(step=at, rank=0, stage=Stage.WEIGHTS, tensor="layer.bias", recorded="a", replayed="b")
    return Diverged(segment=Segment(attempt=0, first=first, last=last), coverage=Coverage(), at=where, mode="start")


@pytest.fixture
def guarded(place: Place, tmp_path: Path) -> Guarded:
    folder = tmp_path / "job"
    folder.mkdir()
    (folder / "fake_rank.py").write_bytes((SUPERVISE / "fake_rank.py").read_bytes())
    (folder / "job.py").write_text(JOB)
    (place.site / "library.py").write_text("VALUE = 1\n")
    (place.site / "package").mkdir(exist_ok=True)
    (place.site / "package" / "part.py").write_text("PART = 1\n")
    for extra in place.site.glob("planted*"):
        extra.unlink()
    return Guarded(place, folder, tmp_path / "out")


@pytest.fixture
def sabotaged(guarded: Guarded) -> tuple[Guarded, str]:
    """A run of 12 steps: the first segment matched, the second diverged, the third matched from a bad state."""
    run = guarded.run(12).run_id
    guarded.says(run, matched(0, 3), diverged(4, 7, at=6), matched(8, 11))
    return guarded, run


def tree(folder: Path) -> dict[str, bytes]:
    """Every file below a folder with its bytes, but for Python's caches."""
    return {
        str(p.relative_to(folder)): p.read_bytes()
        for p in sorted(folder.rglob("*"))
        if p.is_file() and "__pycache__" not in p.parts
    }
