"""What the log server counts, in the form that Prometheus reads."""

from __future__ import annotations

from prometheus_client import CollectorRegistry, Counter, Gauge, Histogram, generate_latest

CONTENT_TYPE = "text/plain; version=0.0.4; charset=utf-8"


class Metrics:
    """The counters of one server."""

    def __init__(self) -> None:
        self.registry = r = CollectorRegistry()
        self.answers = Counter(
            "trainwarden_log_answers", "Answers to append requests, by HTTP status", ["status"], registry=r
        )
        self.refused = Counter("trainwarden_log_refused", "Requests refused, by reason", ["reason"], registry=r)
        self.failures = Counter("trainwarden_log_failures", "Batches that could not be committed", registry=r)
        self.entries = Counter("trainwarden_log_entries", "Entries committed by this process", registry=r)
        self.size = Gauge("trainwarden_log_size", "Entries in the published log", registry=r)
        self.waiting = Gauge("trainwarden_log_waiting", "Requests waiting to be committed", registry=r)
        self.requests = Histogram("trainwarden_log_request_seconds", "Time to answer an append", registry=r)
        self.commit = Histogram("trainwarden_log_commit_seconds", "Time to commit a batch durably", registry=r)

    def committed(self, seconds: float, entries: int, size: int) -> None:
        """A batch was committed."""
        self.commit.observe(seconds)
        self.entries.inc(entries)
        self.size.set(size)

    def text(self) -> bytes:
        """All of them as text."""
        return generate_latest(self.registry)
