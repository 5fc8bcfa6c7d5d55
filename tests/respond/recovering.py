"""A real training job with a library of its own, guarded, attacked and recovered inside this process.

Supervisor, log, recorder, watch, seal of the code, replays and recovery are the real ones. Left out is the sealing of
this machine's whole environment: its manifest is empty, and the "clean room" is the current interpreter with the sealed
files of the job. What an insider does stands in `library.py`, which the job imports and the seal has.
"""

from __future__ import annotations

import os
import secrets
import shutil
import subprocess
import sys
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path

import pytest

sys.path.append(str(Path(__file__).parents[1] / "audit"))

from guarded_job import PlainRoom, PlainWorkspace

from trainwarden.audit import follow as follow_module
from trainwarden.audit import replay as replay_module
from trainwarden.casefile import read_entries
from trainwarden.config import AuditConfig, Config, PolicyConfig, RecordConfig, RecoverConfig
from trainwarden.detect import Engine, all_detectors
from trainwarden.keys import SigningKey
from trainwarden.model import Action, Entry, SignedSeal
from trainwarden.respond.answer import response_to
from trainwarden.respond.beside import Beside
from trainwarden.respond.chain import Chain, Means, Recovery, keep_going, recover
from trainwarden.respond.clear import clear, open_case
from trainwarden.respond.hears import Hears
from trainwarden.respond.point import Point
from trainwarden.seal import seal as seal_module
from trainwarden.seal.command import parse_command
from trainwarden.store import Store
from trainwarden.supervise.events import Event, RunResult, Started
from trainwarden.supervise.supervisor import supervise

STEPS = 12
LIBRARY = "def loss(step, x):\n    return x\n"

JOB = """
import hashlib, os, sys, torch, library
out, steps = sys.argv[sys.argv.index("--out") + 1], int(sys.argv[sys.argv.index("--steps") + 1])
torch.set_num_threads(1)
W, r = int(os.environ.get("WORLD_SIZE", "1")), int(os.environ.get("RANK", "0"))
torch.manual_seed(0)
m = torch.nn.Sequential(torch.nn.Linear(8, 16), torch.nn.Tanh(), torch.nn.Linear(16, 4)); net = m
if W > 1:
    torch.distributed.init_process_group("gloo"); net = torch.nn.parallel.DistributedDataParallel(m)
o = torch.optim.AdamW(m.parameters(), lr=1e-2)
os.makedirs(out, exist_ok=True)
done = max((int(n[3:-3]) for n in os.listdir(out) if n.startswith("ck-") and n.endswith(".pt")), default=0)
if done:
    c = torch.load(f"{out}/ck-{done}.pt", weights_only=True); m.load_state_dict(c["m"]); o.load_state_dict(c["o"])
for s in range(done, steps):
    x = torch.randn(8, 8, generator=torch.Generator().manual_seed(100 * s + r))
    library.loss(s, net(x).pow(2).mean()).backward(); o.step(); o.zero_grad()
    if (s + 1) % 2 == 0:
        if r == 0:
            torch.save(dict(m=m.state_dict(), o=o.state_dict()), f"{out}/new-{s}")
            os.rename(f"{out}/new-{s}", f"{out}/ck-{s + 1}.pt")
        if W > 1: torch.distributed.barrier()
h = hashlib.sha256(b"".join(p.detach().numpy().tobytes() for p in m.parameters())).hexdigest()
if r == 0: open(f"{out}/state.txt", "w").write(h)
"""


class Room(PlainRoom):
    """Its workspaces hold the files as they were sealed."""


class SealedWorkspace(PlainWorkspace):
    """A folder with the job's files as they were before anybody attacked."""

    def __init__(self, room: PlainRoom) -> None:
        self.room = room
        self.path = self.scratch = room.job.parent / f"replay-{secrets.token_hex(4)}"
        self.cwd = self.code = Path(self.map_path(str(room.job)))
        shutil.copytree(room.job.parent / "sealed", self.cwd)


@dataclass
class Attacked(Hears):
    """Hears what happens, and plays the insider whenever a run is about to start; keeps what it heard."""

    library: Path
    payloads: list[str] = field(default_factory=list)  # for the next starts, one each; "" leaves the file alone
    said: list[str] = field(default_factory=list)
    points: list[Point] = field(default_factory=list)

    def says(self, sentence: str) -> None:
        self.said.append(sentence)

    def replays(self, point: Point) -> None:
        self.points.append(point)

    def event(self, event: Event) -> None:
        if isinstance(event, Started) and self.payloads and (payload := self.payloads.pop(0)):
            self.library.write_text(payload)


@dataclass
class Job:
    """The job's folder, its store, and how it is run and recovered."""

    folder: Path
    store: Store
    key: SigningKey
    honest: str = ""

    @property
    def out(self) -> Path:
        return self.folder.parent / "out"

    @property
    def library(self) -> Path:
        return self.folder / "library.py"

    @property
    def state(self) -> str:
        """The digest of the final weights, "" when there are none."""
        path = self.out / "state.txt"
        return path.read_text() if path.exists() else ""

    def checkpoint(self, step: int) -> Path:
        return self.out / f"ck-{step}.pt"

    def argv(self, *launcher: str) -> list[str]:
        return [*(launcher or (sys.executable,)), "job.py", "--out", str(self.out), "--steps", str(STEPS)]

    def env(self) -> dict[str, str]:
        return {**os.environ, "OMP_NUM_THREADS": "1", "PYTHONDONTWRITEBYTECODE": "1"}

    def train(self, *launcher: str) -> None:
        """Train honestly and unguarded."""
        argv = self.argv(sys.executable, *launcher)
        subprocess.run(argv, cwd=self.folder, env=self.env(), check=True)

    def run(self, hears: Hears, config: Config, *launcher: str, beside: Beside | None = None) -> RunResult:
        """`trainwarden run`, without its recoveries."""
        command = parse_command(tuple(self.argv(*launcher)), str(self.folder), self.env())
        os.chdir(self.folder)
        return supervise(
            command,
            self.store,
            config,
            self.key,
            on_event=hears.event,
            watcher=lambda _: Engine(all_detectors()),
            response=response_to(config),
            beside=beside,
        )

    def means(self, hears: Hears, config: Config) -> Means:
        waits: Callable[[float], None] = lambda seconds: hears.says(f"waits {seconds:g} s")  # noqa: E731
        return Means(self.store, config, self.key, self.env(), hears, jobs=1, make_room=self.room, sleep=waits)

    def survive(self, hears: Hears, config: Config, *launcher: str, after: RunResult | None = None) -> Chain:
        """`trainwarden run` with all that policy makes of it, or what it makes of a run that has ended."""
        return keep_going(self.means(hears, config), after or self.run(hears, config, *launcher))

    def recover(self, hears: Hears, config: Config | None = None, run: str = "last") -> Recovery:
        """`trainwarden recover RUN --apply`."""
        return recover(self.means(hears, config or settings()), run)

    def room(self, store: Store, sealed: SignedSeal) -> PlainRoom:
        return Room(Path(sys.executable), self.folder, sealed.seal)

    def entries(self, run: str) -> Sequence[Entry]:
        return read_entries(self.store.run(run))[0]


def settings(*, verify: int = 2, room_after: int = 0, most: int = 5, ahead: bool = False, **asks: Action) -> Config:
    """A configuration in which detectors ask for actions: `kills=Action.RECOVER`."""
    return Config(
        audit=AuditConfig(budget="0"),
        record=RecordConfig(activations_every=4, snapshot_every=0),
        policy=PolicyConfig(detectors=dict(asks)),
        recover=RecoverConfig(verify_steps=verify, clean_room_after=room_after, most=most, clear_ahead=ahead),
    )


KILL = "(time.sleep(0.5), os.kill(os.getpid(), 9))"  # by then what was recorded is sent: records go by a thread


def payload(acts: Mapping[int, str]) -> str:
    """A library that does something else at some steps."""
    lines = "".join(f"    if step == {step}:\n        {act}\n" for step, act in acts.items())
    return f"import os, signal, time\ndef loss(step, x):\n{lines}    return x\n"


def patch(monkeypatch: pytest.MonkeyPatch) -> None:
    """Leave out the environment of this machine."""
    monkeypatch.setattr(seal_module, "scan_environment", lambda *_: {})
    for module in (replay_module, follow_module):
        monkeypatch.setattr(module, "new_workspace", SealedWorkspace)


def make_job(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Job:
    """A job in a folder of its own whose environment is not sealed."""
    patch(monkeypatch)
    monkeypatch.chdir(tmp_path)
    folder = tmp_path / "job"
    folder.mkdir()
    (folder / "job.py").write_text(JOB)
    (folder / "library.py").write_text(LIBRARY)
    shutil.copytree(folder, tmp_path / "sealed")
    return Job(folder, Store.open(tmp_path / "store", create=True), SigningKey(secrets.token_bytes(32)))


@pytest.fixture(scope="session")
def honest(tmp_path_factory: pytest.TempPathFactory) -> str:
    """The digest of the final weights of a run that nobody attacked."""
    folder = tmp_path_factory.mktemp("honest")
    with pytest.MonkeyPatch.context() as patch:
        job = make_job(folder, patch)
        job.train()
        return job.state


@pytest.fixture
def job(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, honest: str) -> Job:
    """A job that was never run."""
    return replace(make_job(tmp_path, monkeypatch), honest=honest)


@pytest.fixture(scope="session")
def recorded(tmp_path_factory: pytest.TempPathFactory, honest: str) -> tuple[Job, Path]:
    """A run that was killed at step 7 and audited up to step 6, and a copy of all that it left."""
    folder, copy = tmp_path_factory.mktemp("recorded"), tmp_path_factory.mktemp("copy") / "all"
    with pytest.MonkeyPatch.context() as patch:
        made = replace(make_job(folder, patch), honest=honest)
        hears = Attacked(made.library, [payload({7: KILL})])
        result = made.run(hears, settings())
        assert result.records == 7
        clear(made.store, open_case(made.store, "last"), made.key, hears, jobs=1, make_room=made.room)
    shutil.copytree(folder, copy, symlinks=True)
    return made, copy


@pytest.fixture
def stopped(recorded: tuple[Job, Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Job:
    """The recorded run as it was left, at its own place."""
    job, copy = recorded
    folder = job.folder.parent
    shutil.rmtree(folder)
    shutil.copytree(copy, folder, symlinks=True)
    patch(monkeypatch)
    monkeypatch.chdir(tmp_path)
    return job
