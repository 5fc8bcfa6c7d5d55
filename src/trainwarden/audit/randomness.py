"""Where the randomness of a draw comes from: drawn or made after the records are durable, so that no rank foresees it.

`LogServer`: the signature under the server's tree head that covers the records. Ed25519 signatures of one message by
one key are one and the same, so neither side chooses, and nobody without the server's key knows it before.
`Beacon`: what a file or address says after the records were durable (a lottery of the organisation, a public beacon).
`System`: this host's generator, drawn by the auditor. Outsiders then have its word that it drew once; a program of the
same user that reads the auditor's memory is kept off by the operating system alone.
"""

from __future__ import annotations

import hashlib
import secrets
import time
from collections.abc import Callable
from pathlib import Path
from typing import Protocol

import msgspec

from trainwarden.errors import LogError, UsageError
from trainwarden.log.client.link import HttpTransport, check_url
from trainwarden.log.client.state import read_receipts, targets

_MOST_BEACON = 64 * 1024
_BETWEEN_LOOKS = 5.0  # seconds between questions to a beacon


class Random(msgspec.Struct, frozen=True, kw_only=True):
    """Randomness that was not known before the records were durable, and what shows where it comes from."""

    source: str
    value: bytes
    proof: str = ""


class Source(Protocol):
    """A source of randomness for draws."""

    def after(self, last: int) -> Random | None:
        """Randomness that came to be after log entry `last` was durable; None while there is none yet."""
        ...


class System:
    """The operating system's generator."""

    def after(self, last: int) -> Random | None:
        return Random(source="system", value=secrets.token_bytes(32))


class LogServer:
    """The newest head that a log server signed over this run's entries, as the shipping checked and kept it."""

    def __init__(self, shipping: Path) -> None:
        self._shipping = shipping

    def after(self, last: int) -> Random | None:
        """Raises LogError when the receipts cannot be read."""
        for target in targets(self._shipping):
            receipts = read_receipts(self._shipping, target)
            # The first that covers the window: a later one could be waited for.
            covering = (r for r in receipts if r.sent and r.sent[-1].last >= last)
            if (receipt := next(covering, None)) is not None:
                return Random(source="log server", value=of_note(receipt.head), proof=receipt.head)
        return None


def of_note(note: str) -> bytes:
    """The randomness in a signed note: SHA-256 over its signature lines.

    Raises:
        LogError: there is no signature.
    """
    lines = [line for line in note.split("\n\n", 1)[-1].splitlines() if line.startswith("— ")]
    if not lines:
        raise LogError("the server's head carries no signature")
    return hashlib.sha256("\n".join(lines).encode()).digest()


class Beacon:
    """A file or an http(s) address whose content changes from time to time.

    What it says when a window closes is old; the first other content counts.
    """

    def __init__(self, place: str, clock: Callable[[], float] = time.monotonic) -> None:
        self._place, self._clock = place, clock
        self._http = HttpTransport() if place.startswith(("http://", "https://")) else None
        if self._http is not None:
            check_url(place)
        self._waiting = -1
        self._old = b""
        self._asked = float("-inf")

    def after(self, last: int) -> Random | None:
        """Raises LogUnreachable, UsageError when it cannot be read."""
        if self._waiting == last and self._clock() - self._asked < _BETWEEN_LOOKS:
            return None
        self._asked = self._clock()
        says = self._read()
        if self._waiting != last:
            self._waiting, self._old = last, says
            return None
        if says == self._old:
            return None
        self._waiting = -1
        return Random(source="beacon", value=hashlib.sha256(says).digest(), proof=f"{self._place}\n{says.hex()}")

    def _read(self) -> bytes:
        if self._http is not None:
            return self._http.request("GET", self._place, b"", {}, _MOST_BEACON).body
        try:
            with open(self._place, "rb") as f:
                return f.read(_MOST_BEACON)
        except OSError as e:
            raise UsageError(f"the beacon {self._place} cannot be read: {e.strerror}") from e


def source_for(shipping: Path, beacon: str) -> Source:
    """A log server's heads where the run is sent to one, else the beacon that is named, else this host's generator."""
    if targets(shipping):
        return LogServer(shipping)
    return Beacon(beacon) if beacon else System()
