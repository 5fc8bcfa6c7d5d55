"""What a trap is made of, what several traps use, and what honest runs do beside them."""

from __future__ import annotations

import os
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from sealed_site import Site


EVIL = "def add(a, b):\n    return a - b\n"
SUM = "import sums; print(sums.add(2, 3))"
HOOK = "import builtins; builtins.HOOKED = 1\n"
HOOKED = "import builtins; print(hasattr(builtins, 'HOOKED'))"
PRELOAD_FILE = "ld.so.preload"  # stands for /etc/ld.so.preload, which no test may write


def nothing(site: Site) -> None:
    """Nothing to prepare."""


@dataclass(frozen=True)
class Trap:
    """One way in: what is there before the seal, what the insider does, what shows that it works."""

    name: str
    act: Callable[[Site], list[Path]]
    prepare: Callable[[Site], None] = nothing
    shows: str = SUM
    own_base: bool = False  # it changes the installation itself
    needs: str = ""  # a program without which it cannot be carried out


def ordinary(site: Site) -> None:
    """What honest runs do: import, write caches, data and results."""
    site.run("import helper, sums, json")
    (site.packages / "sums" / "cache.json").write_text("{}")
    (site.code / "out" / "copies").mkdir(parents=True, exist_ok=True)
    (site.code / "out" / "copies" / "train.py").write_text("a copy\n")
    (site.code / "loss.csv").write_text("1\n")
    os.utime(site.package)
