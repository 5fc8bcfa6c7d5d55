"""Which hosts may append: `hosts.toml`, read again whenever it changes.

    [[host]]
    name = "node-1"
    key = "64 hex digits"     # the host's Ed25519 public key
    runs = ["2026*"]          # patterns of run names, default: all
    revoked = false

Rules
-----
* A file that is missing or wrong admits nobody until it is right again: an edit that went wrong must not be an
  older, wider list.
* One name has one key, one key one name. Who is revoked stays in the file and is refused by name.
"""

from __future__ import annotations

import os
import threading
import tomllib
from fnmatch import fnmatchcase
from pathlib import Path
from typing import Annotated

import msgspec

from trainwarden.errors import RequestRefused, UsageError
from trainwarden.log.protocol import Signed


class Host(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """One host that is, or was, admitted."""

    name: str
    key: Annotated[str, msgspec.Meta(pattern="^[0-9a-f]{64}$")]
    runs: tuple[str, ...] = ("*",)
    revoked: bool = False


class Hosts(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """The file."""

    host: tuple[Host, ...] = ()

    def admit(self, signed: Signed) -> Host:
        """The host that a signature header names, if it is admitted with that key.

        Raises:
            RequestRefused: it is unknown, has another key (401), or was revoked (403).
        """
        host = next((h for h in self.host if h.name == signed.host), None)
        if host is None or host.key != signed.keyid:
            expected = f"its key is {host.key}" if host else "no such host is admitted"
            raise RequestRefused(
                f"host {signed.host} with key {signed.keyid} is not admitted: {expected}",
                hint="add it to hosts.toml on the log server",
                status=401,
            )
        if host.revoked:
            raise RequestRefused(f"host {host.name} was revoked", hint="ask who runs the log server", status=403)
        return host


def check_run(host: Host, run: str) -> None:
    """Check that a host may append to a run.

    Raises:
        RequestRefused: it may not (403).
    """
    if not any(fnmatchcase(run, pattern) for pattern in host.runs):
        raise RequestRefused(
            f"host {host.name} may not append to run {run!r}, it may to {', '.join(host.runs) or 'none'}", status=403
        )


def read_hosts(text: str) -> Hosts:
    """The hosts in the text of a file.

    Raises:
        UsageError: it is not TOML, has unknown keys, or a name or key twice.
    """
    try:
        hosts = msgspec.convert(tomllib.loads(text), Hosts)
    except (tomllib.TOMLDecodeError, msgspec.ValidationError) as e:
        raise UsageError(f"hosts.toml: {e}", hint='[[host]] with name = "…" and key = "64 hex digits"') from e
    for what in ("name", "key"):
        seen = [getattr(h, what) for h in hosts.host]
        if twice := next((v for v in seen if seen.count(v) > 1), ""):
            raise UsageError(f"hosts.toml: the {what} {twice!r} is there twice", hint="one name has one key")
    return hosts


class HostsFile:
    """The file held open in the sense that every look at it is current."""

    def __init__(self, path: Path) -> None:
        self._path, self._guard = path, threading.Lock()
        self._seen: tuple[int, int, int] | None = None
        self._hosts = Hosts()
        self._wrong: UsageError | None = None

    def current(self) -> Hosts:
        """The hosts as the file has them now.

        Raises:
            UsageError: it cannot be read or is wrong.
        """
        with self._guard:
            try:
                status = os.stat(self._path)
                seen = (status.st_ctime_ns, status.st_ino, status.st_size)
                if seen != self._seen:
                    self._wrong, self._seen = None, seen
                    self._hosts = read_hosts(self._path.read_text(encoding="utf-8"))
            except (OSError, UnicodeDecodeError) as e:
                self._seen, self._wrong = (
                    None,
                    UsageError(
                        f"cannot read {self._path}: {e}", hint="check --hosts: it names the file of the admitted hosts"
                    ),
                )
            except UsageError as e:
                self._wrong = e
            if self._wrong is not None:
                raise self._wrong
            return self._hosts
