"""Code in memory against sealed source, with real torch: every attack is named, honest wrapping is silent."""

from __future__ import annotations

import importlib.util
import os
import py_compile
import subprocess
import sys
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import msgspec
import pytest
from on_demand import SealedOnDemand
from supervised import SOURCE

from trainwarden import codeform, wire
from trainwarden.model import CodeDifference, CodeSeen, Gap
from trainwarden.seal.functions import SealedFunctions
from trainwarden.store import Store
from trainwarden.supervise.code import CodeDesk

HERE = Path(__file__).parent
MODEL = """
import functools
import torch

class Net(torch.nn.Module):
    def __init__(self):
        super().__init__()
        self.layer = torch.nn.Linear(4, 3)
    def forward(self, x):
        return self.layer(x)

def patch():
    original = torch.nn.functional.huber_loss
    @functools.wraps(original)
    def huber_loss(*args, **kwargs):
        return original(*args, **kwargs)
    torch.nn.functional.huber_loss = huber_loss
"""
EVIL = """
import functools
import types
import torch
import torch.overrides
from torch.utils._python_dispatch import TorchDispatchMode
def wrap(f):
    @functools.wraps(f)
    def step(*args, **kwargs):
        return f(*args, **kwargs)
    return step
def cross_entropy(*args, **kwargs): return 0
def single_tensor_adam(params, *args, **kwargs): return None
def hook(*args): return None
def forward(self, x): return -self.layer(x)
def seed(seed): return None
def single_tensor_adamw(params, *args, **kwargs): return 1
def trace(*args): return None
def collate(samples): return samples
def generated(name):
    space = {}
    exec(f"def {name}(*args, **kwargs): return args[0]", space)
    return space[name]
def module_like(module, **changed):
    fake = types.ModuleType(module.__name__)
    vars(fake).update(vars(module) | changed)
    return fake
class Callable:
    def __call__(self, *args): return None
class Module(types.ModuleType):
    cross_entropy = property(lambda self: generated("cross_entropy"))
def loader():
    def __iter__(self): return iter(())
    named = {"__iter__": __iter__, "__module__": "torch.utils.data.dataloader"}
    return type("DataLoader", (torch.utils.data.DataLoader,), named)
class FunctionMode(torch.overrides.TorchFunctionMode):
    def __torch_function__(self, func, types, args=(), kwargs=None): return func(*args, **(kwargs or {}))
class DispatchMode(TorchDispatchMode):
    def __torch_dispatch__(self, func, types, args=(), kwargs=None): return func(*args, **(kwargs or {}))
class Finder:
    def find_spec(self, *args): return None
"""
FORGED, TAMPERED = "def scale(x):\n    return x * 1.00\n", "def scale(x):\n    return x * 1.01\n"
EVENTS = ("start", "trained", "sealed patch", "compiled and scheduled")
ATTACKS = {
    "Optimizer.zero_grad wrapped": ("unsealed", "torch.optim.optimizer:Optimizer.zero_grad", "evil.py"),
    "AdamW.step wrapped": ("unsealed", "torch.optim.adamw:AdamW.step", "evil.py"),
    "the optimizer's own step wrapped": ("unsealed", "optimizer0.step", "evil.py"),
    "cross_entropy replaced": ("unsealed", "torch.nn.functional:cross_entropy", "evil.py"),
    "__code__ assigned": ("unsealed", "torch.optim.adam:_single_tensor_adam", "evil.py"),
    "__defaults__ edited": ("defaults", "__main__:cross_entropy", "functional.py"),
    "a partial in place of a loss": ("unsealed", "torch.nn.functional:mse_loss", "evil.py"),
    "a builtin in place of a loss": ("replaced", "torch.nn.functional:nll_loss", ""),
    "another loss in place of a loss": ("moved", "torch.nn.functional:l1_loss", "functional.py"),
    "a step hook": ("unsealed", "optimizer0._optimizer_step_post_hooks[0]", "evil.py"),
    "a backward hook": ("unsealed", "model0.layer._backward_hooks[0]", "evil.py"),
    "a gradient hook": ("unsealed", "model0.layer.weight._backward_hooks[0]", "evil.py"),
    "the model's forward replaced": ("unsealed", "model_code:Net.forward", "evil.py"),
    "manual_seed's code assigned": ("unsealed", "torch.random:manual_seed", "evil.py"),
    "the sampler replaced": ("unsealed", "torch.utils.data.sampler:RandomSampler.__iter__", "evil.py"),
    "_single_tensor_adamw replaced": ("unsealed", "torch.optim.adam:_single_tensor_adam", "evil.py"),
    "functools.wraps around a loss": ("unsealed", "torch.nn.functional:cross_entropy", "evil.py"),
    "a method of one instance": ("unsealed", "model0.layer.forward", "evil.py"),
    "an object with __call__ as a method of one instance": ("unsealed", "optimizer0.step", "evil.py"),
    "a closure's cell swapped": ("unsealed", "torch.optim.adamw:AdamW.step", "evil.py"),
    "generated code for an operator": ("generated", "torch.nn.functional:linear", "<string>"),
    "a loss rebuilt over other globals": ("globals", "torch.nn.functional:cross_entropy", "functional.py"),
    "another loss under an imported name": ("moved", "__main__:cross_entropy", "functional.py"),
    "generated code under an imported name": ("generated", "__main__:cross_entropy", "<string>"),
    "another module under the script's F": ("replaced", "__main__:F", ""),
    "an object in place of the script's F": ("replaced", "__main__:F", ""),
    "a property on the class of a module": ("unsealed", "class of torch.nn.functional.cross_entropy", "evil.py"),
    "a class under another's name": ("unsealed", "torch.utils.data:DataLoader.__iter__", "evil.py"),
    "a function in a table of the script": ("planted", "__main__:LOSSES['ce']", "evil.py"),
    "a loader's collate_fn": ("unsealed", "loader0.collate_fn", "evil.py"),
    "a builtin function": ("planted", "builtins:sum", "evil.py"),
    "the recorder's own digest": ("unsealed", "trainwarden.record.fingerprint:tensor_digest", "evil.py"),
    "the recorder's own look": ("unsealed", "trainwarden.record.code:CodeWatch._number", "evil.py"),
    "a trace function": ("unsealed", "interpreter.trace", "evil.py"),
    "a signal handler": ("unsealed", "interpreter.signal 10", "evil.py"),
    "a finder of modules": ("unsealed", "interpreter.finder 0.find_spec", "evil.py"),
    "a mode around every function of torch": ("unsealed", "interpreter.mode 0.__torch_function__", "evil.py"),
    "a mode around every operator of torch": ("unsealed", "interpreter.mode 0.__torch_dispatch__", "evil.py"),
}


class Entries:
    def __init__(self) -> None:
        self.entries: list[object] = []

    def submit(self, entry: object) -> bool:
        self.entries.append(entry)
        return True


@dataclass
class Told:
    """What the desk logged for each look of `live_code.py`."""

    looks: list[CodeSeen]
    messages: list[wire.Code]

    def event(self, name: str) -> CodeSeen:
        return self.looks[EVENTS.index(name)]

    def attack(self, name: str) -> tuple[CodeSeen, CodeSeen]:
        """The look during the attack, and the one after it was undone."""
        at = len(EVENTS) + 2 * list(ATTACKS).index(name)
        return self.looks[at], self.looks[at + 1]


@pytest.fixture(scope="module")
def told(tmp_path_factory: pytest.TempPathFactory, memory_store: Store) -> Told:
    folder = tmp_path_factory.mktemp("memory")
    code = folder / "code"
    code.mkdir()
    (code / "model_code.py").write_text(MODEL)
    (code / "evil.py").write_text(EVIL)
    forge(code / "forged.py")
    script = code / "live_code.py"
    script.write_bytes((HERE / "live_code.py").read_bytes())
    env = {**os.environ, "PYTHONPATH": str(SOURCE), "TRAINWARDEN_SOURCE": str(SOURCE), "OMP_NUM_THREADS": "1"}
    run = subprocess.run([sys.executable, str(script), str(code)], env=env, cwd=code, capture_output=True, check=False)
    assert run.returncode == 0, run.stderr.decode()[-2000:]
    messages = list(frames(run.stdout))
    store = memory_store
    sealed = SealedOnDemand(
        store, {str(code / "model_code.py"): MODEL, str(code / "forged.py"): FORGED, str(script): script.read_text()}
    )
    ledger = Entries()
    desk = CodeDesk(ledger, lambda level: SealedFunctions(store, sealed, sys.executable, optimize=level))  # type: ignore[arg-type]
    for message in messages:
        desk.seen(0, 0, 0, message)
    desk.close(600)
    assert [e for e in ledger.entries if isinstance(e, Gap)] == []
    return Told([e for e in ledger.entries if isinstance(e, CodeSeen)], messages)


def forge(path: Path) -> None:
    """A source as sealed, and beside it a cache of tampered source with the header that fits the honest one."""
    path.write_text(TAMPERED)
    py_compile.compile(str(path))
    times = path.stat()
    path.write_text(FORGED)
    assert len(FORGED) == len(TAMPERED)
    os.utime(path, ns=(times.st_atime_ns, times.st_mtime_ns))


def frames(data: bytes) -> Iterator[wire.Code]:
    decoder = msgspec.msgpack.Decoder(wire.Code)
    at = 0
    while at < len(data):
        size = int.from_bytes(data[at : at + 4], "big")
        yield decoder.decode(data[at + 4 : at + 4 + size])
        at += 4 + size


def unlike_the_forged(seen: CodeSeen) -> list[CodeDifference]:
    return [d for d in seen.differences if d.slots != ("forged:scale",) and "evil:" not in d.slots[0]]


def test_a_tampered_cache_under_honest_source_is_named(told: Told) -> None:
    (found,) = [d for d in told.event("start").differences if d.slots == ("forged:scale",)]
    assert (found.kind, found.sealed, found.live) == ("altered", "LOAD_CONST 1.0", "LOAD_CONST 1.01")
    assert found.file.endswith("/forged.py")


def test_a_module_that_is_not_sealed_is_one_difference(told: Told) -> None:
    (found,) = [d for d in told.event("start").differences if d.slots[0].startswith("evil:")]
    assert found.kind == "unsealed"
    assert found.places > 4


@pytest.mark.parametrize("event", EVENTS)
def test_honest_wrapping_is_silent(told: Told, event: str) -> None:
    assert unlike_the_forged(told.event(event)) == []


@pytest.mark.parametrize("name", ATTACKS)
def test_every_patch_names_the_function_and_where_it_comes_from(told: Told, name: str) -> None:
    kind, slot, file = ATTACKS[name]
    during, after = told.attack(name)
    found = [d for d in during.differences if slot in d.slots]
    assert [(d.kind, os.path.basename(d.file)) for d in found] == [(kind, file)]
    assert unlike_the_forged(after) == []


def test_the_differing_instruction_is_named(told: Told) -> None:
    (found,) = [d for d in told.attack("__code__ assigned")[0].differences if d.kind == "unsealed"]
    assert found.at.endswith("_single_tensor_adam")
    assert found.sealed
    assert found.live
    assert found.sealed != found.live
    assert found.sealed_file.endswith("torch/optim/adam.py")


def test_an_edited_default_is_named_with_both_values(told: Told) -> None:
    (found,) = told.attack("__defaults__ edited")[0].differences
    assert (found.sealed, found.live) == ("'mean'", "'sum'")


def test_a_look_at_unchanged_code_tells_nothing_and_has_the_same_root(told: Told) -> None:
    before, after = (told.attack(name)[1] for name in ("a gradient hook", "the model's forward replaced"))
    assert before.root == after.root
    assert len(told.messages[0].functions) > 1000
    assert len(told.messages[-1].functions) == 0


LOOKED_AT = (
    "torch.optim.adam:_multi_tensor_adam",
    "torch.autograd:backward",
    "torch:Tensor.backward",
    "torch.utils.data.dataloader:DataLoader.__iter__",
    "torch.serialization:save",
    "torch:manual_seed",
    "torch.distributed.distributed_c10d:all_reduce",
    "torch.nn.parallel.distributed:DistributedDataParallel.forward",
    "torch.nn.modules.linear:Linear.forward",
    "random:seed",
    "__main__:train",
    "model_code:Net.forward",
)


def test_the_functions_that_decide_training_are_looked_at(told: Told) -> None:
    assert [slot for slot in LOOKED_AT if slot not in told.messages[0].slots] == []


# -- messages of a hostile rank


@pytest.fixture
def desk(tmp_path: Path) -> Iterator[tuple[CodeDesk, Entries]]:
    store = Store.open(tmp_path / "store", create=True)
    ledger = Entries()
    made = CodeDesk(ledger, lambda level: SealedFunctions(store, {}, sys.executable, optimize=level))  # type: ignore[arg-type]
    yield made, ledger
    made.close(60)


def one_function(**changes: object) -> wire.Code:
    form = codeform.form_text(one_function.__code__)
    function = wire.LiveFunction("/x.py", "f", 1, codeform.digest(form), (), (), "x")
    fields: dict[str, object] = {
        "functions": (function,),
        "forms": (form,),
        "slots": {"x:f": wire.Slot("function", (0,))},
    }

    return wire.Code(step=0, magic=importlib.util.MAGIC_NUMBER, optimize=0, **(fields | changes))  # type: ignore[arg-type]


@pytest.mark.parametrize(
    ("changes", "reason"),
    [
        ({"forms": ()}, "1 functions, 0 forms"),
        ({"forms": (b"('code',)",)}, "not what its digest says"),
        ({"slots": {"x:f": wire.Slot("function", (7,))}}, "was not told"),
    ],
)
def test_a_table_that_does_not_hold_together_is_a_gap(
    desk: tuple[CodeDesk, Entries], changes: dict[str, object], reason: str
) -> None:
    made, ledger = desk
    made.seen(0, 3, 5, one_function(**changes))
    made.close(60)
    (gap,) = ledger.entries
    assert isinstance(gap, Gap)
    assert reason in gap.reason
    assert (gap.rank, gap.step) == (3, 5)


def test_bytecode_of_another_python_is_a_gap(desk: tuple[CodeDesk, Entries]) -> None:
    made, ledger = desk
    made.seen(0, 0, 0, msgspec.structs.replace(one_function(), magic=b"\0\0\0\0"))
    made.close(60)
    assert [type(e) for e in ledger.entries] == [Gap]


def test_an_interpreter_that_does_not_answer_is_a_gap(tmp_path: Path) -> None:
    ledger = Entries()
    store = Store.open(tmp_path / "store", create=True)
    made = CodeDesk(ledger, lambda level: SealedFunctions(store, {}, "/bin/false", optimize=level))  # type: ignore[arg-type]
    made.seen(0, 0, 0, one_function())
    made.close(60)
    assert [type(e) for e in ledger.entries] == [Gap]


def test_differences_are_told_once_for_each_rank(desk: tuple[CodeDesk, Entries]) -> None:
    made, ledger = desk
    for rank in (0, 0, 1):
        made.seen(0, rank, 0, one_function())
    made.close(60)
    seen = [e for e in ledger.entries if isinstance(e, CodeSeen)]
    assert [len(e.differences) for e in seen] == [1, 0, 1]
