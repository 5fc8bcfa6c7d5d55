"""`make bench`: every benchmark in turn, then the docs' figures."""

from __future__ import annotations

from benchmarks import audit, docs, environment, fingerprint, log, record

if __name__ == "__main__":
    record.main()
    audit.main()
    log.main()
    environment.main()
    fingerprint.main()
    docs.main()
