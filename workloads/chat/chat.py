"""Talk to a checkpoint of either kind.

    python workloads/chat/chat.py --data data/chat --checkpoint out/chat/step-000024
    python workloads/chat/chat.py --data data/chat --checkpoint out/chat/step-000024 --prompt "hi!" --prompt "hobbies?"

Without --prompt it is a conversation, until an empty line. Each --prompt is a conversation of its own. The same
seed gives the same replies. It reads safetensors and JSON only: a checkpoint cannot run code here.
"""

from __future__ import annotations

import argparse
import json
from collections.abc import Iterator
from pathlib import Path

import torch
from load import base_model, model_at
from model import Cache, Llama
from tokenizers import Tokenizer

CONTEXT = 512  # tokens of a conversation that are remembered
CHAT = "posttrain"  # the kind of checkpoint that writes conversations with roles; the other has two speakers
MARKS = ("<|im_end|>", "<|im_start|>", "<|first|>", "<|second|>")
Message = tuple[str, str]  # role (user, assistant, system) and text


class Speaker:
    """A model, its tokenizer, and how its kind writes a conversation down."""

    def __init__(self, model: Llama, tokenizer: Tokenizer, kind: str) -> None:
        self.model, self.tokenizer, self.kind = model, tokenizer, kind

    def written(self, messages: list[Message]) -> str:
        """The conversation so far, up to where the assistant speaks; a mark that somebody says is taken out."""
        clean = [(role, _unmarked(text)) for role, text in messages]
        if self.kind == CHAT:
            said = "".join(f"<|im_start|>{role}\n{text}<|im_end|>\n" for role, text in clean)
            return said + "<|im_start|>assistant\n"
        marks = {"assistant": "<|second|>"}
        return "".join(marks.get(role, "<|first|>") + text.lower() for role, text in clean) + "<|second|>"

    def pieces(
        self, messages: list[Message], temperature: float, top_p: float, longest: int, draw: torch.Generator
    ) -> Iterator[str]:
        """What the assistant says to `messages`, piece by piece, as soon as a piece is whole characters."""
        tokens = self.tokenizer.encode(self.written(messages), add_special_tokens=False).ids[-CONTEXT:]
        stops = {self.tokenizer.token_to_id(mark) for mark in MARKS}
        said: list[int] = []
        told = ""
        for token in generate(self.model, tokens, stops, draw, temperature, top_p, longest):
            said.append(token)
            text = str(self.tokenizer.decode(said))
            if not text.endswith("\ufffd"):  # the first bytes of a character
                yield text[len(told) :]
                told = text

    def reply(self, turns: list[str], temperature: float, top_p: float, longest: int, draw: torch.Generator) -> str:
        """Answer the last of `turns`, of which the user said every other one."""
        messages = [(("user", "assistant")[i % 2], turn) for i, turn in enumerate(turns)]
        return "".join(self.pieces(messages, temperature, top_p, longest, draw)).strip()


def speaker_at(data: Path, checkpoint: Path | None) -> Speaker:
    """The speaker of a checkpoint, or of SmolLM2 without any training of ours."""
    model, state = model_at(checkpoint, data) if checkpoint else (base_model(data).eval(), {"kind": CHAT})
    return Speaker(model, Tokenizer.from_file(str(tokenizer_file(data, state["kind"]))), state["kind"])


def tokenizer_file(data: Path, kind: str) -> Path:
    """The tokenizer that checkpoints of this kind were trained with."""
    return data / "base" / "tokenizer.json" if kind == CHAT else data / "tokenizer.json"


def _unmarked(text: str) -> str:
    """`text` without the marks of a conversation; taking one out may leave another."""
    while found := [mark for mark in MARKS if mark in text]:
        text = text.replace(found[0], "")
    return text


@torch.no_grad()
def generate(
    model: Llama, tokens: list[int], stops: set[int | None], draw: torch.Generator,
    temperature: float, top_p: float, longest: int,
) -> Iterator[int]:  # fmt: skip
    """Continue `tokens` until one of `stops` or `longest` tokens, by nucleus sampling (Holtzman et al., 2020)."""
    cache: Cache = {}
    new = tokens
    for _ in range(longest):
        logits = model(torch.tensor([new]), cache=cache)[0, -1]
        chance, order = torch.softmax(logits / max(temperature, 1e-6), dim=0).sort(descending=True)
        chance[chance.cumsum(0) - chance > top_p] = 0  # the most likely one always stays
        token = int(order[torch.multinomial(chance, 1, generator=draw)])
        if token in stops:
            return
        yield token
        new = [token]


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
    speaker = speaker_at(given.data, given.checkpoint)
    how = (given.temperature, given.top_p, given.longest, torch.Generator().manual_seed(given.seed))
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
