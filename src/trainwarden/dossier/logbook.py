"""The logs that a dossier stands on, held open: their heads, and entries with inclusion proofs, as items.

Rules
-----
* A log is verified whole against the key that its own first entry names before anything is taken from it; of one that
  does not verify nothing is taken but the reason.
* Every proof of a log leads to one head of it, which the dossier carries with the cosignatures kept beside it.
"""

from __future__ import annotations

from collections.abc import Iterable
from contextlib import ExitStack
from pathlib import Path
from types import TracebackType

import msgspec

from trainwarden.dossier.nouns import Item, LogHead, Proof
from trainwarden.errors import TrainWardenError
from trainwarden.log.reader import LogReader
from trainwarden.log.verify import verify_log
from trainwarden.log.witnessed import read_cosigned

CUSTODY, GATE = "custody", "gate"


class Register:
    """The items of a dossier while it is made; ids are numbered by kind."""

    def __init__(self) -> None:
        self.items: list[Item] = []
        self._counts: dict[str, int] = {}

    def add(self, kind: str, fields: dict[str, object], proof: Proof | None = None) -> str:
        """Add one item and give its id; fields that are empty are left out."""
        number = self._counts[kind] = self._counts.get(kind, 0) + 1
        kept = filled({n: msgspec.to_builtins(v) for n, v in fields.items()})
        self.items.append(Item(id=f"{kind}-{number}", kind=kind, fields=kept, proof=proof))
        return f"{kind}-{number}"


class LogBook:
    """Logs held open by name: a run's id, "custody", "gate"."""

    def __init__(self) -> None:
        self.heads: dict[str, LogHead] = {}
        self.broken: dict[str, str] = {}  # name → why nothing is taken from it
        self._stack = ExitStack()
        self._readers: dict[str, LogReader] = {}
        self._entries: dict[tuple[str, int], str] = {}

    def open(self, name: str, folder: Path, key: str, origin: str = "") -> bool:
        """Open a log; False where it does not verify."""
        try:
            verify_log(folder, key, origin)
            reader = self._stack.enter_context(LogReader.open(folder, key))
        except TrainWardenError as e:
            self.broken[name] = str(e)
            return False
        cosigned = (read_cosigned(folder) or b"").decode("utf-8", "replace")
        self._readers[name] = reader
        self.heads[name] = LogHead(name=name, key=key, note=reader.head.note, cosigned=cosigned)
        return True

    def leaf(self, name: str, index: int) -> tuple[bytes, Proof]:
        """The bytes of an entry and their proof.

        Raises:
            UsageError, LogError, LogTampered: there is no such entry, or it cannot be read.
        """
        log = self._readers[name]
        return log.entry(index), Proof(log=name, index=index, hashes=tuple(h.hex() for h in log.inclusion_proof(index)))

    def cite(self, register: Register, name: str, index: int) -> str:
        """The item of an entry, made at its first citation; "" of a log that is not open or not that long."""
        if name not in self._readers or not 0 <= index < self._readers[name].head.size:
            return ""
        if (name, index) not in self._entries:
            data, proof = self.leaf(name, index)
            self._entries[name, index] = register.add("entry", entry_fields(name, index, data), proof)
        return self._entries[name, index]

    def cite_all(self, register: Register, name: str, indexes: Iterable[int]) -> list[str]:
        """The items of several entries."""
        return [item for index in indexes if (item := self.cite(register, name, index))]

    def __enter__(self) -> LogBook:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._stack.close()


def entry_fields(log: str, index: int, data: bytes) -> dict[str, object]:
    """The fields of an entry's item: where it is, its own under `entry.…`, and its bytes as text.

    Raises:
        msgspec.DecodeError: it is no JSON object.
    """
    told = msgspec.json.decode(data, type=dict[str, object])
    own = {f"entry.{n}": v for n, v in told.items()}
    return filled({"log": log, "index": index, **own, "leaf": data.decode()})


def filled(fields: dict[str, object]) -> dict[str, object]:
    """The fields that say something."""
    return {n: v for n, v in fields.items() if v is not None and v != "" and v != () and v != [] and v != {}}
