"""What the blocks of a model gave, digested in the steps in which activations are sampled."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import torch

from trainwarden.record import names as naming
from trainwarden.record import stages
from trainwarden.record.fingerprint import tensor_digest
from trainwarden.record.forwards import eager_modules

if TYPE_CHECKING:
    from trainwarden.record.recorder import Recorder


class Blocks:
    """The children of module lists, watched for one step at a time."""

    def __init__(self, recorder: Recorder) -> None:
        self._recorder = recorder
        self._handles: list[Any] = []

    def watch(self) -> None:
        """Digest their outputs until `leave`."""
        for root in [r for ref in self._recorder.roots if (r := ref()) is not None]:
            for raw, module in eager_modules(root):
                if isinstance(module, torch.nn.ModuleList | torch.nn.Sequential):
                    for child, block in module.named_children():
                        self._watch(naming.clean_name(f"{raw}.{child}"), block)

    def leave(self) -> None:
        """The step is over."""
        for handle in self._handles:
            handle.remove()
        self._handles.clear()

    def _watch(self, name: str, block: torch.nn.Module) -> None:
        recorder = self._recorder

        def after(module: torch.nn.Module, args: Any, output: Any) -> None:
            if torch.compiler.is_compiling():
                return

            def digest() -> None:
                g = recorder.gathered
                for path, t in stages.tensors_in(output):
                    g.activations.append((f"module/{name}#{g.forwards}.{path}", tensor_digest(recorder.key, t)))

            recorder.guarded("activations", digest)

        self._handles.append(recorder.forward_hooks.after(block, after))
