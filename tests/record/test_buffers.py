"""Buffers are found by the names that torch gives them, however a model changes under our eyes."""

from __future__ import annotations

import torch

from trainwarden.record.names import Buffers


class Tied(torch.nn.Module):
    """A module with a buffer, one that is None, and one that it shares with a child."""

    def __init__(self) -> None:
        super().__init__()
        self.child = torch.nn.BatchNorm1d(2)
        self.register_buffer("own", torch.ones(1))
        self.register_buffer("nothing", None)
        self.register_buffer("shared", self.child.running_mean)


def found(buffers: Buffers, *roots: torch.nn.Module) -> dict[str, torch.Tensor]:
    return dict(buffers.of(list(roots)))


def same(a: dict[str, torch.Tensor], b: dict[str, torch.Tensor]) -> bool:
    return list(a) == list(b) and all(a[name] is b[name] for name in a)


def test_buffers_are_those_of_torch_after_every_change_of_the_model() -> None:
    buffers, root = Buffers(), torch.nn.Sequential(Tied(), torch.nn.Linear(2, 2))
    changes = [
        lambda: None,
        lambda: root.append(torch.nn.BatchNorm1d(3)),
        lambda: root[1].register_buffer("late", torch.zeros(2)),
        lambda: root[0].register_buffer("own", torch.zeros(1)),
        lambda: root.__setitem__(0, torch.nn.BatchNorm1d(2)),
        lambda: root.insert(0, torch.nn.BatchNorm1d(4)),
        lambda: root[2].add_module("below", torch.nn.BatchNorm1d(5)),
        lambda: root.__delitem__(0),
        lambda: root.double(),
    ]
    for change in changes:
        change()
        assert same(found(buffers, root), dict(root.named_buffers()))
        assert same(found(buffers, root), dict(root.named_buffers()))


def test_a_name_that_two_roots_have_is_told_apart_and_wrappers_are_left_out() -> None:
    one, other = torch.nn.BatchNorm1d(2), torch.nn.BatchNorm1d(2)
    wrapped = torch.nn.ModuleDict({"module": other})
    names = found(Buffers(), one, wrapped)
    assert names["running_mean"] is one.running_mean
    assert names["model1.running_mean"] is other.running_mean


def test_a_model_is_not_kept_alive() -> None:
    import gc
    import weakref

    buffers, root = Buffers(), torch.nn.Sequential(Tied())
    assert found(buffers, root)
    gone = weakref.ref(root[0])
    del root
    gc.collect()
    assert gone() is None
    assert not found(buffers, torch.nn.Linear(2, 2))
