"""Hooks on parts that a job may never import: FSDP2, torch.distributed.checkpoint, torchdata's stateful loaders.

Each is installed when its module is imported (`bootstrap`), or at once where it already is: importing them for the
recorder's sake would cost every job seconds.
"""

from __future__ import annotations

import functools
import os
from collections.abc import Callable
from types import ModuleType
from typing import Any

from trainwarden.record.loaders import hook_creation
from trainwarden.record.recorder import Recorder


def sharded_reduction(module: ModuleType, recorder: Recorder) -> None:
    """Have FSDP2 show each rank's own gradients before it reduces and scatters them.

    Source: `FSDPParamGroup.post_backward` calls this function by its name in its module, once for each group.
    """
    original = module.foreach_reduce

    @functools.wraps(original)
    def foreach_reduce(fsdp_params: Any, unsharded_grads: Any, *args: Any, **kwargs: Any) -> Any:
        # The list is emptied by the original, and each gradient goes with it: looked at before.
        recorder.guarded(
            "FSDP", lambda: recorder.own_gradients([p.sharded_param for p in fsdp_params], unsharded_grads)
        )
        return original(fsdp_params, unsharded_grads, *args, **kwargs)

    module.foreach_reduce = foreach_reduce  # type: ignore[attr-defined]


def distributed_checkpoints(module: ModuleType, recorder: Recorder) -> None:
    """See the files of `torch.distributed.checkpoint` being written (also by its own threads) and read."""
    writer, reader = module._FileSystemWriter, module.FileSystemReader
    write, finish, read, begin = writer.write_data, writer.finish, reader.read_data, reader.read_metadata

    @functools.wraps(write)
    def write_data(self: Any, plan: Any, planner: Any) -> Any:
        folder = os.path.abspath(os.fspath(self.path))
        with recorder.files.busy(folder):
            future = write(self, plan, planner)

            def tell() -> None:
                if not os.path.isdir(folder):
                    recorder.gap(f"the checkpoint at {self.path} is not seen: that is no folder of this host")
                    return
                names = dict.fromkeys(result.storage_data.relative_path for result in future.value())
                recorder.files.saved_parts(folder, list(names), getattr(planner, "state_dict", None))

            if recorder.optimizers:
                recorder.guarded("save", tell)
        return future

    @functools.wraps(finish)
    def finished(self: Any, metadata: Any, results: Any) -> Any:
        result = finish(self, metadata, results)
        path = os.path.abspath(os.fspath(self._get_metadata_path(None if self.use_collectives else self.rank)))
        if recorder.optimizers and os.path.exists(path):
            recorder.guarded("save", lambda: recorder.files.saved_index(path))
        return result

    @functools.wraps(read)
    def read_data(self: Any, plan: Any, planner: Any) -> Any:
        folder = os.path.abspath(os.fspath(self.path))
        parts = dict.fromkeys(self.storage_data[item.storage_index].relative_path for item in plan.items)
        for path in (os.path.join(folder, part) for part in parts):
            if os.path.exists(path):
                recorder.guarded("load", functools.partial(recorder.loaded, path))
        return read(self, plan, planner)

    @functools.wraps(begin)
    def read_metadata(self: Any, *args: Any, **kwargs: Any) -> Any:
        path = os.path.abspath(os.fspath(self._get_metadata_path(kwargs.get("rank"))))
        if os.path.exists(path):
            recorder.guarded("load", lambda: recorder.loaded(path))
        return begin(self, *args, **kwargs)

    writer.write_data, writer.finish = write_data, finished
    reader.read_data, reader.read_metadata = read_data, read_metadata


def processes_that_save(module: ModuleType, recorder: Recorder) -> None:
    """Say that what `async_save` has another process write is not seen."""
    kind = module._ProcessBasedAsyncCheckpointExecutor
    original = kind.execute_save

    @functools.wraps(original)
    def execute_save(*args: Any, **kwargs: Any) -> Any:
        recorder.gap("a process of its own writes this checkpoint, which is not seen: AsyncCheckpointerType.THREAD is")
        return original(*args, **kwargs)

    kind.execute_save = execute_save


def empty_steps(module: ModuleType, recorder: Recorder) -> None:
    """Do not count the steps by which `get_state_dict` has an optimizer make its state: without gradients, at rate 0.

    What such a step changed all the same, the next step's weights would show.
    """
    original = module._init_optim_state

    @functools.wraps(original)
    def init_optim_state(*args: Any, **kwargs: Any) -> Any:
        before, recorder.preparing = recorder.preparing, True
        try:
            return original(*args, **kwargs)
        finally:
            recorder.preparing = before

    module._init_optim_state = init_optim_state  # type: ignore[attr-defined]


def stateful_loaders(module: ModuleType, recorder: Recorder) -> None:
    """See torchdata's loaders being iterated: they inherit from torch's, and make their iterators themselves."""
    hook_creation(module.StatefulDataLoader, recorder)


LATE: dict[str, Callable[[ModuleType, Recorder], None]] = {
    "torch.distributed.fsdp._fully_shard._fsdp_param_group": sharded_reduction,
    "torch.distributed.checkpoint._async_process_executor": processes_that_save,
    "torch.distributed.checkpoint.state_dict": empty_steps,
    "torch.distributed.checkpoint.filesystem": distributed_checkpoints,
    "torchdata.stateful_dataloader.stateful_dataloader": stateful_loaders,
}
