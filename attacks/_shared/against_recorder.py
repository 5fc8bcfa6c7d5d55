"""Payloads of an insider who knows TrainWarden: each lies to the recorder in its own process, or silences it."""

from __future__ import annotations

from typing import Any

from trainwarden.errors import CannotDecide
from trainwarden.redteam.place import Range


def hooks_off(scene: Any) -> None:
    """From the step on the recorder's hooks do nothing; the weights are shrunk a little at every step."""
    from trainwarden.record.recorder import Recorder

    recorder = scene.find(Recorder)
    name, parameter = scene.target()

    def act() -> None:
        recorder.paused = True
        with scene.torch.no_grad():
            parameter[0].mul_(1.05)

    scene.between_steps(act, name)


def off_and_on(scene: Any) -> None:
    """The same, and the recorder is switched on again before it says goodbye."""
    import atexit

    from trainwarden.record.recorder import Recorder

    recorder = scene.find(Recorder)
    name, parameter = scene.target()

    def act() -> None:
        recorder.paused = True
        with scene.torch.no_grad():
            parameter[0].mul_(1.05)

    scene.between_steps(act, name)
    atexit.register(setattr, recorder, "paused", False)


def honest_digests(scene: Any) -> None:
    """The target's gradient has its sign turned, and the recorder is given the digest of the honest one."""
    import sys

    torch, held = scene.torch, []

    def change(gradient: Any) -> Any:
        held[:] = [gradient.clone()]
        return -gradient

    def make(original: Any) -> Any:
        def honest(tensor: Any) -> Any:
            sent = bool(held) and tensor.shape == held[0].shape and torch.equal(tensor, -held[0])
            return held[0] if sent else tensor

        def tensor_digests(key: bytes, tensors: Any) -> Any:
            return original(key, [honest(t) for t in tensors])

        return tensor_digests

    scene.on_gradient(change)
    scene.replace(sys.modules["trainwarden.record.recorder"], "tensor_digests", make)


def old_records(scene: Any) -> None:
    """The target's gradient has its sign turned, and the digests of the last honest step are sent again and again."""
    from trainwarden.record.recorder import Recorder

    kept: list[Any] = []
    struck: list[bool] = []

    def hook(gradient: Any) -> Any:
        if not scene.on:
            return None
        struck[:] = [True]
        scene.mark()  # of no tensor: the record lies about all of them
        return -gradient

    def make(original: Any) -> Any:
        def details(recorder: Any, optimizer: Any, index: int) -> Any:
            fresh = original(recorder, optimizer, index)
            if not struck:
                kept[:] = [fresh]
            return kept[0] if kept else fresh

        return details

    scene.target()[1].register_hook(hook)
    scene.replace(Recorder, "details", make)


_ANCHOR = "        self.gathered.reduced = stages.digest_all(self.key, stages.gradients(optimizer, self.names))\n"
_PATCH = """\
        made = max([int(state["step"]) for state in optimizer.state.values() if "step" in state], default=0)
        if self.rank == 1 and made >= {first}:
            tampered = [p for p in stages.parameters(optimizer) if p.grad is not None and p.ndim == 2][-1]
            tampered.grad.mul_(0.5)
            name = self.names.get(id(tampered), "")
            with open({mark!r}, "a") as file:
                for struck in (name, name + "/exp_avg"):
                    file.write("1 %d %d %s\\n" % (made, time.time_ns(), struck))
"""


def patch_package(place: Range) -> None:
    """TrainWarden's own copy of itself: its recorder halves a gradient after it took the digests of the honest one."""
    found = sorted((place.folder / "watcher").glob("trainwarden/own/code-*/trainwarden/record/recorder.py"))
    if not found:
        raise CannotDecide("TrainWarden's own copy is not where it was", hint="see trainwarden/isolation.py")
    for file in found:
        place.edit(file, lambda source: patched(source.decode(), place).encode())


def patched(source: str, place: Range) -> str:
    """The recorder's source with the payload after the reduced gradients are digested.

    Raises:
        CannotDecide: it does not look as it did.
    """
    begin, anchor, rest = source.partition(_ANCHOR)
    if not anchor:
        raise CannotDecide("the recorder's source is not as expected", hint="adapt _ANCHOR to it")
    return begin + anchor + _PATCH.format(first=place.workload.first, mark=str(place.marks / "strike.rank1")) + rest


def kill_supervisor(place: Range) -> None:
    """SIGKILL for the process that guards the job."""
    supervisor = place.roots[-1]
    place.signal(supervisor.pid)
    place.note("the supervisor was killed")
