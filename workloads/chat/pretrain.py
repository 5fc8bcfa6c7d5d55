r"""Train a small chat model from nothing but conversations, with a 2,048-token vocabulary.

    python workloads/chat/data.py --out data/chat
    torchrun --nproc-per-node 2 workloads/chat/pretrain.py \
        --data data/chat --out out/pre --steps 1200 --checkpoint-every 200
    python workloads/chat/chat.py --data data/chat --checkpoint out/pre/step-001200

Runs without torchrun too, as one rank. Started again with the same --out, it goes on from the newest checkpoint.
"""

from __future__ import annotations

import json

import torch
from load import Blocks, fresh_model
from loop import options, start_ranks, train


def main() -> None:
    parser = options("Pretrain a small Llama on conversations.", batch_size=8, block=256, lr=3e-3)
    parser.add_argument("--width", type=int, default=192)
    parser.add_argument("--layers", type=int, default=4)
    parser.add_argument("--heads", type=int, default=3)
    parser.add_argument("--inner", type=int, default=512, help="width inside the feed-forward part")
    parser.set_defaults(weight_decay=0.05)
    given = parser.parse_args()

    start_ranks()
    torch.manual_seed(given.seed)
    vocab = len(json.loads((given.data / "tokenizer.json").read_bytes())["model"]["vocab"])
    shape = {"vocab": vocab, "width": given.width, "layers": given.layers, "heads": given.heads}
    about = {"kind": "pretrain", "shape": shape | {"kv_heads": given.heads, "inner": given.inner}}
    model = fresh_model(about)
    data, held_out = (Blocks(given.data, part, given.block) for part in ("train", "held-out"))
    train(model, data, held_out, given, about)


if __name__ == "__main__":
    main()
