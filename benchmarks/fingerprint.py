"""The fingerprint on an accelerator, in GB of state a second, beside what the device's memory gives.

The memory's bandwidth is that of a copy on the device: each byte is read once and written once. A fingerprint reads
each byte once and writes next to nothing, so its rate is given as a share of the copy's traffic; a hundred per cent is
one pass at the speed of the memory. `plain` is the same by plain operations, without a kernel of its own.

Needs a GPU. Without one it says so, measures nothing and writes nothing. `cpu` as an argument runs it on the CPU, to
see that it runs: no figure of that is kept.
"""

from __future__ import annotations

import sys
import time
from collections.abc import Callable
from statistics import median
from typing import Any

import torch

from benchmarks.machine import write
from trainwarden.record import linear

_ROUNDS = 15
_KEY = bytes(range(32))
NO_GPU = "fingerprint: no GPU here, so nothing is measured: the rate beside a device's memory needs one"


def main(arguments: list[str] | None = None) -> None:
    """Measure on the first GPU and write `results/fingerprint.json`."""
    if arguments == ["cpu"]:
        print(measure(torch.device("cpu"), 64), file=sys.stderr, flush=True)
    elif not torch.cuda.is_available():
        print(NO_GPU, file=sys.stderr, flush=True)
    else:
        device = torch.device("cuda")
        summary = measure(device, 4096) | {"device": torch.cuda.get_device_name(device)}
        print(write("fingerprint", summary, []), summary, file=sys.stderr, flush=True)


def measure(device: torch.device, mib: int) -> dict[str, Any]:
    """Rates over `mib` MiB of float32 on a device, each the median of some rounds, in GB (10^9 bytes) a second."""
    state = torch.randn(mib << 18, device=device)
    target = torch.empty_like(state)
    printer = linear.Fingerprinter(_KEY)
    size = state.nbytes / 1e9
    memory = 2 * size / _seconds(device, lambda: target.copy_(state))
    rate = size / _seconds(device, lambda: printer.sums([(state, None)]))
    fused = linear.row_sums(device) is not linear.plain_row_sums
    block = state.view(torch.int32)[: 64 * linear.WORDS_A_ROW].view(-1, linear.WORDS_A_ROW)
    columns, _ = printer._keys(device, 1)
    plain = block.nbytes / 1e9 / _seconds(device, lambda: linear.plain_row_sums(block, columns))
    return {
        "memory_gb_s": round(memory, 4),
        "fingerprint_gb_s": round(rate, 4),
        "of_memory_pct": round(100 * rate / memory, 4),
        "plain_gb_s": round(plain, 4),
        "one_kernel": fused,
        "mib": mib,
    }


def _seconds(device: torch.device, act: Callable[[], object]) -> float:
    """The median time of one call, the device waited for."""
    times = []
    for round_ in range(_ROUNDS + 2):
        _wait(device)
        began = time.perf_counter()
        act()
        _wait(device)
        if round_ >= 2:  # the first builds and allocates
            times.append(time.perf_counter() - began)
    return median(times)


def _wait(device: torch.device) -> None:
    if device.type == "cuda":
        torch.cuda.synchronize(device)


if __name__ == "__main__":
    main(sys.argv[1:])
