"""The environment variables that are told over the wire, and those through which a rank finds its watcher."""

from __future__ import annotations

import re
from collections.abc import Mapping

SOCKET_ENV = "TRAINWARDEN_SOCKET"
REDUCTION_ENV = "TRAINWARDEN_REDUCTION"  # the seal's way of adding gradients over ranks, known before a rank joins


def keep_env(env: dict[str, str]) -> dict[str, str]:
    """The environment without our own variables, as the command's user set it."""
    return {k: v for k, v in env.items() if not k.startswith("TRAINWARDEN_")}


_DECISIVE = re.compile(
    r"(NCCL|GLOO|TORCH|PYTORCH|CUBLAS|CUDNN|ATEN|DNNL|ONEDNN|OMP|MKL|KMP)_\w+|NVIDIA_TF32_OVERRIDE|CUDA_LAUNCH_BLOCKING"
)
_SECRET = re.compile(r"TOKEN|SECRET|PASSW|KEY|CREDENTIAL|AUTH")
_MOST_TEXT = 200


def decisive(env: Mapping[str, str]) -> dict[str, str]:
    """The variables that decide precision and communication, values cut to a length that a log bears."""
    names = sorted(n for n in env if _DECISIVE.fullmatch(n) and not _SECRET.search(n))
    return {n: env[n][:_MOST_TEXT].encode("utf-8", "replace").decode() for n in names}
