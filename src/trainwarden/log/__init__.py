"""The append-only Merkle log of a run."""

from trainwarden.log.journal import LogWriter
from trainwarden.log.reader import LogReader
from trainwarden.log.verify import verify_log

__all__ = ["LogReader", "LogWriter", "verify_log"]
