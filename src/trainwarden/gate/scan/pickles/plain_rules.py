"""Rules of plain Python: collections, numbers, text, time, paths, and records that are nothing but their attributes."""

from __future__ import annotations

import re
from typing import Final

from trainwarden.gate.scan.pickles.values import Blob, Call, Made, Many, Mapping, Name, Objectionable, Rule, Value

_NONE: Final = Rule()
_DEFAULTS: Final = frozenset(f"builtins.{n}" for n in ("list", "dict", "int", "float", "str", "set", "bool", "tuple"))
_LATIN: Final = ("latin1", "latin-1", "utf-8", "utf8", "ascii")


def made(data: Value = None) -> Made:
    """An object whose name and rule the machine fills in."""
    return Made("", _NONE, data)


def plain(args: tuple[Value, ...]) -> Value:
    """Made of nothing."""
    if args:
        raise Objectionable("it is made of arguments, which no checkpoint gives it")
    return made()


def attributes(instance: Made, state: Value) -> None:
    """State that is a dict of attributes, or none; slots beside it would be set by setattr."""
    if isinstance(state, tuple) and len(state) == 2 and state[1] is None:
        state = state[0]
    if state is not None and not isinstance(state, Mapping):
        raise Objectionable("its state is not a dict of attributes")
    if isinstance(state, Mapping) and (state.others or any(k.startswith("__") for k in state.items)):
        raise Objectionable("its state sets something other than plain attributes")


INERT: Final = Rule(call=None, new=plain, build=attributes)
MAPPING: Final = Rule(call=plain, new=plain, build=attributes, grows=True)
NAMED: Final = Rule()  # named as a kind, never called


def is_number(value: Value) -> bool:
    return value is None or isinstance(value, int | float)


def numbers(fewest: int, most: int) -> Call:
    """Made of numbers."""

    def check(args: tuple[Value, ...]) -> Value:
        if not fewest <= len(args) <= most or not all(map(is_number, args)):
            raise Objectionable("its arguments are not numbers")
        return made()

    return check


def texts(fewest: int, most: int) -> Call:
    """Made of short text."""

    def check(args: tuple[Value, ...]) -> Value:
        if not fewest <= len(args) <= most or not all(isinstance(a, str) for a in args):
            raise Objectionable("its arguments are not short text")
        return made()

    return check


def one_list(args: tuple[Value, ...]) -> Value:
    """Made of a list of plain values, or nothing."""
    if len(args) > 1 or (args and not isinstance(args[0], Many | tuple)):
        raise Objectionable("it is not made of a list")
    items = args[0].items if args and isinstance(args[0], Many) else list(args[0]) if args else []  # type: ignore[call-overload]
    if any(isinstance(i, Many | Mapping | tuple) for i in items):
        raise Objectionable("an item's hash may take for ever")
    return made()


def of_pairs(args: tuple[Value, ...]) -> Value:
    """Made of a list of pairs under plain keys, or nothing."""
    if args:
        pairs = args[0]
        if len(args) > 1 or not isinstance(pairs, Many) or pairs.count > len(pairs.items):
            raise Objectionable("it is not made of a short list of pairs")
        for pair in pairs.items:
            key = (
                pair.items[0]
                if isinstance(pair, Many) and pair.items
                else pair[0]
                if isinstance(pair, tuple) and pair
                else None
            )
            if not isinstance(key, str | int | float):
                raise Objectionable("it is not made of pairs under plain keys")
    return made()


def bytes_of(args: tuple[Value, ...]) -> Value:
    """Made of the bytes of a value in the stream: a size alone would fill memory."""
    if args and not (isinstance(args[0], str | bytes | Blob | Made) and all(a in _LATIN for a in args[1:])):
        raise Objectionable("it is not made of bytes in the file")
    if args and isinstance(args[0], Made) and not isinstance(args[0].data, bytes | Blob):
        raise Objectionable("it is not made of bytes in the file")
    return args[0] if args and isinstance(args[0], bytes | Blob) else made()


def reconstructed(args: tuple[Value, ...]) -> Value:
    """copyreg's old way: `_reconstructor(kind, object, None)`; the kind must be one that is made of nothing."""
    if len(args) != 3 or not (isinstance(args[1], Name) and args[1].name == "builtins.object") or args[2] is not None:
        raise Objectionable("it rebuilds from something other than a bare object")
    kind = args[0]
    if not isinstance(kind, Name) or kind.rule.build is not attributes:
        raise Objectionable("the kind that it rebuilds is no plain record")
    return Made(kind.name, kind.rule)


def _default(args: tuple[Value, ...]) -> bool:
    return len(args) <= 1 and all(a is None or (isinstance(a, Name) and a.name in _DEFAULTS) for a in args)


def _counts(args: tuple[Value, ...]) -> bool:
    return len(args) <= 1 and all(isinstance(a, Mapping) for a in args)


def _queue(args: tuple[Value, ...]) -> bool:
    most = args[1] if len(args) > 1 else None
    return (
        len(args) <= 2 and all(isinstance(a, Many) or a == () for a in args[:1]) and (most is None or type(most) is int)
    )


def _encoded(args: tuple[Value, ...]) -> bool:
    return (
        len(args) == 2
        and (isinstance(args[0], str) or (isinstance(args[0], Blob) and args[0].text))
        and args[1] in _LATIN
    )


def _moment(args: tuple[Value, ...]) -> bool:
    return len(args) <= 8 and all(isinstance(a, bytes | int | str | Made) or a is None for a in args)


def _fraction(args: tuple[Value, ...]) -> bool:
    if len(args) == 1:  # Python 3.10 and older; "1e999999999" would fill memory
        return isinstance(args[0], str) and re.fullmatch(r"-?[0-9]+(/[0-9]+)?", args[0]) is not None
    return len(args) == 2 and type(args[0]) is int and type(args[1]) is int


def _choice(args: tuple[Value, ...]) -> bool:
    return len(args) == 1 and isinstance(args[0], str | int)


_CHECKS: Final = {
    "default": (_default, "its default is no plain kind"),
    "counts": (_counts, "it is not made of a dict"),
    "queue": (_queue, "it is not made of a list and a size"),
    "encoded": (_encoded, "it does not encode text as bytes"),
    "moment": (_moment, "it is not made of the bytes of a moment"),
    "fraction": (_fraction, "it is not made of two whole numbers"),
    "choice": (_choice, "it is not made of one plain value"),
}


def checked(what: str) -> Call:
    """The rule of this name: its arguments must have its form."""
    holds, why = _CHECKS[what]

    def check(args: tuple[Value, ...]) -> Value:
        if not holds(args):
            raise Objectionable(why)
        if what != "encoded":
            return made()
        text = args[0]
        return made(text.encode("latin-1", "replace") if isinstance(text, str) else text)

    return check
