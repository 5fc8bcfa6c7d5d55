"""The toy job's scorer: how many points a checkpoint sorts rightly, as one line of JSON.

python score.py out/step-000040.pt
"""

from __future__ import annotations

import json
import sys

import torch
from torch import nn


def main() -> None:
    points = torch.randn(256, 16, generator=torch.Generator().manual_seed(2))
    model = nn.Sequential(nn.Linear(16, 64), nn.ReLU(), nn.Dropout(0.1), nn.Linear(64, 8)).eval()
    state = torch.load(sys.argv[1], weights_only=False)
    model.load_state_dict(state["model"])
    right = model(points).argmax(1) == points[:, :8].argmax(1)
    print(json.dumps({"step": state["step"], "accuracy": float(right.float().mean())}))


if __name__ == "__main__":
    main()
