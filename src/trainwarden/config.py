"""`trainwarden.toml`: what a project says once about its runs. Every key has a default; unknown keys are errors."""

from __future__ import annotations

import tomllib
from pathlib import Path
from typing import Literal

import msgspec

from trainwarden.errors import UsageError

FILE_NAME = "trainwarden.toml"


class _Section(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    pass


class SealConfig(_Section):
    """What belongs to the seal beside the command line itself."""

    code: tuple[str, ...] = ()  # folders, default: the git repository or the folder of the script
    data: tuple[str, ...] = ()  # files and folders; those named on the command line are found without it
    keep_data_mb: int = 2048  # copies of data kept in the store so that a replay can restore them
    approvals: int = 0  # how many of the approvers must approve a seal before it may run
    approvers: tuple[str, ...] = ()  # names of enrolled actors


class RecordConfig(_Section):
    """How much the recorder looks at. All stages of every step are always recorded."""

    activations_every: int = 16
    snapshot_every: int = 50
    reduction: Literal["default", "ordered"] = "default"


class ReplayConfig(_Section):
    """How a replay resumes the script: the arguments to add, e.g. `--resume {checkpoint}`; empty = same command."""

    resume: str = ""


class PolicyConfig(_Section):
    """What to do about a finding: refuse stops the next start of a rank, alert only tells."""

    environment_changed: Literal["refuse", "alert"] = "refuse"
    gap: Literal["alert", "stop"] = "alert"


class LogConfig(_Section):
    """The log server that a run's entries are sent to while it goes on; without one the log stays on this host."""

    server: str = ""  # http(s)://NAME:PORT
    origin: str = ""  # the name of its log
    server_key: str = ""  # the public key that signs its tree heads, in hex
    host: str = ""  # the name under which the server admits this host; "" = the host's own name
    host_key: str = ""  # the file of the key that signs for this host; "" = the user's own
    spool_mib: int = 1024  # bytes that may wait unsent; more is a gap, and still kept
    batch_records: int = 4096
    batch_seconds: float = 5.0  # step records wait at most so long for others of their batch
    drain_seconds: float = 10.0  # how long the end of a run waits for what is not sent yet


class Config(_Section):
    seal: SealConfig = SealConfig()
    record: RecordConfig = RecordConfig()
    replay: ReplayConfig = ReplayConfig()
    policy: PolicyConfig = PolicyConfig()
    log: LogConfig = LogConfig()


def load_config(path: Path | None, folder: Path) -> Config:
    """Read `path`, or `trainwarden.toml` in `folder` when there is one.

    Raises:
        UsageError: the file is missing, not TOML, or has a key or value that is not known.
    """
    if path is None:
        path = folder / FILE_NAME
        if not path.exists():
            return Config()
    try:
        return msgspec.convert(tomllib.loads(path.read_text(encoding="utf-8")), Config)
    except FileNotFoundError:
        raise UsageError(f"no such configuration file: {path}", hint="check the path after --config") from None
    except (tomllib.TOMLDecodeError, UnicodeDecodeError) as e:
        raise UsageError(f"{path} is not valid TOML: {e}") from e
    except msgspec.ValidationError as e:
        raise UsageError(f"{path}: {e}", hint="docs/guide.md lists every key") from e
