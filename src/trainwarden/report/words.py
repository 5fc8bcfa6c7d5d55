"""How values of a case become words: bounded, free of control characters, the same on terminal and page.

Everything in a log may have been chosen by an attacker. `clean` keeps such text from moving a terminal's cursor,
reversing its reading direction or filling a page; escaping for HTML is left to the template.
"""

from __future__ import annotations

import re
import unicodedata
from datetime import UTC, datetime

from trainwarden.model import Segment, Stage

LONGEST = 600
_PLAIN = re.compile(r"[\x20-\x7e]*")
_HIDDEN = {"Cc", "Cf", "Cs", "Co", "Cn", "Zl", "Zp"}


def clean(text: str, limit: int = LONGEST) -> str:
    """`text` with control, format and surrogate characters made visible, cut to `limit` characters."""
    if len(text) > limit:
        text = text[: limit - 1] + "…"
    if _PLAIN.fullmatch(text):
        return text
    return "".join("\ufffd" if unicodedata.category(c) in _HIDDEN else c for c in text)


def clean_lines(text: str) -> str:
    """`text`, each of its lines made `clean`."""
    return "\n".join(clean(line, 4 * LONGEST) for line in text.splitlines())


def short(digest: str) -> str:
    """The first 12 digits of a digest."""
    return digest[:12] + "…" if len(digest) > 12 else digest or "none"


def tail(path: str, parts: int = 3) -> str:
    """The end of a path that tells files apart."""
    pieces = path.split("/")
    return path if len(pieces) <= parts else "…/" + "/".join(pieces[-parts:])


def when(ns: int) -> str:
    """A time in UTC to the second, "" when it is not known."""
    return _time(ns, "%Y-%m-%d %H:%M:%S UTC")


def clock(ns: int) -> str:
    """The time of day in UTC, "" when it is not known."""
    return _time(ns, "%H:%M:%S")


def _time(ns: int, form: str) -> str:
    try:
        return datetime.fromtimestamp(ns / 1e9, UTC).strftime(form) if ns > 0 else ""
    except (OverflowError, ValueError, OSError):
        return "a time out of range"


def count(n: int, noun: str) -> str:
    """ "1 step", "2 steps", "1,200 steps"."""
    return f"{n:,} {noun}" + ("" if n == 1 else "s")


def stage_name(stage: Stage | str) -> str:
    """A stage as people say it."""
    return str(stage).replace("_", " ")


def percent(share: float) -> str:
    """A share as a percentage that never rounds up to 100 or down to 0."""
    if 0 < share < 1:
        share = min(max(share, 0.01), 0.99)
    return f"{share * 100:.0f} %"


def span(segment: Segment) -> str:
    """A segment in words."""
    steps = f"step {segment.first}" if segment.first == segment.last else f"steps {segment.first}–{segment.last}"
    return f"{steps}, attempt {segment.attempt}" + (f" of run {segment.run}" if segment.run else "")
