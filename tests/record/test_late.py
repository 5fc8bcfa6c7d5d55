"""Hooks on what a job may never import: what they count as a step, and what they say they do not see."""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any

import pytest

from trainwarden.record import hooks, late


class Told:
    """What the hooks use of a recorder."""

    def __init__(self) -> None:
        self.preparing = False
        self.gaps: list[str] = []

    def gap(self, reason: str) -> None:
        self.gaps.append(reason)


def test_the_step_by_which_an_optimizer_gets_its_state_is_marked_and_what_fails_in_it_ends_the_mark() -> None:
    recorder, seen = Told(), []

    def fails(optimizer: object) -> None:
        seen.append(recorder.preparing)
        raise RuntimeError("no state")

    module = SimpleNamespace(_init_optim_state=lambda optimizer: seen.append(recorder.preparing))
    late.empty_steps(module, recorder)  # type: ignore[arg-type]
    module._init_optim_state(None)
    module._init_optim_state = fails
    late.empty_steps(module, recorder)  # type: ignore[arg-type]
    with pytest.raises(RuntimeError):
        module._init_optim_state(None)
    assert seen == [True, True]
    assert not recorder.preparing


def test_a_step_while_preparing_is_not_recorded_and_others_are(monkeypatch: pytest.MonkeyPatch) -> None:
    recorded: list[str] = []
    recorder = SimpleNamespace(
        preparing=False,
        guarded=lambda what, act: recorded.append(what),
        optimizer_made=lambda optimizer: None,
    )
    from torch.optim import optimizer as module

    registered: list[Any] = []
    monkeypatch.setattr(module.Optimizer, "__init__", module.Optimizer.__init__)
    monkeypatch.setattr(module, "register_optimizer_step_pre_hook", registered.append)
    monkeypatch.setattr(module, "register_optimizer_step_post_hook", registered.append)
    hooks._optimizers(recorder)  # type: ignore[arg-type]
    for preparing in (True, False):
        recorder.preparing = preparing
        for hook in registered:
            hook(SimpleNamespace(), (None,), {})
    assert recorded == ["before update", "after update"]


def test_a_checkpoint_that_another_process_writes_is_a_gap() -> None:
    class Executor:
        def execute_save(self, state: object) -> str:
            return "saved"

    recorder = Told()
    late.processes_that_save(SimpleNamespace(_ProcessBasedAsyncCheckpointExecutor=Executor), recorder)  # type: ignore[arg-type]
    assert Executor().execute_save({}) == "saved"
    (gap,) = recorder.gaps
    assert "AsyncCheckpointerType.THREAD" in gap


@pytest.mark.parametrize("name", [n for n in late.LATE if not n.startswith("torchdata")])
def test_what_is_hooked_is_there_in_this_release(name: str) -> None:
    import importlib

    module = importlib.import_module(name)
    wanted = {
        late.sharded_reduction: ["foreach_reduce"],
        late.distributed_checkpoints: ["_FileSystemWriter.write_data", "FileSystemReader.read_data"],
        late.empty_steps: ["_init_optim_state"],
        late.processes_that_save: ["_ProcessBasedAsyncCheckpointExecutor.execute_save"],
    }[late.LATE[name]]
    for path in wanted:
        found: Any = module
        for part in path.split("."):
            found = getattr(found, part)
        assert callable(found)
