"""A launcher of fake ranks: words of each rank are separated by `--`; leaves with the first rank's bad exit code.

With `restarts:N` first, all ranks are started again (with the words after `again`, if any rank has them) when one
of them fails, as torchrun does.
"""

from __future__ import annotations

import os
import subprocess
import sys
import time

RANK = os.path.join(os.path.dirname(os.path.abspath(__file__)), "fake_rank.py")


def groups(words: list[str], by: str) -> list[list[str]]:
    out: list[list[str]] = [[]]
    for word in words:
        if word == by:
            out.append([])
        else:
            out[-1].append(word)
    return out


def run_all(ranks: list[list[str]]) -> int:
    live = [subprocess.Popen([sys.executable, RANK, *words]) for words in ranks]
    while any(p.poll() is None for p in live) and not any(p.poll() for p in live):
        time.sleep(0.1)
    for p in live:
        if p.poll() is None:
            p.terminate()
    return next((code for p in live if (code := p.wait())), 0)


def main() -> int:
    words = sys.argv[1:]
    attempts = [groups(attempt, "--") for attempt in groups(words, "again")]
    code = 0
    for ranks in attempts:
        code = run_all(ranks)
        if code == 0:
            break
    return abs(code)


if __name__ == "__main__":
    sys.exit(main())
