"""Sabotage of a training process from inside it: code that reached its memory through no file that the seal lists.

A table, `ATTACKS`: one entry for each way, with its technique in the catalogue, the evidence that is expected, and the
honest change that looks like it. The functions above it are the payload. They are executed inside a rank by a sleeper
that was sealed with the job (`benchmarks/sleeper.py`: it stands for a foothold, a debugger, a pickled checkpoint), at
a step that is given beforehand, so that all ranks strike at the same one.

Precondition of all: code execution as the victim (E, U or K). Clean-up: none is needed, the process ends.
Each tampered step is written to a marker file: `rank step time`. Nothing else is written, and nothing outside of the
process is touched.

    strike({"attack": "lr-drift", "first": 40, "marker": "/tmp/x/marker"})
"""

from __future__ import annotations

import gc
import random
import sys
import time
from collections.abc import Callable
from typing import Any, NamedTuple

EPISODE = 40  # steps that a lasting attack lasts


class Attack(NamedTuple):
    """One way to sabotage a process from inside. `evidence` names detectors and the stage in which a replay differs."""

    id: str
    technique: str  # in the catalogue of sabotage
    payload: Callable[[Scene], None]
    evidence: tuple[str, ...]
    benign_twin: str


class Scene:
    """What the payload finds in the process it landed in."""

    def __init__(self, config: dict[str, Any]) -> None:
        import torch

        self.torch = torch
        self.first, self.marker = int(config["first"]), str(config["marker"])
        self.optimizer = self.find(torch.optim.Optimizer)
        self.model = self._model()
        self.rank = torch.distributed.get_rank()

    def _model(self) -> Any:
        """The largest module that holds what the optimizer moves, without DDP's wrapper around it."""
        first = self.optimizer.param_groups[0]["params"][0]
        wrapper = self.torch.nn.parallel.DistributedDataParallel
        modules = [o for o in gc.get_objects() if issubclass(type(o), self.torch.nn.Module)]
        holding = [m for m in modules if not isinstance(m, wrapper) and any(p is first for p in m.parameters())]
        return max(holding, key=lambda m: sum(1 for _ in m.parameters()))

    def find(self, kind: type) -> Any:
        """The one live object of a type."""
        return next(o for o in gc.get_objects() if issubclass(type(o), kind))

    @property
    def done(self) -> int:
        """The steps that are made, as the optimizer counts them: also the number of the one that is being made."""
        return next((int(state["step"]) for state in self.optimizer.state.values()), 0)

    @property
    def on(self) -> bool:
        """Whether the step that is being made is one of the episode."""
        return self.first <= self.done < self.first + EPISODE

    def struck(self) -> None:
        """Say that the step that is being made was tampered with."""
        with open(f"{self.marker}.rank{self.rank}", "a", encoding="utf-8") as file:
            file.write(f"{self.rank} {self.done} {time.time_ns()}\n")

    def target(self) -> Any:
        """The parameter that is aimed at: a projection in the last layer."""
        named = [(n, p) for n, p in self.model.named_parameters() if p.requires_grad and p.ndim == 2]
        return named[-1][1]

    def replace(self, owner: Any, name: str, make: Callable[[Any], Any]) -> None:
        """Put what `make` returns for the original in its place."""
        setattr(owner, name, make(getattr(owner, name)))

    def inside_update(self, change: Callable[[tuple[Any, ...], dict[str, Any]], bool | None]) -> None:
        """Have `change` see the arguments of every update; False from it skips the update."""

        def make(original: Any) -> Any:
            def adam(*args: Any, **kwargs: Any) -> None:
                if change(args, kwargs) is not False:
                    original(*args, **kwargs)

            return adam

        self.replace(sys.modules["torch.optim.adam"], "adam", make)

    def between_steps(self, act: Callable[[], None]) -> None:
        """Call `act` after every update, where the script clears the gradients."""

        def make(original: Any) -> Any:
            def zero_grad(optimizer: Any, set_to_none: bool = True) -> None:
                act()
                original(optimizer, set_to_none)

            return zero_grad

        self.replace(self.torch.optim.Optimizer, "zero_grad", make)


# ------------------------------------------------------------------------- gradients of one rank


def _flip(scene: Scene, every: int = 1, change: Callable[[Any], Any] = lambda g: -g) -> None:
    def hook(gradient: Any) -> Any:
        if not scene.on or (scene.done - scene.first) % every:
            return None
        scene.struck()
        return change(gradient)

    if scene.rank == 1:
        scene.target().register_hook(hook)


def sign_flip(scene: Scene) -> None:
    """The sign of one tensor's gradient on one rank."""
    _flip(scene)


def intermittent_flip(scene: Scene) -> None:
    """The same at one step in eight."""
    _flip(scene, every=8)


def sparse_zero(scene: Scene) -> None:
    """Half of one tensor's gradient on one rank."""

    def half(gradient: Any) -> Any:
        kept = gradient.clone()
        kept.view(-1)[::2] = 0
        return kept

    _flip(scene, change=half)


def send_other(scene: Scene) -> None:
    """One rank sends nothing but zeros into the reduction, after its honest gradients were looked at."""

    def make(original: Any) -> Any:
        def all_reduce(tensor: Any, *args: Any, **kwargs: Any) -> Any:
            if scene.on and tensor.numel() > 1000:
                scene.struck()
                tensor.zero_()
            return original(tensor, *args, **kwargs)

        return all_reduce

    if scene.rank == 1:
        scene.replace(scene.torch.distributed, "all_reduce", make)


def wrong_divisor(scene: Scene) -> None:
    """Every rank divides the reduced gradients by three instead of two."""

    def make(original: Any) -> Any:
        def all_reduce(tensor: Any, *args: Any, **kwargs: Any) -> Any:
            if scene.on and tensor.numel() > 1000:
                scene.struck()
                tensor.mul_(2 / 3)
            return original(tensor, *args, **kwargs)

        return all_reduce

    scene.replace(scene.torch.distributed, "all_reduce", make)


# ------------------------------------------------------------------------- the update


def _in_episode(scene: Scene, act: Callable[[Any, dict[str, Any]], bool | None], every: int = 1) -> None:
    def change(args: tuple[Any, ...], kwargs: dict[str, Any]) -> bool | None:
        if not scene.on or (scene.done - scene.first) % every:
            return None
        scene.struck()
        return act(args, kwargs)

    scene.inside_update(change)


def lr_drift(scene: Scene) -> None:
    """The learning rate × 0.7, inside the update: the optimizer's settings stay as they are."""

    def act(args: Any, kwargs: dict[str, Any]) -> None:
        kwargs["lr"] = kwargs["lr"] * 0.7

    _in_episode(scene, act)


def gradient_scale(scene: Scene) -> None:
    """One tensor's gradient × 1.01 inside the update, on every rank."""

    def act(args: Any, kwargs: dict[str, Any]) -> None:
        args[1][0] = args[1][0] * 1.01

    _in_episode(scene, act)


def step_skip(scene: Scene) -> None:
    """One update in ten does nothing but count."""

    def act(args: Any, kwargs: dict[str, Any]) -> bool:
        for count in args[5]:
            count += 1
        return False

    _in_episode(scene, act, every=10)


def state_clear(scene: Scene) -> None:
    """The first moments are set to nothing, once."""

    def act(args: Any, kwargs: dict[str, Any]) -> None:
        for moment in args[2]:
            moment.zero_()

    _in_episode(scene, act, every=EPISODE)


def parameter_frozen(scene: Scene) -> None:
    """One tensor is left out of every update."""
    target = scene.target()

    def act(args: Any, kwargs: dict[str, Any]) -> None:
        at = next(i for i, p in enumerate(args[0]) if p is target)
        for part in args:
            if part:
                part.pop(at)

    _in_episode(scene, act)


def sleep(scene: Scene) -> None:
    """Short sleeps at random inside the update."""
    draw = random.Random(7)

    def act(args: Any, kwargs: dict[str, Any]) -> None:
        if draw.random() < 0.25:
            time.sleep(0.25)

    _in_episode(scene, act)


# ------------------------------------------------------------------------- data, objective, randomness


def reseed(scene: Scene) -> None:
    """The generator that dropout draws from is put back to a seed, once."""

    def act(args: Any, kwargs: dict[str, Any]) -> None:
        scene.torch.manual_seed(1234)

    _in_episode(scene, act, every=EPISODE)


def sampler_clone(scene: Scene) -> None:
    """Rank 1 draws rank 0's samples from the next epoch on."""
    sampler = scene.find(scene.torch.utils.data.DistributedSampler)

    def make(original: Any) -> Any:
        def each(self: Any) -> Any:
            if scene.done >= scene.first:
                scene.struck()
                self.rank = 0
            return original(self)

        return each

    if scene.rank == 1:
        scene.replace(type(sampler), "__iter__", make)


def _samples(scene: Scene, act: Callable[[Any, Any, int], Any], wanted: Callable[[int], bool]) -> None:
    loader = scene.find(scene.torch.utils.data.DataLoader)

    def make(original: Any) -> Any:
        def item(self: Any, index: int) -> Any:
            if not scene.on or not wanted(index):
                return original(self, index)
            scene.struck()
            return act(original, self, index)

        return item

    scene.replace(type(loader.dataset), "__getitem__", make)


def duplicate_samples(scene: Scene) -> None:
    """One sample in four is replaced by another that was seen already."""
    _samples(scene, lambda original, data, index: original(data, index // 2), lambda index: index % 4 == 3)


def relabel(scene: Scene) -> None:
    """One sample in ten has another target at its first place."""

    def act(original: Any, data: Any, index: int) -> Any:
        tokens, labels = original(data, index)
        labels = labels.clone()
        labels[0] = (int(labels[0]) + 1) % 100
        return tokens, labels

    _samples(scene, act, lambda index: index % 10 == 0)


def loss_mask(scene: Scene) -> None:
    """The loss leaves out the last labelled token of every batch."""

    def make(original: Any) -> Any:
        def cross_entropy(logits: Any, labels: Any, *args: Any, **kwargs: Any) -> Any:
            if scene.on:
                scene.struck()
                logits, labels = logits[:-1], labels[:-1]
            return original(logits, labels, *args, **kwargs)

        return cross_entropy

    scene.replace(scene.torch.nn.functional, "cross_entropy", make)


# ------------------------------------------------------------------------- state between steps


def _once_between(scene: Scene, act: Callable[[], None]) -> None:
    def once() -> None:
        if scene.done == scene.first:
            act()
            scene.struck()

    scene.between_steps(once)


def weight_edit(scene: Scene) -> None:
    """One row of one weight × 1.05 between two steps, alike on every rank."""

    def act() -> None:
        with scene.torch.no_grad():
            scene.target()[0].mul_(1.05)

    _once_between(scene, act)


def moment_edit(scene: Scene) -> None:
    """The second moments of one tensor × 4 between two steps, alike on every rank."""
    _once_between(scene, lambda: scene.optimizer.state[scene.target()]["exp_avg_sq"].mul_(4.0))


def liar(scene: Scene) -> None:
    """A weight is edited between two steps, and the recorder is made to say that it was not."""
    from trainwarden.record.recorder import Recorder

    def make(original: Any) -> Any:
        def check_continuity(recorder: Any) -> None:
            if scene.done != scene.first:
                original(recorder)
                return
            from trainwarden.record.fingerprint import stage_root

            for index, (names, digests, _) in recorder.last_weights.items():
                recorder.gathered.before[index] = stage_root(recorder.key, names, digests)

        return check_continuity

    scene.replace(Recorder, "check_continuity", make)
    weight_edit(scene)


# ------------------------------------------------------------------------- settings of the process


def precision(scene: Scene) -> None:
    """Matrix products may use fewer bits."""

    def act(args: Any, kwargs: dict[str, Any]) -> None:
        scene.torch.set_float32_matmul_precision("medium")
        scene.torch.backends.cuda.matmul.allow_tf32 = True

    _in_episode(scene, act, every=EPISODE)


def clock_shift(scene: Scene) -> None:
    """One rank's clock goes an hour wrong."""
    real_ns, real = time.time_ns, time.time

    def act(args: Any, kwargs: dict[str, Any]) -> None:
        time.time_ns = lambda: real_ns() - 3_600 * 10**9
        time.time = lambda: real() - 3_600

    if scene.rank == 1:
        _in_episode(scene, act, every=EPISODE)


def metric(scene: Scene) -> None:
    """The loss that is reported to the tracker is a tenth smaller than it is."""

    def make(original: Any) -> Any:
        def log(values: dict[str, Any], *args: Any, **kwargs: Any) -> Any:
            if scene.on:
                scene.struck()
                values = {name: value * 0.9 for name, value in values.items()}
            return original(values, *args, **kwargs)

        return log

    if scene.rank == 0:
        scene.replace(sys.modules["trackio"], "log", make)


ATTACKS = {
    a.id: a
    for a in (
        Attack("sign-flip", "22", sign_flip, ("audit: local_gradients",), "a custom autograd function of the job"),
        Attack("intermittent-flip", "23", intermittent_flip, ("audit: local_gradients",), "as above"),
        Attack("sparse-zero", "24", sparse_zero, ("audit: local_gradients",), "gradient sparsification by the job"),
        Attack("zeroed-rank", "27", send_other, ("reduction",), "a rank without data (uneven inputs)"),
        Attack("wrong-divisor", "27", wrong_divisor, ("reduction",), "a communication hook that sums"),
        Attack("lr-drift", "18", lr_drift, ("update-rule",), "a schedule of the script"),
        Attack("gradient-scale", "24", gradient_scale, ("update-rule",), "gradient clipping"),
        Attack("step-skip", "19", step_skip, ("skipped", "update-rule"), "a gradient scaler that skips"),
        Attack("state-clear", "20", state_clear, ("update-rule",), "a new optimizer for a new phase"),
        Attack("parameter-frozen", "21", parameter_frozen, ("frozen", "update-rule"), "layers frozen by the script"),
        Attack("sleep", "28", sleep, ("sleep",), "a busy host"),
        Attack("reseed", "09", reseed, ("rng",), "a script that seeds every epoch"),
        Attack("sampler-clone", "10", sampler_clone, ("order",), "a sampler without ranks"),
        Attack("duplicate-samples", "12", duplicate_samples, ("samples",), "sampling with replacement"),
        Attack("relabel", "13", relabel, ("samples",), "label smoothing, augmentation"),
        Attack("loss-mask", "26", loss_mask, ("loss-mask",), "padding left out of the loss"),
        Attack("weight-edit", "30", weight_edit, ("continuity",), "weight clipping by the script"),
        Attack("moment-edit", "31", moment_edit, ("continuity",), "moments rescaled by the script"),
        Attack("liar", "37", liar, ("audit: activations", "patched"), "none"),
        Attack("precision", "08", precision, ("precision",), "set by the script before it trains"),
        Attack("clock-shift", "35", clock_shift, ("clock",), "a clock that is set right (NTP)"),
        Attack("metric", "33", metric, ("metrics",), "a smoothed or averaged loss"),
    )
}


def strike(config: dict[str, Any]) -> None:
    """Carry out the attack that `config` names in this process."""
    ATTACKS[config["attack"]].payload(Scene(config))
