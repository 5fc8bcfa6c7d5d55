"""The scan against its own corpus, beside picklescan, modelscan, fickling and modelaudit, each in its default mode.

    python -m benchmarks.gate            everything: the peers' environment is made once, in data/peers

Findings: every payload and every benign file of `tests/gate/corpus`. A payload passes a tool that says nothing against
it; what a tool could not read, and says so, does not count as passed. Speed: CPU seconds (user and system, children
included) of one command on one 500 MB torch archive, and on 2,000 small pickles, in turns; the least of each counts.
A tool with no command for folders scans the files in one process of its own Python interface, as quickly as it can be.
"""

from __future__ import annotations

import json
import os
import pickle
import resource
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from benchmarks.machine import ROOT, merge

PEERS = {"picklescan": "1.0.5", "modelscan": "0.8.8", "fickling": "0.1.12", "modelaudit": "0.2.54"}
_ROUNDS = 3
_LARGE, _SMALL = 500_000_000, 2_000
_LIMIT = 900.0
_SUFFIX = {  # some peers look at names alone, so that every payload has the one that its loader's files have
    **{"torch": ".pt", "torch-or-raw": ".pt", "raw-member": ".pt", "zip-last": ".pt", "numpy": ".npy", "npz": ".npz"},
    **{"npy-then-pickle": ".npy", "joblib": ".joblib", "zlib": ".joblib", "gzip": ".pkl.gz", "gzip2": ".pkl.gz"},
    **{"bz2": ".pkl.bz2", "lzma": ".pkl.xz", "tar": ".tar", "zip2": ".zip"},
}


def main(parts: Sequence[str] = ("corpus", "speed")) -> None:
    """Measure, and write the parts of `results/gate.json` that are the scan's."""
    peers = _peers()
    with tempfile.TemporaryDirectory(prefix="tw-gate-") as name:
        for part in parts:
            print(f"gate: {part}", file=sys.stderr, flush=True)
            summary, runs = {"corpus": corpus, "speed": speed}[part](Path(name), peers)
            print(merge("gate", f"scan {part}", summary, runs), summary, file=sys.stderr, flush=True)


def corpus(folder: Path, peers: Mapping[str, Path]) -> tuple[dict[str, Any], list[dict[str, Any]]]:
    """How many payloads pass each tool, and how many benign files it flags."""
    from tests.gate.corpus.benign import benign
    from tests.gate.corpus.payloads import payloads

    bad, good = folder / "payloads", folder / "benign"
    for each in (bad, good, folder / "work"):
        each.mkdir()
    for payload in payloads():
        suffix = "" if "." in payload.name else _SUFFIX.get(payload.loader, ".pkl")
        (bad / f"{payload.name}{suffix}").write_bytes(payload.data)
    for name, data in benign(folder / "work").items():
        (good / name).write_bytes(data)
    runs = []
    for tool, python in {"trainwarden": Path(sys.executable), **peers}.items():
        told = {kind: _told(tool, python, path) for kind, path in (("payload", bad), ("benign", good))}
        runs += [{"tool": tool, "kind": k, "file": f, "told": t} for k, files in told.items() for f, t in files.items()]
    summary: dict[str, Any] = {"payloads": len(list(bad.iterdir())), "benign": len(list(good.iterdir()))}
    for tool in ("trainwarden", *peers):
        prefix = "" if tool == "trainwarden" else f"{tool}_"
        counts = {k: [r["told"] for r in runs if (r["tool"], r["kind"]) == (tool, k)] for k in ("payload", "benign")}
        summary[f"{prefix}payloads_passed"] = counts["payload"].count("clean")
        summary[f"{prefix}benign_refused"] = counts["benign"].count("flagged")
        summary[f"{prefix}benign_undecided"] = counts["benign"].count("undecided")
    return summary, runs


def speed(folder: Path, peers: Mapping[str, Path]) -> tuple[dict[str, Any], list[dict[str, Any]]]:
    """CPU seconds of each tool on one large archive and on many small pickles."""
    large, small = folder / "large.pt", folder / "small"
    _made(large, small)
    tools = {"trainwarden": Path(sys.executable), **peers}
    runs = []
    for _ in range(_ROUNDS):
        for tool, python in tools.items():
            for what, path in (("500mb", large), ("2000", small)):
                runs.append({"tool": tool, "what": what, "cpu_s": round(_cpu(_command(tool, python, path)), 3)})
    least = {(t, w): min(r["cpu_s"] for r in runs if (r["tool"], r["what"]) == (t, w)) for t in tools for w in _WHAT}
    summary: dict[str, Any] = {}
    for what, key in _WHAT.items():
        summary[key] = least["trainwarden", what]
        summary |= {f"{tool}_{key}": least[tool, what] for tool in peers}
        fastest = min(least[tool, what] for tool in peers)
        summary[f"{key.removesuffix('_cpu_s')}_vs_fastest_peer"] = round(least["trainwarden", what] / fastest, 3)
    seconds = summary["scan_500mb_cpu_s"]
    return summary | {"scan_mb_per_cpu_s": round(_LARGE / 1e6 / seconds)}, runs


_WHAT = {"500mb": "scan_500mb_cpu_s", "2000": "scan_2000_cpu_s"}


def block(result: Mapping[str, Any] | None) -> str:
    """The table of the docs: each tool's findings and speed."""
    if result is None or "payloads" not in result["summary"]:
        return "not measured yet"
    s = result["summary"]
    rows = [
        "| tool | payloads passed | benign refused | 500 MB, CPU s | 2,000 pickles, CPU s |",
        "|---|---|---|---|---|",
    ]
    for tool in ("trainwarden", *PEERS):
        prefix = "" if tool == "trainwarden" else f"{tool}_"
        if f"{prefix}payloads_passed" not in s:
            continue
        name = "**trainwarden**" if not prefix else f"{tool} {PEERS[tool]}"
        passed = f"{s[f'{prefix}payloads_passed']} of {s['payloads']}"
        refused = f"{s[f'{prefix}benign_refused']} of {s['benign']}"
        times = [s.get(f"{prefix}{key}", "not measured") for key in _WHAT.values()]
        rows.append(f"| {name} | {passed} | {refused} | {times[0]} | {times[1]} |")
    machine = result["machine"]
    where = f"{machine['cpu']}, {machine['cores']} cores, Python {machine['python']}; {result['date']}."
    return "\n".join([*rows, "", where])


def _peers() -> dict[str, Path]:
    """The peers' own environment, made once; its interpreter for each."""
    venv = ROOT / "data" / "peers"
    if not (venv / "complete").exists():
        shutil.rmtree(venv, ignore_errors=True)
        subprocess.run([sys.executable, "-m", "venv", str(venv)], check=True)
        wanted = [f"{name}=={version}" for name, version in PEERS.items()]
        quiet = ["install", "-qq", "--disable-pip-version-check", "--no-input", *wanted]
        if subprocess.run([str(venv / "bin" / "python"), "-m", "pip", *quiet]).returncode:
            raise SystemExit("error: the peers cannot be installed here\nhint: a package index is needed once")
        (venv / "complete").touch()
    return dict.fromkeys(PEERS, venv / "bin" / "python")


def _told(tool: str, python: Path, folder: Path) -> dict[str, str]:
    """What a tool says of every file of a folder: "clean", "flagged" or "undecided"."""
    if tool == "trainwarden":
        from trainwarden.gate.scan import scan_paths

        words = {"Clean": "clean", "Refused": "flagged", "Undecided": "undecided"}
        return {Path(s.path).name: words[type(s.decision).__name__] for s in scan_paths([folder])}
    argv = [str(python), str(ROOT / "benchmarks" / "gate_peer.py"), tool, str(folder)]
    done = subprocess.run(argv, capture_output=True, text=True, timeout=_LIMIT, check=False)
    if done.returncode:
        raise SystemExit(f"error: {tool} ended with {done.returncode}: {done.stderr[-2000:]}")
    return dict(json.loads(done.stdout.splitlines()[-1]))


def _command(tool: str, python: Path, path: Path) -> list[str]:
    program = python.parent
    match tool:
        case "trainwarden":
            return [str(program / "trainwarden"), "scan", "--jobs", "1", str(path)]
        case "picklescan":
            return [str(program / "picklescan"), "--path", str(path)]
        case "modelscan":
            return [str(program / "modelscan"), "--path", str(path)]
        case "modelaudit":
            return [str(program / "modelaudit"), "scan", "--no-cache", str(path)]
    return [str(python), str(ROOT / "benchmarks" / "gate_peer.py"), tool, str(path)]


def _cpu(argv: list[str]) -> float:
    env = {k: v for k, v in os.environ.items() if k != "PYTHONDONTWRITEBYTECODE"} | {"OMP_NUM_THREADS": "1"}
    env |= {"NO_ANALYTICS": "1", "PROMPTFOO_DISABLE_TELEMETRY": "1"}
    before = resource.getrusage(resource.RUSAGE_CHILDREN)
    done = subprocess.run(argv, capture_output=True, env=env, timeout=_LIMIT, check=False)
    after = resource.getrusage(resource.RUSAGE_CHILDREN)
    if done.returncode not in (0, 1, 2, 3):
        raise SystemExit(f"error: {argv[0]} ended with {done.returncode}: {done.stderr[-2000:]!r}")
    return after.ru_utime + after.ru_stime - before.ru_utime - before.ru_stime


def _made(large: Path, small: Path) -> None:
    import torch

    torch.save({f"layer.{i}.weight": torch.ones(_LARGE // 400) for i in range(100)}, large)
    small.mkdir()
    for i in range(_SMALL):
        state = {"step": i, "loss": 0.5 * i, "names": [f"layer.{j}" for j in range(20)], "config": {"lr": 0.1}}
        (small / f"{i}.pkl").write_bytes(pickle.dumps(state))


if __name__ == "__main__":
    main(sys.argv[1:] or ("corpus", "speed"))
