"""`trainwarden.toml`: what a project says once about its runs. Every key has a default; unknown keys are errors."""

from __future__ import annotations

import difflib
import re
import tomllib
from pathlib import Path
from typing import Literal, TypeAlias

import msgspec

from trainwarden.errors import UsageError
from trainwarden.model import ACTIONS, Action, Severity

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
    snapshot_every: int = 50  # steps between states kept for replays, at least; 0 = none is kept
    snapshot_share: float = 0.001  # of training time that keeping states may take; they are kept less often then
    snapshot_mib: int = 4096  # of kept states on disk, over all ranks of a host
    reduction: Literal["default", "ordered"] = "default"
    stall_seconds: float = 60.0  # a run that does nothing for so long is asked where it stands


class DataConfig(_Section):
    """What the samples that reach a rank are compared with."""

    samples: str = ""  # a manifest of samples (`trainwarden query RUN --samples FILE`); sealed with the data
    every_sample: bool = False  # digest every sample of large batches too, and not a choice of them


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
    clear_ahead: bool = (
        False  # one replay follows the run, on processors that are left over: checkpoints are cleared as they come
    )


class AuditConfig(_Section):
    """The sampled audit that runs beside training: single (step, rank) units, drawn after they are recorded."""

    budget: str = "1%"  # of the ranks' CPU time; "0" = none
    beacon: str = ""  # a file or an http(s) address to draw from where there is no log server
    finish: bool = False  # after the run's end, go on until every drawn unit that the budget pays for was run

    @property
    def share(self) -> float:
        """The budget as a share, 0 … 1. Raises UsageError when it is none."""
        return share_of(self.budget, "[audit] budget")


class GateConfig(_Section):
    """What a checkpoint must have before it is served."""

    keeper: str = ""  # the public key that signs the gate's log, in hex; "" = the one that it names itself
    findings: Severity = Severity.MEDIUM  # findings on its way of this severity or more must be closed
    evaluate: str = ""  # digest of a seal whose command evaluates `{checkpoint}` and prints a line of JSON; "" = none
    claims: str = "{checkpoint}.eval.json"  # the figures that were claimed of it
    approvals: int = 0  # how many of the approvers must approve it
    approvers: tuple[str, ...] = ()  # names of enrolled actors
    writers: tuple[str, ...] = ()  # enrolled actors whose runs are believed, beside the keeper's own
    told: tuple[str, ...] = ()  # ways of making that may rest on an approver's word: "quantise", "finetune"


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


class DamageConfig(_Section):
    """What `trainwarden damage` counts with."""

    prices: dict[str, float] = msgspec.field(  # of a GPU-hour
        default_factory=lambda: {"own": 2.0, "contract": 3.0, "on demand": 7.0}
    )
    currency: str = "USD"
    gpus_per_rank: float = 1.0
    ranks_per_node: int = 8
    failures_per_1000_node_days: tuple[float, float] = (2.3, 6.5)  # published, lowest and highest
    restart_seconds: float = 600.0  # from a failure to the first step after it, for what is expected of failures alone
    checkpoint_seconds: float = 1800.0  # between checkpoints, for the same
    staff_hours: float = -1.0  # of people; negative: not known
    staff_price: float = 100.0  # of such an hour
    preempted_gpu_hours: float = -1.0  # lost by other jobs; negative: not known


class ServingConfig(_Section):
    """How a server follows what is cleared, and how long it goes on when it cannot know."""

    keep: int = 2  # versions in memory: the one that is served, and older ones to fall back to at once
    poll_seconds: float = 2.0  # between looks for newer versions; what is found against one counts at the next request
    stale_seconds: float = 86400.0  # how long to serve while the gate's log cannot be read or verified; 0 = for ever
    state: str = ""  # the folder that keeps the last seen head; "" = ~/.local/state/trainwarden


Setting: TypeAlias = bool | int | float | str | tuple[float, ...]


class ExpectConfig(_Section):
    """What the project declares of its optimizers' settings; a run that does otherwise is a finding."""

    lr: str = ""  # a schedule: `constant 3e-4`, `cosine peak=3e-4 warmup=100 total=1000 final=3e-5`, …
    settings: dict[str, Setting] = {}


class _Channel(_Section, kw_only=True, tag_field="kind"):
    """What every alert channel has. A secret is never in this file: it names where the secret is."""

    name: str = ""  # "" = its kind
    audience: Literal["team", "security"] = "team"  # the team is told that there is something, security what it is
    severity: Severity = Severity.LOW  # of an alert, at least


class Webhook(_Channel, kw_only=True, tag="webhook"):
    """JSON by HTTP POST: Slack's form, or all fields."""

    url_env: str = ""  # the environment variable that holds the URL
    url_file: str = ""  # or the file
    format: Literal["slack", "json"] = "slack"


class Email(_Channel, kw_only=True, tag="email"):
    """Mail over SMTP."""

    host: str
    sender: str
    to: tuple[str, ...]
    port: int = 587
    security: Literal["starttls", "tls", "none"] = "starttls"  # none: on this host alone
    user: str = ""
    password_env: str = ""
    password_file: str = ""


class OpenTelemetry(_Channel, kw_only=True, tag="opentelemetry"):
    """Alerts as log records, and counters as metrics, over OTLP/HTTP."""

    endpoint: str  # http(s)://HOST:4318
    headers_env: str = ""  # "name=value,name=value", such as an access token
    headers_file: str = ""
    every_seconds: float = 15.0  # between metrics


class Prometheus(_Channel, kw_only=True, tag="prometheus"):
    """Counters, to be fetched from an address or read from a file."""

    listen: str = ""  # ADDRESS:PORT
    textfile: str = ""  # for the node exporter's textfile collector: a path that ends with .prom
    every_seconds: float = 15.0  # between writes of the file


ChannelConfig: TypeAlias = Webhook | Email | OpenTelemetry | Prometheus


class Config(_Section):
    seal: SealConfig = SealConfig()
    record: RecordConfig = RecordConfig()
    data: DataConfig = DataConfig()
    replay: ReplayConfig = ReplayConfig()
    policy: PolicyConfig = PolicyConfig()
    alerts: tuple[ChannelConfig, ...] = ()
    audit: AuditConfig = AuditConfig()
    recover: RecoverConfig = RecoverConfig()
    gate: GateConfig = GateConfig()
    log: LogConfig = LogConfig()
    expect: ExpectConfig = ExpectConfig()
    damage: DamageConfig = DamageConfig()
    serving: ServingConfig = ServingConfig()


def share_of(text: str, what: str) -> float:
    """A share written as "1%" or "0.01".

    Raises:
        UsageError: it is not a number from 0 to 1 (0 % to 100 %).
    """
    try:
        share = float(text.removesuffix("%")) / (100 if text.endswith("%") else 1)
    except ValueError:
        share = -1.0
    if not 0 <= share <= 1:
        raise UsageError(f"{what} = {text[:40]!r} is not a share", hint='a share is written "1%" or "0.01"')
    return share


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
