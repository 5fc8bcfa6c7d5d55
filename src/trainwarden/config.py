"""`trainwarden.toml`: what a project says once about its runs. Every key has a default; unknown keys are errors."""

from __future__ import annotations

import difflib
import re
import tomllib
from pathlib import Path
from typing import Literal

import msgspec

from trainwarden.errors import UsageError
from trainwarden.model import ACTIONS, Action

FILE_NAME = "trainwarden.toml"
_WRONG_VALUE = re.compile(r"Invalid enum value '([^']*)'")


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


class ReplayConfig(_Section):
    """How a replay resumes the script: the arguments to add, e.g. `--resume {checkpoint}`; empty = same command."""

    resume: str = ""


class PolicyConfig(_Section):
    """What to do about a finding: refuse stops the next start of a rank, alert only tells."""

    environment_changed: Literal["refuse", "alert"] = "refuse"
    detectors: dict[str, Action] = msgspec.field(default_factory=dict)  # by detector; "default": all others


class RecoverConfig(_Section):
    """How far recoveries go by themselves, and how. Whether they do is said in `[policy.detectors]`."""

    most: int = 5  # recoveries in a row that get no further than one before; then somebody must look
    in_all: int = 50  # recoveries of one command
    backoff_seconds: float = 1.0  # waited after the first of such a row, doubled after each further one
    clean_room_after: int = 2  # after so many recoveries for one detector, go on in a clean room; 0: never
    verify_steps: int = 8  # steps of a resumed run that are replayed beside it, to see that it replays; 0: none
    clear_ahead: bool = False  # replay segments beside the run as checkpoints come, on processors that are left over


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
    recover: RecoverConfig = RecoverConfig()
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
        raise UsageError(f"{path}: {e}", hint=_hint(str(e))) from e


def _hint(error: str) -> str:
    """The action that was meant, where the wrong value is one under `[policy.detectors]`."""
    wrong = _WRONG_VALUE.match(error)
    if wrong is None or "policy.detectors" not in error:
        return "docs/guide.md lists every key"
    close = difflib.get_close_matches(wrong[1], ACTIONS, n=1, cutoff=0.5)
    return f"did you mean {close[0]}?" if close else f"an action is one of {', '.join(ACTIONS)}"
