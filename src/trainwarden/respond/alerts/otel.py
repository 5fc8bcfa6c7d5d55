"""Alerts as log records and numbers as metrics, over OTLP/HTTP (https://opentelemetry.io/docs/specs/otlp/).

Sent with the OpenTelemetry SDK. What its exporters report on Python's `logging` is silenced: failures are told once,
as those of every other channel.
"""

from __future__ import annotations

import logging
import time
from collections.abc import Callable, Iterable, Mapping
from typing import TYPE_CHECKING

import msgspec

from trainwarden.errors import MissingExtra
from trainwarden.model import Undelivered
from trainwarden.respond.alerts.meter import Meter, Metric
from trainwarden.respond.alerts.post import NotDelivered, Post
from trainwarden.respond.alerts.webhook import require_safe_url
from trainwarden.respond.alerts.words import Audience, Message
from trainwarden.supervise.responding import Told

if TYPE_CHECKING:
    from opentelemetry.metrics import CallbackOptions, Observation

_SECONDS = 10.0
_NUMBERS = {"info": 9, "low": 13, "medium": 17, "high": 21}  # SeverityNumber: INFO, WARN, ERROR, FATAL


def require_otel() -> None:
    """Raises MissingExtra: the SDK or its exporter is not installed."""
    try:
        import opentelemetry.exporter.otlp.proto.http._log_exporter
        import opentelemetry.sdk._logs  # noqa: F401
    except ImportError:
        raise MissingExtra(
            "alerts over OpenTelemetry need its SDK and OTLP exporter, which are not installed",
            hint="pip install 'trainwarden[otel]'",
        ) from None
    logging.getLogger("opentelemetry").setLevel(logging.CRITICAL + 1)


class OtelCarrier:
    """Sends each message as one log record."""

    def __init__(self, channel: str, endpoint: str, headers: Mapping[str, str]) -> None:
        """Raises UsageError: the endpoint is no encrypted address. MissingExtra: as `require_otel`."""
        require_safe_url(channel, endpoint)
        require_otel()
        from opentelemetry.exporter.otlp.proto.http._log_exporter import OTLPLogExporter

        self._exporter = OTLPLogExporter(f"{endpoint.rstrip('/')}/v1/logs", headers=dict(headers), timeout=_SECONDS)

    def send(self, message: Message) -> None:
        from opentelemetry._logs import LogRecord, SeverityNumber
        from opentelemetry.sdk._logs import ReadableLogRecord
        from opentelemetry.sdk._logs.export import LogRecordExportResult
        from opentelemetry.sdk.resources import Resource
        from opentelemetry.sdk.util.instrumentation import InstrumentationScope

        fields = {k: v for k, v in message.fields.items() if k != "text"}
        record = LogRecord(
            timestamp=time.time_ns(),
            severity_text=message.severity,
            severity_number=SeverityNumber(_NUMBERS[message.severity]),
            body=message.text,
            attributes={f"trainwarden.{k}": v if isinstance(v, str | bool) else _text(v) for k, v in fields.items()},
            event_name="trainwarden.alert",
        )
        batch = [
            ReadableLogRecord(record, Resource({"service.name": "trainwarden"}), InstrumentationScope("trainwarden"))
        ]
        if self._exporter.export(batch) is not LogRecordExportResult.SUCCESS:
            raise NotDelivered("the collector did not take it, or cannot be reached")


def _text(value: object) -> str:
    return msgspec.json.encode(value).decode()


class OtelOutlet:
    """Messages by a `Post`, and numbers every so many seconds."""

    def __init__(
        self,
        post: Post,
        endpoint: str,
        headers: Mapping[str, str],
        every_seconds: float,
        meter: Meter,
        audience: Audience,
    ) -> None:
        self.name, self.post = post.name, post
        self._endpoint, self._headers, self._every = endpoint, headers, every_seconds
        self._meter, self._audience = meter, audience
        self._close: Callable[[], None] = lambda: None

    def open(self, run: str, undelivered: Callable[[Undelivered], None]) -> None:
        from opentelemetry.exporter.otlp.proto.http.metric_exporter import OTLPMetricExporter
        from opentelemetry.sdk.metrics import MeterProvider
        from opentelemetry.sdk.metrics.export import PeriodicExportingMetricReader
        from opentelemetry.sdk.resources import Resource

        self.post.open(run, undelivered)
        address = f"{self._endpoint.rstrip('/')}/v1/metrics"
        exporter = OTLPMetricExporter(address, headers=dict(self._headers), timeout=_SECONDS)
        reader = PeriodicExportingMetricReader(exporter, self._every * 1000.0, _SECONDS * 1000.0)
        provider = MeterProvider([reader], Resource({"service.name": "trainwarden"}), shutdown_on_exit=False)
        instruments = provider.get_meter("trainwarden")
        for name, kind, text in _names(self._meter.metrics("security")):
            make = instruments.create_observable_counter if kind == "counter" else instruments.create_observable_gauge
            make(name, callbacks=[self._observed(name)], description=text)
        self._close = lambda: provider.shutdown(timeout_millis=_SECONDS * 1000.0)

    def tell(self, told: Told) -> None:
        self.post.tell(told)

    def close(self) -> None:
        self._close()
        self.post.close()

    def _observed(self, name: str) -> Callable[[CallbackOptions], Iterable[Observation]]:
        from opentelemetry.metrics import Observation

        return lambda _: [
            Observation(m.value, dict(m.labels)) for m in self._meter.metrics(self._audience) if m.name == name
        ]


def _names(metrics: Iterable[Metric]) -> Iterable[tuple[str, str, str]]:
    """Every metric's name, kind and meaning; those that count by label have no number yet."""
    yield "trainwarden_findings", "counter", "Findings."
    yield "trainwarden_alerts", "counter", "Alerts: findings of one cause."
    yield from ((m.name, m.kind, m.help) for m in metrics)
