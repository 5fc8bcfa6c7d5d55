"""Numbers for Prometheus: fetched from an address, or written to a file for the node exporter."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable, Iterator
from typing import TYPE_CHECKING

from trainwarden.config import Prometheus
from trainwarden.errors import MissingExtra, UsageError
from trainwarden.model import Undelivered
from trainwarden.respond.alerts.meter import Meter
from trainwarden.supervise.responding import Told

if TYPE_CHECKING:
    from prometheus_client.core import Metric
    from prometheus_client.registry import CollectorRegistry


class PrometheusOutlet:
    """Serves or writes the numbers of one run."""

    def __init__(self, config: Prometheus, meter: Meter) -> None:
        """Raises UsageError: neither or both of address and file. MissingExtra: prometheus-client is not there."""
        self.name = config.name or "prometheus"
        self._config, self._meter = config, meter
        if bool(config.listen) == bool(config.textfile):
            raise UsageError(
                f"alert channel {self.name}: say where the numbers go",
                hint='listen = "127.0.0.1:9464", or textfile = "/…/trainwarden.prom"',
            )
        self._address = _address(self.name, config.listen) if config.listen else None
        self._registry = _registry(self._collect)
        self._undelivered: Callable[[Undelivered], None] = lambda _: None
        self._told = False
        self._ended = threading.Event()
        self._stop: Callable[[], None] = lambda: None
        self._thread = threading.Thread(target=self._work, daemon=True, name="trainwarden-prometheus")

    def open(self, run: str, undelivered: Callable[[Undelivered], None]) -> None:
        self._undelivered = undelivered
        if self._address is None:
            self._thread.start()
            return
        from prometheus_client import start_http_server

        host, port = self._address
        try:
            server, _ = start_http_server(port, host, self._registry)
        except OSError as e:
            self._failed(f"cannot listen on {self._config.listen}: {e.strerror or e}")
            return
        self.port = int(server.server_port)

        def stop() -> None:
            server.shutdown()
            server.server_close()

        self._stop = stop

    def tell(self, told: Told) -> None:
        """The numbers are fetched; nothing is sent."""

    def close(self) -> None:
        self._ended.set()
        if self._address is None:
            self._thread.join(self._config.every_seconds + 5.0)
        self._stop()

    def write(self) -> None:
        """Write the file now.

        Raises:
            OSError: it cannot be written.
        """
        from prometheus_client import write_to_textfile

        write_to_textfile(self._config.textfile, self._registry)

    def _work(self) -> None:
        while True:
            ended = self._ended.wait(self._config.every_seconds)
            try:
                self.write()
            except OSError as e:
                self._failed(f"cannot write {self._config.textfile}: {e.strerror or e}")
            if ended:
                return

    def _failed(self, reason: str) -> None:
        if not self._told:
            self._told = True
            self._undelivered(Undelivered(channel=self.name, reason=reason, alerts=0, wall_ns=time.time_ns()))

    def _collect(self) -> Iterator[Metric]:
        from prometheus_client.core import CounterMetricFamily, GaugeMetricFamily

        families: dict[str, Metric] = {}
        for metric in self._meter.metrics(self._config.audience):
            family = CounterMetricFamily if metric.kind == "counter" else GaugeMetricFamily
            if metric.name not in families:
                families[metric.name] = family(metric.name, metric.help, labels=list(metric.labels))
            families[metric.name].add_metric(list(metric.labels.values()), metric.value)  # type: ignore[attr-defined]
        yield from families.values()


def _address(channel: str, text: str) -> tuple[str, int]:
    host, _, port = text.rpartition(":")
    if not host or not port.isdecimal() or int(port) > 65535:
        raise UsageError(f"alert channel {channel}: {text!r} is no address", hint='listen = "127.0.0.1:9464"')
    return host, int(port)


def _registry(collect: Callable[[], Iterator[Metric]]) -> CollectorRegistry:
    try:
        from prometheus_client.registry import Collector, CollectorRegistry
    except ImportError:
        raise MissingExtra(
            "alerts to Prometheus need prometheus-client, which is not installed",
            hint="pip install 'trainwarden[server]'",
        ) from None

    class Numbers(Collector):
        def collect(self) -> Iterator[Metric]:
            return collect()

    registry = CollectorRegistry()
    registry.register(Numbers())
    return registry
