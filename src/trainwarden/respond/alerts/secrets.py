"""Secrets of alert channels: read from where the configuration says, never from the configuration.

The job runs as the same user: what its watcher can read, it can read too, if it knows where to look. So a secret here
should allow to send and no more. What can be done is done: the variable is not handed to the job, and neither the
seal nor the log holds it.
"""

from __future__ import annotations

import os
from pathlib import Path

from trainwarden.config import ChannelConfig, Config, Email, OpenTelemetry, Prometheus, Webhook
from trainwarden.errors import UsageError


def read_secret(channel: str, what: str, variable: str, file: str, *, needed: bool = True) -> str:
    """The secret that lies in an environment variable or in a file.

    Raises:
        UsageError: neither or both are named, or it is not there.
    """
    if not variable and not file and not needed:
        return ""
    if bool(variable) == bool(file):
        raise UsageError(
            f"alert channel {channel}: say where its {what} is",
            hint=f"{what}_env names an environment variable, {what}_file a file; exactly one of them",
        )
    where = f"the environment variable {variable}" if variable else f"the file {file}"
    try:
        secret = os.environ.get(variable, "") if variable else Path(file).expanduser().read_text(encoding="utf-8")
    except (OSError, UnicodeDecodeError) as e:
        reason = e.strerror if isinstance(e, OSError) else "not text"
        raise UsageError(f"alert channel {channel}: cannot read {where}: {reason}") from e
    if not secret.strip():
        raise UsageError(f"alert channel {channel}: {where} is empty or not set", hint=f"it holds the channel's {what}")
    return secret.strip()


def without_secrets(env: dict[str, str], config: Config) -> dict[str, str]:
    """The environment of the job: `env` without the variables that hold secrets of alert channels."""
    secret = {variable for channel in config.alerts for variable in _variables(channel)}
    return {name: value for name, value in env.items() if name not in secret}


def _variables(channel: ChannelConfig) -> tuple[str, ...]:
    match channel:
        case Webhook():
            return (channel.url_env,)
        case Email():
            return (channel.password_env,)
        case OpenTelemetry():
            return (channel.headers_env,)
        case Prometheus():
            return ()
