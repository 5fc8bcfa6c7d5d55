"""Acts and payloads fit every workload: a job that an attack crashes by accident proves nothing."""

from __future__ import annotations

from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch

from attacks._shared.source import STEP, script_with
from attacks.t11_drop_class import drop_class
from attacks.t13_relabel import relabel
from attacks.t14_trigger_poison import poison
from attacks.t16_preprocess_mismatch import mismatch
from trainwarden.errors import CannotDecide
from trainwarden.redteam import trial
from trainwarden.redteam.catalogue import find, load
from trainwarden.redteam.place import Range
from trainwarden.redteam.workloads import WORKLOADS, Workload


class Points(list[tuple[torch.Tensor, torch.Tensor]]):
    """Eight samples of eight classes, as the toy job has them."""


def act_of(payload: Any) -> Any:
    kept: list[Any] = []
    payload(SimpleNamespace(torch=torch, samples=lambda act, wanted: kept.append(act)))
    return kept[0]


@pytest.mark.parametrize("payload", [drop_class, relabel, poison, mismatch])
def test_a_changed_sample_is_one_that_the_job_can_train_on(payload: Any) -> None:
    data = Points((torch.full((4,), float(i)), torch.tensor(i)) for i in range(8))
    act, changed = act_of(payload), 0
    for i, (inputs, labels) in enumerate(list(data)):
        new_inputs, new_labels = act(Points.__getitem__, data, i)
        assert 0 <= int(new_labels) < 8, "a class that the job does not have ends it"
        assert (new_inputs.shape, new_inputs.dtype) == (inputs.shape, inputs.dtype)
        assert new_labels.dtype == labels.dtype
        changed += not (torch.equal(new_inputs, inputs) and torch.equal(new_labels, labels))
    assert changed >= 4


@pytest.mark.parametrize("workload", list(WORKLOADS.values()), ids=list(WORKLOADS))
def test_the_script_to_edit_is_the_one_of_the_job_and_not_of_a_folder_beside_it(
    workload: Workload, tmp_path: Path
) -> None:
    with Range(tmp_path / "range", workload) as place:
        place.fresh()
        assert script_with(place, STEP).is_relative_to(place.job / workload.below)


def test_a_twin_that_cannot_act_is_not_carried_out_and_ends_nothing_else(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def cannot(*args: object, **named: object) -> None:
        raise CannotDecide("no checkpoint yet", hint="later")

    monkeypatch.setattr(trial, "carry_out", cannot)
    row = trial.twin(Range(tmp_path, WORKLOADS["toy"], seed=3), find(load(), "05")[0], lambda what, step: None)
    assert (row.verdict, row.note) == ("not carried out", "no checkpoint yet")
