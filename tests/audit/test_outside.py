"""A replay writes nothing outside of its workspace: trackers and checkpoints there stay byte for byte as they were."""

from __future__ import annotations

from pathlib import Path

import job_scripts as scripts
import pytest
from guarded_job import make_job
from test_replay import all_matched

REPORTS = (
    scripts.HEAD
    + """
from pathlib import Path
away = Path("AWAY")
dl = torch.utils.data.DataLoader(ds, batch_size=8, num_workers=1, multiprocessing_context="spawn")
o = torch.optim.SGD(m.parameters(), lr=1e-2)
if __name__ == "__main__":
    for s, (x, y) in enumerate(dl):
        l = torch.nn.functional.cross_entropy(net(x), y); l.backward(); o.step(); o.zero_grad()
        for told in Path.home() / "tracked.jsonl", away / "runs" / "told.jsonl":
            told.parent.mkdir(exist_ok=True)
            with told.open("a") as f: f.write(f"{s} {l.item()}\\n")
        torch.save(m.state_dict(), away / "newest.pt")
        if s == a.steps - 1: break
    final()
"""
)


def test_after_an_audit_what_lies_outside_is_byte_for_byte_unchanged(
    tmp_path: Path, tmp_path_factory: pytest.TempPathFactory, monkeypatch: pytest.MonkeyPatch
) -> None:
    home, away = tmp_path_factory.mktemp("home"), tmp_path_factory.mktemp("away")
    monkeypatch.setenv("HOME", str(home))
    job = make_job(tmp_path, monkeypatch, REPORTS.replace("AWAY", str(away)))
    recorded = job.run("--steps", "4")
    before = _all(home, away)
    assert {p.name for p in before} == {"tracked.jsonl", "runs", "told.jsonl", "newest.pt"}
    (away / "newest.pt").write_bytes(b"by somebody else")
    before[away / "newest.pt"] = (b"by somebody else", (away / "newest.pt").stat().st_mtime_ns)
    all_matched(job, recorded)
    assert _all(home, away) == before


def _all(*folders: Path) -> dict[Path, tuple[bytes, int]]:
    found = (p for folder in folders for p in folder.rglob("*"))
    return {p: (p.read_bytes() if p.is_file() else b"", p.stat().st_mtime_ns) for p in found}
