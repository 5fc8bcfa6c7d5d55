"""How well a checkpoint ranks what came later, as one line of JSON.

    python workloads/ranking/eval.py --data data/ranking --checkpoint out/ranking/step-000477

AUC, AUC within each person's events, and log loss on the validation part (which the options were chosen by) and on the
test part (which nothing was chosen by); beside them two logistic regressions, fitted anew (baseline.py). Nothing is
drawn: the same files give the same figures.
"""

from __future__ import annotations

import argparse
import json
from pathlib import Path

import torch
from baseline import baselines
from load import Events, all_logits, model_at
from scores import scores


def main() -> None:
    options = argparse.ArgumentParser(description="Measure how well a checkpoint ranks.")
    options.add_argument("--data", type=Path, required=True, help="folder written by data.py")
    options.add_argument("--checkpoint", type=Path, required=True)
    options.add_argument("--no-baselines", action="store_true", help="leave the logistic regressions out")
    given = options.parse_args()

    torch.set_num_threads(1)
    model, state = model_at(given.checkpoint)
    figures = {"kind": state["kind"], "step": state["step"], "seed": state["seed"]}
    for part in ("validation", "test"):
        events = Events(given.data, part, state["shape"]["history"])
        figures[part] = scores(all_logits(model, events), events.liked, events.person)
    if not given.no_baselines:
        figures["baselines"] = baselines(given.data)
    print(json.dumps(figures))


if __name__ == "__main__":
    main()
