"""Has the ordered reduction of every DDP module sign for this process, and tells what it says."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

from blake3 import blake3

from trainwarden.model import PartDiffers, ReductionKey
from trainwarden.record.buckets import BucketHook
from trainwarden.record.ordered import Difference, OrderedReduction, Signer

if TYPE_CHECKING:
    from trainwarden.record.recorder import Recorder

_MOST_TOLD = 8  # of one sender and kind
_NAMED = 8


class SignedReduction:
    """One per process: its key, and what its reductions found."""

    def __init__(self, recorder: Recorder) -> None:
        self._recorder = recorder
        self._signer = Signer()
        self._told: dict[tuple[str, int], int] = {}
        recorder.note(ReductionKey(step=0, key=self._signer.public.hex()))

    def use(self, hook: BucketHook) -> None:
        """Have a DDP module reduce in rank order."""
        recorder = self._recorder
        hook.ordered = True
        hook.reduce = OrderedReduction(
            hook.group,
            self._signer,
            lambda act: recorder.guarded("ordered reduction", act),
            self._differs,
            lambda keys: self._given(hook.ranks, keys),
        )

    def _given(self, ranks: tuple[int, ...], keys: Sequence[bytes]) -> None:
        table = blake3(b"".join(keys)).hexdigest()
        whole = ranks == tuple(range(self._recorder.world))
        self._recorder.note(
            ReductionKey(
                step=self._recorder.done,
                key=self._signer.public.hex(),
                ranks=() if whole else ranks,
                world=len(ranks),
                table=table,
            )
        )

    def _differs(self, difference: Difference) -> None:
        cause = difference.kind, difference.sender
        self._told[cause] = self._told.get(cause, 0) + 1
        if self._told[cause] > _MOST_TOLD:
            return
        names = [self._recorder.names.get(id(p), "?") for p in difference.parameters]
        self._recorder.note(
            PartDiffers(
                step=self._recorder.done,
                sender=difference.sender,
                kind=difference.kind,
                tensors=tuple(names[:_NAMED]),
                signed=difference.signed.hex(),
                arrived=difference.arrived.hex(),
            )
        )
