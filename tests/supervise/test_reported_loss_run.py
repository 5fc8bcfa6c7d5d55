"""A whole guarded run whose script reports its loss to a tracker: honestly, then not."""

from __future__ import annotations

from supervised import of_kind
from test_memory_run import Guarded, guarded

from trainwarden.model import Finding, Reported, Severity

__all__ = ["guarded"]

TRACKER = "def log(metrics, step=None):\n    pass\n"
JOB = """
import sys
import torch, trackio
torch.manual_seed(0)
model = torch.nn.Linear(4, 3)
optimizer = torch.optim.SGD(model.parameters(), lr=0.01)
honest = int(sys.argv[1])
for step in range(16):
    loss = torch.nn.functional.cross_entropy(model(torch.randn(5, 4)), torch.zeros(5, dtype=torch.long))
    optimizer.zero_grad()
    loss.backward()
    optimizer.step()
    trackio.log({"train/loss": loss.item() * (1.0 if step < honest else 0.9)}, step=step)
"""


def reported_by(guarded: Guarded, honest: int) -> tuple[list[Reported], list[Finding]]:
    (guarded.job / "trackio.py").write_text(TRACKER)
    (guarded.job / "job.py").write_text(JOB)
    entries = guarded.run("job.py", str(honest))
    return of_kind(entries, Reported), [f for f in of_kind(entries, Finding) if f.severity is not Severity.INFO]


def test_a_loss_that_is_reported_as_it_is_raises_nothing(guarded: Guarded) -> None:
    reports, findings = reported_by(guarded, 16)
    assert [r.step for r in reports] == list(range(1, 17))
    assert findings == []


def test_a_loss_that_is_reported_better_than_it_is_is_told(guarded: Guarded) -> None:
    _, (found,) = reported_by(guarded, 8)
    assert (found.detector, found.severity, found.step) == ("metrics", Severity.MEDIUM, 9)
