"""What training frameworks do beside PyTorch's own functions, so that the recorder sees it as if they did not.

Rules
-----
* A module of a framework is touched when the script imports it, right after it ran. Nothing of it is imported by us.
* As everywhere: the original is called with the same arguments, and its result is returned.
"""

from __future__ import annotations

import functools
from collections.abc import Callable, Iterator, Mapping
from types import MappingProxyType, ModuleType
from typing import Any

from trainwarden.record.files import writer
from trainwarden.record.recorder import Recorder

Hook = Callable[[ModuleType, Recorder], None]


def _accelerate_loaders(module: ModuleType, recorder: Recorder) -> None:
    """Accelerate's loader fetches a batch before it hands on the one before, to know which is the last."""
    kind: Any = module.DataLoaderShard
    original = kind.__iter__

    @functools.wraps(original)
    def iterate(self: Any) -> Iterator[Any]:
        recorder.guarded("loader", lambda: recorder.loaders.wrapped(self.base_dataloader))
        skipped = self.skip_batches
        for batch in original(self):
            other = recorder.guarded("batch", functools.partial(recorder.handed_on, self.base_dataloader, skipped))
            skipped = 0
            yield batch if other is None else module.send_to_device(other, self.device)

    kind.__iter__ = iterate


def _lightning_files(module: ModuleType, recorder: Recorder) -> None:
    """Lightning pickles a checkpoint into memory and writes the bytes itself."""
    module.__dict__["_atomic_save"] = writer(module.__dict__["_atomic_save"], 1, "torch")


HOOKS: Mapping[str, Hook] = MappingProxyType(
    {
        "accelerate.data_loader": _accelerate_loaders,
        "lightning.fabric.utilities.cloud_io": _lightning_files,
        "lightning_fabric.utilities.cloud_io": _lightning_files,
    }
)
"""What to do with a framework's module once it is there."""


def install(module: ModuleType, recorder: Recorder) -> None:
    """A framework's module was imported: hook it, and let a replay have the framework resume."""
    hook = HOOKS.get(module.__name__)
    if hook is not None:
        hook(module, recorder)
    recorder.framework_loaded(module)
