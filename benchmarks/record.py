"""What recording costs: time per step on two jobs, memory per rank, and the digest against the fastest safe hash.

Time: blocks of recorded and of plain steps alternate in one process (benchmarks/alternating.py), guarded for real by
`trainwarden run`. The supervisor works on a step's record during the next step, so the first step of a block is left
out where a block has several; the median of a recorded block is compared with the medians of the two plain blocks
beside it, and the figure is the median of that. The job's first steps are left out too. The direct cost is what was
spent on a record: the recorder's time inside the rank (its own clock) and the supervisor's CPU time over the cores, as
a share of a plain step. The supervisor's is what it used from the end of a recorded step to the end of the next one,
in which it works on that record; it also holds what the supervisor does by the clock. The median is the usual step;
the mean has in it the steps that look at code or sampled activations. A large job makes too few steps for pairs to rise
above this machine's noise, so its figure is the direct cost, and its pairs are given beside it. Memory: largest peak
resident size of a rank, guarded and not in turns, median difference. Digest: `tensor_digest` over a job's tensors
against keyed BLAKE3, SHA-256 and BLAKE2b over the same bytes, interleaved.

The chat job takes sequences of 128 tokens, as the project's first measurements of this workload did; the demo halves
them to be short, and what recording costs of its steps is given beside.

The large job's tokens: nanoGPT's published run of a model of this size (GPT-2, 124M) takes 491,520 tokens a step,
61,440 a rank (https://github.com/karpathy/nanoGPT/blob/master/config/train_gpt2.py, the comment on batch_size). Here
it is 16,384 a rank, in micro-batches of GPT-2's 1,024: as many as let four steps end within ten minutes. What recording
costs does not depend on the tokens, so its seconds are given too, and its share of any other step follows.
"""

from __future__ import annotations

import bisect
import hashlib
import json
import os
import secrets
import shutil
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

from blake3 import blake3

from benchmarks.machine import ROOT, merge
from trainwarden.commands.demo import default_folder
from trainwarden.demo import Demo
from trainwarden.model import StepRecord

CHAT_STEPS = 76
CHAT_BLOCK = 2
CHAT_TOKENS = 128  # of a sequence, two sequences a rank and step
MEMORY_PAIRS = 3
LARGE_MICRO_BATCHES, LARGE_BLOCK = 16, 1024


def main(parts: Sequence[str] = ()) -> None:
    """Measure the named parts ("chat", "large"), all without a name; the other part's figures stay as they are."""
    from rich.console import Console

    demo = Demo(default_folder(), Console(stderr=True))
    demo.set_up()
    demo.seal_once()
    for part in parts or PARTS:
        summary, runs = PARTS[part](demo)
        print(merge("record", part, summary, runs))


def chat(demo: Demo) -> tuple[dict[str, Any], list[Any]]:
    """The chat workload's post-training: time, memory, digests."""
    as_demo = [*demo.training("bench")]
    as_demo[as_demo.index("--steps") + 1] = str(CHAT_STEPS)
    as_demo[as_demo.index("--checkpoint-every") + 1] = "0"
    command = [*as_demo, "--block", str(CHAT_TOKENS)]
    runs = [alternate(demo, command, block=CHAT_BLOCK) for _ in range(2)]
    short = [alternate(demo, as_demo, block=CHAT_BLOCK)]
    memory = [peak(demo, command, guarded=g) for _ in range(MEMORY_PAIRS) for g in (True, False)]
    digests = {"small": digest_ratio(240, (16, 576)), "large": digest_ratio(12, (3072, 768))}
    summary = {
        "chat_overhead_pct": median(runs, "overheads_pct"),
        "chat_direct_pct": median(runs, "direct_pct"),
        "chat_direct_mean_pct": round(statistics.mean(value for r in runs for value in r["direct_pct"]), 2),
        "chat_supervisor_pct": round(statistics.mean(r["supervisor_pct"] for r in runs), 2),
        "chat_step_ms": round(statistics.median(r["plain_ms"] for r in runs), 1),
        "chat_tokens_per_rank_and_step": 2 * CHAT_TOKENS,
        "demo_overhead_pct": median(short, "overheads_pct"),
        "demo_direct_pct": median(short, "direct_pct"),
        "demo_step_ms": short[0]["plain_ms"],
        "recorder_mib": round(
            statistics.median(a["mib"] - b["mib"] for a, b in zip(memory[::2], memory[1::2], strict=True)), 1
        ),
        "digest_vs_blake3": round(digests["large"]["ratio"], 3),
        "digest_vs_blake3_small_tensors": round(digests["small"]["ratio"], 3),
    }
    return summary, [*runs, *short, *memory, digests]


def large(demo: Demo, micro_batches: int = LARGE_MICRO_BATCHES) -> tuple[dict[str, Any], list[Any]]:
    """A 110M-parameter job."""
    shutil.copy(ROOT / "benchmarks" / "large_job.py", demo.job / "chat" / "large_job.py")
    given = ["--steps", "4", "--micro-batches", str(micro_batches), "--block", str(LARGE_BLOCK)]
    runs = [alternate(demo, ["torchrun", "--nproc-per-node", "2", "chat/large_job.py", *given], block=1)]
    summary = {
        "large_overhead_pct": median(runs, "direct_pct"),
        "large_paired_pct": median(runs, "overheads_pct"),
        "large_step_ms": round(statistics.median(r["plain_ms"] for r in runs), 1),
        "large_tokens_per_rank_and_step": micro_batches * LARGE_BLOCK,
        "large_recording_s": round(statistics.median(s for r in runs for s in r["recording_s"]), 3),
        "large_weights_mb": round(runs[0]["weights"] / 1e6),
    }
    return summary, runs


PARTS: dict[str, Callable[[Demo], tuple[dict[str, Any], list[Any]]]] = {"chat": chat, "large": large}


def median(runs: Sequence[dict[str, Any]], name: str) -> float:
    """The median of a list of figures over all runs."""
    return round(statistics.median(value for r in runs for value in r[name]), 2)


def alternate(demo: Demo, command: Sequence[str], *, block: int) -> dict[str, Any]:
    """Run a command guarded with the alternating recorder; overheads of recorded blocks in per cent."""
    shutil.rmtree(demo.job / "bench", ignore_errors=True)
    library = demo.job / "lib"  # not this repository itself: a folder on PYTHONPATH is sealed whole
    library.mkdir(exist_ok=True)
    shutil.copy(ROOT / "benchmarks" / "alternating.py", library)
    with tempfile.TemporaryDirectory() as folder:
        out = Path(folder) / "times"
        env = demo.variables | {
            "TRAINWARDEN_RECORDER": "alternating:Alternating",
            "PYTHONPATH": str(library),
            "BENCH_OUT": str(out),
            "BENCH_BLOCK": str(block),
        }
        cli = [sys.executable, "-m", "trainwarden.cli", "run", "--on-environment-change", "alert", "--"]
        spent = supervisor_times([*cli, *command], demo.job, env)
        written = [json.loads(p.read_text()) for p in sorted(Path(folder).glob("times.rank*"))]
    ranks = [w["times"] for w in written]
    plain = statistics.median(t for times in ranks for recorded, t in times[block:] if not recorded)
    records = [e for e in demo.case("last").entries if isinstance(e, StepRecord) and e.step >= block]
    supervisor = after_recorded(spent, written[0], block) / (os.cpu_count() or 1)
    recording = [e.recorder_ns / 1e9 + supervisor for e in records]
    return {
        "script": script_of(command),
        "weights": written[0]["weights"],
        "recording_s": [round(s, 4) for s in recording],
        "direct_pct": [round(100 * s / plain, 3) for s in recording],
        "supervisor_pct": round(100 * supervisor / plain, 3),
        "overheads_pct": [round(o, 3) for times in ranks for o in overheads(times, block)],
        "plain_ms": round(1000 * plain, 1),
        "ranks": [[[recorded, round(1000 * t, 2)] for recorded, t in times] for times in ranks],
    }


def supervisor_times(command: Sequence[str], cwd: Path, env: dict[str, str]) -> list[tuple[float, float]]:
    """Run a guarded command; its supervisor's CPU seconds so far, with the time at which each was read."""
    process = subprocess.Popen(command, cwd=cwd, env=env, stdout=sys.stderr)
    stat, tick = Path(f"/proc/{process.pid}/stat"), os.sysconf("SC_CLK_TCK")
    seen = []
    while process.poll() is None:
        fields = stat.read_text().rpartition(")")[2].split()
        seen.append((time.time(), (int(fields[11]) + int(fields[12])) / tick))
        time.sleep(0.05)
    if process.returncode:
        raise subprocess.CalledProcessError(process.returncode, command)
    return seen


def after_recorded(spent: Sequence[tuple[float, float]], rank: dict[str, Any], block: int) -> float:
    """CPU seconds from the end of a recorded step to the end of the next one, on average; first block left out."""
    times, ends = rank["times"], rank["ends"]
    recorded = [i for i in range(block, len(ends) - 1) if times[i][0]]
    return statistics.mean(spent_until(spent, ends[i + 1]) - spent_until(spent, ends[i]) for i in recorded)


def spent_until(spent: Sequence[tuple[float, float]], when: float) -> float:
    """CPU seconds spent until a time, between two readings in proportion."""
    after = bisect.bisect(spent, (when,))
    if not 0 < after < len(spent):
        return spent[min(after, len(spent) - 1)][1]
    (t0, a), (t1, b) = spent[after - 1], spent[after]
    return a + (b - a) * (when - t0) / (t1 - t0)


def overheads(times: Sequence[tuple[bool, float]], block: int) -> list[float]:
    """Per cent that each recorded block takes longer than the plain ones beside it, without the job's first block."""
    whole = [times[i : i + block] for i in range(block, len(times) - block + 1, block)]
    medians = [(b[0][0], statistics.median(t for _, t in b[1 if block > 1 else 0 :])) for b in whole]
    return [
        100 * (t / ((before + after) / 2) - 1)
        for (_, before), (recorded, t), (_, after) in zip(medians, medians[1:], medians[2:], strict=False)
        if recorded
    ]


def peak(demo: Demo, command: Sequence[str], *, guarded: bool) -> dict[str, Any]:
    """Largest peak resident size over the ranks, in MiB."""
    shutil.rmtree(demo.job / "bench", ignore_errors=True)
    short = [*command]
    short[short.index("--steps") + 1] = "8"
    short[short.index(script_of(command))] = "chat/peak.py"
    (demo.job / "chat" / "peak.py").write_text(_PEAK)
    with tempfile.TemporaryDirectory() as folder:
        env = demo.variables | {"BENCH_OUT": str(Path(folder) / "peak")}
        cli = [sys.executable, "-m", "trainwarden.cli", "run", "--on-environment-change", "alert", "--"]
        start = [*cli, *short] if guarded else [str(demo.env / "bin" / "torchrun"), *short[1:]]
        subprocess.run(start, cwd=demo.job, env=env, check=True, stdout=sys.stderr)
        kib = max(int(p.read_text()) for p in Path(folder).glob("peak.rank*"))
    return {"guarded": guarded, "mib": kib / 1024}


def script_of(command: Sequence[str]) -> str:
    """The script in a launch command."""
    return next(word for word in command if word.endswith(".py"))


_PEAK = """\
import atexit, os, resource, runpy, sys

def write():
    with open(os.environ["BENCH_OUT"] + ".rank" + os.environ["RANK"], "w") as f:
        f.write(str(resource.getrusage(resource.RUSAGE_SELF).ru_maxrss))

atexit.register(write)
sys.argv[0] = os.path.join(os.path.dirname(__file__), "posttrain.py")
runpy.run_path(sys.argv[0], run_name="__main__")
"""


def digest_ratio(count: int, shape: tuple[int, ...]) -> dict[str, Any]:
    """Median time of our digest over `count` tensors, as a ratio of the fastest safe hash over the same bytes."""
    import torch

    from trainwarden.record.fingerprint import tensor_digest

    torch.set_num_threads(1)
    key = secrets.token_bytes(32)
    tensors = [torch.randn(shape) for _ in range(count)]
    raw = [memoryview(t.numpy()).cast("B") for t in tensors]
    ways: dict[str, Callable[[], object]] = {
        "ours": lambda: [tensor_digest(key, t) for t in tensors],
        "blake3": lambda: [blake3(b, key=key).digest() for b in raw],
        "sha256": lambda: [hashlib.sha256(b).digest() for b in raw],
        "blake2b": lambda: [hashlib.blake2b(b).digest() for b in raw],
    }
    times: dict[str, list[float]] = {name: [] for name in ways}
    for _ in range(31):
        for name, way in ways.items():
            begin = time.process_time()
            way()
            times[name].append(time.process_time() - begin)
    medians = {name: statistics.median(t) for name, t in times.items()}
    size = sum(b.nbytes for b in raw)
    fastest = min(t for name, t in medians.items() if name != "ours")
    return {"ratio": medians["ours"] / fastest, "gb_s": {n: round(size / t / 1e9, 2) for n, t in medians.items()}}


if __name__ == "__main__":
    os.environ.setdefault("OMP_NUM_THREADS", "1")
    main(sys.argv[1:])
