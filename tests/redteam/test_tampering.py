"""What attacks do to files is what they say: code in a checkpoint runs, an edited script still does, a lie fits."""

from __future__ import annotations

import inspect
import io
from pathlib import Path

import pytest
import torch

from attacks._shared import accounts, against_recorder
from attacks._shared.checkpoints import pickle_changed
from attacks.t29_checkpoint_code import poisoned
from attacks.t31_state_edit import lower_lr
from trainwarden.errors import CannotDecide
from trainwarden.record import recorder
from trainwarden.redteam.place import Range
from trainwarden.redteam.workloads import workload


def saved() -> bytes:
    model = torch.nn.Linear(2, 2)
    optimizer = torch.optim.AdamW(model.parameters(), lr=1e-2)
    out = io.BytesIO()
    torch.save({"model": torch.arange(4.0), "optimizer": optimizer.state_dict()}, out)
    return out.getvalue()


def test_code_in_a_checkpoint_runs_when_it_is_loaded_and_its_tensors_stay_what_they_were(tmp_path: Path) -> None:
    mark = tmp_path / "mark"
    data = poisoned(saved(), f"open({str(mark)!r}, 'w').close()")
    with pytest.raises(Exception, match="weights_only"):
        torch.load(io.BytesIO(data), weights_only=True)
    assert not mark.exists(), "a safe loader does not run it"
    assert torch.load(io.BytesIO(data), weights_only=False)["model"].tolist() == [0, 1, 2, 3]
    assert mark.exists()


def test_a_learning_rate_in_a_checkpoint_is_lowered_and_one_without_is_left_alone() -> None:
    loaded = torch.load(io.BytesIO(pickle_changed(saved(), lower_lr)), weights_only=True)
    assert loaded["optimizer"]["param_groups"][0]["lr"] == pytest.approx(0.007)
    assert loaded["model"].tolist() == [0, 1, 2, 3]
    with pytest.raises(CannotDecide, match="no learning rate"):
        lower_lr(b"\x80\x02N.")


@pytest.mark.parametrize("head", ['"""A script."""\n\nfrom __future__ import annotations\n', ""])
def test_a_forged_commit_changes_the_seeds_of_a_script_that_still_runs(head: str) -> None:
    before = torch.manual_seed
    names: dict[str, object] = {}
    try:
        exec(accounts.changed(head + "import torch\nDRAW = torch.manual_seed(3).initial_seed()\n"), names)
    finally:
        torch.manual_seed = before
    assert names["DRAW"] == 4


def test_the_lie_in_the_recorders_source_fits_its_present_form(tmp_path: Path) -> None:
    source = Path(recorder.__file__).read_text()
    lying = against_recorder.patched(source, Range(tmp_path, workload("toy")))
    compile(lying, "recorder", "exec")
    assert "tampered.grad.mul_(0.5)" in lying
    with pytest.raises(CannotDecide, match="not as expected"):
        against_recorder.patched("def another(): ...\n", Range(tmp_path, workload("toy")))


def test_the_lie_about_a_gradient_stands_where_the_recorder_takes_its_digest() -> None:
    """Else the insider who gives honest digests would lie to nobody, and be found by the plain audit."""
    taken = inspect.getsource(recorder.Recorder.own_gradients)
    assert "tensor_digests(self.key, gradients)" in taken
    assert '"trainwarden.record.recorder"], "tensor_digests"' in inspect.getsource(against_recorder.honest_digests)
