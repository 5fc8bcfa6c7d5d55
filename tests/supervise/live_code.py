"""A rank's memory, attacked in many ways one after another: what `CodeWatch` tells of each, one frame each on stdout.

    python live_code.py FOLDER

Every attack is undone before the next. FOLDER holds `model_code.py` (sealed by the test) and `evil.py` (not).
"""

from __future__ import annotations

import builtins
import functools
import importlib
import signal
import sys
import types
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import torch
import torch.nn.functional as F
from torch.nn.functional import cross_entropy
from torch.utils.data import DataLoader, TensorDataset

sys.path.insert(0, sys.argv[1])

import evil  # type: ignore[import-not-found]
import forged  # type: ignore[import-not-found]
import model_code  # type: ignore[import-not-found]

from trainwarden.record import fingerprint
from trainwarden.record.code import CodeWatch
from trainwarden.wire import connection

del forged
model = model_code.Net()
optimizer = torch.optim.AdamW(model.parameters(), lr=0.1)
loader = DataLoader(TensorDataset(torch.ones(4, 4)), batch_size=2)
watch = CodeWatch()
LOSSES = {"ce": cross_entropy, "mse": F.mse_loss}


def train() -> None:
    for (x,) in loader:
        F.cross_entropy(model(x), torch.zeros(2, dtype=torch.long)).backward()
        optimizer.step()


def tell() -> None:
    body = connection._encoder.encode(watch.look(0, [optimizer], [model], [loader]))
    sys.stdout.buffer.write(len(body).to_bytes(4, "big") + body)
    sys.stdout.buffer.flush()


@contextmanager
def attribute(owner: Any, name: str, value: Any) -> Iterator[None]:
    missing = object()
    old = getattr(owner, name) if name.startswith("__") else vars(owner).get(name, missing)
    setattr(owner, name, value)
    yield
    if old is missing:
        delattr(owner, name)
    else:
        setattr(owner, name, old)


@contextmanager
def item(table: dict[str, Any], key: str, value: Any) -> Iterator[None]:
    old = table[key]
    table[key] = value
    yield
    table[key] = old


@contextmanager
def cell(function: Any, value: Any) -> Iterator[None]:
    """In the first cell that holds a function."""
    found = next(c for c in function.__closure__ if type(c.cell_contents) is types.FunctionType)
    old = found.cell_contents
    found.cell_contents = value
    yield
    found.cell_contents = old


@contextmanager
def called(change: Callable[[Any], Any], value: Any) -> Iterator[None]:
    old = change(value)
    yield
    change(old)


@contextmanager
def hook(add: Callable[..., Any], value: Any) -> Iterator[None]:
    handle = add(value)
    yield
    handle.remove()


def finder(finders: list[Any]) -> list[Any]:
    old, sys.meta_path[:] = list(sys.meta_path), finders
    return old


def attacks() -> Iterator[Any]:
    adam = importlib.import_module("torch.optim.adam")
    reduced: Any = tuple("sum" if v == "mean" else v for v in F.cross_entropy.__defaults__ or ())
    yield attribute(torch.optim.Optimizer, "zero_grad", evil.wrap(torch.optim.Optimizer.zero_grad))
    yield attribute(torch.optim.AdamW, "step", evil.wrap(torch.optim.AdamW.step))
    yield attribute(optimizer, "step", evil.wrap(optimizer.step))
    yield attribute(F, "cross_entropy", evil.cross_entropy)
    yield attribute(adam._single_tensor_adam, "__code__", evil.single_tensor_adam.__code__)
    yield attribute(F.cross_entropy, "__defaults__", reduced)
    yield attribute(F, "mse_loss", functools.partial(evil.cross_entropy, 1))
    yield attribute(F, "nll_loss", torch.rand)
    yield attribute(F, "l1_loss", F.mse_loss)
    yield hook(optimizer.register_step_post_hook, evil.hook)
    yield hook(model.layer.register_full_backward_hook, evil.hook)
    yield hook(model.layer.weight.register_hook, evil.hook)
    yield attribute(model_code.Net, "forward", evil.forward)
    seed: Any = torch.random.manual_seed
    yield attribute(getattr(seed, "__wrapped__", seed), "__code__", evil.seed.__code__)
    yield attribute(torch.utils.data.RandomSampler, "__iter__", evil.hook)
    yield from further(adam)


def further(adam: Any) -> Iterator[Any]:
    me = sys.modules["__main__"]
    ce: Any = F.cross_entropy
    yield attribute(adam, "_single_tensor_adam", evil.single_tensor_adamw)
    yield attribute(F, "cross_entropy", evil.wrap(ce))
    yield attribute(model.layer, "forward", types.MethodType(evil.forward, model.layer))
    yield attribute(optimizer, "step", evil.Callable())
    yield cell(torch.optim.AdamW.step, evil.hook)
    yield attribute(F, "linear", evil.generated("linear"))
    rebuilt = types.FunctionType(ce.__code__, {**ce.__globals__, "_Reduction": evil}, ce.__name__, ce.__defaults__)
    yield attribute(F, "cross_entropy", rebuilt)
    yield attribute(me, "cross_entropy", F.mse_loss)
    yield attribute(me, "cross_entropy", evil.generated("cross_entropy"))
    yield attribute(me, "F", evil.module_like(F, cross_entropy=evil.generated("cross_entropy")))
    yield attribute(me, "F", types.SimpleNamespace(cross_entropy=evil.cross_entropy))
    yield attribute(F, "__class__", evil.Module)
    yield attribute(torch.utils.data, "DataLoader", evil.loader())
    yield item(LOSSES, "ce", evil.cross_entropy)
    yield attribute(loader, "collate_fn", evil.collate)
    yield attribute(builtins, "sum", evil.cross_entropy)
    yield attribute(fingerprint, "tensor_digest", evil.cross_entropy)
    yield attribute(CodeWatch, "_number", evil.wrap(CodeWatch._number))
    yield called(lambda f: sys.settrace(f), evil.trace)
    yield called(lambda f: signal.signal(signal.SIGUSR1, f), evil.trace)
    yield called(finder, [evil.Finder(), *sys.meta_path])
    yield evil.FunctionMode()
    yield evil.DispatchMode()


def main() -> None:
    tell()  # 0: right after the optimizer was made
    train()
    tell()  # 1: after some steps
    model_code.patch()
    tell()  # 2: a sealed library replaced a function of torch by a wrapper
    compiled: Any = torch.compile(model, backend="eager")
    compiled(torch.ones(2, 4)).sum().backward()
    torch.optim.lr_scheduler.StepLR(optimizer, 1)
    tell()  # 3: compiled, and with a scheduler
    for attack in attacks():
        with attack:
            tell()
        tell()


if __name__ == "__main__":
    main()
