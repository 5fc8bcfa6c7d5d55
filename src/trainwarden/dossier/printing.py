"""The page printed to PDF by Chromium, where there is one; a print is signed, and cannot be made again byte for byte.

Rules
-----
* Chromium gets the page from a folder of its own, without network, profile or script, and is ended after a while.
* The dates that it writes into the file are those of the dossier, so that the same page gives the same bytes.
"""

from __future__ import annotations

import os
import re
import shutil
import subprocess
import tempfile
from datetime import UTC, datetime
from pathlib import Path

_NAMES = ("chromium", "chromium-browser", "google-chrome", "google-chrome-stable")
_SECONDS = 180
_DATE = re.compile(rb"/(CreationDate|ModDate) \(D:\d{14}([^)]*)\)")
_LOOPBACK_ONLY = ("--host-resolver-rules=MAP * ~NOTFOUND", "--disable-background-networking")
MISSING = "no Chromium was found to print it with: apt-get install chromium, or print dossier.html from a browser"


def browser() -> str:
    """Where Chromium is, "" where it is not."""
    return next((path for name in _NAMES if (path := shutil.which(name))), "")


def print_page(html: bytes, made_ns: int) -> tuple[bytes, str]:
    """The page as PDF, or why there is none."""
    chromium = browser()
    if not chromium:
        return b"", MISSING
    with tempfile.TemporaryDirectory(prefix="tw-print-", ignore_cleanup_errors=True) as name:
        page, out = Path(name) / "dossier.html", Path(name) / "dossier.pdf"
        page.write_bytes(html)
        command = [
            chromium,
            "--headless=new",
            "--no-sandbox",
            "--disable-gpu",
            "--disable-dev-shm-usage",
            *_LOOPBACK_ONLY,
            f"--user-data-dir={name}/profile",
            "--no-pdf-header-footer",
            f"--print-to-pdf={out}",
            page.as_uri(),
        ]
        try:
            subprocess.run(command, check=True, timeout=_SECONDS, capture_output=True, env={**os.environ, "HOME": name})
            data = out.read_bytes()
        except (OSError, subprocess.SubprocessError) as e:
            return b"", f"Chromium could not print it: {type(e).__name__}"
    return _dated(data, made_ns), "" if data else "Chromium printed nothing"


def _dated(data: bytes, made_ns: int) -> bytes:
    at = datetime.fromtimestamp(made_ns // 1_000_000_000, UTC).strftime("%Y%m%d%H%M%S").encode()
    return _DATE.sub(lambda m: b"/" + m[1] + b" (D:" + at + m[2] + b")", data)
