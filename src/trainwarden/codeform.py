"""What a code object is, in one comparable form; and what sealed source says its functions are.

Two processes use this file: the rank, on the functions that live in it, and a clean run of the sealed interpreter
(`python -I -S codeform.py`), on sealed source that it is given as text. So it uses the standard library alone.

Rules
-----
* A form covers bytecode, constants with the code nested in them, names, variables, flags and the exception table;
  neither file names nor lines, which a debugger wants and a processor does not.
* Bytecode is taken as `co_code`, in which the interpreter undoes its own specialisation.
* Only compiled, never executed: neither sealed source nor a live form is run here. Of a live form not even a code
  object is made: CPython believes those, and a hostile one corrupts memory (seen with 3.11).

Source: CPython's `Objects/codeobject.c`; `inspect` module, "Code Objects Bit Flags".
"""

from __future__ import annotations

import ast
import hashlib
import importlib.util
import json
import opcode
import os
import sys
from collections.abc import Iterator
from types import CodeType
from typing import Any, TypeAlias

Form: TypeAlias = "tuple[Any, ...]"
_CODE = "code"
_FIELDS = 12
_MOST_TEXT = 200
UNKNOWN = "?"  # begins the text of a value that is not compared


def form(code: CodeType) -> Form:
    """The comparable parts of a code object, as nested tuples of numbers, strings and None."""
    return (
        _CODE,
        code.co_qualname,
        code.co_argcount,
        code.co_posonlyargcount,
        code.co_kwonlyargcount,
        code.co_flags,
        code.co_code.hex(),
        tuple(map(_constant, code.co_consts)),
        code.co_names,
        code.co_varnames,
        (code.co_freevars, code.co_cellvars),
        code.co_exceptiontable.hex(),
    )


def _constant(value: Any) -> Any:
    if value is None or type(value) in (bool, int, str):
        return value
    if isinstance(value, CodeType):
        return form(value)
    if type(value) is tuple:
        return ("tuple", *map(_constant, value))
    if type(value) is frozenset:
        return ("frozenset", *sorted(map(ascii, map(_constant, value))))
    return (type(value).__name__, repr(value))  # floats, complex numbers, bytes, Ellipsis, slices


def form_text(code: CodeType) -> bytes:
    """A form as ASCII: equal text, equal code."""
    return ascii(form(code)).encode()


def digest(text: bytes) -> bytes:
    """16 bytes (BLAKE2b) that name a form."""
    return hashlib.blake2b(text, digest_size=16).digest()


def value_text(value: Any) -> str:
    """A default's value as text; what is no plain immutable value is only named by its type."""
    if value is None or value is Ellipsis or type(value) in (bool, int, float, complex, str, bytes):
        try:
            text = ascii(value)
        except ValueError:  # more digits than Python prints
            text = hex(value)
        return text if len(text) <= _MOST_TEXT else digest(text.encode()).hex()
    if type(value) is tuple:
        parts = [value_text(v) for v in value]
        if len(parts) <= 16 and not any(p.startswith(UNKNOWN) for p in parts):
            return f"({', '.join(parts)})"
    return f"{UNKNOWN}{type(value).__name__}"


def due(key: bytes, step: int, every: int) -> int:
    """1 when a rank looks at its code before this step, else 0: the first, and one of `every` by a keyed choice."""
    if every <= 0:
        return 0
    draw = hashlib.blake2b(f"code {step}".encode(), key=key, digest_size=8).digest()
    return int(step == 0 or int.from_bytes(draw, "big") % every == 0)


# ------------------------------------------------------------------------- what source says


def describe(source: bytes, path: str, optimize: int) -> dict[str, Any]:
    """Every code object, function and name of a source file.

    `codes`: digest → [qualified name, …]. `defs`: [qualified name, line, decorated, defaults, keyword defaults],
    where a default that is no literal is "?". `scopes`: the module ("") and its classes → names bound other than
    by `def`. `imports`: names that the module binds by imports alone → "module" or "module:name". `error` instead of
    all that where it cannot be compiled.
    """
    try:
        tree = ast.parse(source, path)
        code = compile(tree, path, "exec", dont_inherit=True, optimize=optimize)
    except (SyntaxError, ValueError, RecursionError, MemoryError) as e:
        return {"error": f"{type(e).__name__}: {e}"}
    codes: dict[str, list[str]] = {}
    for part in _nested(code):
        codes.setdefault(digest(form_text(part)).hex(), []).append(part.co_qualname)
    found = _Names()
    found.visit(tree)
    imports = {name: sorted(of) for name, of in found.imports.items() if name not in found.stored}
    return {
        "codes": codes,
        "defs": found.defs,
        "scopes": {k: sorted(v) for k, v in found.scopes.items()},
        "imports": imports,
    }


def _nested(code: CodeType) -> Iterator[CodeType]:
    yield code
    for constant in code.co_consts:
        if isinstance(constant, CodeType):
            yield from _nested(constant)


class _Names(ast.NodeVisitor):
    """Functions with their defaults, and the names that the module and its classes bind otherwise."""

    def __init__(self) -> None:
        self.defs: list[list[Any]] = []
        self.scopes: dict[str, set[str]] = {"": set()}
        self.imports: dict[str, set[str]] = {}
        self.stored: set[str] = set()  # names of the module that are bound otherwise than by an import
        self._prefix = ""
        self._scope: str | None = ""  # None inside a function

    def visit_FunctionDef(self, node: ast.FunctionDef | ast.AsyncFunctionDef) -> None:
        for decorator in node.decorator_list:
            self.visit(decorator)
        line = min([node.lineno, *(d.lineno for d in node.decorator_list)])
        arguments = node.args
        defaults = [_literal(d) for d in arguments.defaults]
        named = zip(arguments.kwonlyargs, arguments.kw_defaults, strict=True)
        keywords = {a.arg: _literal(d) for a, d in named if d is not None}
        self._store(node.name)
        self.defs.append([self._prefix + node.name, line, len(node.decorator_list), defaults, keywords])
        self._inside(self._prefix + node.name + ".<locals>.", None, node.body)

    visit_AsyncFunctionDef = visit_FunctionDef

    def visit_ClassDef(self, node: ast.ClassDef) -> None:
        self._store(node.name)
        name = self._prefix + node.name
        if self._scope is not None:
            self.scopes.setdefault(name, set())
        self._inside(name + ".", name if self._scope is not None else None, node.body)

    def visit_Name(self, node: ast.Name) -> None:
        if isinstance(node.ctx, ast.Store):
            self._bind(node.id)
            self._store(node.id)

    def visit_Import(self, node: ast.Import) -> None:
        for alias in node.names:
            self._import(alias, alias.name if alias.asname else alias.name.partition(".")[0])

    def visit_ImportFrom(self, node: ast.ImportFrom) -> None:
        for alias in node.names:
            self._import(alias, f"{'.' * node.level}{node.module or ''}:{alias.name}")

    def _import(self, alias: ast.alias, target: str) -> None:
        name = (alias.asname or alias.name).partition(".")[0]
        self._bind(name)
        if self._scope == "":
            self.imports.setdefault(name, set()).add(target)

    def _store(self, name: str) -> None:
        if self._scope == "":
            self.stored.add(name)

    def visit_Lambda(self, node: ast.Lambda) -> None:
        return

    def _bind(self, name: str) -> None:
        if self._scope is not None:
            self.scopes[self._scope].add(name)

    def _inside(self, prefix: str, scope: str | None, body: list[ast.stmt]) -> None:
        before = self._prefix, self._scope
        self._prefix, self._scope = prefix, scope
        for statement in body:
            self.visit(statement)
        self._prefix, self._scope = before


def _literal(node: ast.expr) -> str:
    try:
        return value_text(ast.literal_eval(node))
    except (ValueError, TypeError, SyntaxError, MemoryError, RecursionError):
        return UNKNOWN


# ------------------------------------------------------------------------- where two differ


def first_difference(source: bytes, path: str, optimize: int, qualname: str, live: bytes) -> list[str]:
    """[where, sealed, live]: the first instruction in which a live form differs from the sealed function's."""
    code = compile(source, path, "exec", dont_inherit=True, optimize=optimize)
    named = [form(part) for part in _nested(code) if part.co_qualname == qualname]
    if not named:
        return []
    found = ast.literal_eval(live.decode("ascii"))
    return _differing(named[-1], found)


def _differing(sealed: Form, live: Form) -> list[str]:
    if len(live) != _FIELDS or live[0] != _CODE:
        return []
    one, other = list(_instructions(sealed)), list(_instructions(live))
    for i in range(max(len(one), len(other))):
        a, b = (side[i] if i < len(side) else "(end)" for side in (one, other))
        if a != b:
            return [f"instruction {i} of {sealed[1]}", a, b]
    for a, b in zip(sealed[7], live[7], strict=False):
        if a != b and isinstance(a, tuple) and isinstance(b, tuple) and a[:1] == b[:1] == (_CODE,):
            return _differing(a, b)
    names = ("arguments", "positional-only arguments", "keyword-only arguments", "flags", "bytecode", "constants",
             "names", "variables", "cells", "exception table")  # fmt: skip
    for name, a, b in zip(names, sealed[2:], live[2:], strict=True):
        if a != b:
            return [f"{name} of {sealed[1]}", ascii(a)[:_MOST_TEXT], ascii(b)[:_MOST_TEXT]]
    return []


def _instructions(of: Form) -> Iterator[str]:
    """A form's instructions as text. No code object is made of it: the interpreter trusts those, and may crash."""
    code, constants, names, variables, (free, cells) = of[6:11]
    inner = [str(name) for name in (*variables, *(c for c in cells if c not in variables), *free)]
    shown = [_shown(constant)[:_MOST_TEXT] for constant in constants]
    for _, name, number in instructions(bytes.fromhex(code)):
        yield f"{name} {operand(name, number, shown, [str(n) for n in names], inner)}".strip()[:_MOST_TEXT]


def _shown(constant: Any) -> str:
    if not isinstance(constant, tuple):
        return repr(constant)
    if constant[:1] == (_CODE,):
        return f"<code of {constant[1]}>"
    return ", ".join(map(str, constant[1:]))


# ------------------------------------------------------------------------- bytecode as text

_CACHES: Any = getattr(opcode, "_inline_cache_entries", {})
_OPERATORS: tuple[tuple[str, str], ...] = tuple(getattr(opcode, "_nb_ops", ()))
_SHIFTED = {"LOAD_GLOBAL": 1} if "LOAD_METHOD" in opcode.opmap else {"LOAD_GLOBAL": 1, "LOAD_ATTR": 1}


def instructions(body: bytes) -> Iterator[tuple[int, str, int]]:
    """Code unit, name and argument of each instruction of this Python's bytecode, which may be hostile."""
    at = argument = 0
    while at + 1 < len(body):
        name = opcode.opname[body[at]]
        argument = (argument << 8 | body[at + 1]) & 0xFFFFFFFF
        at += 2
        if name == "EXTENDED_ARG":
            continue
        yield at // 2 - 1, name, argument
        argument = 0
        at += 2 * _cache_entries(name)


def _cache_entries(name: str) -> int:
    """Words after an instruction in which the interpreter caches; nothing that is run."""
    if isinstance(_CACHES, dict):
        return int(_CACHES.get(name, 0))
    number = opcode.opmap.get(name, -1)
    return int(_CACHES[number]) if 0 <= number < len(_CACHES) else 0


def operand(name: str, number: int, constants: list[str], names: list[str], variables: list[str]) -> str:
    """An instruction's argument in words; what points nowhere keeps its number."""
    op = opcode.opmap.get(name, -1)
    if op < opcode.HAVE_ARGUMENT:
        return ""
    if op in opcode.hasconst:
        return constants[number] if number < len(constants) else f"constant {number}"
    if op in opcode.hasname:
        index = number >> _SHIFTED.get(name, 0)
        return names[index] if index < len(names) else f"name {number}"
    if op in opcode.haslocal or op in opcode.hasfree:
        return variables[number] if number < len(variables) else f"variable {number}"
    if name == "BINARY_OP" and number < len(_OPERATORS):
        return _OPERATORS[number][1]
    if name == "COMPARE_OP" and number < len(opcode.cmp_op):
        return opcode.cmp_op[number]
    return str(number)


def _answer(file: dict[str, str], optimize: int) -> Any:
    source = file["source"].encode("latin-1")
    if "live" not in file:
        return describe(source, file["path"], optimize)
    try:
        return first_difference(source, file["path"], optimize, file["qualname"], file["live"].encode())
    except (ValueError, LookupError, TypeError, SyntaxError, SystemError, OverflowError, MemoryError, RecursionError):
        return []  # a form that is none: the difference stands, its first instruction is not named


def main() -> None:
    """Answer one JSON question from stdin: {"optimize", "files": [{path, source, qualname?, live?}]}."""
    os.nice(10)
    question = json.load(sys.stdin)
    answers = [_answer(file, question["optimize"]) for file in question["files"]]
    json.dump({"magic": importlib.util.MAGIC_NUMBER.hex(), "answers": answers}, sys.stdout)


if __name__ == "__main__":
    main()
