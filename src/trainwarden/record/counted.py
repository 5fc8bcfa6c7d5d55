"""The optimizers' own counts of their updates, so that one which nobody recorded does not go unsaid.

Rules
-----
* Counted are optimizers whose state has a "step" (Adam and its kin); of others nothing is said.
* A count on a device is not read: that would make training wait for it.
* What this rank says is a claim; who can switch the recorder off can also set these counts back.
"""

from __future__ import annotations

import weakref

import torch


class Counted:
    """Remembers how far each optimizer had counted when it was last recorded."""

    def __init__(self) -> None:
        self._last: weakref.WeakKeyDictionary[torch.optim.Optimizer, int] = weakref.WeakKeyDictionary()

    def recorded(self, optimizer: torch.optim.Optimizer) -> None:
        """An update of this optimizer is being recorded."""
        self._last[optimizer] = count_of(optimizer)

    def unrecorded(self) -> int:
        """How many updates the optimizers that still live have counted since they were last recorded."""
        return sum(max(0, count_of(o) - last) for o, last in self._last.items() if last >= 0)


def count_of(optimizer: torch.optim.Optimizer) -> int:
    """The updates that an optimizer has counted; −1 where it does not count, or on a device."""
    for state in optimizer.state.values():
        count = state.get("step") if isinstance(state, dict) else None
        if isinstance(count, torch.Tensor):
            return int(count) if count.device.type == "cpu" and count.numel() == 1 else -1
        return count if type(count) is int else -1
    return -1
