"""Technique family 02, environment traps: every known way to change what a sealed Python environment runs.

Precondition: write access to the environment, to a place that it loads from, or to a place that is empty and would be
loaded from (E). Each `Trap` prepares an environment before it is sealed, then acts as an insider would; `shows` is code
whose output in that environment proves that the act changed what runs ("" where a harmless proof is not possible).

Expected evidence: `check_seal` and the watch name one of the files that `act` returns.
Benign twin: the same prepared environment, used and filled with results as ordinary runs do (`ordinary`).
Clean-up: they touch only the temporary site that they are given (`tests/seal/sealed_site.py`).
"""

from attacks.environment.native import library
from attacks.environment.trap import EVIL, PRELOAD_FILE, Trap, ordinary
from attacks.environment.traps import TRAPS

__all__ = ["EVIL", "PRELOAD_FILE", "TRAPS", "Trap", "library", "ordinary"]
