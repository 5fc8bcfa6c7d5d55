"""What decides the last bits of a result on this machine, found without importing torch.

Trust: these are the machine's own statements; a recorder in the rank states them again from inside.
"""

from __future__ import annotations

import os
import platform
from collections.abc import Mapping
from pathlib import Path

from trainwarden.model import Numerics
from trainwarden.seal.interpreter import Interpreter

_AVX512 = {"avx512f", "avx512bw", "avx512vl", "avx512dq", "fma"}
_AVX2 = {"avx2", "fma"}


def numerics_of(interpreter: Interpreter, env: Mapping[str, str]) -> Numerics:
    """The numerics of a command that this interpreter runs with these environment variables on this machine."""
    threads = env.get("OMP_NUM_THREADS", "").split(",")[0]
    cpu, flags = _cpu()
    return Numerics(
        machine=platform.machine(),
        cpu=cpu,
        isa=env.get("ATEN_CPU_CAPABILITY", "").upper() or _isa(flags),
        threads=int(threads) if threads.isdecimal() else len(os.sched_getaffinity(0)),
        torch=_torch(interpreter),
        python=interpreter.version,
        accelerator=_accelerator(),
    )


def _cpu() -> tuple[str, set[str]]:
    fields: dict[str, str] = {}
    try:
        for line in Path("/proc/cpuinfo").read_text(encoding="utf-8", errors="replace").splitlines():
            name, _, value = line.partition(":")
            fields.setdefault(name.strip(), value.strip())
    except OSError:
        return platform.processor(), set()
    return fields.get("model name", ""), set(fields.get("flags", "").split())


def _isa(flags: set[str]) -> str:
    """The name that ATen's dispatcher gives the vector instructions it would choose."""
    return "AVX512" if flags >= _AVX512 else "AVX2" if flags >= _AVX2 else "DEFAULT"


def _torch(interpreter: Interpreter) -> str:
    for site in interpreter.sites:
        for found in Path(site).glob("torch-*.dist-info"):
            return found.name.removeprefix("torch-").removesuffix(".dist-info")
    return ""


def _accelerator() -> str:
    """The models of the NVIDIA devices that the driver lists."""
    models = set()
    for path in Path("/proc/driver/nvidia/gpus").glob("*/information"):
        for line in path.read_text(encoding="utf-8", errors="replace").splitlines():
            if line.startswith("Model:"):
                models.add(line.partition(":")[2].strip())
    return ", ".join(sorted(models))
