"""Opens and runs a `Shipper`: beside a run until its end, or over what a run left behind.

Rules
-----
* The end is bounded: what is not sent by then stays in the run's log and is named by the caller.
* Errors of the run's own log end the shipping with a finding: nothing of a log that contradicts itself is sent on.
"""

from __future__ import annotations

import time
from collections.abc import Callable
from pathlib import Path

from trainwarden.config import LogConfig
from trainwarden.errors import LogTampered, SignatureInvalid, UsageError
from trainwarden.keys import SigningKey
from trainwarden.log.client.link import HttpTransport, LogLink, Transport, check_url
from trainwarden.log.client.shipper import SHIPPING, Event, Limits, Shipper
from trainwarden.log.client.state import ShippingState, Target
from trainwarden.log.client.tail import Tail
from trainwarden.log.notes import check_origin
from trainwarden.log.protocol import Append, check_append
from trainwarden.model import Confidence, Finding, Severity
from trainwarden.store import RunDir

_KEY_DIGITS = 64


class Shipping:
    """A run held open for shipping to one target."""

    def __init__(self, shipper: Shipper, state: ShippingState, tail: Tail, tell: Callable[[Event], None]) -> None:
        self.shipper = shipper
        self._state, self._tail, self._tell = state, tail, tell

    @classmethod
    def open(
        cls,
        folder: RunDir,
        target: Target,
        tell: Callable[[Event], None],
        *,
        public_key: str = "",
        limits: Limits | None = None,
        transport: Transport | None = None,
        progress: Callable[[int], None] = lambda size: None,
    ) -> Shipping:
        """Open the run in `folder` for shipping to `target`; with `public_key` its log must be signed by that key.

        Raises:
            KeyUnusable: the host's key cannot be used.
            LogLocked: another process ships it.
            LogError: the state cannot be read or written.
        """
        key = SigningKey.load(Path(target.host_key) if target.host_key else None)
        state = ShippingState.open(folder.shipping, target)
        try:
            outbox = state.outbox()
            tail = Tail(folder.log, outbox.packs[-1].last + 1 if outbox else state.index, public_key, progress)
            link = LogLink(transport or HttpTransport(), target.url, target.origin)
            return cls(Shipper(tail, state, link, key, folder.id, tell, limits), state, tail, tell)
        except BaseException:
            state.close()
            raise

    def follow(self, ended: Callable[[float], bool], drain_seconds: float) -> bool:
        """Ship until `ended(seconds)`, which waits so long for the end, is true; then what is left, for so long.

        Returns:
            Whether everything is in the server's log.
        """
        try:
            pause = 0.0
            while not ended(pause):
                pause = self.shipper.step()
            return self.drain(drain_seconds)
        except (LogTampered, SignatureInvalid) as e:
            self._tell(_own_log(str(e)))
            return False

    def drain(self, seconds: float, sleep: Callable[[float], None] = time.sleep) -> bool:
        """Ship everything that is there, for at most so long (and one request more).

        Returns:
            Whether everything is in the server's log.

        Raises:
            LogTampered, SignatureInvalid: the run's own log contradicts its head.
        """
        deadline = time.monotonic() + seconds
        while True:
            pause = self.shipper.step(hurry=True)
            if self.shipper.done:
                return True
            if time.monotonic() + pause > deadline:
                return False
            sleep(pause)

    def close(self) -> None:
        self._tail.close()
        self._state.close()


def target_of(config: LogConfig, host_name: str) -> Target:
    """The target that the configuration names; `host_name` is used when it names no host.

    Raises:
        UsageError: it is incomplete, or a part of it cannot be one.
    """
    missing = [name for name in ("server", "origin", "server_key") if not getattr(config, name)]
    if missing:
        raise UsageError(
            f"[log] does not say {', '.join(missing)}",
            hint='a log server has an address, the name of its log and a public key: server = "http://…", '
            'origin = "…", server_key = "…"',
        )
    check_url(config.server)
    check_origin(config.origin)
    key = config.server_key.lower()
    if len(key) != _KEY_DIGITS or set(key) - set("0123456789abcdef"):
        raise UsageError(f"not a public key: {config.server_key[:80]!r}", hint="a public key is 64 hex digits")
    target = Target(
        url=config.server.rstrip("/"),
        origin=config.origin,
        server_key=key,
        host=config.host or host_name,
        host_key=str(Path(config.host_key).expanduser().absolute()) if config.host_key else "",
    )
    check_append(Append(host=target.host, run="run", first=0, items=()))
    return target


def limits_of(config: LogConfig) -> Limits:
    """The limits that the configuration names.

    Raises:
        UsageError: one is out of its bounds.
    """
    bounds = {"spool_mib": (1, 1 << 30), "batch_records": (1, 16_384), "batch_seconds": (0, 3600)}
    for name, (low, high) in bounds.items():
        value = getattr(config, name)
        if not low <= value <= high:
            raise UsageError(
                f"[log] {name} = {value} is not between {low} and {high}", hint="leave it out for the usual value"
            )
    return Limits(records=config.batch_records, seconds=config.batch_seconds, spool=config.spool_mib * 1024 * 1024)


def _own_log(what: str) -> Finding:
    return Finding(
        detector=SHIPPING,
        severity=Severity.HIGH,
        confidence=Confidence.HIGH,
        seen=f"This run's own log contradicts its signed head, and nothing more of it is sent: {what}",
        expected="A log only grows, and every entry stays what it was.",
        wall_ns=time.time_ns(),
    )
