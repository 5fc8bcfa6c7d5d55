"""What an alert says to whom.

Rules
-----
* Attackers sit in the meeting. The team is told that there is something, how severe it is, and where the details
  are. Not what, where, when or by which detector: each of these says how the attacker was seen, and what to change.
* Security is told everything that the alert holds.
"""

from __future__ import annotations

from typing import Literal

import msgspec

from trainwarden.model import Action, Alert
from trainwarden.supervise.responding import Told

Audience = Literal["team", "security"]
_DONE = {
    Action.HOLD: "The job is held.",
    Action.STOP: "The job is being stopped.",
    Action.RECOVER: "The job is being stopped, to be taken back to the last cleared checkpoint.",
}


class Message(msgspec.Struct, frozen=True, kw_only=True):
    """One message: a subject line, sentences, and the same as fields."""

    subject: str
    lines: tuple[str, ...]
    fields: dict[str, object]
    severity: str

    @property
    def text(self) -> str:
        return "\n".join(self.lines)


def message(told: Told, audience: Audience) -> Message:
    """What `audience` is told."""
    alert, word = told.alert, "still looks wrong" if told.update else "was found"
    severity = alert.severity.value
    fields: dict[str, object] = {
        "run": told.run,
        "severity": severity,
        "update": told.update,
        "audience": audience,
    }
    subject = f"TrainWarden: {severity}: run {told.run}"
    if audience == "team":
        lines = [
            f"TrainWarden: something {word} in run {told.run} (severity {severity}).",
            *([_DONE[told.action]] if told.action in _DONE else []),
            f"The details are in `trainwarden show {told.run}`, and in the security channel where there is one.",
        ]
        return Message(subject=subject, lines=tuple(lines), fields=fields | {"text": lines[0]}, severity=severity)
    lines = [
        f"TrainWarden, run {told.run}, alert {alert.id}, {severity} (confidence {alert.confidence}): {alert.title}"
    ]
    lines += [_DONE[told.action]] if told.action in _DONE else []
    lines += [_where(alert)] if _where(alert) else []
    lines += [f"Expected: {alert.first.expected}"] if alert.first.expected else []
    lines += [f"Not excluded: {'; '.join(alert.benign)}."] if alert.benign else []
    lines += [
        f"{alert.count} findings, log entries {', '.join(map(str, alert.findings[:10]))}: `trainwarden show {told.run}`"
    ]
    return Message(
        subject=f"{subject}, alert {alert.id}" + (" (update)" if told.update else ""),
        lines=tuple(map(_printable, lines)),
        fields=fields | {"text": _printable(lines[0]), "action": told.action, "alert": msgspec.to_builtins(alert)},
        severity=severity,
    )


def trial(run: str, audience: Audience) -> Message:
    """A test of the channel."""
    line = "TrainWarden: a test of this alert channel. Nothing was found."
    told = f"It is told {'everything' if audience == 'security' else 'that there is something, not what'}."
    return Message(
        subject="TrainWarden: test",
        lines=(line, told),
        fields={"run": run, "severity": "info", "update": False, "audience": audience, "test": True, "text": line},
        severity="info",
    )


def _where(alert: Alert) -> str:
    steps = f"steps {alert.first_step} to {alert.last_step}" if alert.last_step > alert.first_step else ""
    steps = steps or (f"step {alert.first_step}" if alert.first_step >= 0 else "")
    ranks = f"ranks {', '.join(map(str, alert.ranks[:16]))}" if alert.ranks else ""
    found = "; ".join(part for part in (steps, ranks, f"by {', '.join(alert.detectors)}") if part)
    return f"Seen at {found}." if steps or ranks else f"Seen {found}."


def _printable(text: str) -> str:
    """Names come from the job: no control characters."""
    return "".join(c if c.isprintable() else "?" for c in text)
