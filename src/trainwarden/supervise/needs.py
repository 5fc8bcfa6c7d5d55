"""What the recorder needs of the environment that trains, looked for in the sealed list before anything is started.

The recorder's own code comes from the watcher; these packages it takes from the environment that it records in, since
compiled modules fit one interpreter only. Where one is missing nothing would be recorded, and the run would tell
that of every step; so it is an error before the start. An environment without torch is left alone: nothing of
it can be recorded anyhow.
"""

from __future__ import annotations

from collections.abc import Collection, Iterable

from trainwarden.errors import UsageError

RECORDER_NEEDS = ("blake3", "msgspec", "numpy", "safetensors")  # numpy: safetensors writes torch's tensors with it


def require_recorder(roots: Iterable[str], files: Collection[str], interpreter: str) -> None:
    """Check that an environment's sealed `files` (absolute paths) below its import `roots` let the recorder work.

    Raises:
        UsageError: torch is there, and something that the recorder needs is not.
    """
    roots = tuple(roots)

    def there(name: str) -> bool:
        return any(f"{root}/{name}/__init__.py" in files for root in roots)

    if not there("torch"):
        return
    missing = [name for name in RECORDER_NEEDS if not there(name)]
    if missing:
        raise UsageError(
            f"the environment of {interpreter} has torch and lacks {', '.join(missing)}: nothing could be recorded",
            hint=f"{interpreter} -m pip install {' '.join(missing)}",
        )
