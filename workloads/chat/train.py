r"""Train the chat assistant: one command for either stage, post-training (the one worth talking to) by default.

    python workloads/chat/data.py --out data/chat
    torchrun --nproc-per-node 2 workloads/chat/train.py --data data/chat --out out/chat --steps 24
    torchrun --nproc-per-node 2 workloads/chat/train.py --stage pretrain --data data/chat --out out/pre --steps 1200

Nothing but a choice: everything after --stage goes to pretrain.py or posttrain.py as it is, and either can be
started by itself.
"""

from __future__ import annotations

import argparse
import sys

import posttrain
import pretrain

STAGES = {"pretrain": pretrain.main, "posttrain": posttrain.main}


def main() -> None:
    parser = argparse.ArgumentParser(allow_abbrev=False, add_help=False)
    parser.add_argument("--stage", choices=STAGES, default="posttrain")
    given, options = parser.parse_known_args()
    if "--help" in options:
        print("--stage {pretrain,posttrain}   which stage (default: posttrain); its own options:\n")
    sys.argv[1:] = options
    STAGES[given.stage]()


if __name__ == "__main__":
    main()
