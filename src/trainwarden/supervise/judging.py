"""Is what a name holds in a rank's memory what sealed source puts there? (pure)

Rules
-----
* Every function found under a name must come from a sealed file, be what that file compiles to under that
  qualified name, have the defaults that are written there, and use its own module's globals.
* Where sealed source defines a function under that name (in the class or the nearest base that has it), this
  function must be among those found: a decorator, a wrapper, a compiler keeps hold of what it wraps. Sealed code
  that stands there without it is `moved`, a note: libraries do replace each other's functions.
* A name that sealed source imports holds what the module that it comes from holds, where that is looked at; one that
  it imports a module under holds that module.
* A name that sealed source binds otherwise (an assignment) may hold any sealed function.
* Code without a file is generated. Where sealed source defines a function, and under the names of libraries that
  generate none, it has no business; elsewhere (a dataclass's `__init__`) it is not checked, and counted.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import TypeAlias

import msgspec

from trainwarden import wire
from trainwarden.codeform import UNKNOWN
from trainwarden.seal.functions import Def, FileCode


class Agrees(msgspec.Struct, frozen=True):
    """Sealed source accounts for all of it."""


class NotChecked(msgspec.Struct, frozen=True):
    """It could not be compared."""

    reason: str


class Differs(msgspec.Struct, frozen=True):
    """Sealed source does not account for it; `owner` is the definition that belongs there, when there is one."""

    kind: str
    function: wire.LiveFunction | None
    owner: Def | None
    owner_file: str = ""
    at: str = ""
    sealed: str = ""
    live: str = ""


Judgement: TypeAlias = Agrees | NotChecked | Differs
Held: TypeAlias = "tuple[wire.LiveFunction, ...]"
MODULE = "module that nobody imported"
# Their modules' own names hold no generated code.
_PLAIN = ("torch", "safetensors", "random", "builtins", "trainwarden")


class Sealed(msgspec.Struct, frozen=True):
    """What judging needs to know: files, and which file and bases the rank's modules and classes have."""

    files: Callable[[str], FileCode | None]
    modules: Mapping[str, str]
    classes: Mapping[str, Sequence[str]]
    homes: Mapping[str, str]  # class → its file, where that is not its module's
    held: Callable[[str], Held | None] = lambda _: None  # what the rank holds under another name


def judge(slot: str, kind: str, functions: Sequence[wire.LiveFunction], sealed: Sealed) -> Judgement:
    """What a name holds, against sealed source."""
    owners, file, bound = _owners(slot, sealed)
    owner = owners[0] if owners else None
    skipped = ""
    for function in functions:
        match _function(function, sealed):
            case Differs() as found:
                if found.kind == "unsealed" and owner is None and _is_planted(slot, function, sealed):
                    found = msgspec.structs.replace(found, kind="planted")
                return msgspec.structs.replace(found, owner=found.owner or owner, owner_file=found.owner_file or file)
            case NotChecked() as found:
                if function.file.startswith("<") and (owner is not None or ":" not in slot):
                    return Differs("generated", function, owner, file)
                skipped = found.reason
            case Agrees():
                pass
    if owner is None or bound:
        return _bound(slot, kind, functions, sealed, skipped)
    if any(f.file == file and f.qualname == owner.qualname for f in functions):
        return NotChecked(skipped) if skipped else Agrees()
    if functions:
        return Differs("moved", functions[0], owner, file)
    if all(d.decorators for d in owners):
        return NotChecked("a decorator made something else of it")
    return Differs("replaced", None, owner, file, "value", "a function", f"an object of type {kind}")


def _is_planted(slot: str, function: wire.LiveFunction, sealed: Sealed) -> bool:
    """Whether code that is not sealed stands under a name of a module that is, which does not import it from there."""
    module, colon, _ = slot.partition(":")
    file = sealed.modules.get(module)
    if not colon or file is None or module == function.home or (file and sealed.files(file) is None):
        return False
    return all(t.partition(":")[0] != function.home for t, _ in counterparts(slot, sealed))


def counterparts(slot: str, sealed: Sealed) -> tuple[tuple[str, Held | None], ...]:
    """What sealed source imports under a name of a module, and the functions that the rank holds there."""
    module, _, name = slot.partition(":")
    file = sealed.modules.get(module, "")
    code = sealed.files(file) if file and name.isidentifier() else None
    package = module if file.endswith("/__init__.py") else module.rpartition(".")[0]
    targets = code.imports.get(name, ()) if code else ()
    return tuple((t, sealed.held(t) if ":" in t else None) for t in (_absolute(t, package) for t in targets))


def _absolute(target: str, package: str) -> str:
    """A relative import's target, absolute (PEP 328)."""
    rest = target.lstrip(".")
    level = len(target) - len(rest)
    if not level:
        return target
    parent = ".".join(package.split(".")[: len(package.split(".")) - level + 1])
    return f"{parent}.{rest}" if not rest.startswith(":") else f"{parent}{rest}"


def _bound(slot: str, kind: str, functions: Sequence[wire.LiveFunction], sealed: Sealed, skipped: str) -> Judgement:
    """A name that no definition belongs to, or not only one."""
    module, _, name = slot.partition(":")
    imported = counterparts(slot, sealed)
    wanted = " or ".join(t.replace(":", ".") for t, _ in imported)
    first = functions[0] if functions else None
    if imported and (kind == MODULE or all(":" not in t for t, _ in imported)):
        return Differs("replaced", first, None, "", "value", f"module {wanted}", kind)
    if functions and imported and all(held is not None and not _related(held, functions) for _, held in imported):
        return Differs("generated" if skipped else "moved", first, None, "", "value", wanted, functions[0].qualname)
    if skipped and "." not in name and module.partition(".")[0] in _PLAIN:
        return Differs("generated", first, None)
    return NotChecked(skipped) if skipped else Agrees()


def _related(one: Sequence[wire.LiveFunction], other: Sequence[wire.LiveFunction]) -> bool:
    """Whether one is the other, or wraps it: a library may wrap a function under one of its names alone."""
    return set(one) <= set(other) or set(other) <= set(one)


def _function(function: wire.LiveFunction, sealed: Sealed) -> Judgement:
    if function.file.startswith("<"):
        return NotChecked("code without a file")
    code = sealed.files(function.file)
    if code is None:
        return Differs("unsealed", function, None)
    if code.error:
        return NotChecked(f"{function.file} does not compile: {code.error}")
    defs = code.named(function.qualname)
    defs = tuple(d for d in defs if d.line == function.line) or defs
    if function.qualname not in code.codes.get(function.digest.hex(), ()):
        return Differs("altered", function, defs[0] if defs else None, function.file)
    if function.home.startswith("?"):
        live = f"other globals under the name {function.home[1:]}"
        return Differs("globals", function, defs[0] if defs else None, function.file, "globals", function.file, live)
    home = sealed.modules.get(function.home)
    if home and home != function.file:
        return Differs("globals", function, defs[0] if defs else None, function.file, "globals", function.file, home)
    if not defs or any(_same_defaults(d, function) for d in defs):
        return Agrees()
    return Differs("defaults", function, defs[0], function.file, *_first_default(defs[0], function))


def _same_defaults(written: Def, function: wire.LiveFunction) -> bool:
    return not _first_default(written, function)[0]


def _first_default(written: Def, function: wire.LiveFunction) -> tuple[str, str, str]:
    """The first default that differs: its place, its text in the source and in memory."""
    if len(written.defaults) != len(function.defaults):
        return "number of defaults", str(len(written.defaults)), str(len(function.defaults))
    for i, (a, b) in enumerate(zip(written.defaults, function.defaults, strict=True)):
        if a != b and not a.startswith(UNKNOWN):
            return f"default {i + 1} of {len(written.defaults)}", a, b
    keywords = dict(function.keywords)
    for name in sorted(written.keywords.keys() | keywords.keys()):
        a, b = written.keywords.get(name, "(none)"), keywords.get(name, "(none)")
        if a != b and not a.startswith(UNKNOWN):
            return f"default of {name}", a, b
    return "", "", ""


def _owners(slot: str, sealed: Sealed) -> tuple[tuple[Def, ...], str, bool]:
    """The definitions that belong under a name, their file, and whether the source binds the name otherwise too."""
    module, colon, name = slot.partition(":")
    if not colon:
        return (), "", False
    scope, _, attribute = name.rpartition(".")
    places = [f"{module}:{scope}", *sealed.classes.get(f"{module}:{scope}", ())] if scope else [f"{module}:"]
    for place in places:
        of_module, _, of_scope = place.partition(":")
        file = sealed.homes.get(place) or sealed.modules.get(of_module, "")
        code = sealed.files(file) if file else None
        if code is None:
            continue
        bound = attribute in code.scopes.get(of_scope, ())
        defs = code.named(f"{of_scope}.{attribute}" if of_scope else attribute)
        if defs or bound:
            return defs, file, bound
    return (), "", False
