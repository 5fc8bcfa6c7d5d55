"""Names in memory against sealed source, rule by rule, without a process."""

from __future__ import annotations

import functools
import textwrap
from collections.abc import Callable, Iterator
from types import FunctionType
from typing import Any

import msgspec
import pytest

from trainwarden import codeform, wire
from trainwarden.seal.functions import FileCode
from trainwarden.supervise import judging
from trainwarden.supervise.judging import Agrees, Differs, Judgement, NotChecked, Sealed, judge

OPTIM = """
import functools
def guarded(f):
    @functools.wraps(f)
    def wrapper(*a, **k):
        return f(*a, **k)
    return wrapper
class Base:
    def zero(self): return 0
    def step(self, closure=None): return 1
class Adam(Base):
    @guarded
    def step(self, closure=None): return 2
class AdamW(Adam):
    pass
def loss(a, b, reduction="mean", *, smoothing=0.0): return a - b
def other(a, b, reduction="mean", *, smoothing=0.0): return b - a
alias = loss
"""
EVIL = "def make(f):\n    def wrapper(*a, **k): return f(*a, **k)\n    return wrapper\ndef loss(a, b): return 0\n"
FILES = {"/env/optim.py": OPTIM, "/tmp/evil.py": EVIL}


class Space:
    """Two modules, one of them sealed, as a rank has them."""

    def __init__(self) -> None:
        self.optim = self._run("/env/optim.py", "optim")
        self.evil = self._run("/tmp/evil.py", "evil")
        said = codeform.describe(OPTIM.encode(), "/env/optim.py", 0)
        self.files = {"/env/optim.py": msgspec.convert(said, FileCode)}
        bases = {"optim:AdamW": ("optim:Adam", "optim:Base"), "optim:Adam": ("optim:Base",), "optim:Base": ()}
        self.sealed = Sealed(self.files.get, {"optim": "/env/optim.py", "evil": "/tmp/evil.py"}, bases, {})

    @staticmethod
    def _run(path: str, name: str) -> dict[str, Any]:
        space: dict[str, Any] = {"__name__": name}
        exec(compile(textwrap.dedent(FILES[path]), path, "exec", dont_inherit=True), space)
        return space

    def judge(self, slot: str, value: Any) -> Judgement:
        return judge(slot, type(value).__name__, [live(f) for f in chain(value)], self.sealed)


def chain(value: Any) -> Iterator[FunctionType]:
    if isinstance(value, functools.partial):
        yield from chain(value.func)
    if isinstance(value, FunctionType):
        yield value
        for cell in value.__closure__ or ():
            yield from chain(cell.cell_contents)


def live(function: FunctionType) -> wire.LiveFunction:
    code = function.__code__
    return wire.LiveFunction(
        file=code.co_filename,
        qualname=code.co_qualname,
        line=code.co_firstlineno,
        digest=codeform.digest(codeform.form_text(code)),
        defaults=tuple(map(codeform.value_text, function.__defaults__ or ())),
        keywords=tuple((k, codeform.value_text(v)) for k, v in (function.__kwdefaults__ or {}).items()),
        home=str(function.__globals__.get("__name__", "")),
    )


@pytest.fixture
def space() -> Space:
    return Space()


def kind_of(judgement: Judgement) -> str:
    return judgement.kind if isinstance(judgement, Differs) else type(judgement).__name__


def _step(s: Space) -> Any:
    return s.optim["Adam"].step


def _wrapped(s: Space) -> Any:
    return s.evil["make"](s.optim["loss"])


HONEST: dict[str, Callable[[Space], tuple[str, Any]]] = {
    "a function": lambda s: ("optim:loss", s.optim["loss"]),
    "a decorated method": lambda s: ("optim:Adam.step", s.optim["Adam"].__dict__["step"]),
    "an alias": lambda s: ("optim:alias", s.optim["alias"]),
    "wrapped by sealed code": lambda s: ("optim:loss", s.optim["guarded"](s.optim["loss"])),
    "a base's method wrapped and put on its class": lambda s: ("optim:AdamW.step", s.optim["guarded"](_step(s))),
    "a hook of sealed code": lambda s: ("optimizer0._optimizer_step_post_hooks[0]", s.optim["other"]),
    "a partial of itself": lambda s: ("optim:loss", functools.partial(s.optim["loss"], reduction="sum")),
    "a name that sealed source does not define": lambda s: ("optim:fresh", s.optim["other"]),
}  # fmt: skip


@pytest.mark.parametrize("case", HONEST)
def test_honest_names_agree(space: Space, case: str) -> None:
    assert space.judge(*HONEST[case](space)) == Agrees()


def _generated() -> FunctionType:
    made: dict[str, Any] = {}
    exec("def loss(a, b, reduction='mean', *, smoothing=0.0): return a - b", made)
    return made["loss"]  # type: ignore[no-any-return]


def _with_code(s: Space) -> Any:
    s.optim["loss"].__code__ = s.evil["loss"].__code__
    return s.optim["loss"]


def _disguised(s: Space) -> Any:
    code = s.evil["loss"].__code__.replace(co_filename="/env/optim.py", co_qualname="loss")
    s.optim["loss"].__code__ = code
    return s.optim["loss"]


def _defaults(s: Space) -> Any:
    s.optim["loss"].__defaults__ = ("sum",)
    return s.optim["loss"]


def _fewer_defaults(s: Space) -> Any:
    s.optim["loss"].__defaults__ = None
    return s.optim["loss"]


def _keywords(s: Space) -> Any:
    s.optim["loss"].__kwdefaults__ = {"smoothing": 0.1}
    return s.optim["loss"]


def _other_globals(s: Space) -> Any:
    f = s.optim["loss"]
    made = FunctionType(f.__code__, {"__name__": "evil"}, "loss", f.__defaults__)
    made.__kwdefaults__ = f.__kwdefaults__
    return made


ATTACKS: dict[str, tuple[str, str, Callable[[Space], Any]]] = {
    "wrapped by foreign code": ("unsealed", "optim:loss", _wrapped),
    "foreign code around a base's method": ("unsealed", "optim:AdamW.step", lambda s: s.evil["make"](_step(s))),
    "replaced by foreign code": ("unsealed", "optim:loss", lambda s: s.evil["loss"]),
    "foreign code below sealed code": ("unsealed", "optim:loss", lambda s: s.optim["guarded"](_wrapped(s))),
    "a foreign hook": ("unsealed", "model0.weight._backward_hooks[0]", lambda s: s.evil["loss"]),
    "__code__ assigned": ("unsealed", "optim:loss", _with_code),
    "__code__ assigned, under a sealed file's name": ("altered", "optim:loss", _disguised),
    "generated code in its place": ("generated", "optim:loss", lambda s: _generated()),
    "a generated hook": ("generated", "optimizer0.step", lambda s: _generated()),
    "a default changed": ("defaults", "optim:loss", _defaults),
    "defaults removed": ("defaults", "optim:loss", _fewer_defaults),
    "a keyword default changed": ("defaults", "optim:loss", _keywords),
    "rebuilt over other globals": ("globals", "optim:loss", _other_globals),
    "a builtin in its place": ("replaced", "optim:loss", lambda s: max),
    "another sealed function in its place": ("moved", "optim:loss", lambda s: s.optim["other"]),
    "another sealed method in its place": ("moved", "optim:AdamW.step", lambda s: s.optim["Base"].zero),
}  # fmt: skip


@pytest.mark.parametrize("case", ATTACKS)
def test_every_way_to_patch_is_told_apart(space: Space, case: str) -> None:
    kind, slot, make = ATTACKS[case]
    assert kind_of(space.judge(slot, make(space))) == kind


def test_a_difference_names_the_definition_that_belongs_there(space: Space) -> None:
    found = space.judge("optim:AdamW.step", space.evil["make"](space.optim["Adam"].step))
    assert isinstance(found, Differs)
    assert found.owner is not None
    assert (found.owner.qualname, found.owner_file) == ("Adam.step", "/env/optim.py")
    assert found.function is not None
    assert found.function.file == "/tmp/evil.py"


def test_a_changed_default_is_named_with_both_values(space: Space) -> None:
    found = space.judge("optim:loss", _keywords(space))
    assert isinstance(found, Differs)
    assert (found.at, found.sealed, found.live) == ("default of smoothing", "0.0", "0.1")


def test_generated_code_where_sealed_source_defines_nothing_is_not_checked(space: Space) -> None:
    assert isinstance(space.judge("optim:Adam.__repr__", _generated()), NotChecked)


def test_sealed_source_that_does_not_compile_is_not_checked(space: Space) -> None:
    space.files["/env/optim.py"] = FileCode(error="SyntaxError: no")
    assert isinstance(space.judge("optim:loss", space.optim["loss"]), NotChecked)


@pytest.mark.parametrize(
    ("target", "package", "absolute"),
    [
        ("torch.nn.functional", "a.b", "torch.nn.functional"),
        ("torch.nn:functional", "a.b", "torch.nn:functional"),
        (".:f", "a.b", "a.b:f"),
        (".c:f", "a.b", "a.b.c:f"),
        ("..c:f", "a.b", "a.c:f"),
        ("....c:f", "a", ".c:f"),
    ],
)
def test_relative_imports_are_followed_and_none_leads_out_of_reach(target: str, package: str, absolute: str) -> None:
    assert judging._absolute(target, package) == absolute
