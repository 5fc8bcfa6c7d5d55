"""Trackers are listened at without being imported, slowed or changed; what a script hands them is told."""

from __future__ import annotations

import sys
import types
from pathlib import Path
from typing import Any

import pytest
from tensorboardX import SummaryWriter

from trainwarden.model import Noun, Reported, TrackerSeen
from trainwarden.record.observers.metrics import Metrics, is_loss


class Recorder:
    """As much of a recorder as the observer uses."""

    done = 7

    def __init__(self) -> None:
        self.notes: list[Noun] = []

    def note(self, note: Noun) -> None:
        self.notes.append(note)

    def guarded(self, what: str, action: Any) -> Any:
        return action()


class Writer:
    """Stands for TensorBoard's."""

    def __init__(self) -> None:
        self.written: list[tuple[Any, ...]] = []

    def add_scalar(self, tag: str, scalar_value: Any, global_step: int | None = None) -> None:
        self.written.append((tag, scalar_value, global_step))


class Run:
    """Stands for a run of wandb."""

    def __init__(self) -> None:
        self.logged: list[Any] = []

    def log(self, data: dict[str, Any], step: int | None = None) -> str:
        self.logged.append((data, step))
        return "logged"


@pytest.fixture
def trackers(monkeypatch: pytest.MonkeyPatch) -> dict[str, types.ModuleType]:
    """Fresh stand-ins for the trackers that are known; the real one is put back after the test."""
    monkeypatch.setattr(SummaryWriter, "add_scalar", SummaryWriter.add_scalar)
    made = {
        name: types.ModuleType(name)
        for name in ("trackio", "wandb", "wandb.sdk.wandb_run", "mlflow", "torch.utils.tensorboard.writer")
    }
    calls: list[Any] = []
    made["trackio"].log = lambda metrics, step=None: calls.append((metrics, step))  # type: ignore[attr-defined]
    made["trackio"].calls = calls  # type: ignore[attr-defined]
    made["mlflow"].log_metric = lambda key, value, step=None: calls.append(key)  # type: ignore[attr-defined]
    made["mlflow"].log_metrics = lambda metrics, step=None: calls.append(metrics)  # type: ignore[attr-defined]
    made["wandb.sdk.wandb_run"].Run = type("Run", (Run,), dict(vars(Run)))  # type: ignore[attr-defined]
    made["torch.utils.tensorboard.writer"].SummaryWriter = type(  # type: ignore[attr-defined]
        "SummaryWriter", (Writer,), dict(vars(Writer))
    )
    for name, module in made.items():
        monkeypatch.setitem(sys.modules, name, module)
    return made


def told(recorder: Recorder) -> list[tuple[str, str, float, int]]:
    return [(n.tracker, n.name, n.value, n.own_step) for n in recorder.notes if isinstance(n, Reported)]


def test_every_tracker_is_heard_in_every_way_to_call_it(trackers: dict[str, Any]) -> None:
    run = trackers["wandb.sdk.wandb_run"].Run()
    trackers["wandb"].log = run.log  # what wandb.init does, before the first step ends
    recorder = Recorder()
    observer = Metrics(recorder)  # type: ignore[arg-type]
    observer.boundary()
    writer = trackers["torch.utils.tensorboard.writer"].SummaryWriter()
    trackers["trackio"].log({"train/loss": 1.0}, step=3)
    assert trackers["wandb"].log({"loss": 2.0}) == run.log(data={"loss": 3.0}, step=9) == "logged"
    trackers["mlflow"].log_metric("train_loss", 4.0, 1)
    recorder.done = 8  # type: ignore[misc]
    trackers["mlflow"].log_metric(key="train_loss", value=5.0, step=2)
    trackers["mlflow"].log_metrics({"loss": 6.0})
    writer.add_scalar("Loss/train", 7.0, 4)
    writer.add_scalar(tag="Loss/train", scalar_value=8.0)
    assert told(recorder) == [
        ("trackio", "train/loss", 1.0, 3), ("wandb", "loss", 2.0, -1), ("wandb", "loss", 3.0, 9),
        ("mlflow", "train_loss", 4.0, 1), ("mlflow", "train_loss", 5.0, 2), ("mlflow", "loss", 6.0, -1),
        ("tensorboard", "Loss/train", 7.0, 4), ("tensorboard", "Loss/train", 8.0, -1),
    ]  # fmt: skip
    assert writer.written[0] == ("Loss/train", 7.0, 4)
    assert run.logged == [({"loss": 2.0}, None), ({"loss": 3.0}, 9)]


def test_a_real_tracker_is_heard_and_writes_what_it_wrote(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(SummaryWriter, "add_scalar", SummaryWriter.add_scalar)
    recorder = Recorder()
    Metrics(recorder).boundary()  # type: ignore[arg-type]
    with SummaryWriter(str(tmp_path)) as writer:
        writer.add_scalar("train/loss", 2.5, 3)
        writer.add_scalar("lr", 0.1, 3)
    assert told(recorder) == [("tensorboard", "train/loss", 2.5, 3)]
    (events,) = tmp_path.glob("events.*")
    assert b"train/loss" in events.read_bytes()


def test_a_tracker_that_is_imported_later_is_heard_from_then_on(
    trackers: dict[str, Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    recorder = Recorder()
    observer = Metrics(recorder)  # type: ignore[arg-type]
    monkeypatch.delitem(sys.modules, "trackio")
    observer.boundary()
    assert "trackio" not in sys.modules
    monkeypatch.setitem(sys.modules, "trackio", trackers["trackio"])
    observer.boundary()
    wrapped = trackers["trackio"].log
    observer.boundary()
    assert trackers["trackio"].log is wrapped
    wrapped({"loss": 1.0})
    assert len(told(recorder)) == 1


def test_other_metrics_are_named_once_as_not_checked_and_reports_of_one_step_are_bounded(
    trackers: dict[str, Any],
) -> None:
    recorder = Recorder()
    Metrics(recorder).boundary()  # type: ignore[arg-type]
    for _ in range(3):
        trackers["trackio"].log({"accuracy": "high", "eval/loss": 1.0, "loss": float("nan")})
    for _ in range(100):
        trackers["trackio"].log({"loss": 1.0})
    assert [n.unchecked for n in recorder.notes if isinstance(n, TrackerSeen)] == ["accuracy", "eval/loss"]
    assert len(told(recorder)) <= 4


def test_names_of_the_training_loss_and_no_others() -> None:
    assert all(map(is_loss, ("loss", "train/loss", "Loss/train", "train_loss_step", "training-loss", "ema_loss")))
    assert not any(map(is_loss, ("eval/loss", "val_loss", "loss_d", "accuracy", "kl loss", "train/loss_epoch", "lr")))
