"""A framework resumes from the checkpoint of the replay, whatever the script asks for, and only where it is its own."""

from __future__ import annotations

from pathlib import Path
from types import ModuleType, SimpleNamespace
from typing import Any

from trainwarden.audit.resuming import Resumer


def module(name: str, **contents: Any) -> ModuleType:
    made = ModuleType(name)
    made.__dict__.update(contents)
    return made


class Trains:
    """As Hugging Face's `Trainer`."""

    def __init__(self, folder: Path) -> None:
        self.args = SimpleNamespace(output_dir=str(folder))

    def train(self, resume_from_checkpoint: str | None = None, trial: str = "") -> tuple[str | None, str]:
        return resume_from_checkpoint, trial


def test_the_trainer_whose_folder_holds_the_checkpoint_resumes_from_it(tmp_path: Path) -> None:
    place = tmp_path / "out" / "checkpoint-4"
    place.mkdir(parents=True)
    kind = type("Trainer", (Trains,), {})
    Resumer(place).framework_loaded(module("transformers.trainer", Trainer=kind))
    assert kind(tmp_path / "out").train() == (str(place), "")
    assert kind(tmp_path / "out").train("checkpoint-2", trial="a") == (str(place), "a")
    assert kind(tmp_path / "other").train("mine") == ("mine", "")


def test_lightning_gets_the_file(tmp_path: Path) -> None:
    file = tmp_path / "step=4.ckpt"
    file.touch()

    class Trainer:
        def fit(self, model: str, ckpt_path: str | None = None) -> tuple[str, str | None]:
            return model, ckpt_path

    for place in (file, tmp_path):
        kind = type("Trainer", (Trainer,), {})
        Resumer(place).framework_loaded(module("lightning.pytorch.trainer.trainer", Trainer=kind))
        assert kind().fit("net") == ("net", str(file))


class Prepares:
    """As accelerate's `Accelerator`."""

    def __init__(self) -> None:
        self._optimizers: list[str] = []
        self.loaded: list[str | None] = []

    def prepare(self, *things: str) -> tuple[str, ...]:
        self._optimizers += things
        return things

    def load_state(self, input_dir: str | None = None) -> None:
        self.loaded.append(input_dir)


def test_an_accelerator_loads_its_state_once_before_the_first_batch(tmp_path: Path) -> None:
    (tmp_path / "random_states_0.pkl").touch()
    kind = type("Accelerator", (Prepares,), {})
    resumer = Resumer(tmp_path)
    resumer.framework_loaded(module("accelerate.accelerator", Accelerator=kind))
    silent, asks = kind(), kind()
    silent.prepare("optimizer"), asks.prepare("optimizer")
    asks.load_state("an earlier one")
    resumer.begins()
    resumer.begins()
    assert (silent.loaded, asks.loaded) == ([str(tmp_path)], [str(tmp_path)])


def test_an_accelerator_inside_of_a_trainer_loads_nothing(tmp_path: Path) -> None:
    (tmp_path / "trainer_state.json").touch()
    kind = type("Accelerator", (Prepares,), {})
    resumer = Resumer(tmp_path)
    resumer.framework_loaded(module("accelerate.accelerator", Accelerator=kind))
    inside = kind()
    inside.prepare("optimizer")
    resumer.begins()
    assert inside.loaded == []
