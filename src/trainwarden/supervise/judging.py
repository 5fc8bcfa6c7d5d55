"""Is what a name holds in a rank's memory what sealed source puts there? (pure)

Rules
-----
* Every function found under a name must come from a sealed file, be what that file compiles to under that
  qualified name, have the defaults that are written there, and use its own module's globals.
* Where sealed source defines a function under that name (in the class or the nearest base that has it), this
  function must be among those found: a decorator, a wrapper, a compiler keeps hold of what it wraps. Sealed code
  that stands there without it is `moved`, a note: libraries do replace each other's functions.
* A name that sealed source also binds otherwise (an import, an assignment) may hold any sealed function.
* Code without a file is generated. Where sealed source defines a function it has no business; elsewhere (a
  dataclass's `__init__`) it is not checked, and counted.
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


class Sealed(msgspec.Struct, frozen=True):
    """What judging needs to know: files, and which file and bases the rank's modules and classes have."""

    files: Callable[[str], FileCode | None]
    modules: Mapping[str, str]
    classes: Mapping[str, Sequence[str]]
    homes: Mapping[str, str]  # class → its file, where that is not its module's


def judge(slot: str, kind: str, functions: Sequence[wire.LiveFunction], sealed: Sealed) -> Judgement:
    """What a name holds, against sealed source."""
    owners, file, bound = _owners(slot, sealed)
    owner = owners[0] if owners else None
    skipped = ""
    for function in functions:
        match _function(function, sealed):
            case Differs() as found:
                return msgspec.structs.replace(found, owner=found.owner or owner, owner_file=found.owner_file or file)
            case NotChecked() as found:
                if function.file.startswith("<") and (owner is not None or ":" not in slot):
                    return Differs("generated", function, owner, file)
                skipped = found.reason
            case Agrees():
                pass
    if owner is None or bound:
        return NotChecked(skipped) if skipped else Agrees()
    if any(f.file == file and f.qualname == owner.qualname for f in functions):
        return NotChecked(skipped) if skipped else Agrees()
    if functions:
        return Differs("moved", functions[0], owner, file)
    if all(d.decorators for d in owners):
        return NotChecked("a decorator made something else of it")
    return Differs("replaced", None, owner, file, "value", "a function", f"an object of type {kind}")


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
