"""Sees state files being written, renamed and read, and data files being opened.

`torch.save`, `torch.load`, safetensors' functions, `os.rename` and `os.replace` (which `pathlib` and `shutil` call) are
wrapped; opens are seen through the interpreter's audit events (PEP 578).
"""

from __future__ import annotations

import functools
import os
import sys
from collections.abc import Callable
from typing import Any

import safetensors.torch

from trainwarden.record.elsewhere import placed
from trainwarden.record.recorder import Recorder

_state: dict[str, Recorder] = {}
_CODE = (".py", ".pyc", ".so", ".pth", ".pyi")


def install(torch: Any, recorder: Recorder) -> None:
    """Wrap torch's functions and start listening to audit events."""
    _state["recorder"] = recorder
    torch.save = writer(torch.save, 1, "torch")
    torch.load = _reader(torch.load, told=True)
    safetensors.torch.save_file = writer(safetensors.torch.save_file, 1, "safetensors")
    safetensors.torch.load_file = _reader(safetensors.torch.load_file, told=False)
    safetensors.__dict__["safe_open"] = _reader(safetensors.safe_open, told=False)  # a class, called like a function
    os.rename = _renamer(os.rename)
    os.replace = _renamer(os.replace)
    sys.addaudithook(_make_audit(recorder))


def writer(function: Callable[..., Any], position: int, kind: str) -> Callable[..., Any]:
    """A function that writes its first argument to the path or open file at `position`, seen doing it."""

    @functools.wraps(function)
    def wrapper(*args: Any, **kwargs: Any) -> Any:
        args, kwargs = _led(args, kwargs, position, writes=True)
        target = args[position] if len(args) > position else kwargs.get("f", kwargs.get("filename"))
        path = _path(target)
        recorder = _state["recorder"]
        if path is None or not recorder.optimizers:
            return function(*args, **kwargs)
        with recorder.files.busy(path):
            result = function(*args, **kwargs)
            flush = getattr(target, "flush", None)
            if flush is not None:
                flush()
            state = args[0] if args else kwargs.get("obj", kwargs.get("tensors"))
            recorder.guarded("save", lambda: recorder.files.saved(path, kind, state))
        return result

    return wrapper


def _reader(function: Callable[..., Any], *, told: bool) -> Any:
    """A function that reads state from its first argument, seen doing it; `told`: Python tells of the opening."""

    @functools.wraps(function)
    def wrapper(*args: Any, **kwargs: Any) -> Any:
        args, kwargs = _led(args, kwargs, 0, writes=False)
        path = _path(args[0] if args else kwargs.get("f", kwargs.get("filename")))
        recorder = _state["recorder"]
        if path is not None:
            recorder.guarded("load", lambda: recorder.loaded(path))
            if not told:
                recorder.guarded("open", lambda: recorder.opened(path))
        return function(*args, **kwargs)

    return wrapper


def _renamer(function: Callable[..., Any]) -> Callable[..., Any]:
    @functools.wraps(function)
    def wrapper(src: Any, dst: Any, **kwargs: Any) -> Any:
        recorder = _state["recorder"]
        if kwargs or not recorder.optimizers:
            return function(src, dst, **kwargs)
        source, target = _path(src), _path(dst)
        if source is None or target is None:
            return function(src, dst)
        source, target = placed(source, writes=True), placed(target, writes=True)
        with recorder.files.busy(source, target):
            result = function(src, dst)
            recorder.guarded("rename", lambda: recorder.files.renamed(source, target))
        return result

    return wrapper


def _led(
    args: tuple[Any, ...], kwargs: dict[str, Any], position: int, *, writes: bool
) -> tuple[tuple[Any, ...], dict[str, Any]]:
    """The arguments with the path among them where it lies in a replay: native code opens it."""
    name = next((n for n in ("f", "filename") if n in kwargs), "")
    target = args[position] if len(args) > position else kwargs.get(name)
    if not isinstance(target, str | os.PathLike) or (place := placed(os.fspath(target), writes=writes)) == target:
        return args, kwargs
    if len(args) > position:
        return (*args[:position], place, *args[position + 1 :]), kwargs
    return args, {**kwargs, name: place}


def _path(target: Any) -> str | None:
    """The absolute path behind a path or an open file, None for anything else."""
    name = target if isinstance(target, str | bytes | os.PathLike) else getattr(target, "name", None)
    if isinstance(name, str | bytes | os.PathLike):
        try:
            return os.path.abspath(os.fsdecode(name))
        except (OSError, TypeError):  # the current folder is gone, or a path that gives no path
            return None
    return None


def _make_audit(recorder: Recorder) -> Callable[[str, tuple[Any, ...]], None]:
    own = (sys.prefix, sys.base_prefix, os.path.dirname(__file__))
    skip = (*(os.path.abspath(p) + os.sep for p in own), "/proc/", "/sys/", "/dev/", "/etc/", "/usr/")

    def audit(event: str, args: tuple[Any, ...]) -> None:
        if event != "open":
            return
        path, mode, _ = args
        if not (isinstance(path, str) and isinstance(mode, str)):
            return
        if "r" not in mode or "+" in mode:
            if recorder.optimizers:
                recorder.guarded("open", lambda: recorder.files.wrote(os.path.abspath(path)))
        elif not path.endswith(_CODE):
            full = os.path.abspath(path)
            if not full.startswith(skip) and os.path.isfile(full):
                recorder.guarded("open", lambda: recorder.opened(full))

    return audit
