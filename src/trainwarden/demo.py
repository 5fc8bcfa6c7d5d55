"""The whole story on one machine: an honest run, a sabotage, its proof, its undoing.

Rules
-----
* The demo scripts nothing but the attack and the commands: everything else is what `trainwarden` does for any run.
* The "shared environment" is a private copy, the attack is a program of its own (attacks/t01_library_patch.py), and
  both live in the demo's folder.
* The truth that the result is compared with comes from the attack's own marker file and from an unguarded honest run.
"""

from __future__ import annotations

import hashlib
import json
import os
import shutil
import subprocess
import sys
import time
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

import trainwarden
from trainwarden.casefile import CaseFile, earliest_divergence, explanation_of, load_case
from trainwarden.errors import CannotDecide, UsageError
from trainwarden.lineage import last_cleared
from trainwarden.model import Finding, Location, StepRecord
from trainwarden.redteam.environment import copy_environment
from trainwarden.store import Store

if TYPE_CHECKING:
    from rich.console import Console

REPOSITORY = Path(trainwarden.__file__).parents[2]
PACKAGES = ("torch", "numpy", "safetensors", "tokenizers", "blake3", "msgspec")
DATA = ("--kind", "posttrain", "--limit", "1500")
STEPS, CHECKPOINT_EVERY, STRIKE_AT = 24, 6, 12
TENSOR, RANK = "layers.22.self_attn.q_proj.up", 1
PROMPTS = ("hello! how are you doing today?", "what are your hobbies?", "i'm so tired, i had three exams today")


class Demo:
    """The folder of one demo and its console."""

    def __init__(self, folder: Path, console: Console) -> None:
        self.folder, self.console = folder.absolute(), console
        self.env, self.data = self.folder / "shared-env", self.folder / "data"
        self.store_path, self.job = self.folder / "store", self.folder / "job"
        self.marker = self.folder / "attack-marker"
        self.variables = dict(os.environ) | {
            "PATH": f"{self.env / 'bin'}{os.pathsep}{os.environ.get('PATH', '')}",
            "TRAINWARDEN_STORE": str(self.store_path),
            "OMP_NUM_THREADS": "1",
            "PYTHONWARNINGS": "ignore",
        }
        self.variables.pop("PYTHONPATH", None)

    # ------------------------------------------------------------------ set-up

    def set_up(self) -> None:
        """Make the shared environment and the data once; give the job a fresh folder.

        Raises:
            UsageError: this is not a source checkout, or the workload's packages are missing.
        """
        source = REPOSITORY / "workloads" / "chat"
        if not source.is_dir():
            raise UsageError(
                "the demo needs the source checkout: workloads/ and attacks/ are not in the wheel",
                hint="clone the repository and run `make demo` there",
            )
        self.folder.mkdir(parents=True, exist_ok=True)
        if not (self.env / "complete").exists():
            self.say("copying PyTorch and what it needs into a shared environment of the demo's own")
        copy_environment(self.env, PACKAGES)
        if not (self.data / "data.json").exists():
            self.say("preparing the conversations and the base model")
            self.call([sys.executable, str(source / "data.py"), "--out", str(self.data), *DATA])
        shutil.rmtree(self.job, ignore_errors=True)
        shutil.copytree(source, self.job / "chat", ignore=shutil.ignore_patterns("__pycache__"))
        self.marker.unlink(missing_ok=True)

    def seal_once(self) -> None:
        """Seal the environment before the clock runs, so that its files are in the store."""
        if not self.store_path.exists():
            self.say("sealing the environment for the first time (every file is hashed and copied)")
            self.warden("run", "--", "python", "-c", "pass", check=False)

    # ------------------------------------------------------------------ the story

    def training(self, out: str) -> list[str]:
        """The launch command that a user would type."""
        return [
            *("torchrun", "--nproc-per-node", "2", "--max-restarts", "2", "chat/posttrain.py"),
            *("--data", str(self.data), "--out", out),
            *("--steps", str(STEPS), "--checkpoint-every", str(CHECKPOINT_EVERY), "--layers-lora", "8"),
        ]

    def attacked_run(self) -> str:
        """Train guarded while the insider strikes; the run's id."""
        command = [*_cli(), "run", "--on-environment-change", "alert", "--", *self.training("out")]
        self.show(command)
        process = subprocess.Popen(command, cwd=self.job, env=self.variables, stdout=self.stdout)
        attack = subprocess.Popen(
            [
                *(sys.executable, "-m", "attacks.t01_library_patch"),
                *("--environment", str(self.env), "--below", str(process.pid)),
                *("--wait-for", str(self.job / "out" / f"step-{STRIKE_AT:06d}")),
                *("--tensor", TENSOR, "--rank", str(RANK), "--marker", str(self.marker)),
            ],
            cwd=REPOSITORY,
            stdout=subprocess.DEVNULL,
        )
        try:
            code = process.wait()
        finally:
            attack.terminate()
            attack.wait()
        if code != 0 or not self.marker.exists():
            struck = "struck" if self.marker.exists() else "never struck"
            raise CannotDecide(
                f"the attacked run ended with {code} and the attack {struck}", hint=f"the log is in {self.store_path}"
            )
        return self.case("last").run

    def attacked_steps(self) -> list[int]:
        """The steps whose gradient was flipped, from the attack's own marker."""
        return [int(line.split()[1]) for line in self.marker.read_text().splitlines()]

    def honest_state(self) -> str:
        """Train unguarded in the restored environment; the digest of the final weights."""
        self.show(self.training("honest"))
        self.call(self.training("honest"), cwd=self.job)
        return final_digest(self.job / "honest")

    def chat(self, checkpoint: Path) -> None:
        """Ask the cleared checkpoint a few things."""
        words = [word for prompt in PROMPTS for word in ("--prompt", prompt)]
        command = ["python", "chat/chat.py", "--data", str(self.data), "--checkpoint", str(checkpoint), *words]
        self.show(command)
        self.call(command, cwd=self.job)

    # ------------------------------------------------------------------ running commands

    def case(self, run: str) -> CaseFile:
        """A run read from the demo's store."""
        return load_case(Store.open(self.store_path), run)

    def warden(self, *words: str, check: bool = True, ok: Sequence[int] = (0,)) -> None:
        """Run a verb of ours as a user would. Raises CannotDecide when its exit code is not expected."""
        self.show(["trainwarden", *words])
        code = subprocess.run([*_cli(), *words], cwd=self.job, env=self.variables, stdout=self.stdout).returncode
        if check and code not in ok:
            raise CannotDecide(
                f"trainwarden {words[0]} ended with {code}", hint=f"the demo's store is {self.store_path}"
            )

    def call(self, command: Sequence[str], cwd: Path | None = None) -> None:
        """Run another program. Raises CannotDecide when it fails."""
        path = shutil.which(command[0], path=self.variables["PATH"]) or command[0]
        code = subprocess.run([path, *command[1:]], cwd=cwd, env=self.variables, stdout=self.stdout).returncode
        if code != 0:
            raise CannotDecide(f"{command[0]} ended with {code}")

    @property
    def stdout(self) -> Any:
        """Where programs' output goes: to the terminal, or beside the JSON."""
        return sys.stderr if self.console.stderr else None

    def say(self, text: str) -> None:
        self.console.print(f"[bold]▸ {text}[/]")

    def show(self, command: Sequence[str]) -> None:
        words = " ".join(w if w and " " not in w else json.dumps(w) for w in command)
        self.console.print(f"[dim]$ {words.replace(' '.join(_cli()), 'trainwarden')}[/]", soft_wrap=True)


class _Guarded(NamedTuple):
    """The attacked run: its id, the steps that the insider hit, and when the first finding came."""

    run: str
    attacked: list[int]
    finding_step: int


class _Evidence(NamedTuple):
    """What audit and explanation came to."""

    at: Location
    cause: str | None
    file: str
    cleared_step: int


class _Recovery(NamedTuple):
    """The recovered run, and whether it ended in the weights of an honest one."""

    run: str
    honest: bool


def tell(demo: Demo) -> dict[str, Any]:
    """Play the story and return the result object of `trainwarden demo --json`.

    Raises:
        UsageError, CannotDecide: a part of it could not be done.
    """
    begin = time.monotonic()
    demo.set_up()
    demo.seal_once()
    set_up = time.monotonic() - begin
    begin = time.monotonic()
    guarded = _attack(demo)
    evidence = _prove(demo, guarded.run)
    recovery = _recover(demo, guarded.run)
    report = _tell_all(demo, guarded.run, recovery.run)
    return {
        "attacked_steps": guarded.attacked,
        "attacked_rank": RANK,
        "attacked_tensor": TENSOR,
        "live_finding_step": guarded.finding_step,
        "verdict_step": evidence.at.step,
        "verdict_rank": evidence.at.rank,
        "verdict_stage": str(evidence.at.stage),
        "verdict_tensor": evidence.at.tensor,
        "digest_reproduced": evidence.cause is not None,
        "cause": evidence.cause,
        "file": evidence.file,
        "recovered_from_step": evidence.cleared_step,
        "final_state_equals_honest_run": recovery.honest,
        "run": guarded.run,
        "recovered_run": recovery.run,
        "report": str(report),
        "seconds": round(time.monotonic() - begin, 1),
        "set_up_seconds": round(set_up, 1),
    }


def _attack(demo: Demo) -> _Guarded:
    demo.say("1. Two ranks train a chat assistant. An insider edits the shared PyTorch and kills a worker.")
    demo.say("   (policy here: alert and go on; the default policy would have refused the restart)")
    run = demo.attacked_run()
    # Now: the explanation will execute the payload again.
    return _Guarded(run, demo.attacked_steps(), live_finding_step(demo.case(run)))


def _prove(demo: Demo, run: str) -> _Evidence:
    demo.say("2. The run as recorded: findings are suspicions, nothing is proved yet.")
    demo.warden("show", run, ok=(0, 1, 2))
    demo.say("3. Audit: replay from sealed inputs in a clean environment.")
    demo.warden("audit", run, "--first", ok=(1,))
    demo.say("4. Explain: which change reproduces the tampered digest bit for bit?")
    demo.warden("explain", run)
    case = demo.case(run)
    found = earliest_divergence(case.entries)
    if found is None:
        raise CannotDecide("the audit found no divergence")
    told = explanation_of(case.entries, found[1])
    cleared = last_cleared(case.history.checkpoints)
    step = cleared.step if cleared else 0
    if told is None:
        return _Evidence(found[1].at, None, "", step)
    return _Evidence(found[1].at, told[1].cause, told[1].file, step)


def _recover(demo: Demo, run: str) -> _Recovery:
    demo.say("5. Recover: quarantine, restore the sealed environment, resume from the last cleared checkpoint.")
    demo.warden("recover", run, "--apply")
    again = demo.case("last").run
    demo.say("6. Audit the recovered run; its final checkpoint is served only if its whole lineage matched.")
    demo.warden("audit", again)
    final = last_cleared(demo.case(again).history.checkpoints)
    if final is None:
        raise CannotDecide("no checkpoint of the recovered run is cleared")
    demo.chat(Path(final.files[0].path).parent)
    demo.say("7. Compare with an honest run that never met the insider.")
    honest = demo.honest_state()
    return _Recovery(again, final_digest(demo.job / "out") == honest)


def _tell_all(demo: Demo, run: str, again: str) -> Path:
    demo.say("8. The report, and everything checked again offline.")
    report = demo.folder / "report.html"
    demo.warden("report", run, "-o", str(report), ok=(0, 1, 2))
    demo.warden("verify", again, ok=(0, 2))
    return report


def live_finding_step(case: CaseFile) -> int:
    """The step that the job had reached when the first finding was logged, −1 when there was none."""
    step = -1
    for entry in case.entries:
        if isinstance(entry, StepRecord):
            step = max(step, entry.step)
        elif isinstance(entry, Finding):
            return step
    return -1


def final_digest(out: Path) -> str:
    """SHA-256 of the last checkpoint's weights."""
    return hashlib.sha256((out / f"step-{STEPS:06d}" / "model.safetensors").read_bytes()).hexdigest()


def _cli() -> list[str]:
    return [sys.executable, "-m", "trainwarden.cli"]
