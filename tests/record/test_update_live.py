"""Whole guarded runs of small torch jobs: honest updates raise nothing, and every interference with one is named."""

from __future__ import annotations

import functools
from pathlib import Path

import pytest

from tests.audit.guarded_job import make_job
from trainwarden.detect import Engine, all_detectors
from trainwarden.model import Entry, Finding, ModelSeen, ScheduleSeen, Severity, UpdateSeen
from trainwarden.supervise import supervisor

JOB = """
import importlib, sys, torch
attacked = "attacked" in sys.argv
torch.manual_seed(0)
model = torch.nn.Sequential(torch.nn.Linear(8, 16), torch.nn.ReLU(), torch.nn.Linear(16, 4))
head = torch.nn.Linear(4, 2)
adamw = torch.optim.AdamW(model.parameters(), lr=0.01)
sgd = torch.optim.SGD(head.parameters(), lr=0.1, momentum=0.9)
schedule = torch.optim.lr_scheduler.CosineAnnealingLR(adamw, 80)
scaler = torch.amp.GradScaler("cpu", init_scale=2.0**16)
functional = importlib.import_module("torch.optim.adam")
original = functional.adam

def faster(*args, lr, **kwargs):
    return original(*args, lr=1.1 * lr, **kwargs)

for step in range(40):
    if attacked:
        functional.adam = faster if 20 <= step < 24 else original
    if attacked and step == 26:
        with torch.no_grad():
            head.weight[0].mul_(1.001)
    if attacked and step == 28:
        for state in adamw.state.values():
            state["exp_avg"].zero_()
    if attacked and step == 30:
        for state in adamw.state.values():
            state["exp_avg_sq"].mul_(2)
    if attacked and step == 32:
        adamw.param_groups[0]["lr"] *= 0.7
    loss = head(model(torch.randn(6, 8))).square().mean()
    adamw.zero_grad()
    sgd.zero_grad()
    scaler.scale(loss).backward()
    scaler.unscale_(adamw)
    torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
    scaler.step(adamw)
    scaler.step(sgd)
    scaler.update()
    schedule.step()
"""


def run(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, *words: str) -> tuple[list[Finding], list[Entry]]:
    live = functools.partial(supervisor.supervise, watcher=lambda sealed: Engine(all_detectors()))
    monkeypatch.setattr(supervisor, "supervise", live)
    entries = make_job(tmp_path, monkeypatch, JOB).run(*words).entries
    return [e for e in entries if isinstance(e, Finding)], entries


def test_honest_updates_of_two_optimizers_raise_nothing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    found, entries = run(tmp_path, monkeypatch)
    assert [f.seen for f in found if f.severity is not Severity.INFO] == []
    ends = [e for e in entries if isinstance(e, UpdateSeen) and e.last]
    assert [(e.rule, e.updates, e.tensors, e.differing, e.unchecked) for e in ends] == [
        ("AdamW", 40, 4, 0, ""), ("SGD", 40, 2, 0, ""),
    ]  # fmt: skip
    (trained,) = [e for e in entries if isinstance(e, ModelSeen)]
    assert (trained.parameters, trained.idle_count, trained.frozen) == (6, 0, 0)
    (schedule,) = [e for e in entries if isinstance(e, ScheduleSeen)]
    assert (schedule.optimizer, schedule.kind) == (0, "torch.optim.lr_scheduler.CosineAnnealingLR")
    assert schedule.state["T_max"] == 80


def test_every_interference_with_an_update_is_named(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    found, _ = run(tmp_path, monkeypatch, "attacked")
    told = {(f.detector, f.step): f for f in found}
    assert "(it moved 1.1 times as far)" in told["update-rule", 20].seen
    assert (told["continuity", 26].tensor, told["continuity", 26].ranks) == ("weight", (0,))
    assert told["cleared", 28].seen.startswith("Optimizer state of rank 0 was emptied")
    assert told["continuity", 30].tensor.endswith("/exp_avg_sq")
    assert "where CosineAnnealingLR gives" in told["schedule", 32].seen
