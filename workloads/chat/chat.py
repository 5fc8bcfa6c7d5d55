"""Talk to a checkpoint of either kind.

    python workloads/chat/chat.py --data data/chat --checkpoint out/chat/step-000024
    python workloads/chat/chat.py --data data/chat --checkpoint out/chat/step-000024 --prompt "hi!" --prompt "hobbies?"

Without --prompt it is a conversation, until an empty line. Each --prompt is a conversation of its own. The same
seed gives the same replies. It reads safetensors and JSON only: a checkpoint cannot run code here.
"""

from __future__ import annotations

import argparse
import json
from pathlib import Path

import torch
from load import base_model, model_at
from model import Cache, Llama
from tokenizers import Tokenizer

CONTEXT = 512  # tokens of a conversation that are remembered


class Speaker:
    """A model, its tokenizer, and how its kind writes a conversation down."""

    def __init__(self, data: Path, checkpoint: Path | None, seed: int) -> None:
        self.model, state = (
            model_at(checkpoint, data) if checkpoint else (base_model(data).eval(), {"kind": "posttrain"})
        )
        self.chat_format = state["kind"] == "posttrain"
        file = data / "base" / "tokenizer.json" if self.chat_format else data / "tokenizer.json"
        self.tokenizer = Tokenizer.from_file(str(file))
        self.draw = torch.Generator().manual_seed(seed)

    def written(self, turns: list[str]) -> str:
        """The conversation so far, up to where the assistant speaks."""
        if self.chat_format:
            roles = ("user", "assistant")
            said = "".join(f"<|im_start|>{roles[i % 2]}\n{turn}<|im_end|>\n" for i, turn in enumerate(turns))
            return said + "<|im_start|>assistant\n"
        marks = ("<|first|>", "<|second|>")
        return "".join(marks[i % 2] + turn.lower() for i, turn in enumerate(turns)) + "<|second|>"

    def reply(self, turns: list[str], temperature: float, top_p: float, longest: int) -> str:
        """Answer the last of `turns`, of which the user said every other one."""
        tokens = self.tokenizer.encode(self.written(turns), add_special_tokens=False).ids[-CONTEXT:]
        stops = {self.tokenizer.token_to_id(mark) for mark in ("<|im_end|>", "<|im_start|>", "<|first|>", "<|second|>")}
        said = generate(self.model, tokens, stops, self.draw, temperature, top_p, longest)
        return str(self.tokenizer.decode(said)).strip()


@torch.no_grad()
def generate(
    model: Llama, tokens: list[int], stops: set[int | None], draw: torch.Generator,
    temperature: float, top_p: float, longest: int,
) -> list[int]:  # fmt: skip
    """Continue `tokens` until one of `stops` or `longest` tokens, by nucleus sampling (Holtzman et al., 2020)."""
    cache: Cache = {}
    said: list[int] = []
    new = tokens
    while len(said) < longest:
        logits = model(torch.tensor([new]), cache=cache)[0, -1]
        chance, order = torch.softmax(logits / max(temperature, 1e-6), dim=0).sort(descending=True)
        chance[chance.cumsum(0) - chance > top_p] = 0  # the most likely one always stays
        token = int(order[torch.multinomial(chance, 1, generator=draw)])
        if token in stops:
            break
        said.append(token)
        new = [token]
    return said


def main() -> None:
    options = argparse.ArgumentParser(description="Talk to a checkpoint.")
    options.add_argument("--data", type=Path, required=True, help="folder written by data.py")
    which = options.add_mutually_exclusive_group(required=True)
    which.add_argument("--checkpoint", type=Path)
    which.add_argument("--base", action="store_true", help="SmolLM2 without any training of ours")
    options.add_argument("--prompt", action="append", default=[], help="may be given several times")
    options.add_argument("--json", action="store_true", help="one JSON list of prompts and replies")
    options.add_argument("--temperature", type=float, default=0.7)
    options.add_argument("--top-p", type=float, default=0.9)
    options.add_argument("--longest", type=int, default=48, help="tokens in a reply at most")
    options.add_argument("--seed", type=int, default=0)
    given = options.parse_args()

    torch.set_num_threads(1)
    speaker = Speaker(given.data, given.checkpoint, given.seed)
    how = (given.temperature, given.top_p, given.longest)
    if given.prompt:
        talks = []
        for prompt in given.prompt:
            talks.append({"prompt": prompt, "reply": speaker.reply([prompt], *how)})
            if not given.json:
                print(f"you> {prompt}\nbot> {talks[-1]['reply']}", flush=True)
        if given.json:
            print(json.dumps(talks))
        return
    turns: list[str] = []
    while line := input("you> ").strip():
        turns.append(line)
        turns.append(speaker.reply(turns, *how))
        print(f"bot> {turns[-1]}", flush=True)


if __name__ == "__main__":
    main()
