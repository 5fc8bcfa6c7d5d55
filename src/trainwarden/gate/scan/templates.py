"""Chat templates (Jinja): programs that a server runs for each request, so only what templates need may be in one.

Judged as if it ran in Jinja's plain environment, not the sandbox: engines have used both.
"""

from __future__ import annotations

import re
from typing import Final

from trainwarden.gate.results import Clean, Decision, Objection, Refused

MOST_TEMPLATE: Final = 1 << 20
_NODES: Final = frozenset(
    {
        *(
            "Template",
            "Output",
            "TemplateData",
            "For",
            "If",
            "Macro",
            "Assign",
            "AssignBlock",
            "Name",
            "NSRef",
            "Const",
        ),
        *(
            "Tuple",
            "List",
            "Dict",
            "Pair",
            "CondExpr",
            "Filter",
            "Test",
            "Call",
            "Getitem",
            "Getattr",
            "Slice",
            "Concat",
        ),
        *("Compare", "Operand", "Add", "Sub", "Mul", "Div", "FloorDiv", "Mod", "Not", "Neg", "And", "Or", "Keyword"),
        *(
            "Break",
            "Continue",
            "ScopedEvalContextModifier",
            "EvalContextModifier",
            "ExprStmt",
            "Scope",
            "CallBlock",
            "FilterBlock",
        ),
    }
)
_METHODS: Final = frozenset(
    {
        *(
            "strip",
            "lstrip",
            "rstrip",
            "split",
            "rsplit",
            "splitlines",
            "startswith",
            "endswith",
            "items",
            "keys",
            "values",
        ),
        *(
            "get",
            "lower",
            "upper",
            "title",
            "capitalize",
            "replace",
            "join",
            "find",
            "rfind",
            "count",
            "index",
            "append",
        ),
        *("isdigit", "removeprefix", "removesuffix", "cycle", "pop"),
    }
)
_FUNCTIONS: Final = frozenset({"raise_exception", "strftime_now", "range", "namespace", "dict", "caller"})
_FILTERS: Final = frozenset(
    {
        *(
            "trim",
            "tojson",
            "length",
            "count",
            "default",
            "d",
            "join",
            "string",
            "int",
            "float",
            "first",
            "last",
            "list",
        ),
        *(
            "lower",
            "upper",
            "title",
            "capitalize",
            "replace",
            "safe",
            "selectattr",
            "rejectattr",
            "select",
            "reject",
            "map",
        ),
        *(
            "items",
            "dictsort",
            "sort",
            "unique",
            "indent",
            "reverse",
            "abs",
            "round",
            "min",
            "max",
            "sum",
            "escape",
            "e",
        ),
    }
)
_UNSAFE: Final = re.compile(r"_|mro$|gi_|cr_|ag_|tb_|f_|func_|im_|co_|format")
_BY_NAME: Final = frozenset({"selectattr", "rejectattr", "map", "sort", "unique", "sum", "min", "max"})


def judge_template(text: str, place_like: object, name: str) -> Decision:
    """The decision on one template; `name` is where it is in its file."""
    import jinja2
    from jinja2 import nodes

    part = str(getattr(place_like, "path", ""))
    if len(text) > MOST_TEMPLATE:
        return Refused(kind="template", objections=(_no(part, 0, name, "", "it is too long for a template"),))
    extensions = ["jinja2.ext.loopcontrols", "jinja2.ext.do"]
    env = jinja2.Environment(extensions=[*extensions, _generation()], autoescape=False)
    try:
        tree = env.parse(text)
    except (jinja2.TemplateError, RecursionError, ValueError) as e:
        return Refused(
            kind="template", objections=(_no(part, 0, name, "", f"it cannot be parsed ({type(e).__name__})"),)
        )
    found: list[Objection] = []
    macros = {m.name for m in tree.find_all(nodes.Macro)} | _FUNCTIONS
    pending: list[nodes.Node] = [tree]
    while pending:
        node = pending.pop()
        pending.extend(node.iter_child_nodes())
        told = _objection(node, macros)
        if told:
            found.append(_no(part, getattr(node, "lineno", 0), name, told[0], told[1]))
    if found:
        return Refused(kind="template", objections=tuple(found[:20]))
    return Clean(kind="template")


def _no(part: str, line: int, field: str, name: str, why: str) -> Objection:
    return Objection(part=part, offset=line, opcode=f"{field} (line)", name=name, why=why)


def _objection(node: object, functions: set[str] | frozenset[str]) -> tuple[str, str] | None:
    from jinja2 import nodes

    kind = type(node).__name__
    if kind not in _NODES:
        return kind, "no chat template needs such a statement"
    if isinstance(node, nodes.Getattr) and _UNSAFE.match(node.attr):
        return node.attr, "an attribute that leads into the interpreter"
    if isinstance(node, nodes.Getitem) and not _plain_index(node.arg):
        return kind, "an index that is computed: Jinja looks attributes up by it as well"
    if isinstance(node, nodes.Filter) and node.name not in _FILTERS:
        return str(node.name), "a filter that no chat template needs"
    if isinstance(node, nodes.Filter) and node.name in _BY_NAME and not all(map(_plain_name, _given(node))):
        return str(node.name), "an attribute that leads into the interpreter"
    if isinstance(node, nodes.Call):
        called = node.node
        if isinstance(called, nodes.Name) and called.name in functions:
            return None
        if isinstance(called, nodes.Getattr) and called.attr in _METHODS:
            return None
        return getattr(called, "name", getattr(called, "attr", kind)), "a call that no chat template needs"
    return None


def _given(node: object) -> list[object]:
    args = list(getattr(node, "args", ()) or ())
    return args + [k.value for k in getattr(node, "kwargs", ()) or ()]


def _plain_name(arg: object) -> bool:
    from jinja2 import nodes

    if not isinstance(arg, nodes.Const):
        return False
    return not isinstance(arg.value, str) or not any(_UNSAFE.match(p) for p in arg.value.split("."))


def _plain_index(arg: object) -> bool:
    from jinja2 import nodes

    if isinstance(arg, nodes.Const):
        return not isinstance(arg.value, str) or not _UNSAFE.match(arg.value)
    if isinstance(arg, nodes.Slice):
        return True
    if isinstance(arg, nodes.Neg):
        return _plain_index(arg.node)
    if isinstance(arg, nodes.Getattr):
        return isinstance(arg.node, nodes.Name) and arg.node.name == "loop"
    if isinstance(arg, nodes.Add | nodes.Sub):
        return any(isinstance(s, nodes.Const) and isinstance(s.value, int) for s in (arg.left, arg.right))
    return False


def _generation() -> type:
    """The `{% generation %}` block of transformers, which marks an assistant's words."""
    from jinja2 import nodes
    from jinja2.ext import Extension
    from jinja2.parser import Parser

    class Generation(Extension):
        tags = {"generation"}  # noqa: RUF012 - as Jinja declares it

        def parse(self, parser: Parser) -> nodes.Node:
            line = next(parser.stream).lineno
            body = parser.parse_statements(("name:endgeneration",), drop_needle=True)
            return nodes.Scope(body).set_lineno(line)

    return Generation
