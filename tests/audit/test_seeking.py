"""An edit of the weights that the recorder was made to hide is found by the loss that it gives, or not at all."""

from __future__ import annotations

import os
from types import SimpleNamespace

import pytest
import torch

from trainwarden.audit import perturb, seeking
from trainwarden.audit.perturbing import apply_tensors
from trainwarden.audit.seeking import Seeker
from trainwarden.model import Stage
from trainwarden.record.fingerprint import tensor_digest

KEY = bytes(range(32))


class Step:
    """A model, its input and targets, as a replay finds them."""

    def __init__(self) -> None:
        torch.manual_seed(3)
        self.model = torch.nn.Sequential(
            torch.nn.Linear(4, 6), torch.nn.BatchNorm1d(6), torch.nn.Dropout(0.2), torch.nn.Linear(6, 3)
        )
        self.x, self.y = torch.randn(8, 4), torch.randint(0, 3, (8,))
        names = {id(p): f"model.{n}" for n, p in self.model.named_parameters()}
        self.replayer = SimpleNamespace(key=KEY, world=2, names=names)

    def loss(self, given: torch.Tensor) -> torch.Tensor:
        return torch.nn.functional.cross_entropy(given, self.y)

    def edited(self) -> bytes:
        """The digest of the loss after an insider's edit."""
        with torch.random.fork_rng(devices=[]), torch.no_grad():
            buffers = [(b, b.clone()) for b in self.model.buffers()]
            self.model[3].weight[0].mul_(1.05)
            loss = self.loss(self.model(self.x))
            self.model[3].weight[0].div_(1.05)
            for b, was in buffers:
                b.copy_(was)
        return tensor_digest(KEY, loss)

    def sought(self, wanted: bytes) -> dict[str, object]:
        seeker = Seeker(self.replayer, wanted.hex())  # type: ignore[arg-type]
        seeker.forward(self.model, (self.x,), {})
        seeker.loss(self.model(self.x), self.loss)
        return seeker.found


def test_hidden_edit_is_found_by_the_loss() -> None:
    step = Step()
    before = step.model[3].weight.detach().clone()
    wanted = step.edited()
    step.model[3].weight.data.copy_(before)
    found = step.sought(wanted)
    assert found["tensor"] == "model.3.weight"
    (change,) = perturb.decode(str(found["change"]).encode())
    edited = apply_tensors([change], Stage.WEIGHTS, 0, {"model.3.weight": before}, before=True)["model.3.weight"]
    before[0] *= 1.05
    assert torch.equal(edited, before)


def test_search_that_finds_nothing_leaves_the_process_as_it_was(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(seeking, "SECONDS", 1.0)
    step = Step()
    seeker = Seeker(step.replayer, os.urandom(16).hex())  # type: ignore[arg-type]
    seeker.forward(step.model, (step.x,), {})
    out = step.model(step.x)
    weights = {n: t.clone() for n, t in step.model.state_dict().items()}
    state = torch.get_rng_state()
    seeker.loss(out, step.loss)
    assert "change" not in seeker.found
    assert int(str(seeker.found["tried"])) > 10
    assert torch.equal(torch.get_rng_state(), state)
    assert all(torch.equal(t, weights[n]) for n, t in step.model.state_dict().items())


def test_loss_that_is_not_the_models_is_not_followed() -> None:
    step = Step()
    seeker = Seeker(step.replayer, os.urandom(16).hex())  # type: ignore[arg-type]
    seeker.forward(step.model, (step.x,), {})
    seeker.loss(step.model(step.x) * 2, step.loss)
    assert "cannot be computed again" in str(seeker.found["limits"])
