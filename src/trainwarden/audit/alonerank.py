"""One rank of many, run again without its peers: collectives return at once with what this rank put in.

Rules
-----
* The script sees its recorded rank, world size and backend. What it gets from a collective is not what its peers
  sent, so nothing that is computed from it says anything: the auditor compares only what comes before the reduction.
* One process does unit after unit: when a step is done, the next unit's state takes the place of this process's own.
"""

from __future__ import annotations

import functools
import os
from typing import Any

import msgspec
import torch
import torch.distributed as dist

from trainwarden import wire
from trainwarden.audit.inrank import Replayer
from trainwarden.audit.plan import decode
from trainwarden.record.buckets import BucketHook

_PATIENCE = 86_400.0  # seconds that a rank waits for its next unit


class AloneReplayer(Replayer):
    """Replays the units that the auditor gives it, one after another."""

    def __init__(self) -> None:
        super().__init__()
        without_peers()

    def boundary(self) -> None:
        if 0 <= self.plan.last < self.position and len(self.stepped) >= self.plan.updates:
            self._next_unit()
        super().boundary()  # puts the unit's state in place

    def bucket_hook(self, ddp: Any) -> BucketHook:
        return _NoReduction(ddp, lambda bucket: self.guarded("bucket", lambda: self.bucket(bucket)))

    def _next_unit(self) -> None:
        answer = self.link.ask(wire.NextUnit(), _PATIENCE) if self.link is not None else None
        if not isinstance(answer, wire.NewUnit) or not answer.plan:
            self.stop()
            return
        self.plan = msgspec.structs.replace(decode(answer.plan), warmup=self.done)


class _NoReduction(BucketHook):
    """Looks at a bucket and gives it back; whatever reduction the script asked for would wait for peers."""

    def __call__(self, state: Any, bucket: Any) -> torch.futures.Future[torch.Tensor]:
        self._observe(bucket)
        done: torch.futures.Future[torch.Tensor] = torch.futures.Future()
        done.set_result(bucket.buffer())
        return done


def without_peers() -> None:
    """Make process groups of this process groups without anybody else in them (PyTorch's fake process group)."""
    if not dist.is_available():
        return
    from torch.distributed import distributed_c10d as c10d
    from torch.testing._internal.distributed import fake_pg

    make, initialise = c10d._new_process_group_helper, c10d.init_process_group
    asked = ["gloo"]

    @functools.wraps(make)
    def group(size: int, rank: int, ranks: Any, backend: Any, store: Any, *args: Any, **kwargs: Any) -> Any:
        kwargs |= {k: None for k in ("backend_options", "pg_options") if k in kwargs}
        return make(size, rank, ranks, dist.Backend("fake"), fake_pg.FakeStore(), *args, **kwargs)

    @functools.wraps(initialise)
    def init_process_group(
        backend: Any = None,
        init_method: Any = None,
        timeout: Any = None,
        world_size: int = -1,
        rank: int = -1,
        *args: Any,
        **kwargs: Any,
    ) -> None:
        asked[0] = str(backend or ("nccl" if torch.cuda.is_available() else "gloo"))
        world = world_size if world_size > 0 else int(os.environ["WORLD_SIZE"])
        own = rank if rank >= 0 else int(os.environ["RANK"])
        initialise("fake", None, timeout, world, own, fake_pg.FakeStore(), group_name=kwargs.get("group_name", ""))

    def needs_peers(*args: Any, **kwargs: Any) -> None:
        raise RuntimeError("this needs an object that another rank sends, and none is here")

    # The script is told the backend that it asked for. Objects would be unpacked from memory that nobody filled.
    patches: dict[str, Any] = {
        "init_process_group": init_process_group,
        "get_backend": lambda group=None: dist.Backend(asked[0]),
        "_new_process_group_helper": group,
        "_store_based_barrier": lambda *args, **kwargs: None,
        "broadcast_object_list": needs_peers,
        "scatter_object_list": needs_peers,
        "recv_object_list": needs_peers,
    }
    for name, patch in patches.items():
        for module in (dist, c10d):
            if hasattr(module, name):
                setattr(module, name, patch)
