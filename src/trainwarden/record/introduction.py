"""How a process introduces itself as a rank: who it is in the job, how it was started, what decides its last bits."""

from __future__ import annotations

import os
import platform
import sys

import torch

from trainwarden import wire
from trainwarden.model import Numerics
from trainwarden.record import birth


def introduction() -> wire.Join:
    """What this process says of itself when it joins."""
    rank, world = _rank_and_world()
    return wire.Join(
        pid=os.getpid(),
        rank=rank,
        world=world,
        argv=tuple(sys.orig_argv),
        cwd=birth.cwd(),
        executable=sys.executable,
        env=_user_environment(),
        numerics=_numerics(),
    )


def _rank_and_world() -> tuple[int, int]:
    if torch.distributed.is_available() and torch.distributed.is_initialized():
        return torch.distributed.get_rank(), torch.distributed.get_world_size()
    return int(os.environ.get("RANK", "0")), int(os.environ.get("WORLD_SIZE", "1"))


def _user_environment() -> dict[str, str]:
    """The environment variables as the user set them, without what the watcher added."""
    env = wire.keep_env(birth.environ())
    inject = os.path.join(os.path.dirname(os.path.abspath(__file__)), "inject")
    rest = [p for p in env.get("PYTHONPATH", "").split(os.pathsep) if p and os.path.abspath(p) != inject]
    if rest:
        env["PYTHONPATH"] = os.pathsep.join(rest)
    else:
        env.pop("PYTHONPATH", None)
    return env


def _numerics() -> Numerics:
    return Numerics(
        machine=platform.machine(),
        isa=torch.backends.cpu.get_cpu_capability(),
        threads=torch.get_num_threads(),
        torch=str(torch.__version__),
        python=platform.python_version(),
        accelerator=torch.cuda.get_device_name() if torch.cuda.is_available() else "",
    )
