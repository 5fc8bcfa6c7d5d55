"""Everything that is tried against a served name while it is under load, and what was cleared when.

The first version stands on a run of its own, all others on another one: what is found there, and what is opened on it,
is against all but the first. Between them are more versions than anybody holds at hand, whose files are gone: to go on,
a server has to go a long way back. Only this test's own folder is touched.
"""

from __future__ import annotations

import os
import random
import shutil
import threading
import time
from collections import Counter
from collections.abc import Callable
from pathlib import Path
from typing import NamedTuple

import msgspec

from tests.serving.gated import Gated, finding
from trainwarden.custody import ledger as custody
from trainwarden.custody.ledger import Signer
from trainwarden.gate.manifest import manifest_of
from trainwarden.model import CheckpointFile

LOST = 100


class Tried(NamedTuple):
    """A version: where it lies and its digest; `number` is what it was made from."""

    number: int
    place: Path
    digest: str


class Attacker:
    """Attacks a name of `gated`; `make(number, place)` writes a version into a folder, another for each number."""

    def __init__(self, gated: Gated, make: Callable[[int, Path], None], name: str) -> None:
        self._gated, self._make, self._name = gated, make, name
        self._draw = random.Random(0)
        self.versions: list[Tried] = []
        self.acts: Counter[str] = Counter()
        self._cleared: dict[str, list[tuple[float, bool]]] = {}  # digest → moments from which it is, or is not

    def begin(self) -> None:
        """Promote the first version, whose files the store keeps and which nothing is found against."""
        first = self._new()
        self._promote(first, keep=True)
        self._gated.begin_run()

    def attack(self, seconds: float) -> None:
        """Go on with one act after the other for that long, each at least once, after many versions that are lost."""
        self._gated.promote_lost(LOST, self._name)
        acts = (
            self.promote, self.poison, self.truncate, self.exchange_while_read, self.retag, self.delete,
            self.found, self.incident, self.refuse, self.roll_back, self.put_back,
        )  # fmt: skip
        until = time.monotonic() + seconds
        while time.monotonic() < until:
            for act in self._draw.sample(acts, len(acts)):
                act()
                self.acts[act.__name__] += 1
                time.sleep(self._draw.uniform(0.02, 0.15))
                if time.monotonic() > until and min(self.acts[a.__name__] for a in acts):
                    return

    # ------------------------------------------------------------------ acts

    def promote(self) -> None:
        self._promote(self._new())

    def poison(self) -> None:
        """Another model's bytes where the cleared ones were, before anybody reads them."""
        version = self._new()
        self._weights(version).write_bytes(self._weights(self._evil()).read_bytes())
        self._promote(version)

    def truncate(self) -> None:
        version = self._new()
        os.truncate(self._weights(version), self._weights(version).stat().st_size - 4)
        self._promote(version)

    def exchange_while_read(self) -> None:
        """Good and bad bytes, in turn and in place, for as long as a server may be reading."""
        version, evil = self._new(), self._weights(self._evil()).read_bytes()
        good, done = self._weights(version).read_bytes(), threading.Event()

        def exchange() -> None:
            while not done.is_set():
                for data in (evil, good):
                    with self._weights(version).open("r+b") as file:
                        file.write(data)
                    time.sleep(0.001)

        thread = threading.Thread(target=exchange)
        thread.start()
        self._promote(version)
        time.sleep(0.1)
        done.set()
        thread.join()

    def retag(self) -> None:
        """The place of a cleared version leads to another one."""
        version, evil = self._new(), self._evil()
        shutil.rmtree(version.place)
        version.place.symlink_to(evil.place)
        self._promote(version)

    def delete(self) -> None:
        for version in self.versions[1:]:
            if version.place.is_dir() and not version.place.is_symlink():
                shutil.rmtree(version.place)

    def incident(self) -> None:
        """An incident is opened on the run that all but the first stand on, and closed after a while."""
        by = Signer("", self._gated.key)
        opened = custody.open_incident(self._gated.store, by, "case 7").id
        custody.add_to(self._gated.store, by, opened, runs=[self._gated.run])
        now = time.monotonic()
        held = [v for v in self.versions[1:] if self._is_cleared(v)]
        for version in held:
            self._note(version.digest, now, cleared=False)
        time.sleep(0.2)
        now = time.monotonic()
        custody.close_incident(self._gated.store, by, opened, "a failed disk")
        for version in held:
            self._note(version.digest, now, cleared=True)

    def found(self) -> None:
        """Something is found against all but the first version; a newer one is cleared after it."""
        self._gated.log(finding("a gradient is not what a replay gives", step=50))
        now = time.monotonic()
        for version in self.versions[1:]:
            self._note(version.digest, now, cleared=False)
        time.sleep(0.1)
        with self._gated.store_log() as head:
            self._gated.seen = msgspec.structs.replace(self._gated.seen, size=head.size, root=head.root)
        self.promote()

    def refuse(self) -> None:
        version = self._promoted()
        if version is not None:
            self._gated.refuse(version.digest)
            self._note(version.digest, time.monotonic(), cleared=False)

    def roll_back(self) -> None:
        """The name is what it was before; what it left is not served any more."""
        before, left = self._new(), self._new()
        self._promote(before)
        self._promote(left)
        self._gated.roll_back(before.digest, left.digest, self._name)
        self._note(left.digest, time.monotonic(), cleared=False)

    def put_back(self) -> None:
        """The gate's log as it was before a refusal, for a moment, as somebody who can write the store could."""
        old, new = self._gated.folder / "old-log", self._gated.folder / "new-log"
        self.promote()
        self._gated.copy(old)
        self.refuse()
        self._gated.copy(new)
        time.sleep(0.1)  # what is put back before anybody asked was never seen
        self._gated.put_back(old)
        time.sleep(0.1)
        self._gated.put_back(new)
        shutil.rmtree(old)
        shutil.rmtree(new)

    # ------------------------------------------------------------------ what was cleared

    def cleared_between(self, digest: str, begun: float, ended: float) -> bool:
        """Whether the version was cleared at any moment from `begun` to `ended`."""
        state = False
        for moment, cleared in self._cleared.get(digest, ()):
            if moment > ended:
                break
            if moment <= begun:
                state = cleared
            else:
                state |= cleared
        return state

    def pristine(self, version: Tried) -> tuple[Path, tuple[CheckpointFile, ...]]:
        """The version made once more, in a folder that nobody touched, and its files."""
        place = self._gated.folder / "pristine" / str(version.number)
        self._make(version.number, place)
        return place, manifest_of(place).files

    def _new(self) -> Tried:
        number = len(self.versions) + 1
        place = self._gated.folder / "versions" / str(number)
        self._make(number, place)
        version = Tried(number, place, self._gated.manifest(place))
        self.versions.append(version)
        return version

    def _evil(self) -> Tried:
        """A version that is never promoted."""
        place = self._gated.folder / "evil"
        self._make(10**6, place)
        return Tried(10**6, place, "")

    def _promote(self, version: Tried, *, keep: bool = False) -> None:
        self._note(version.digest, time.monotonic(), cleared=True)  # before: it may be served as soon as it is durable
        self._gated.promote_digest(version.digest, version.place, self._name)
        if keep:
            self._gated.keep(version.place)

    def _promoted(self) -> Tried | None:
        """The newest version but the first that is cleared."""
        found = [v for v in self.versions[1:] if self._is_cleared(v)]
        return found[-1] if found else None

    def _is_cleared(self, version: Tried) -> bool:
        return self._cleared.get(version.digest, [(0.0, False)])[-1][1]

    def _note(self, digest: str, moment: float, *, cleared: bool) -> None:
        self._cleared.setdefault(digest, []).append((moment, cleared))

    def _weights(self, version: Tried) -> Path:
        return version.place / "model.safetensors"
