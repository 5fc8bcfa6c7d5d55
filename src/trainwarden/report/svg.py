"""A few SVG elements as strings; every text is cleaned and escaped here, every number is finite."""

from __future__ import annotations

from html import escape

from markupsafe import Markup

from trainwarden.report.words import clean


def number(value: float) -> str:
    """A coordinate with at most one decimal."""
    return f"{value:.1f}".rstrip("0").rstrip(".")


def element(name: str, body: str = "", /, **attributes: float | str) -> str:
    """One element; `_` in attribute names stands for `-`, `class_` for `class`."""
    parts = [name]
    for key, value in attributes.items():
        shown = value if isinstance(value, str) else number(value)
        parts.append(f'{key.rstrip("_").replace("_", "-")}="{escape(shown)}"')
    return f"<{' '.join(parts)}>{body}</{name}>" if body else f"<{' '.join(parts)}/>"


def label(x: float, y: float, text: str, class_: str = "label", anchor: str = "start") -> str:
    """A line of text."""
    return element("text", escape(clean(text, 80)), x=x, y=y, class_=class_, text_anchor=anchor)


def title(text: str) -> str:
    """The tooltip of the element that it is put into."""
    return element("title", escape(clean(text, 200)))


def drawing(width: float, height: float, name: str, body: list[str], class_: str) -> Markup:
    """A whole drawing with `name` as its accessible name."""
    return Markup(  # built from escaped parts only
        f'<svg class="{class_}" viewBox="0 0 {number(width)} {number(height)}" width="{number(width)}" '
        f'height="{number(height)}" role="img" aria-label="{escape(clean(name, 200))}" '
        f'xmlns="http://www.w3.org/2000/svg">{"".join(body)}</svg>'
    )
