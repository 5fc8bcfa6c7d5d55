"""What a server calls: open a name, and serve what is cleared for as long as it is.

    from trainwarden import serving

    with serving.open("chat", build) as chat:   # build(files) makes the model of verified files
        version = chat.current()                # at the begin of every request
        version.model(...), version.digest

Rules
-----
* No byte is used before it is verified, and none is read twice. `reading`.
* A request is answered by a version that was cleared, with nothing against it, when the request began. `service`.
* A log that cannot be read stops no service, and is said. `catalogue`.

Trust: the keeper's key, the clock of the process, and its memory.
"""

from __future__ import annotations

from pathlib import Path
from typing import TypeVar

from trainwarden.config import Config, load_config
from trainwarden.gate.ledger import check_name
from trainwarden.serving.catalogue import GateCatalogue
from trainwarden.serving.files import Files
from trainwarden.serving.offers import Catalogue, Offer, Version
from trainwarden.serving.service import Build, PassedOver, Service, Serving, Status
from trainwarden.store import Store

__all__ = [
    "Build",
    "Catalogue",
    "Files",
    "Offer",
    "PassedOver",
    "Service",
    "Serving",
    "Status",
    "Version",
    "open",
]

T = TypeVar("T")


def open(name: str, build: Build[T], *, store: Path | None = None, config: Config | None = None) -> Service[T]:
    """Serve `name`: its newest cleared version is verified, built by `build`, and followed from then on.

    `store` is the store whose gate decides (default: the nearest `.trainwarden`), `config` has `[gate] keeper` and
    `[serving]` (default: the `trainwarden.toml` in the current folder).

    Raises:
        UsageError: no such name can be, the settings cannot be read, or the last seen head cannot be kept.
        StoreError: there is no store, or it cannot be read.
        GateTampered: the gate's log does not verify, or went back.
        NotCleared: there is nothing cleared to serve, or none of it can be: version by version, why.
    """
    check_name(name)
    chosen = load_config(None, Path.cwd()) if config is None else config
    service = Service(name, GateCatalogue(Store.open(store), name, chosen), build, chosen.serving)
    service.start()
    return service
