"""The code in the ranks' memory against sealed source: what ranks tell, judged here and logged.

Rules
-----
* Ranks tell names and functions; this process alone knows what they should be, and alone judges. A rank that does
  not tell is a gap, said when it ends.
* Judged in a thread of its own: compiling sealed source for the first time takes seconds, and neither training
  nor the log waits for it. What could not be judged when the run ends is a gap.
* Every look is an entry, `CodeSeen`: with the root over all names when nothing is new, else with the differences.
* A difference is told once for each rank. Many names that hold one function are one difference.
"""

from __future__ import annotations

import queue
import re
import threading
import time
from collections.abc import Callable, Iterable
from dataclasses import dataclass, field

import msgspec
from blake3 import blake3

from trainwarden import codeform, wire
from trainwarden.errors import TrainWardenError
from trainwarden.model import CodeDifference, CodeSeen, Gap
from trainwarden.seal.functions import FileCode, SealedFunctions
from trainwarden.supervise.judging import Agrees, Differs, Judgement, NotChecked, Sealed, counterparts, judge
from trainwarden.supervise.ledger import Ledger

MOST_TOLD = 32
MOST_FUNCTIONS = 1_000_000
MOST_WAITING = 4_096
_NAMED = 4
_NUMBERS = re.compile(r"\d+")
_encoder = msgspec.msgpack.Encoder()


@dataclass
class _Table:
    """What one rank has told."""

    functions: list[wire.LiveFunction] = field(default_factory=list)
    forms: dict[bytes, bytes] = field(default_factory=dict)
    slots: dict[str, wire.Slot] = field(default_factory=dict)
    classes: dict[str, tuple[str, ...]] = field(default_factory=dict)
    modules: dict[str, str] = field(default_factory=dict)
    unchecked: set[str] = field(default_factory=set)
    told: set[tuple[object, ...]] = field(default_factory=set)
    root: str = ""

    def update(self, message: wire.Code) -> None:
        """Take in what is new.

        Raises:
            ValueError: it does not hold together.
        """
        if len(message.forms) != len(message.functions):
            raise ValueError(f"{len(message.functions)} functions, {len(message.forms)} forms")
        if len(self.functions) + len(message.functions) > MOST_FUNCTIONS:
            raise ValueError(f"more than {MOST_FUNCTIONS} functions")
        for function, form in zip(message.functions, message.forms, strict=True):
            if codeform.digest(form) != function.digest:
                raise ValueError(f"the form of {function.qualname[:200]} is not what its digest says")
            self.functions.append(function)
            self.forms[function.digest] = form
        known = len(self.functions)
        if any(not 0 <= n < known for slot in message.slots.values() for n in slot.functions):
            raise ValueError("a name holds a function that was not told")
        for name in message.gone:
            self.slots.pop(name, None)
            self.unchecked.discard(name)
        self.slots |= message.slots
        self.classes |= message.classes
        self.modules |= message.modules
        if not self.root or message.slots or message.gone:
            self.root = self._root()

    def _root(self) -> str:
        digests = [blake3(_encoder.encode(f)).digest() for f in self.functions]
        hasher = blake3()
        for name, slot in sorted(self.slots.items()):
            hasher.update(_encoder.encode((name, slot.kind, [digests[n] for n in slot.functions])))
        return hasher.hexdigest()

    def held(self, slot: wire.Slot) -> tuple[wire.LiveFunction, ...]:
        return tuple(self.functions[n] for n in slot.functions)

    def under(self, name: str) -> tuple[wire.LiveFunction, ...] | None:
        slot = self.slots.get(name)
        return self.held(slot) if slot is not None else None


@dataclass(frozen=True)
class _Look:
    attempt: int
    rank: int
    step: int
    message: wire.Code


class CodeDesk:
    """Judges what ranks tell of their code; `functions` is made when the first rank tells something."""

    def __init__(self, ledger: Ledger, functions: Callable[[int], SealedFunctions]) -> None:
        self._ledger = ledger
        self._make = functions
        self._books: dict[int, SealedFunctions] = {}
        self._tables: dict[tuple[int, int], _Table] = {}
        self._judged: dict[tuple[object, ...], Judgement] = {}
        self._queue: queue.Queue[_Look | None] = queue.Queue(MOST_WAITING)
        self._thread = threading.Thread(target=self._work, daemon=True, name="trainwarden-code")
        self._thread.start()

    def seen(self, attempt: int, rank: int, step: int, message: wire.Code) -> None:
        """A rank told of its code at a step of the job."""
        try:
            self._queue.put_nowait(_Look(attempt, rank, step, message))
        except queue.Full:
            self._gap(attempt, rank, step, f"{MOST_WAITING} looks at the code in memory wait: this one was not judged")

    def close(self, timeout: float = 120.0) -> None:
        """Judge what waits; what is not done in time is a gap."""
        try:
            self._queue.put(None, timeout=timeout)
        except queue.Full:
            pass
        self._thread.join(timeout)
        if self._thread.is_alive():
            self._gap(-1, -1, -1, f"{self._queue.qsize()} looks at the code in memory were not judged in time")

    # -- the thread

    def _work(self) -> None:
        while (look := self._queue.get()) is not None:
            try:
                self._ledger.submit(self._judge(look))
            except (TrainWardenError, ValueError) as e:
                reason = f"the code in memory was not compared with the seal: {e}"
                self._gap(look.attempt, look.rank, look.step, reason[:2000])

    def _gap(self, attempt: int, rank: int, step: int, reason: str) -> None:
        self._ledger.submit(Gap(attempt=attempt, rank=rank, step=step, reason=reason))

    def _book(self, message: wire.Code) -> SealedFunctions:
        """Sealed source compiled as this rank's Python does.

        Raises:
            ValueError: it runs another Python than the sealed one.
        """
        optimize = min(max(message.optimize, 0), 2)
        book = self._books.get(optimize)
        if book is None:
            book = self._books[optimize] = self._make(optimize)
        if book.magic() != message.magic.hex():
            raise ValueError(f"the rank's bytecode is {message.magic.hex()[:32]}, the sealed Python's {book.magic()}")
        return book

    def _judge(self, look: _Look) -> CodeSeen:
        table = self._tables.setdefault((look.attempt, look.rank), _Table())
        table.update(look.message)
        book = self._book(look.message)
        groups = self._compare(look.message, table, book) if look.message.slots else {}
        new = [(found, names) for cause, (found, names) in groups.items() if cause not in table.told]
        table.told.update(list(groups)[: MOST_FUNCTIONS - len(table.told)])
        return CodeSeen(
            attempt=look.attempt,
            rank=look.rank,
            step=look.step,
            root=table.root,
            names=len(table.slots),
            functions=len(table.functions),
            unchecked=len(table.unchecked),
            differences=tuple(_difference(f, names, table, book) for f, names in new[:MOST_TOLD]),
            more=max(0, len(new) - MOST_TOLD),
            wall_ns=time.time_ns(),
        )

    def _compare(
        self, message: wire.Code, table: _Table, book: SealedFunctions
    ) -> dict[tuple[object, ...], tuple[Differs, list[str]]]:
        """What differs among the names told, and the names that each difference stands under."""
        files = book.about(_files(table))
        sealed = Sealed(files.get, table.modules, table.classes, _homes(table, files), table.under)
        groups: dict[tuple[object, ...], tuple[Differs, list[str]]] = {}
        for name, slot in message.slots.items():
            match self._judgement(name, slot, table, sealed):
                case NotChecked():
                    table.unchecked.add(name)
                case Agrees():
                    table.unchecked.discard(name)
                case Differs() as found:
                    groups.setdefault(_cause(found, name), (found, []))[1].append(name)
        return groups

    def _judgement(self, name: str, slot: wire.Slot, table: _Table, sealed: Sealed) -> Judgement:
        held = table.held(slot)
        module = name.partition(":")[0]
        key = (name, slot.kind, held, sealed.modules.get(module), counterparts(name, sealed))
        found = self._judged.get(key)
        if found is None:
            found = self._judged[key] = judge(name, slot.kind, held, sealed)
            if len(self._judged) > MOST_FUNCTIONS:
                self._judged.clear()
        return found


def _files(table: _Table) -> list[str]:
    """The files of all functions told and of the modules looked at."""
    named = {f.file for f in table.functions} | set(table.modules.values())
    return sorted(f for f in named if f.startswith("/") and "\0" not in f and len(f) < 4096)


def _homes(table: _Table, files: dict[str, FileCode | None]) -> dict[str, str]:
    """Where classes are defined whose module is another than it says (`torch.Tensor` lies in torch/_tensor.py)."""
    homes: dict[str, str] = {}
    for name, slot in table.slots.items():
        module, _, rest = name.partition(":")
        scope = rest.rpartition(".")[0]
        place = f"{module}:{scope}"
        if not scope or place in homes:
            continue
        own = files.get(table.modules.get(module, ""))
        if own is not None and scope in own.scopes:
            homes[place] = table.modules[module]
            continue
        for function in table.held(slot):
            code = files.get(function.file)
            if code is not None and scope in code.scopes and function.qualname == rest:
                homes[place] = function.file
    return homes


def _cause(found: Differs, name: str) -> tuple[object, ...]:
    """What makes two differences one: the function and what it stands for, or the file where none of it is sealed."""
    function, owner = found.function, found.owner
    alone = ":" not in name or found.kind == "planted"
    belongs = (found.owner_file, owner.qualname) if owner else _NUMBERS.sub("#", name) if alone else ""
    if function is None:
        return (found.kind, belongs or name, found.live)
    if found.kind == "unsealed" and not belongs:
        return (found.kind, function.file)
    return (found.kind, function.file, function.qualname, function.line, function.digest, belongs)


def _difference(found: Differs, names: Iterable[str], table: _Table, book: SealedFunctions) -> CodeDifference:
    listed = list(names)
    function, owner = found.function, found.owner
    at, sealed, live = found.at, found.sealed, found.live
    if function is not None and owner is not None and not at:
        at, sealed, live = book.difference(found.owner_file, owner.qualname, table.forms[function.digest])
    return CodeDifference(
        kind=found.kind,
        slots=tuple(n[:300] for n in listed[:_NAMED]),
        places=len(listed),
        function=function.qualname[:300] if function else "",
        file=function.file[:4096] if function else "",
        line=function.line if function else 0,
        sealed_file=found.owner_file if owner else "",
        sealed_line=owner.line if owner else 0,
        at=at[:300],
        sealed=sealed[:300],
        live=live[:300],
    )
