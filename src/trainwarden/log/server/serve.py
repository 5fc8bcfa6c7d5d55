"""Puts a log server together and runs it until it is told to stop.

Rules
-----
* The port is bound before anything is said; the log is whole and the index agrees with it before the port answers.
* A connection that has not sent a whole request head in `HEAD_SECONDS` is closed, however slowly it goes on.
* On SIGTERM no more requests are taken, those that wait are committed and answered, then it ends.
"""

from __future__ import annotations

import asyncio
import resource
import socket
import ssl
from collections.abc import Callable, Iterator
from contextlib import closing, contextmanager
from pathlib import Path

import h11
import msgspec
import uvicorn
from uvicorn.protocols.http.h11_impl import H11Protocol

from trainwarden.errors import UsageError
from trainwarden.keys import SigningKey
from trainwarden.log.journal import log_errors
from trainwarden.log.server.app import BODY_SECONDS, Service, build_app
from trainwarden.log.server.hosts import HostsFile
from trainwarden.log.server.index import RunIndex
from trainwarden.log.server.metrics import Metrics
from trainwarden.log.server.sequencer import Sequencer
from trainwarden.log.server.stores import TileStore, open_store
from trainwarden.log.server.tilelog import TileLog
from trainwarden.model import TreeHead

HEAD_SECONDS = 10.0
KEEP_ALIVE_SECONDS = 75
MAX_HEAD = 32 * 1024


class Settings(msgspec.Struct, frozen=True, kw_only=True):
    """What a log server is told on its command line."""

    origin: str
    store: str  # a folder, or s3://BUCKET/PREFIX
    hosts: Path
    index: str = ""  # an SQLAlchemy URL; "" = index.sqlite in the store's folder
    endpoint: str = ""  # of the object store, when it is not AWS
    bind: str = "127.0.0.1"
    port: int = 8471
    tls_certificate: Path | None = None
    tls_key: Path | None = None
    rebuild_index: bool = False
    head_seconds: float = HEAD_SECONDS
    body_seconds: float = BODY_SECONDS


class Patience(H11Protocol):
    """uvicorn's HTTP/1.1 with a limit on the time that a request's head may take."""

    seconds = HEAD_SECONDS
    _waiting: asyncio.TimerHandle | None = None

    def connection_made(self, transport: asyncio.Transport) -> None:  # type: ignore[override]
        super().connection_made(transport)
        self._wait()

    def data_received(self, data: bytes) -> None:
        super().data_received(data)
        self._wait()

    def connection_lost(self, exc: Exception | None) -> None:
        self._rest()
        super().connection_lost(exc)

    def _wait(self) -> None:
        """Time runs from the first byte to the last of a head; while a request is worked on it does not."""
        if self.conn.their_state is not h11.IDLE:
            self._rest()
        elif self._waiting is None and not self.transport.is_closing():
            self._waiting = self.loop.call_later(self.seconds, self._give_up)

    def _rest(self) -> None:
        if self._waiting is not None:
            self._waiting.cancel()
            self._waiting = None

    def _give_up(self) -> None:
        self._waiting = None
        if self.conn.their_state is h11.IDLE and not self.transport.is_closing():
            self.transport.abort()


@contextmanager
def running(settings: Settings, key: SigningKey) -> Iterator[Service]:
    """The parts of a server, whole and in agreement; at the end what waits is committed.

    Raises:
        UsageError, LogError, LogTampered, SignatureInvalid, MissingExtra: it cannot start.
    """
    hosts = HostsFile(settings.hosts)
    hosts.current()
    index = settings.index or default_index(settings.store)
    with log_errors(f"open the store {settings.store}"):
        store = open_store(settings.store, settings.endpoint)
    try:
        with _service(settings, key, store, hosts, index) as service:
            yield service
    finally:
        store.close()


@contextmanager
def _service(settings: Settings, key: SigningKey, store: TileStore, hosts: HostsFile, url: str) -> Iterator[Service]:
    with (
        closing(TileLog.open(store, settings.origin, key)) as log,
        closing(RunIndex.open(url, settings.origin)) as index,
        closing(Sequencer(log, index, metrics := Metrics())) as sequencer,
    ):
        metrics.size.set(log.head.size)
        if settings.rebuild_index:
            index.rebuild()
        sequencer.start()
        yield Service(settings.origin, store, log, index, sequencer, hosts, metrics, settings.body_seconds)


def default_index(store: str) -> str:
    """SQLite beside the tiles.

    Raises:
        UsageError: the store is no folder.
    """
    if store.startswith("s3://"):
        raise UsageError(
            "an object store has no place for the run index",
            hint="name one: --index sqlite:////var/lib/trainwarden/index.sqlite or --index postgresql+psycopg://…",
        )
    return f"sqlite:///{Path(store).absolute() / 'index.sqlite'}"


def serve(settings: Settings, key: SigningKey, listening: Callable[[str, TreeHead], None]) -> None:
    """Run a log server until SIGINT or SIGTERM; `listening` is told its URL and head once it answers.

    Raises:
        UsageError: the address cannot be bound, certificate and key cannot be used, or as `running`.
    """
    _check_certificate(settings)
    _raise_file_limit()
    with _bound(settings) as sock, running(settings, key) as service:
        patience = type("Patience", (Patience,), {"seconds": settings.head_seconds})
        config = uvicorn.Config(
            build_app(service),
            http=patience,
            ws="none",
            lifespan="off",
            log_level="warning",
            access_log=False,
            server_header=False,
            h11_max_incomplete_event_size=MAX_HEAD,
            timeout_keep_alive=KEEP_ALIVE_SECONDS,
            timeout_graceful_shutdown=30,
            backlog=4096,
            ssl_certfile=settings.tls_certificate,
            ssl_keyfile=settings.tls_key,
        )
        scheme = "https" if settings.tls_certificate else "http"
        host, port = sock.getsockname()[:2]
        listening(f"{scheme}://{f'[{host}]' if ':' in host else host}:{port}", service.log.head)
        uvicorn.Server(config).run(sockets=[sock])


@contextmanager
def _bound(settings: Settings) -> Iterator[socket.socket]:
    family = socket.AF_INET6 if ":" in settings.bind else socket.AF_INET
    sock = socket.socket(family)
    try:
        sock.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        try:
            sock.bind((settings.bind, settings.port))
        except (OSError, OverflowError) as e:
            raise UsageError(
                f"cannot listen on {settings.bind} port {settings.port}: {e}", hint="choose another --bind or --port"
            ) from e
        sock.listen(4096)
        yield sock
    finally:
        sock.close()


def _check_certificate(settings: Settings) -> None:
    """Load certificate and key as the server will, but never ask for a password."""
    if settings.tls_certificate is None:
        return
    try:
        context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
        context.load_cert_chain(settings.tls_certificate, settings.tls_key, password="")
    except (OSError, ValueError) as e:
        raise UsageError(
            f"cannot use the certificate {settings.tls_certificate} with the key {settings.tls_key}: {e}",
            hint="both are PEM files that this user can read; the key is the certificate's and has no password",
        ) from e


def _raise_file_limit() -> None:
    """A connection is an open file: take as many as the system allows."""
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    if soft != hard:
        resource.setrlimit(resource.RLIMIT_NOFILE, (hard, hard))
