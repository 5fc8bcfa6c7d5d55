"""Holds open what a name serves: the newest cleared version, verified and built, while versions come and go.

Rules
-----
* `current` asks the logs for their stamp at every call, which reads their heads. After something was found against a
  version and is durable in a log, no call hands it out any more. A call never waits for a newer version: one is read,
  verified and built beside, by a thread, and then put in place at once.
* What a call returned stays whole until its caller lets go of it: a request ends on the version that it began on.
* Held in memory beside the newest is first the version that stands on the fewest of its runs (`worth_holding`): what is
  found against a run is against all that stands on it. A call that finds nothing in memory waits for an older version,
  however far back; it fails only where nothing that is cleared can be built.
* A version that cannot be read, verified or built is passed over for the next older one that is cleared, and tried
  again when its files change, and after a while.
* Where the logs cannot be read or verified, what was cleared by the last good look goes on being served, and nothing
  else is taken up; `status` says so, and after `[serving] stale_seconds` of it `current` refuses.

Trust: the catalogue, for what is cleared. Nothing here believes a file.
"""

from __future__ import annotations

import os
import threading
import time
from collections.abc import Collection
from types import TracebackType
from typing import Generic, Protocol, TypeVar

import msgspec

from trainwarden.config import ServingConfig
from trainwarden.errors import LogStale, NotCleared, TrainWardenError
from trainwarden.serving.files import Files
from trainwarden.serving.offers import Catalogue, Offer, Version, worth_holding

T = TypeVar("T")
T_co = TypeVar("T_co", covariant=True)
_LONGEST_WAIT = 3600.0  # between tries of a version that failed
_LONGEST_OUTAGE = 60.0  # the same while nothing is served
_MOST_TOLD, _MOST_SAID = 64, 4  # versions that are passed over: in the status, in an error


class Build(Protocol[T_co]):
    """Makes what serves out of verified files: the caller's own function."""

    def __call__(self, files: Files, /) -> T_co: ...


class Serving(msgspec.Struct, Generic[T], frozen=True, eq=False):
    """A version that is being served: its digest, and what was built of its files."""

    digest: str
    model: T


class PassedOver(msgspec.Struct, frozen=True, kw_only=True):
    """A version that is promoted and not served, and why."""

    digest: str
    why: str


class Status(msgspec.Struct, frozen=True, kw_only=True):
    """What a name serves now; `digest` is "" for nothing, `log_trouble` "" where the logs were read and verify."""

    name: str
    digest: str
    standby: tuple[str, ...]  # built, and at hand when something is found against `digest`
    passed_over: tuple[PassedOver, ...]  # the newest of them
    log_entries: int
    log_trouble: str
    log_age_seconds: float  # since the last good look; 0 while nothing changed since


class _Failure(msgspec.Struct):
    why: str
    tries: int
    at: float
    wait: float
    files: object  # what its files looked like


class Service(Generic[T]):
    """A serving name held open; safe to use from any number of threads."""

    def __init__(self, name: str, catalogue: Catalogue, build: Build[T], settings: ServingConfig | None = None) -> None:
        self.name, self._catalogue, self._build = name, catalogue, build
        self._settings = settings or ServingConfig()
        self._state = threading.Lock()  # held for moments
        self._looking = threading.Lock()
        self._loading = threading.Lock()
        self._wake, self._closed = threading.Event(), threading.Event()
        self._offer = Offer(versions=(), stamp=None)
        self._stamp: object = _NEVER
        self._trouble, self._good = "", time.monotonic()
        self._built: dict[str, Serving[T]] = {}
        self._current: Serving[T] | None = None
        self._failed: dict[str, _Failure] = {}
        self._thread = threading.Thread(target=self._run, name=f"trainwarden-serving-{name}", daemon=True)

    def start(self) -> None:
        """Look, load the newest cleared version that can be, and follow the logs from then on.

        Raises:
            NotCleared: nothing that is cleared can be served; the message says why, version by version.
            TrainWardenError: the logs cannot be read, or do not verify.
        """
        with self._looking:
            self._take(self._catalogue.look())
        self._fill(most=1)
        if self._current is None:
            raise self._nothing()
        self._thread.start()

    def current(self) -> Serving[T]:
        """The version to serve a request with; hold on to it for the whole request.

        Raises:
            NotCleared: there is none any more that may be and can be served.
            LogStale: what may be served is not known since longer than policy has it.
        """
        self._follow()
        while (serving := self._current) is None:  # also if what was just built was found against meanwhile
            if not self._fill(most=1):  # what was cleared is not any more: this request waits for an older version
                raise self._nothing()
        if self._trouble and 0 < self._settings.stale_seconds < self._age():
            raise LogStale(
                f"{self.name}: what may be served is not known for {self._age():.0f} s, policy allows "
                f"{self._settings.stale_seconds:g} s: {self._trouble}",
                hint="make the gate's log readable again; [serving] stale_seconds says how long to go on without it",
            )
        return serving

    def reload(self) -> Status:
        """Look again and try everything that may be served again, now; return what came of it."""
        self._look_again()
        with self._state:
            self._failed.clear()
        self._fill(most=self._settings.keep)
        return self.status()

    def status(self) -> Status:
        """What is served now, what is not and why, and how it stands with the logs."""
        self._follow()
        with self._state:
            passed_over = [v for v in self._offer.versions if v.open or v.digest in self._failed]
            over = [
                PassedOver(digest=v.digest, why="; ".join(v.open) or self._failed[v.digest].why)
                for v in passed_over[:_MOST_TOLD]
            ]
            digest = self._current.digest if self._current else ""
            return Status(
                name=self.name,
                digest=digest,
                standby=tuple(d for d in self._built if d != digest),
                passed_over=tuple(over),
                log_entries=self._offer.size,
                log_trouble=self._trouble,
                log_age_seconds=round(self._age(), 1) if self._trouble else 0.0,
            )

    def close(self) -> None:
        """Stop following. What was handed out stays whole."""
        self._closed.set()
        self._wake.set()
        if self._thread.is_alive():
            self._thread.join()

    def __enter__(self) -> Service[T]:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    # ------------------------------------------------------------------ what may be served

    def _follow(self) -> None:
        """See whether the logs changed; if so, know what they say before anything is handed out."""
        if self._catalogue.stamp() == self._stamp:
            return
        with self._looking:
            if self._catalogue.stamp() != self._stamp:  # nobody else looked while this call waited
                self._look()

    def _look_again(self) -> None:
        with self._looking:
            self._look()

    def _look(self) -> None:
        """Take up what the logs say; where they say nothing, keep what was known. `_looking` is held."""
        before = self._catalogue.stamp()
        try:
            offer = self._catalogue.look(frozenset(self._failed))
        except TrainWardenError as e:
            with self._state:
                self._trouble, self._stamp = str(e), before
        else:
            self._take(offer)
            self._wake.set()

    def _take(self, offer: Offer) -> None:
        with self._state:
            self._offer, self._trouble = offer, offer.trouble
            self._good = self._good if offer.trouble else time.monotonic()
            self._arrange()
            self._stamp = offer.stamp  # last: whoever sees it finds everything arranged

    def _arrange(self) -> None:
        """Serve the first version that may be and is built; forget what may not be. `_state` is held."""
        built = [v for v in self._offer.versions if not v.open and v.digest in self._built]
        self._current = self._built[built[0].digest] if built else None
        kept = worth_holding(built)[: self._settings.keep]
        self._built = {version.digest: self._built[version.digest] for version in kept}
        known = {v.digest for v in self._offer.versions}
        self._failed = {digest: failure for digest, failure in self._failed.items() if digest in known}

    # ------------------------------------------------------------------ building

    def _run(self) -> None:
        while not self._closed.is_set():
            self._wake.wait(self._settings.poll_seconds)
            self._wake.clear()
            if self._closed.is_set():
                return
            in_doubt = self._trouble or any(version.open for version in self._offer.versions)
            self._look_again() if in_doubt else self._follow()
            self._fill(most=self._settings.keep)

    def _fill(self, most: int) -> bool:
        """Build the `most` versions that are most worth holding; is one of them there now?

        What is wanted is asked anew after each one, as it may have been found against while it was built.
        """
        with self._loading:
            with self._state:
                tried = {v.digest for v in self._offer.versions if self._is_waiting(v)}
            while not self._closed.is_set():
                with self._state:
                    offer, wanted = self._offer, self._worth_building(tried)[:most]
                    missing = next((v for v in wanted if v.digest not in self._built), None)
                if missing is not None:
                    tried.add(missing.digest)
                    self._try(missing)
                elif len(wanted) == most or not offer.more or not self._look_further(offer):
                    return bool(wanted)
            return False

    def _worth_building(self, tried: Collection[str]) -> list[Version]:
        return worth_holding(v for v in self._offer.versions if v.digest in self._built or v.digest not in tried)

    def _look_further(self, offer: Offer) -> bool:
        """Ask for older versions than the offer has; are there any?"""
        self._look_again()
        return len(self._offer.versions) > len(offer.versions)

    def _is_waiting(self, version: Version) -> bool:
        failure = self._failed.get(version.digest)
        if failure is None:
            return False
        wait = failure.wait if self._current else min(failure.wait, _LONGEST_OUTAGE)
        return time.monotonic() < failure.at + wait and _looks(version) == failure.files

    def _try(self, version: Version) -> None:
        """Build `version` and put it in place, unless something was found against it meanwhile."""
        looks = _looks(version)
        try:
            model = self._build(Files(version))
        except Exception as e:  # noqa: BLE001  the caller's own code, over files that may be anybody's
            self._fail(version, looks, str(e) if isinstance(e, TrainWardenError) else f"{type(e).__name__}: {e}")
            return
        self._follow()
        with self._state:
            self._failed.pop(version.digest, None)
            self._built[version.digest] = Serving(version.digest, model)
            self._arrange()

    def _fail(self, version: Version, looks: object, why: str) -> None:
        with self._state:
            tries = self._failed[version.digest].tries + 1 if version.digest in self._failed else 1
            wait = min(_LONGEST_WAIT, self._settings.poll_seconds * 2 ** min(tries, 20))
            self._failed[version.digest] = _Failure(why, tries, time.monotonic(), wait, looks)

    # ------------------------------------------------------------------ words

    def _age(self) -> float:
        return time.monotonic() - self._good

    def _nothing(self) -> NotCleared:
        over = self.status().passed_over
        told = "; ".join(f"{each.digest[:12]}: {each.why}" for each in over[:_MOST_SAID])
        told += f"; and {len(over) - _MOST_SAID} more" if len(over) > _MOST_SAID else ""
        return NotCleared(
            f"there is nothing cleared to serve as {self.name!r}: {told or 'nothing was promoted under this name'}",
            hint=f"trainwarden status {self.name} shows what is promoted; trainwarden clear decides on a checkpoint",
        )


class _Never:
    """The stamp before the first look: equal to none."""


_NEVER = _Never()


def _looks(version: Version) -> object:
    """What can be seen of a version's files without reading them: it changes when one is put back."""
    found = []
    files = Files(version)
    for file in version.manifest.files:
        for path in files.paths(file):
            try:
                s = os.stat(path)
            except OSError:
                found.append((0, 0, 0, 0))
            else:
                found.append((s.st_ino, s.st_size, s.st_mtime_ns, s.st_ctime_ns))
    return found
