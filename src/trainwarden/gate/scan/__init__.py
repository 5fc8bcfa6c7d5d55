"""Scanning: what a file is, decided by its bytes, and whether loading it could run anything.

A reader a container; each gives a decision on its part. A file's name decides nothing, but that text is prose.
"""

from trainwarden.gate.scan.files import scan_file, scan_paths

__all__ = ["scan_file", "scan_paths"]
