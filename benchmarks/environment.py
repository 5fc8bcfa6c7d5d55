"""The seal check of this environment against plain hashing of the same files, a guarded start, and the traps.

Cold: `check_seal(deep=True)`, which trusts no cache, beside BLAKE3 and hashlib's SHA-256 over the same files with as
many threads, in turns. Warm: the check as every start does it. Start: from the call to the first line of the job,
`trainwarden run -- python -c …` beside the bare command, in turns. Traps: `attacks/environment/`, carried out.
"""

from __future__ import annotations

import hashlib
import os
import shutil
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from statistics import median
from typing import Any
from unittest.mock import patch

from blake3 import blake3

from attacks.environment import PRELOAD_FILE, TRAPS, Trap
from benchmarks.machine import ROOT, merge
from trainwarden.config import Config
from trainwarden.keys import SigningKey
from trainwarden.model import SignedSeal
from trainwarden.seal import latent
from trainwarden.seal.check import KINDS, check_seal, expected
from trainwarden.seal.command import parse_command
from trainwarden.seal.seal import seal_command
from trainwarden.store import Store

PARTS = ("checks", "starts", "traps")
_ROUNDS = 3
_STARTS = 5
_SCRIPT = "import time\nprint(time.time_ns(), flush=True)\n"


def main(parts: Sequence[str] = PARTS) -> None:
    """Measure the named parts; each is written when it is done."""
    with tempfile.TemporaryDirectory(prefix="tw-bench-") as name:
        folder = Path(name)
        (folder / "job").mkdir()
        (folder / "job" / "train.py").write_text(_SCRIPT)
        for part in parts:
            print(f"environment: {part}", file=sys.stderr, flush=True)
            summary, runs = {"checks": checks, "starts": starts, "traps": traps}[part](folder)
            print(merge("environment", part, summary, runs), summary, file=sys.stderr, flush=True)


def checks(folder: Path) -> tuple[dict[str, Any], list[dict[str, Any]]]:
    """Deep and repeated checks of the environment that runs this, and plain hashing of the same files."""
    job = folder / "job"
    store = Store.open(folder / "store", create=True)
    command = parse_command([sys.executable, "train.py"], str(job), dict(os.environ))
    began = time.perf_counter()
    seal = seal_command(store, command, Config(), SigningKey.load_or_create(folder / "key"))
    sealed_s = time.perf_counter() - began
    paths = [p for kind in KINDS for p, e in expected(store, seal, kind).files.items() if not e.link]
    size = sum(os.path.getsize(p) for p in paths)
    runs = []
    for _ in range(_ROUNDS):
        cold, blake, sha = (_timed(work) for work in _kinds(store, seal, paths))
        runs.append({"cold_s": cold, "blake3_s": blake, "sha256_s": sha})
    _warm(store, seal)
    warm = [_timed(lambda: _warm(store, seal)) for _ in range(_ROUNDS)]
    store.close()
    summary = {
        "cold_vs_blake3": round(median(r["cold_s"] / r["blake3_s"] for r in runs), 2),
        "cold_vs_sha256": round(median(r["cold_s"] / r["sha256_s"] for r in runs), 2),
        "cold_s": round(median(r["cold_s"] for r in runs), 2),
        "warm_s": round(median(warm), 3),
        "first_seal_s": round(sealed_s, 2),
        "files": len(paths),
        "mib": round(size / 2**20),
    }
    return summary, [{k: round(v, 3) for k, v in r.items()} for r in runs]


def _kinds(store: Store, seal: SignedSeal, paths: list[str]) -> tuple[Callable[[], object], ...]:
    return (
        lambda: _clean(check_seal(store, seal, deep=True)),
        lambda: _hashed(paths, lambda data: blake3(data).digest()),
        lambda: _hashed(paths, lambda data: hashlib.sha256(data).digest()),
    )


def _warm(store: Store, seal: SignedSeal) -> None:
    _clean(check_seal(store, seal))


def _clean(changes: list[Any]) -> None:
    if changes:
        raise SystemExit(f"error: the environment changed while it was measured: {changes[:3]}")


def _hashed(paths: list[str], digest: Callable[[bytes], bytes]) -> None:
    def one(path: str) -> bytes:
        with open(path, "rb", buffering=0) as f:
            return digest(f.readall())

    with ThreadPoolExecutor(max_workers=min(8, os.cpu_count() or 1)) as pool:
        for _ in pool.map(one, paths, chunksize=64):
            pass


def _timed(work: Callable[[], object]) -> float:
    began = time.perf_counter()
    work()
    return time.perf_counter() - began


def starts(folder: Path) -> tuple[dict[str, Any], list[dict[str, Any]]]:
    """Seconds from the call to the job's first line, and to its end, bare and guarded."""
    job = folder / "job"
    env = {k: v for k, v in os.environ.items() if not k.startswith(("TRAINWARDEN_", "PYTHON"))}
    env |= {"TRAINWARDEN_KEY": str(folder / "key"), "XDG_DATA_HOME": str(folder / "data")}
    bare = [sys.executable, "train.py"]
    ours = [sys.executable, "-m", "trainwarden.cli", "run", "--store", str(folder / "store"), "--", *bare]
    guarded_env = env | {"PYTHONPATH": str(ROOT / "src")}
    _start(ours, job, guarded_env)  # makes the private copy, fills the cache
    time.sleep(2.1)  # files that young are not cached
    _start(ours, job, guarded_env)
    runs = []
    for _ in range(_STARTS):
        first, whole = _start(bare, job, env)
        guarded_first, guarded_whole = _start(ours, job, guarded_env)
        runs.append({"start_added_s": guarded_first - first, "start_and_end_added_s": guarded_whole - whole})
    summary = {name: round(median(r[name] for r in runs), 3) for name in runs[0]}
    return summary, [{k: round(v, 3) for k, v in r.items()} for r in runs]


def _start(argv: list[str], job: Path, env: dict[str, str]) -> tuple[float, float]:
    began = time.time_ns()
    done = subprocess.run(argv, cwd=job, env=env, capture_output=True, text=True, check=False)
    ended = time.time_ns()
    if done.returncode:
        raise SystemExit(f"error: {' '.join(argv)} ended with {done.returncode}: {done.stderr[-2000:]}")
    return (int(done.stdout.split()[0]) - began) / 1e9, (ended - began) / 1e9


def traps(_folder: Path) -> tuple[dict[str, Any], list[dict[str, Any]]]:
    """Every trap carried out in a small environment of its own: was one of its files found?"""
    sys.path.insert(0, str(ROOT / "tests" / "seal"))
    import sealed_site

    results = []
    with tempfile.TemporaryDirectory(prefix="tw-traps-") as name:
        base = Path(name) / "python"
        sealed_site.cut_python(base)
        for number, trap in enumerate(TRAPS):
            if trap.needs and not shutil.which(trap.needs):
                continue
            folder = Path(name) / str(number)
            folder.mkdir()
            own = Path(shutil.copytree(base, folder / "base", symlinks=True)) if trap.own_base else base
            with patch.object(latent, "LD_PRELOAD_FILE", str(folder / PRELOAD_FILE)):
                results.append({"trap": trap.name, "found": _found(trap, sealed_site.make_site(folder, own))})
    return {"attacks": len(results), "attacks_found": sum(r["found"] for r in results)}, results


def _found(trap: Trap, site: Any) -> bool:
    trap.prepare(site)
    site.seal_again()
    if site.changes():
        return False  # a check that always cries proves nothing
    placed = {os.path.relpath(path, site.folder) for path in trap.act(site)}
    return bool(placed & set(site.changes()))


if __name__ == "__main__":
    main(sys.argv[1:] or PARTS)
