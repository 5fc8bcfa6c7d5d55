r"""Teach SmolLM2-135M-Instruct to chat: LoRA on real conversations, loss on the assistant's tokens only.

    python workloads/chat/data.py --out data/chat
    torchrun --nproc-per-node 2 workloads/chat/posttrain.py \
        --data data/chat --out out/chat --steps 24 --checkpoint-every 6
    python workloads/chat/chat.py --data data/chat --checkpoint out/chat/step-000024

Runs without torchrun too, as one rank. Started again with the same --out, it goes on from the newest checkpoint.
"""

from __future__ import annotations

import torch
from load import Exchanges, lora_model
from loop import options, start_ranks, train


def main() -> None:
    parser = options("Post-train SmolLM2 on conversations.", batch_size=2, block=64, lr=2e-3)
    parser.add_argument("--rank-lora", type=int, default=16)
    parser.add_argument("--layers-lora", type=int, default=15, help="how many of the last layers get a LoRA")
    given = parser.parse_args()

    start_ranks()
    torch.manual_seed(given.seed)
    about = {"kind": "posttrain", "lora": {"rank": given.rank_lora, "layers": given.layers_lora}}
    model = lora_model(given.data, about["lora"])
    data = Exchanges(given.data, "train", given.block)
    held_out = Exchanges(given.data, "held-out", given.block)
    train(model, data, held_out, given, about)


if __name__ == "__main__":
    main()
