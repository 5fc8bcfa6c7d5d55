"""What counting alone achieves on the pretraining data: python workloads/chat/ngram.py --data data/chat

An interpolated 1- to 4-gram model (Jelinek and Mercer, 1980) over the same tokens as pretrain.py. The share of each
order is chosen by expectation maximisation on the last twentieth of the training tokens, never on the held-out ones.
"""

from __future__ import annotations

import argparse
import json
from collections import Counter
from pathlib import Path

import numpy as np

ORDERS = 4


def chances(counts: list[Counter[tuple[int, ...]]], tokens: list[int], vocab: int) -> np.ndarray:
    """For each token, its chance under each order: rows of [uniform, 1-gram, …, 4-gram]."""
    rows = []
    for i in range(ORDERS - 1, len(tokens)):
        row = [1 / vocab]
        for order in range(1, ORDERS + 1):
            gram = tuple(tokens[i - order + 1 : i + 1])
            seen = counts[order - 1][gram[:-1]]
            row.append(counts[order][gram] / seen if seen else row[-1])
        rows.append(row)
    return np.array(rows)


def shares(rows: np.ndarray, rounds: int = 30) -> np.ndarray:
    """The mixture of the orders under which `rows` are likeliest."""
    share = np.full(rows.shape[1], 1 / rows.shape[1])
    for _ in range(rounds):
        weighted = rows * share
        share = (weighted / weighted.sum(axis=1, keepdims=True)).mean(axis=0)
    return share


def main() -> None:
    options = argparse.ArgumentParser(description="Measure an n-gram model on the pretraining data.")
    options.add_argument("--data", type=Path, required=True, help="folder written by data.py")
    given = options.parse_args()
    train, held_out = (np.load(given.data / f"pretrain-{part}.tokens.npy").tolist() for part in ("train", "held-out"))
    vocab = len(json.loads((given.data / "tokenizer.json").read_bytes())["model"]["vocab"])
    cut = len(train) - len(train) // 20
    known = train[:cut]
    counts = [Counter(zip(*(known[i:] for i in range(order)), strict=False)) for order in range(ORDERS + 1)]
    counts[0][()] = len(known)
    share = shares(chances(counts, train[cut:], vocab))
    result = np.exp(-np.log(chances(counts, held_out, vocab) @ share).mean())
    print(json.dumps({"perplexity": round(float(result), 2), "shares": share.round(3).tolist()}))


if __name__ == "__main__":
    main()
