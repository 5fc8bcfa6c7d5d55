"""Forms of code objects: equal code is equal text, and whatever decides what runs makes it differ."""

from __future__ import annotations

import ast
import opcode
import textwrap
from types import CodeType, FunctionType

import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st

from trainwarden import codeform

SOURCE = """
def f(x, scale=0.9, *, eps=1e-8):
    "A docstring."
    def inner(y):
        return y * 3.0 in {1, 2, 3}
    return inner(x) + scale
"""


def function(source: str = SOURCE, name: str = "f") -> FunctionType:
    space: dict[str, FunctionType] = {}
    exec(compile(textwrap.dedent(source), "/sealed/f.py", "exec", dont_inherit=True), space)
    return space[name]


def text(source: str = SOURCE) -> bytes:
    return codeform.form_text(function(source).__code__)


def test_the_form_leaves_out_file_and_lines() -> None:
    code = function().__code__
    assert codeform.form_text(code.replace(co_filename="/other.py", co_firstlineno=99, co_linetable=b"")) == text()


def test_the_form_is_the_same_after_the_interpreter_specialised_the_code() -> None:
    f = function("def f(a):\n    s = 0\n    for i in range(300):\n        s += a * i\n    return s\n")
    before = codeform.form_text(f.__code__)
    for _ in range(50):
        f(2)
    assert codeform.form_text(f.__code__) == before


@pytest.mark.parametrize(
    ("old", "new"),
    [
        ("3.0", "3.5"),
        ("y * 3.0", "y + 3.0"),
        ("{1, 2, 3}", "{1, 2, 4}"),
        ("inner(x) + scale", "inner(scale) + x"),
        ("return inner(x) + scale", "return inner(x) + scale if x else 0"),
        ("3.0", "3"),
        ("y * 3.0", "-0.0 * y"),
        ("return y", "yield y"),
        ("inner(x)", "outer(x)"),
    ],
)
def test_every_change_of_what_runs_changes_the_form(old: str, new: str) -> None:
    assert old in SOURCE
    assert text(SOURCE.replace(old, new)) != text()


@pytest.mark.parametrize(
    ("field", "value"), [("co_exceptiontable", b"\x81\x04\x10\x00"), ("co_flags", 0x10_0003), ("co_argcount", 1)]
)
def test_parts_that_no_instruction_shows_change_the_form(field: str, value: object) -> None:
    code = function().__code__
    assert getattr(code, field) != value
    assert codeform.form_text(code.replace(**{field: value})) != text()  # type: ignore[arg-type]


def test_source_says_the_codes_and_defaults_of_its_functions() -> None:
    said = codeform.describe(SOURCE.encode(), "/sealed/f.py", 0)
    assert said["codes"][codeform.digest(text()).hex()] == ["f"]
    assert said["defs"][0] == ["f", 2, 0, ["0.9"], {"eps": "1e-08"}]
    assert said["defs"][1][0] == "f.<locals>.inner"
    live = function()
    assert list(map(codeform.value_text, live.__defaults__ or ())) == said["defs"][0][3]


def test_source_says_what_its_module_and_classes_bind_otherwise() -> None:
    source = """
    import math
    from os import path as where
    class A:
        limit = 3
        @property
        def p(self): return 1
        q = p
    if math.pi:
        size = 1
    def f():
        local = 1
    """
    said = codeform.describe(textwrap.dedent(source).encode(), "/s.py", 0)
    assert said["scopes"] == {"": ["math", "size", "where"], "A": ["limit", "q"]}
    assert [d[:3] for d in said["defs"]] == [["A.p", 6, 1], ["f", 11, 0]]


def test_defaults_that_are_no_literals_or_mutable_are_not_compared() -> None:
    said = codeform.describe(b"def f(a=len, b=[], c=(1, -2.5, None), d='x'): pass", "/s.py", 0)
    assert said["defs"][0][3] == ["?", "?list", "(1, -2.5, None)", "'x'"]


def test_source_that_does_not_compile_is_an_answer_of_its_own() -> None:
    assert codeform.describe(b"def f(:", "/s.py", 0)["error"].startswith("SyntaxError")
    assert codeform.describe(b"a\0b", "/s.py", 0)["error"]


def test_the_first_differing_instruction_is_named() -> None:
    live = text(SOURCE.replace("inner(x) + scale", "inner(x) - scale"))
    where, sealed, found = codeform.first_difference(SOURCE.encode(), "/sealed/f.py", 0, "f", live)
    assert where.startswith("instruction ")
    assert where.endswith(" of f")
    assert (sealed, found) == ("BINARY_OP +", "BINARY_OP -")


def test_a_difference_inside_a_nested_function_is_named_there() -> None:
    live = text(SOURCE.replace("3.0", "3.5"))
    where, sealed, found = codeform.first_difference(SOURCE.encode(), "/sealed/f.py", 0, "f", live)
    assert where.endswith("of f.<locals>.inner")
    assert (sealed, found) == ("LOAD_CONST 3.0", "LOAD_CONST 3.5")


def test_equal_code_has_no_difference() -> None:
    assert codeform.first_difference(SOURCE.encode(), "/sealed/f.py", 0, "f", text()) == []


@settings(max_examples=60, deadline=None)
@given(st.binary(max_size=60), st.lists(st.one_of(st.integers(), st.text(max_size=5), st.none()), max_size=4))
@example(b"\x90" * 20, [])  # nothing but EXTENDED_ARG
@example(b"d\xff", [None])  # a constant that is not there
@example(b"d", [])  # half an instruction
@example(bytes([opcode.opmap["LOAD_GLOBAL"], 0]), [])  # the end where its caches should be: CPython would write there
def test_hostile_forms_are_shown_or_refused_and_never_run(code: bytes, constants: list[object]) -> None:
    live = list(codeform.form(function().__code__))
    live[6], live[7] = code.hex(), tuple(constants)
    hostile = ascii(tuple(live)).encode()
    try:
        found = codeform.first_difference(SOURCE.encode(), "/sealed/f.py", 0, "f", hostile)
    except (ValueError, IndexError, KeyError, TypeError, SystemError, OverflowError):
        return  # `main` answers with nothing
    assert found == [] or len(found) == 3


PLAIN = st.one_of(st.none(), st.booleans(), st.integers(), st.floats(), st.text(max_size=9), st.binary(max_size=9))


@settings(max_examples=60, deadline=None)
@given(st.recursive(PLAIN, lambda inner: st.lists(inner, max_size=3).map(tuple), max_leaves=6))
def test_literal_defaults_read_alike_in_source_and_in_memory(value: object) -> None:
    try:
        tree = ast.literal_eval(ascii(value))
    except ValueError:
        return  # inf and nan have no literal
    assert codeform.value_text(tree) == codeform.value_text(value)


def test_a_look_is_due_at_the_first_step_and_at_secret_later_ones() -> None:
    one, other = ([s for s in range(4000) if codeform.due(key, s, 16)] for key in (b"a" * 32, b"b" * 32))
    assert one[0] == other[0] == 0
    assert one != other
    assert 150 < len(one) < 350
    assert not codeform.due(b"a" * 32, 0, 0)


def test_code_objects_nested_in_tuples_are_part_of_the_form() -> None:
    inner = function("def f(): return 1").__code__
    outer = function().__code__
    one: CodeType = outer.replace(co_consts=(*outer.co_consts, (inner,)))
    other = outer.replace(co_consts=(*outer.co_consts, (function("def f(): return 2").__code__,)))
    assert codeform.form_text(one) != codeform.form_text(other)
