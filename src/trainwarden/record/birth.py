"""Where and with which environment variables this process was started, before its first line could change either.

A replay starts it there and so again; what the script changes then, it changes again.
"""

from __future__ import annotations

import os

_cwd = ""
_environ: dict[str, str] = {}


def note() -> None:
    """Note both; called when the interpreter starts."""
    global _cwd
    try:
        _cwd = os.getcwd()
    except OSError:
        _cwd = ""  # a folder that is gone: nothing relative can be found from there
    _environ.clear()
    _environ.update(os.environ)


def cwd() -> str:
    """The folder that the process was started in."""
    return _cwd or os.getcwd()


def environ() -> dict[str, str]:
    """A copy of the variables that it was started with."""
    return dict(_environ or os.environ)
