"""Waits for torch to be imported, asks the watcher whether it may be, and installs the hooks right after.

Rules
-----
* Nothing of torch is imported by us: a process that never needs it never loads it.
* Hooks are installed once per module, by wrapping the loader that Python found itself.
* A failure here is a gap, never an exception in the user's program. Only the watcher's refusal stops a process.
* Every Python process below the watcher runs this, so it imports next to nothing until torch is asked for.
"""

from __future__ import annotations

import functools
import importlib
import importlib.machinery
import os
import sys
from collections.abc import Callable, Sequence
from types import ModuleType
from typing import TYPE_CHECKING, Any

from trainwarden.record import birth, entropy, sleeps

if TYPE_CHECKING:
    from importlib.abc import Loader, MetaPathFinder
else:  # the import system asks for their methods only, and `importlib.abc` loads a great deal
    Loader = MetaPathFinder = object

RECORDER_ENV = "TRAINWARDEN_RECORDER"
"""Names the recorder's class as `module:class`; an audit names its replayer here."""
ELSEWHERE_ENV = "TRAINWARDEN_ELSEWHERE"
"""Of a replay: its workspace and the other folders that it may write to, with `os.pathsep` between them."""
FRAMEWORKS = (
    "accelerate.accelerator",
    "accelerate.data_loader",
    "lightning.fabric.utilities.cloud_io",
    "lightning.pytorch.trainer.trainer",
    "lightning_fabric.utilities.cloud_io",
    "pytorch_lightning.trainer.trainer",
    "transformers.trainer",
)
"""Modules of training frameworks that a recorder may have hooks for. Some import torch only while they are loaded."""


class _Wrapped(Loader):
    """A loader that calls `before` and `after` around the execution of one module."""

    def __init__(self, loader: Loader, before: Callable[[], None], after: Callable[[ModuleType], None]) -> None:
        self._loader, self._before, self._after = loader, before, after

    def create_module(self, spec: importlib.machinery.ModuleSpec) -> ModuleType | None:
        return self._loader.create_module(spec)

    def exec_module(self, module: ModuleType) -> None:
        self._before()
        if module.__spec__ is not None:
            module.__spec__.loader = self._loader
        module.__loader__ = self._loader
        self._loader.exec_module(module)
        try:
            self._after(module)
        except Exception as e:  # noqa: BLE001  the recorder fails open
            _complain(f"hooks on {module.__name__} failed: {e!r}")


class _Finder(MetaPathFinder):
    """Finds the modules we hook, once each, through the other finders."""

    def __init__(self) -> None:
        self.wanted: dict[str, tuple[Callable[[], None], Callable[[ModuleType], None]]] = {}

    def find_spec(
        self, name: str, path: Sequence[str] | None = None, target: ModuleType | None = None
    ) -> importlib.machinery.ModuleSpec | None:
        hooks = self.wanted.pop(name, None)
        if hooks is None:
            return None
        for finder in sys.meta_path:
            if finder is self:
                continue
            spec = finder.find_spec(name, path, target)
            if spec is not None:
                if spec.loader is not None and hasattr(spec.loader, "exec_module"):
                    spec.loader = _Wrapped(spec.loader, *hooks)
                return spec
        return None


def arm() -> None:
    """Arrange for the hooks; called from sitecustomize in every process below the watcher."""
    birth.note()
    sleeps.arm()
    finder = _Finder()
    if told := os.environ.get(ELSEWHERE_ENV):
        _lead_elsewhere(told, finder)

    recorders: list[Any] = []

    def torch_ready(module: ModuleType) -> None:
        entropy.python_ready()
        from trainwarden.record import hooks, late

        where, _, kind = os.environ.get(RECORDER_ENV, "trainwarden.record.recorder:Recorder").partition(":")
        recorder = getattr(importlib.import_module(where), kind)()
        recorders.append(recorder)
        hooks.install(module, recorder)
        for name, hook in late.LATE.items():
            if name in sys.modules:
                hook(sys.modules[name], recorder)
            else:
                finder.wanted[name] = (lambda: None, functools.partial(_hook, hook, recorder))

    def framework_ready(module: ModuleType) -> None:
        from trainwarden.record import frameworks

        for recorder in recorders:
            _hook(frameworks.install, recorder, module)

    finder.wanted["torch"] = (_ask, torch_ready)
    finder.wanted["numpy.random"] = (lambda: None, entropy.numpy_ready)
    for name in FRAMEWORKS:
        finder.wanted[name] = (lambda: None, framework_ready)
    sys.meta_path.insert(0, finder)


def _lead_elsewhere(told: str, finder: _Finder) -> None:
    """In a replay nothing runs before its writes are led into the workspace."""
    try:
        from trainwarden.record import elsewhere

        elsewhere.install(told)
        finder.wanted["sqlite3.dbapi2"] = (lambda: None, elsewhere.database)
    except BaseException as e:  # noqa: BLE001  it would write over what the original run wrote
        _complain(f"the replay cannot be kept in its workspace: {e!r}")
        os._exit(1)


def _hook(hook: Callable[[ModuleType, Any], None], recorder: Any, module: ModuleType) -> None:
    """Install a late hook; what a release of that module no longer has is a gap."""
    try:
        hook(module, recorder)
    except AttributeError as e:
        recorder.gap(f"{module.__name__} is not seen: {e}")


def _ask() -> None:
    """Ask the watcher whether this process may import torch; exit when it says no."""
    try:
        from trainwarden import wire

        connection = wire.Connection.connect(os.environ[wire.SOCKET_ENV])
        connection.send(wire.Start(pid=os.getpid(), argv=tuple(sys.orig_argv)))
        answer = connection.receive(timeout=120)
        connection.close()
    except Exception as e:  # noqa: BLE001  without a watcher the run goes on, unrecorded
        _complain(f"the watcher cannot be reached: {e!r}")
        return
    if isinstance(answer, wire.Refuse):
        print(f"trainwarden: start refused: {answer.reason}", file=sys.stderr, flush=True)
        os._exit(answer.code)


def _complain(text: str) -> None:
    print(f"trainwarden: {text}", file=sys.stderr, flush=True)
