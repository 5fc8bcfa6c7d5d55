"""What a loss counts: read off the graph of the loss, as it stands when `backward` is called.

A cross entropy or negative log-likelihood is a node of that graph, which keeps its settings and its targets. Nothing is
wrapped, and a saved tensor is only looked at where it lies as it is: hooks that pack them (recomputed activations,
offloading) are not called.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Iterator
from typing import TYPE_CHECKING, Any

import msgspec
import torch

from trainwarden.model import LossForm, LossSeen
from trainwarden.record import stages
from trainwarden.record.observers.interface import Observer

if TYPE_CHECKING:
    from trainwarden.record.recorder import Recorder

MOST_NODES = 24  # of a graph that are looked at
MOST_FORMS = 64  # sets of forms that are told
LEARNED = 32  # steps before a share of targets can be out of its band
SLACK = 0.15
IN_A_ROW = 3
_ON_DEVICE = 16  # steps between looks at targets that lie on an accelerator
_OTHER = "no cross entropy or negative log-likelihood is near the root of its graph"
_COMPILED = "it is compiled"


class Band:
    """The range of a share over the steps before, and how its steps stray from it."""

    def __init__(self) -> None:
        self.count = self.row = 0
        self.low, self.high, self.mean, self.m2 = 1.0, 0.0, 0.0, 0.0

    def leaves(self, share: float) -> bool:
        """Take in a step's share; whether it is the last of a row outside of the band."""
        spread = (self.m2 / self.count) ** 0.5 if self.count else 0.0
        slack = max(SLACK, 6 * spread, (self.high - self.low) / 2)
        if self.count >= LEARNED and not self.low - slack <= share <= self.high + slack:
            self.row += 1
            return self.row == IN_A_ROW
        self.row = 0
        self.count += 1
        delta = share - self.mean
        self.mean += delta / self.count
        self.m2 += delta * (share - self.mean)
        self.low, self.high = min(self.low, share), max(self.high, share)
        return False


class LossObserver(Observer):
    """Tells the forms of the losses when they are new, and a share of targets that leaves its band."""

    name = "losses"

    def __init__(self, recorder: Recorder) -> None:
        super().__init__(recorder)
        self._forms: set[LossForm] = set()
        self._unseen = ""
        self._counted = self._targets = 0.0
        self._known: set[tuple[object, ...]] = set()
        self._band = Band()
        self._seen = 0

    def backward(self, tensors: Any) -> None:
        found = False
        for _, loss in stages.tensors_in(tensors):
            if loss.grad_fn is not None:
                for node, smoothing in self._likelihoods(loss.grad_fn):
                    found = True
                    self._take(node, smoothing)
        if not found and not self._unseen:
            self._unseen = _OTHER

    def boundary(self) -> None:
        forms = tuple(sorted(self._forms, key=repr))
        unseen = "" if forms else self._unseen
        if (forms or unseen) and (forms, unseen) not in self._known and len(self._known) < MOST_FORMS:
            self._known.add((forms, unseen))
            self._tell(LossSeen(forms=forms, unseen=unseen, counted=self._share(), seen=self._seen))
        if self._targets and self._band.leaves(self._share()):
            low, high, self._band = self._band.low, self._band.high, Band()
            self._tell(LossSeen(forms=forms, counted=self._share(), low=low, high=high, seen=self._seen))
        self._seen += 1
        self._forms.clear()
        self._unseen, self._counted, self._targets = "", 0.0, 0.0

    def _tell(self, seen: LossSeen) -> None:
        self.recorder.note(msgspec.structs.replace(seen, step=max(0, self.recorder.done - 1)))

    def _share(self) -> float:
        return self._counted / self._targets if self._targets else -1.0

    def _likelihoods(self, root: Any) -> Iterator[tuple[Any, bool]]:
        """The likelihood nodes near a graph's root, and whether a sum beside one goes over all classes."""
        pending: deque[tuple[Any, tuple[Any, ...]]] = deque([(root, ())])
        looked = 0
        while pending and looked < MOST_NODES:
            node, siblings = pending.popleft()
            looked += 1
            name = type(node).__name__
            if name.startswith("NllLoss"):
                yield node, any(_reaches(s, node.next_functions[0][0]) for s in siblings)
                continue
            if name.startswith("CompiledFunction"):
                self._unseen = _COMPILED
                continue
            children = [child for child, _ in node.next_functions if child is not None]
            for child in children:
                others = tuple(c for c in children if c is not child) if name.startswith("Add") else ()
                pending.append((child, others or (siblings if name.startswith("Mul") else ())))

    def _take(self, node: Any, smoothing: bool) -> None:
        index = int(node._saved_ignore_index)
        index -= (index >= 1 << 63) << 64
        weighted = _saved(node, "weight") is not None
        self._forms.add(
            LossForm(ignore_index=index, reduction=int(node._saved_reduction), weighted=weighted, smoothing=smoothing)
        )
        target = _saved(node, "target")
        if isinstance(target, torch.Tensor) and (target.is_cpu or self._seen % _ON_DEVICE == 0):
            total = None if weighted or not node._saved_reduction else _saved(node, "total_weight")
            self._targets += target.numel()
            self._counted += float((target != index).sum() if total is None else total)


def _saved(node: Any, name: str) -> Any:
    """What a node saved, as it lies there; None where there is nothing, or where a hook has packed it."""
    return getattr(getattr(node, f"_raw_saved_{name}", None), "data", None)


def _reaches(node: Any, wanted: Any) -> bool:
    """Whether a chain of few nodes leads to another one: label smoothing sums the same log-probabilities again."""
    for _ in range(8):
        if node is wanted:
            return True
        children = [child for child, _ in node.next_functions if child is not None]
        if len(children) != 1:
            return False
        node = children[0]
    return False
