"""What the recorder needs of the environment that trains, looked for in the sealed list before anything is started.

The recorder's own code comes from the watcher; these packages it takes from the environment that it records in, since
compiled modules fit one interpreter only. Where one is missing nothing would be recorded, and the run would tell
that of every step; so it is an error before the start. An environment without torch is left alone: nothing of
it can be recorded anyhow.
"""

from __future__ import annotations

from collections.abc import Collection, Iterable

from trainwarden.errors import UsageError
from trainwarden.model import ORDERED, Seal
from trainwarden.seal.check import expected, roots_of
from trainwarden.seal.walked import SealWalk
from trainwarden.store import Store

RECORDER_NEEDS = ("blake3", "msgspec", "numpy", "safetensors")  # numpy: safetensors writes torch's tensors with it
ORDERED_NEEDS = (*RECORDER_NEEDS, "cryptography")  # every rank signs what it sends


def require_recorder(store: Store, seal: Seal, walk: SealWalk) -> None:
    """Check that the recorder can work in the sealed environment; `walk` is the one that may have made the seal.

    Raises:
        UsageError: torch is there, and something that the recorder needs is not.
        SealBroken, StoreError, StoreTampered: the seal's manifest cannot be had.
    """
    walked = walk.of(seal.environment)
    files = walked.items if walked else expected(store, seal, "environment").files
    needs = ORDERED_NEEDS if seal.comparison.reduction == ORDERED else RECORDER_NEEDS
    if missing := lacking(roots_of(seal, "environment"), files, needs):
        raise UsageError(
            f"the environment of {seal.interpreter} has torch and lacks {', '.join(missing)}: "
            "nothing could be recorded",
            hint=f"{seal.interpreter} -m pip install {' '.join(missing)}",
        )


def lacking(roots: Iterable[str], files: Collection[str], needs: Iterable[str] = RECORDER_NEEDS) -> tuple[str, ...]:
    """What the recorder `needs` and an environment with torch has not, of its `files` below its import `roots`."""
    roots = tuple(roots)

    def there(name: str) -> bool:
        return any(f"{root}/{name}/__init__.py" in files for root in roots)

    return tuple(name for name in needs if not there(name)) if there("torch") else ()
