"""A tiny training step of several emulated ranks, executed by real torch code: captures, records and a re-runner.

`tamper(point, rank, tensors)` is the insider: plain torch code that edits tensors in place at a named point.
Points: batch, rng, before, loss, cross entropy, local, sent, reduced, groups, hidden, state, weights.
"""

from __future__ import annotations

import json
from array import array
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import save_file

from trainwarden.audit.capture import open_captures
from trainwarden.audit.explain import explain
from trainwarden.audit.hypotheses.base import BatchHistory
from trainwarden.audit.hypotheses.rows import digest_of
from trainwarden.audit.perturb import (
    Autocast,
    BatchFrom,
    ClearState,
    Clip,
    Dropout,
    EvalMode,
    Loss,
    Reseed,
    SetHyper,
    SkipStep,
    applies,
)
from trainwarden.audit.perturbing import (
    apply_tensors,
    clip_by_norm,
    edited_groups,
    mean_of_ranks,
    other_loss,
    torch_rng_state,
)
from trainwarden.errors import CannotDecide
from trainwarden.model import STAGES, Detail, Location, Stage, StepRecord
from trainwarden.record.fingerprint import stage_root, tensor_digest, value_digest
from trainwarden.record.stages import digest_all, settings, settings_digest
from trainwarden.supervise.rows import Rows

KEY = bytes(range(32))
STEP = 3
Tamper = Callable[[str, int, Any], Any]


def nothing(point: str, rank: int, tensors: Any) -> Any:
    return None


class Rank:
    """One rank's model and optimizer."""

    def __init__(self, kind: str, options: dict[str, Any]) -> None:
        torch.manual_seed(7)
        self.model = torch.nn.Sequential(
            torch.nn.Linear(6, 6),
            torch.nn.Dropout(0.2),
            torch.nn.Tanh(),
            torch.nn.Linear(6, 6),
            torch.nn.Linear(6, 4),
        )
        self.names = [n for n, _ in self.model.named_parameters()]
        parameters = list(self.model.parameters())
        groups = [{"params": parameters[:4]}, {"params": parameters[4:], "weight_decay": 0.0}]
        self.optimizer = getattr(torch.optim, kind)(groups, **options)
        self.by_id = {id(p): n for n, p in self.model.named_parameters()}

    def state(self) -> dict[str, torch.Tensor]:
        return {
            f"{self.by_id[id(p)]}/{k}": v
            for group in self.optimizer.param_groups
            for p in group["params"]
            for k, v in self.optimizer.state.get(p, {}).items()
            if isinstance(v, torch.Tensor)
        }

    def weights(self) -> dict[str, torch.Tensor]:
        return {n: p.detach() for n, p in self.model.named_parameters()}


class Values(dict[str, dict[str, torch.Tensor]]):
    """What a capture holds, of one rank."""


class Executed:
    """Details of all stages and ranks, the values under them, and the records."""

    def __init__(self) -> None:
        self.details: dict[tuple[int, Stage], Detail] = {}
        self.values: dict[int, Values] = {}
        self.records: dict[int, StepRecord] = {}


class Job:
    """A job whose step `STEP` is looked at. Everything before it is honest."""

    def __init__(self, kind: str = "AdamW", world: int = 2, clip: float | None = 0.25, **options: Any) -> None:
        self.kind, self.world, self.clip = kind, world, clip
        self.options = options or {"lr": 1e-2, "weight_decay": 0.1}

    def batch(self, step: int, rank: int) -> dict[str, torch.Tensor]:
        g = torch.Generator().manual_seed(100 * step + rank)
        x = torch.randn(6, 6, generator=g)
        y = torch.randint(0, 4, (6,), generator=g)
        return {"loader/0.0": x, "loader/0.1": y, "input/0.0.0": x}

    def samples(self) -> dict[str, torch.Tensor]:
        """The data set: what any rank is fed at any step."""
        batches = [self.batch(step, rank) for step in range(STEP + 1) for rank in range(self.world)]
        return {name: torch.cat([b[f"loader/0.{name}"] for b in batches]) for name in ("0", "1")}

    def rows(self, done: Executed) -> dict[tuple[int, int], list[Rows]]:
        """What the ranks told of the rows of the step's batch."""
        found = {}
        for rank, values in done.values.items():
            batch = [values["batch"]["loader/0.0"], values["batch"]["loader/0.1"]]
            digests = b"".join(digest_of(t[row]) for row in range(6) for t in batch)
            told = array("q", range(6)).tobytes(), array("I", range(6)).tobytes(), digests
            found[STEP, rank] = [Rows(0, rank, STEP, ("0", "1"), *told)]
        return found

    def rng(self, rank: int) -> torch.Tensor:
        g = torch.Generator().manual_seed(900_000 + rank)
        torch.rand(17 * (rank + 1), generator=g)
        return g.get_state()

    def execute(self, perturbations: Sequence[Any] = (), tamper: Tamper = nothing) -> Executed:
        with torch.random.fork_rng(devices=[]):
            ranks = [Rank(self.kind, self.options) for _ in range(self.world)]
            for step in range(STEP):
                self.step(ranks, step, (), nothing, Executed())
            done = Executed()
            self.step(ranks, STEP, perturbations, tamper, done)
            return done

    def step(self, ranks: list[Rank], step: int, perturbations: Sequence[Any], tamper: Tamper, out: Executed) -> None:
        local = []
        for i, rank in enumerate(ranks):
            values = out.values[i] = Values()
            before = rank.weights()
            self.apply(perturbations, Stage.WEIGHTS, i, before, before=True)
            self.apply(perturbations, Stage.OPTIMIZER_STATE, i, rank.state(), before=True)
            tamper("before", i, before)
            values["before_weights"], values["before_state"] = _copy(before), _copy(rank.state())
            local.append(self.forward(rank, i, step, perturbations, tamper, out))
        reduced = self.reduce(local, perturbations)
        for i, rank in enumerate(ranks):
            own = _copy(reduced[i])
            self.apply(perturbations, Stage.REDUCED_GRADIENTS, i, own)
            tamper("reduced", i, own)
            out.values[i]["reduced_gradients"] = _copy(own)
            self.update(rank, i, own, perturbations, tamper, out)

    def apply(self, perturbations: Any, stage: Stage, rank: int, tensors: dict[str, Any], before: bool = False) -> None:
        for name, value in apply_tensors(perturbations, stage, rank, tensors, before=before).items():
            if tensors[name].shape == value.shape:
                tensors[name].copy_(value)
            else:
                tensors[name] = value

    def forward(self, rank: Rank, i: int, step: int, ps: Any, tamper: Tamper, out: Executed) -> dict[str, Any]:
        mine = [p for p in ps if applies(p, i)]
        source = next(((p.step, p.rank) for p in mine if isinstance(p, BatchFrom)), (step, i))
        batch = _copy(self.batch(*source))
        self.apply(ps, Stage.BATCH, i, batch)
        tamper("batch", i, batch)
        seed = next((p.seed for p in mine if isinstance(p, Reseed) and "torch" in p.generators), None)
        state = {"forward0/torch": self.rng(i) if seed is None else torch_rng_state(seed)}
        self.apply(ps, Stage.RNG, i, state)
        tamper("rng", i, state)
        torch.set_rng_state(state["forward0/torch"])
        rank.model.train(not any(isinstance(p, EvalMode) for p in mine))
        rank.model[1].p = next((p.p for p in mine if isinstance(p, Dropout)), 0.2)
        tamper("loss", i, rank.model)
        cast = next((p.dtype for p in mine if isinstance(p, Autocast)), "")
        with torch.autocast("cpu", dtype=getattr(torch, cast or "bfloat16"), enabled=bool(cast)):
            given = rank.model(batch["loader/0.0"]).float(), batch["loader/0.1"]
            lossy = next((p for p in mine if isinstance(p, Loss)), None) or tamper("cross entropy", i, given)
            plain = torch._C._nn.cross_entropy_loss
            loss = (other_loss(lossy, plain) if lossy else plain)(*given, None, 1, -100, 0.0)
        rank.optimizer.zero_grad()
        loss.backward()
        gradients = {n: p.grad.clone() for n, p in rank.model.named_parameters()}
        self.apply(ps, Stage.LOCAL_GRADIENTS, i, gradients)
        tamper("local", i, gradients)
        values = out.values[i]
        values["batch"], values["rng"] = _copy(batch), _copy(state)
        values["loss"] = _copy({"0.input": given[0], "0.target": given[1]})
        values["local_gradients"] = _copy(gradients)
        out.records[i] = StepRecord(
            attempt=0, rank=i, world=self.world, step=step, optimizer=0, seq=step, stages={}, loss=float(loss.detach())
        )
        out.details[i, Stage.BATCH] = digest_all(KEY, batch.items())
        out.details[i, Stage.RNG] = Detail(
            names=tuple(state), digests=tuple(value_digest(KEY, bytes(t.tolist())) for t in state.values())
        )
        out.details[i, Stage.ACTIVATIONS] = Detail(names=("loss/0",), digests=(tensor_digest(KEY, loss),))
        out.details[i, Stage.LOCAL_GRADIENTS] = digest_all(KEY, gradients.items())
        tamper("sent", i, gradients)
        return gradients

    def reduce(self, local: list[dict[str, Any]], ps: Any) -> list[dict[str, Any]]:
        mean = {n: mean_of_ranks([g[n] for g in local], len(local), "scale") for n in local[0]}
        result = []
        for i in range(len(local)):
            norm = next((p.max_norm for p in ps if isinstance(p, Clip) and applies(p, i)), self.clip)
            result.append(clip_by_norm(mean, norm))
        return result

    def update(self, rank: Rank, i: int, own: dict[str, Any], ps: Any, tamper: Tamper, out: Executed) -> None:
        mine = [p for p in ps if applies(p, i)]
        optimizer = rank.optimizer
        for name, p in rank.model.named_parameters():
            p.grad = own[name].clone()
        hidden = [p for p in mine if isinstance(p, SetHyper) and p.hidden]
        for (group, key), value in edited_groups(
            [p for p in mine if p not in hidden], i, optimizer.param_groups
        ).items():
            optimizer.param_groups[group][key] = value
        tamper("groups", i, optimizer.param_groups)
        shown = settings(optimizer)
        for (group, key), value in edited_groups(hidden, i, optimizer.param_groups).items():
            optimizer.param_groups[group][key] = value
        for p in mine:
            if isinstance(p, ClearState):
                _clear(optimizer, p.keys)
        if tamper("hidden", i, optimizer) is None and not any(isinstance(p, SkipStep) for p in mine):
            optimizer.step()
        for group, said in zip(optimizer.param_groups, shown, strict=True):
            group.update(said)
        state, weights = rank.state(), rank.weights()
        self.apply(ps, Stage.OPTIMIZER_STATE, i, state)
        tamper("state", i, state)
        self.apply(ps, Stage.WEIGHTS, i, weights)
        tamper("weights", i, weights)
        values = out.values[i]
        values["after_weights"], values["after_state"] = _copy(weights), _copy(state)
        values["groups"] = [
            {**said, "params": [rank.by_id[id(p)] for p in group["params"]]}
            for group, said in zip(optimizer.param_groups, shown, strict=True)
        ]  # type: ignore[assignment]
        values["names"] = rank.names  # type: ignore[assignment]
        out.details[i, Stage.REDUCED_GRADIENTS] = digest_all(KEY, own.items())
        out.details[i, Stage.HYPERPARAMETERS] = Detail(
            names=tuple(f"group{g}" for g in range(len(shown))),
            digests=tuple(settings_digest(KEY, said) for said in shown),
        )
        out.details[i, Stage.OPTIMIZER_STATE] = digest_all(KEY, state.items())
        out.details[i, Stage.WEIGHTS] = digest_all(KEY, weights.items())
        before = digest_all(KEY, values["before_weights"].items())
        import msgspec

        out.records[i] = msgspec.structs.replace(
            out.records[i],
            hyper=tuple(shown),
            before=stage_root(KEY, before.names, before.digests),
        )


def _clear(optimizer: Any, keys: Sequence[str]) -> None:
    if not keys:
        optimizer.state.clear()
    for state in optimizer.state.values():
        for key in keys:
            state[key].zero_()


def _copy(tensors: Mapping[str, torch.Tensor]) -> dict[str, torch.Tensor]:
    return {n: t.detach().clone() for n, t in tensors.items()}


def write_captures(job: Job, honest: Executed, folder: Path) -> None:
    for i, values in honest.values.items():
        target = folder / f"rank-{i}"
        target.mkdir(parents=True)
        for name in ("batch", "rng", "local_gradients", "reduced_gradients", "loss"):
            save_file(values[name], target / f"{name}.safetensors")
        save_file(job.samples(), target / "samples.safetensors")
        for when in ("before", "after"):
            tensors = {f"weights/{n}": t for n, t in values[f"{when}_weights"].items()}
            tensors |= {f"state/{n}": t for n, t in values[f"{when}_state"].items()}
            save_file(tensors, target / f"{when}.safetensors")
        meta = {
            "step": STEP,
            "rank": i,
            "world": job.world,
            "optimizer": 0,
            "optimizer_class": f"torch.optim.{job.kind.lower()}.{job.kind}",
            "names": values["names"],
            "groups": values["groups"],
            "loss": honest.records[i].loss,
            "losses": [[1, -100, 0.0]],
        }
        (target / "meta.json").write_text(json.dumps(meta))


def first_difference(honest: Executed, recorded: Executed) -> Location:
    """What a comparison would locate: the earliest stage, then the lowest rank, then the first tensor."""
    for stage in STAGES:
        for rank in sorted(honest.records):
            clean, claimed = honest.details.get((rank, stage)), recorded.details.get((rank, stage))
            if clean is None or claimed is None:
                continue
            differing = [
                (n, c, d) for n, c, d in zip(clean.names, clean.digests, claimed.digests, strict=True) if c != d
            ]
            if differing:
                name, c, d = differing[0]
                return Location(
                    step=STEP,
                    rank=rank,
                    stage=stage,
                    tensor=name,
                    recorded=d.hex(),
                    replayed=c.hex(),
                    tensors=tuple(n for n, _, _ in differing),
                )
    raise AssertionError("the insider changed nothing")


class FakeRerunner:
    """Executes the tiny step again; a file is Python source that defines `tamper`."""

    def __init__(self, job: Job, fails: str = "") -> None:
        self.job, self.fails = job, fails
        self.calls: list[tuple[tuple[Any, ...], dict[str, Path]]] = []

    def rerun(self, perturbations: Sequence[Any], replace: Mapping[str, Path]) -> Mapping[tuple[int, Stage], Detail]:
        self.calls.append((tuple(perturbations), dict(replace)))
        if self.fails:
            raise CannotDecide(self.fails)
        insiders = []
        for path in replace.values():
            space: dict[str, Any] = {}
            exec(path.read_text(), space)
            insiders.append(space["tamper"])

        def tamper(point: str, rank: int, tensors: Any) -> Any:
            for insider in insiders:
                if insider(point, rank, tensors):
                    return True
            return None

        return self.job.execute(perturbations, tamper).details


class Case:
    """One sabotage of the tiny job, ready to be explained."""

    def __init__(self, folder: Path, tamper: Tamper, job: Job | None = None) -> None:
        self.job = job or Job()
        self.honest = self.job.execute()
        self.recorded = self.job.execute(tamper=tamper)
        write_captures(self.job, self.honest, folder / "capture")
        self.captures = open_captures(folder / "capture")
        self.at = first_difference(self.honest, self.recorded)
        self.history = BatchHistory(
            batches={
                (step, rank): digest_all(KEY, self.job.batch(step, rank).items())
                for step in range(STEP)
                for rank in range(self.job.world)
            },
            rows=self.job.rows(self.recorded),
        )

    def explain(self, rerun: Any = None, quarantined: Sequence[Any] = (), **more: Any) -> Any:
        more.setdefault("budget_s", 3600.0)
        return explain(
            more.pop("at", self.at),
            self.captures,
            more.pop("recorded", self.recorded.details),
            self.recorded.records,
            more.pop("history", self.history),
            rerun,
            quarantined,
            KEY,
            **more,
        )
