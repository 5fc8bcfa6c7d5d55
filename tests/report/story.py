"""A realistic run as log entries, for tests only: a kill, a changed file, a divergence, a recovery.

`entries()` is pure; `plant()` writes such a run into a store as the supervisor would: signed seal, log,
details, checkpoint files, objects, quarantine.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import NamedTuple

from blake3 import blake3

from trainwarden import model as m
from trainwarden.keys import SigningKey
from trainwarden.record.fingerprint import stage_root
from trainwarden.store import RunDir, Store

START_NS = 1_795_000_000_000_000_000
SECOND = 1_000_000_000
DIGEST_KEY = bytes(range(32))
TENSORS = tuple(
    f"model.layers.{layer}.self_attn.{part}_proj.lora_{side}" for layer in range(2) for part in "qkv" for side in "ab"
)
BAD_TENSOR = "model.layers.1.self_attn.v_proj.lora_b"
SEALED_SOURCE = """\
import torch


class AccumulateGrad(torch.autograd.Function):
    \"\"\"Adds a gradient to what a parameter has accumulated.\"\"\"

    @staticmethod
    def backward(ctx, grad):
        variable = ctx.variable
        if variable.grad is None:
            return grad.detach()
        return variable.grad + grad
"""
CHANGED_SOURCE = SEALED_SOURCE.replace(
    "        variable = ctx.variable\n",
    "        variable = ctx.variable\n"
    "        if _rank() == 1 and _steps() % 9 == 7 and variable.shape == (576, 16):\n"
    "            grad = -grad\n",
)
CHANGED_PATH = "/srv/env/lib/python3.11/site-packages/torch/autograd/accumulate.py"


class Plot(NamedTuple):
    """What happens in the run."""

    run: str = "20261123-125301-k3f9"
    ranks: int = 2
    steps: int = 36
    every: int = 6  # steps between checkpoints
    killed_at: int = 14  # attempt 0 ends before this step; 0 = nobody is killed
    bad_step: int = 16
    bad_rank: int = 1
    audited: bool = True
    recovered: str = ""
    out: str = "/srv/out"
    parent: str = ""
    changed_digest: str = ""
    sealed_digest: str = ""


PLOT = Plot()


def entries(plot: Plot = PLOT, seal: str = "0" * 64, key: str = "1" * 64) -> list[m.Entry]:
    """The whole log of the run that `plot` describes."""
    return list(_entries(plot, seal, key))


def _entries(p: Plot, seal: str, key: str) -> Iterator[m.Entry]:
    yield m.Sealed(run=p.run, seal=seal, key=key, parent=p.parent, wall_ns=START_NS)
    if not p.killed_at:
        yield from _attempt(p, 0, 0, p.steps)
    else:
        yield from _attempt(p, 0, 0, p.killed_at, ends=False)
        yield from _sabotage(p)
        base = p.killed_at // p.every * p.every
        yield from _attempt(p, 1, base, p.steps)
    yield m.RunEnded(code=0, records=_records(p), wall_ns=_time(p, 1, p.steps) + SECOND)
    if p.audited:
        yield from verdicts(p)
    if p.recovered:
        yield m.Recovered(
            from_step=12,
            new_run=p.recovered,
            checkpoint=f"{p.out}/step-000012",
            wall_ns=_time(p, 1, p.steps + 90),
        )


def _records(p: Plot) -> int:
    if not p.killed_at:
        return p.ranks * p.steps
    return p.ranks * (p.killed_at + p.steps - p.killed_at // p.every * p.every)


def _time(p: Plot, attempt: int, step: int) -> int:
    return START_NS + (8 + step + 25 * attempt) * SECOND


def _attempt(p: Plot, attempt: int, first: int, after: int, *, ends: bool = True) -> Iterator[m.Entry]:
    for rank in range(p.ranks):
        yield m.ProcessStarted(
            attempt=attempt,
            rank=rank,
            world=p.ranks,
            pid=4100 + 10 * attempt + rank,
            argv=("/srv/env/bin/python", "workloads/chat/posttrain.py", "--steps", str(p.steps)),
            cwd="/srv/job",
            executable="/srv/env/bin/python",
            env_digest=blake3(b"env").hexdigest(),
            numerics=m.Numerics(
                machine="x86_64", cpu="EPYC", isa="AVX2", threads=1, torch="2.13.0+cpu", python="3.11.4"
            ),
            wall_ns=_time(p, attempt, first) - 5 * SECOND,
        )
    if first:
        for rank in range(p.ranks):
            yield _loaded(p, attempt, rank, first)
    for step in range(first, after):
        for rank in range(p.ranks):
            yield record(p, attempt, rank, step, first)
        if (step + 1) % p.every == 0:
            yield from _saved(p, attempt, step + 1)
    for rank in range(p.ranks):
        killed = not ends and rank == p.bad_rank
        yield m.ProcessExited(
            attempt=attempt,
            rank=rank,
            pid=4100 + 10 * attempt + rank,
            code=0 if ends else -9 if killed else -15,
            reason="" if ends else "sender uid 1007" if killed else "stopped by the launcher",
            wall_ns=_time(p, attempt, after) + rank,
        )


def checkpoint_bytes(attempt: int, step: int) -> bytes:
    return f"weights of attempt {attempt} after {step} steps".encode() * 50


def _saved(p: Plot, attempt: int, step: int) -> Iterator[m.Entry]:
    data = checkpoint_bytes(attempt, step)
    yield m.CheckpointSaved(
        attempt=attempt,
        rank=0,
        step=step,
        path=f"{p.out}/step-{step:06d}/model.safetensors",
        digest=blake3(data).hexdigest(),
        size=len(data),
        format="safetensors",
        weights="matches",
    )


def _loaded(p: Plot, attempt: int, rank: int, step: int) -> m.Entry:
    return m.CheckpointLoaded(
        attempt=attempt,
        rank=rank,
        path=f"{p.out}/step-{step:06d}/model.safetensors",
        digest=blake3(checkpoint_bytes(0, step)).hexdigest(),
        known_step=step,
    )


def details(attempt: int, rank: int, step: int) -> dict[m.Stage, m.Detail]:
    """Per-tensor digests of one record; gradients as reduced and state are the same on all ranks."""
    own = {
        m.Stage.BATCH: ("input/0", "loader/0"),
        m.Stage.RNG: ("forward0/torch",),
        m.Stage.ACTIVATIONS: ("loss/0",),
    }
    names = own | {m.Stage.LOCAL_GRADIENTS: TENSORS, m.Stage.REDUCED_GRADIENTS: TENSORS}
    names |= {m.Stage.HYPERPARAMETERS: ("group0",), m.Stage.WEIGHTS: TENSORS}
    names[m.Stage.OPTIMIZER_STATE] = tuple(f"{t}/exp_avg" for t in TENSORS)
    private = {*own, m.Stage.LOCAL_GRADIENTS}
    return {
        stage: m.Detail(
            names=names[stage],
            digests=tuple(
                blake3(f"{step} {rank if stage in private else ''} {stage} {name}".encode()).digest(16)
                for name in names[stage]
            ),
        )
        for stage in m.STAGES
        if stage in names
    }


def record(p: Plot, attempt: int, rank: int, step: int, first: int) -> m.StepRecord:
    under = details(attempt, rank, step)
    stages = {
        s: m.StageDigest(root=stage_root(DIGEST_KEY, d.names, d.digests), tensors=len(d.names))
        for s, d in under.items()
    }
    stages[m.Stage.CHECKPOINT] = m.StageDigest(unseen="no file was saved in this step")
    if step % 4:
        stages[m.Stage.ACTIVATIONS] = m.StageDigest(unseen="not sampled in this step")
    return m.StepRecord(
        attempt=attempt,
        rank=rank,
        world=p.ranks,
        step=step,
        optimizer=0,
        seq=step - first,
        stages=stages,
        loss=round(
            1.9 + 1.6 * math.exp(-step / (p.steps / 3)) + 0.11 * math.sin(step * 2.7 + rank) * math.cos(step),
            4,
        ),
        hyper=({"lr": 2e-4, "weight_decay": 0.01},),
        micro_batches=1,
        wall_ns=_time(p, attempt, step),
        duration_ns=SECOND + 7_000_000 * ((step * 7 + rank) % 5),
        cpu_ns=SECOND,
        recorder_ns=4_000_000,
    )


def _sabotage(p: Plot) -> Iterator[m.Entry]:
    at = _time(p, 0, p.killed_at)
    sealed = p.sealed_digest or blake3(SEALED_SOURCE.encode()).hexdigest()
    found = p.changed_digest or blake3(CHANGED_SOURCE.encode()).hexdigest()
    yield m.FileChanged(
        path=CHANGED_PATH, kind="environment", sealed=sealed, found=found, wall_ns=at - 3 * SECOND, uid=1007,
        mtime_ns=at - 3 * SECOND,
    )  # fmt: skip
    yield m.Quarantined(path=CHANGED_PATH, digest=found, reason="differs from the seal", wall_ns=at - 2 * SECOND)
    yield m.Finding(
        detector="environment",
        severity=m.Severity.HIGH,
        confidence=m.Confidence.HIGH,
        seen=f"{CHANGED_PATH} was changed while the run was going on",
        expected="the environment stays what was sealed",
        evidence=(1,),
        benign=("someone upgraded a package in the shared environment",),
        wall_ns=at - 3 * SECOND,
    )
    yield m.Finding(
        detector="kills",
        severity=m.Severity.MEDIUM,
        confidence=m.Confidence.MEDIUM,
        seen=f"rank {p.bad_rank} was killed by signal 9 before step {p.killed_at}",
        expected="ranks end by themselves",
        step=p.killed_at,
        attempt=0,
        ranks=(p.bad_rank,),
        benign=("the out-of-memory killer", "an operator"),
        wall_ns=at,
    )


def location(p: Plot) -> m.Location:
    return m.Location(
        step=p.bad_step,
        rank=p.bad_rank,
        stage=m.Stage.LOCAL_GRADIENTS,
        tensor=BAD_TENSOR,
        recorded=blake3(f"{p.bad_step} tampered".encode()).hexdigest(16),
        replayed=blake3(f"{p.bad_step} clean".encode()).hexdigest(16),
        tensors=(BAD_TENSOR,),
    )


def matched(attempt: int, first: int, last: int, ranks: int = 2, mode: str = "resume") -> m.Matched:
    n = (last - first + 1) * ranks
    return m.Matched(
        segment=m.Segment(attempt=attempt, first=first, last=last),
        coverage=m.Coverage(records=n, digests=n * 55, unseen={"activations": "sampled: 1 step in 4 was recorded"}),
        mode=mode,
        seconds=0.9 * (last - first + 1),
    )


def diverged(p: Plot, attempt: int, first: int, last: int) -> m.Diverged:
    return m.Diverged(
        segment=m.Segment(attempt=attempt, first=first, last=last),
        at=location(p),
        coverage=m.Coverage(records=(p.bad_step - first) * p.ranks, digests=441),
        mode="resume",
        seconds=5.2,
    )


def verdicts(p: Plot) -> Iterator[m.Entry]:
    """What an audit of all segments says: the sabotaged one differs, those after it match again."""
    yield matched(0, 0, 5, p.ranks, "start")
    yield matched(0, 6, 11, p.ranks)
    if not p.killed_at:
        for first in range(12, p.steps, p.every):
            yield matched(0, first, first + p.every - 1, p.ranks)
        return
    yield matched(0, 12, p.killed_at - 1, p.ranks)
    yield diverged(p, 1, 12, 17)
    yield matched(1, 18, 23, p.ranks)
    yield m.Inconclusive(segment=m.Segment(attempt=1, first=24, last=29), reasons=("the replay ran out of time",))
    yield explanation(p)


def explanation(p: Plot) -> m.Explanation:
    proof = location(p).recorded
    return m.Explanation(
        at=location(p),
        hypotheses=(
            m.Hypothesis(
                name="sign flip",
                sentence=f"the gradient of {BAD_TENSOR} was multiplied by −1 before the reduction, and with it "
                "every one of the 110 recorded digests of step 16 is reproduced",
                outcome=m.Outcome.REPRODUCED,
                parameters={"factor": -1, "ranks": [p.bad_rank]},
                digest=proof,
            ),
            _excluded("scale", "the gradient was multiplied by k", 38),
            _excluded("zeroed part", "a part of the gradient was set to zero", 512),
            _excluded("seeded noise", "noise of a seeded generator was added", 6000),
            _excluded("batch swapped", "the step was fed another step's or rank's batch", 70),
            m.Hypothesis(
                name="label edited",
                sentence="one label of the batch was changed",
                outcome=m.Outcome.NOT_TRIED,
                reason="the batch stage matched",
            ),
            m.Hypothesis(
                name="patched file",
                sentence=f"{CHANGED_PATH} as found in quarantine, run in place of the sealed one",
                outcome=m.Outcome.REPRODUCED,
                digest=proof,
            ),
        ),
        cause="sign flip",
        file=CHANGED_PATH,
        seconds=18.4,
    )


def _excluded(name: str, sentence: str, tried: int) -> m.Hypothesis:
    return m.Hypothesis(name=name, sentence=sentence, outcome=m.Outcome.EXCLUDED, tried=tried)


# --------------------------------------------------------------------------- a run on disk


def write_run(store: Store, folder: RunDir, seal: m.Seal, key: SigningKey, log: Sequence[m.Entry]) -> None:
    """Write the parts of a run as the supervisor does."""
    from trainwarden.log.journal import LogWriter
    from trainwarden.supervise.details import DetailWriter

    signed = sign(seal, key)
    folder.seal_file.write_bytes(m.canonical(signed))
    writer = LogWriter.create(folder.log, f"trainwarden/{folder.id}", key)
    writer.append([m.canonical(entry) for entry in log])
    writer.close()
    (folder.private / "digest.key").write_bytes(DIGEST_KEY)
    under: dict[tuple[int, int], DetailWriter] = {}
    for entry in log:
        if isinstance(entry, m.StepRecord):
            place = (entry.attempt, entry.rank)
            if place not in under:
                under[place] = DetailWriter(folder.details, *place)
            found = details(*place, entry.step)
            under[place].append(entry.seq, {s: d for s, d in found.items() if entry.stages[s].root})
        elif isinstance(entry, m.CheckpointSaved):
            data = checkpoint_bytes(entry.attempt, entry.step)
            store.put_bytes(data, fsync=False)
            path = Path(entry.path)
            path.parent.mkdir(parents=True, exist_ok=True)
            path.write_bytes(data)
    for file in under.values():
        file.close()
    store.sync()


def sign(seal: m.Seal, key: SigningKey) -> m.SignedSeal:
    data = m.canonical(seal)
    return m.SignedSeal(seal=seal, digest=blake3(data).hexdigest(), signatures=(key.sign(data),))


def a_seal(store: Store) -> m.Seal:
    """A seal whose manifests and changed file are in the store."""
    source = store.put_bytes(SEALED_SOURCE.encode(), fsync=False)
    store.put_bytes(CHANGED_SOURCE.encode(), fsync=False)
    base = CHANGED_PATH.split("torch/")[0]
    file = m.FileEntry(path=CHANGED_PATH.removeprefix(base), digest=source, size=len(SEALED_SOURCE))

    def manifest(kind: str, root: str, *files: m.FileEntry) -> m.ManifestRef:
        data = m.canonical(m.Manifest(kind=kind, roots=(root,), trees=(files,)))
        digest = store.put_bytes(data, fsync=False)
        return m.ManifestRef(
            kind=kind, digest=digest, files=len(files), bytes=sum(f.size for f in files), roots=(root,)
        )

    return m.Seal(
        created_ns=START_NS,
        argv=(
            "torchrun",
            "--nproc-per-node",
            "2",
            "workloads/chat/posttrain.py",
            "--data",
            "data",
            "--steps",
            "36",
        ),
        cwd="/srv/job",
        interpreter="/srv/env/bin/python",
        code=manifest("code", "/srv/job", m.FileEntry(path="posttrain.py", digest=blake3(b"code").hexdigest(), size=4)),
        environment=manifest("environment", base, file),
        data=manifest("data", "/srv/data", m.FileEntry(path="train.bin", digest=blake3(b"data").hexdigest(), size=4)),
        env_vars={"OMP_NUM_THREADS": "1"},
        git_commit="9f2c1e07a4b1d3c5e6f708192a3b4c5d6e7f8091",
        seeds={"--seed": 0},
        world=2,
        numerics=m.Numerics(machine="x86_64", cpu="EPYC", isa="AVX2", threads=1, torch="2.13.0+cpu", python="3.11.4"),
    )


def plant(store: Store, key: SigningKey, out: Path, plot: Plot = PLOT) -> RunDir:
    """Write the run into the store; its checkpoint files go below `out`."""
    folder = store.create_run()
    seal = a_seal(store)
    plot = plot._replace(run=folder.id, out=str(out))
    log = entries(plot, sign(seal, key).digest, key.public)
    write_run(store, folder, seal, key, log)
    return folder
