"""What a step holds, as the ordered lists that its stages commit to."""

from __future__ import annotations

import torch

from trainwarden.record import stages


def test_the_order_of_keys_in_an_optimizers_state_means_nothing() -> None:
    p = torch.nn.Parameter(torch.ones(2))
    optimizer = torch.optim.AdamW([p])
    p.grad = torch.ones(2)
    optimizer.step()
    names = {id(p): "p"}
    before = stages.digest_all(bytes(32), stages.optimizer_state(optimizer, names))
    optimizer.state[p] = dict(reversed(list(optimizer.state[p].items())))
    assert stages.digest_all(bytes(32), stages.optimizer_state(optimizer, names)) == before
    assert before.names == ("p/exp_avg", "p/exp_avg_sq", "p/step")
