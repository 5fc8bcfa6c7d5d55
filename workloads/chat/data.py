"""Prepare the chat data: python workloads/chat/data.py --out data/chat

Source: PyPI `chitchat_dataset` 0.9.0 (MIT), 7,168 conversations between people, read as the JSON file it is.

* Sender ids and times are dropped; consecutive messages of one speaker are one turn.
* A turn with a first name, profanity or contact details (words.py) is left out, and so is a turn that is empty,
  very long, or not ASCII. What is left on either side of it is two conversations, so that no reply answers a
  turn that is no longer there.
* A conversation is held out if the hash of its id says so (one in twenty): the split does not depend on order.
* The same command writes the same bytes.

Written to --out: `base/` (SmolLM2 as safetensors and tokenizer.json, see base.py), `tokenizer.json` (2,048-token BPE
for pretraining), and for `pretrain` and `posttrain`, `-train` and `-held-out`: `.tokens.npy` (uint16) and `.turns.npy`
(int32 rows: first token, token after the last, conversation, place in it).
"""

from __future__ import annotations

import argparse
import hashlib
import json
import re
from collections.abc import Callable, Iterator
from pathlib import Path

import numpy as np
from base import package_folder, prepare_base
from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers
from words import says_too_much

Conversation = list[str]  # turns, speakers alternating
LONGEST_TURN = 300  # characters
HELD_OUT_IN = 20
FIRST, SECOND = "<|first|>", "<|second|>"  # who speaks, in the vocabulary of pretraining
ROLES = ("user", "assistant")


def conversations() -> Iterator[tuple[str, list[str]]]:
    """Yield every conversation's id and its turns, as they were written."""
    file = package_folder("chitchat_dataset") / "dataset.json"
    for identity, record in json.loads(file.read_bytes()).items():
        yield identity, [" ".join(message["text"] for message in turn) for turn in record["messages"]]


def clean(turns: list[str]) -> Iterator[Conversation]:
    """Yield the stretches of at least two turns that have nothing in them to leave out."""
    kept: Conversation = []
    for turn in [*turns, ""]:
        text = re.sub(r"\s+", " ", turn).strip()
        if text and len(text) <= LONGEST_TURN and text.isascii() and not says_too_much(text):
            kept.append(text)
            continue
        if len(kept) >= 2:
            yield kept
        kept = []


def held_out(identity: str) -> bool:
    """Whether the conversation `identity` is kept from training."""
    return int.from_bytes(hashlib.sha256(identity.encode()).digest()[:8], "big") % HELD_OUT_IN == 0


def split(limit: int) -> dict[str, list[Conversation]]:
    """Clean the first `limit` conversations (0: all) and part them into `train` and `held-out`."""
    parts: dict[str, list[Conversation]] = {"train": [], "held-out": []}
    for number, (identity, turns) in enumerate(conversations()):
        if limit and number >= limit:
            break
        parts["held-out" if held_out(identity) else "train"].extend(clean(turns))
    return parts


def small_tokenizer(texts: Iterator[str], size: int) -> Tokenizer:
    """Train a byte-level BPE of `size` tokens on lower-case text."""
    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=True)
    tokenizer.decoder = decoders.ByteLevel()
    alphabet = sorted(pre_tokenizers.ByteLevel.alphabet())
    trainer = trainers.BpeTrainer(
        vocab_size=size, special_tokens=[FIRST, SECOND], initial_alphabet=alphabet, show_progress=False
    )
    tokenizer.train_from_iterator(texts, trainer)
    return tokenizer


def small_turn(text: str, place: int) -> str:
    """A turn as pretraining sees it."""
    return (FIRST, SECOND)[place % 2] + text.lower()


def chat_turn(text: str, place: int) -> str:
    """A turn in SmolLM2's chat format."""
    return f"<|im_start|>{ROLES[place % 2]}\n{text}<|im_end|>\n"


def write(
    out: Path, kind: str, parts: dict[str, list[Conversation]], tokenizer: Tokenizer, form: Callable[[str, int], str]
) -> dict[str, int]:
    """Encode `parts`, each turn in its `form`, into `out`; return the tokens of each part."""
    counts = {}
    for name, talks in parts.items():
        texts = [form(text, place) for turns in talks for place, text in enumerate(turns)]
        places = np.concatenate([np.arange(len(turns)) for turns in talks])
        belongs = np.repeat(np.arange(len(talks)), [len(turns) for turns in talks])
        encoded = [np.array(e.ids, dtype=np.uint16) for e in tokenizer.encode_batch(texts, add_special_tokens=False)]
        ends = np.cumsum([len(ids) for ids in encoded])
        starts = ends - [len(ids) for ids in encoded]
        np.save(out / f"{kind}-{name}.tokens.npy", np.concatenate(encoded))
        turns = np.stack((starts, ends, belongs, places), axis=1)
        np.save(out / f"{kind}-{name}.turns.npy", turns.astype(np.int32))
        counts[f"{name} tokens, {kind}"] = int(ends[-1])
    return counts


def main() -> None:
    options = argparse.ArgumentParser(description="Prepare the chat data and the base model.")
    options.add_argument("--out", type=Path, required=True)
    options.add_argument("--kind", choices=("both", "pretrain", "posttrain"), default="both", help="what to prepare")
    options.add_argument("--limit", type=int, default=0, help="only the first N conversations; 0: all")
    options.add_argument("--vocab", type=int, default=2048, help="tokens in the vocabulary of pretraining")
    given = options.parse_args()
    given.out.mkdir(parents=True, exist_ok=True)
    parts = split(given.limit)
    if not all(parts.values()):
        raise SystemExit("error: no conversation is left in one of the parts\nhint: raise --limit")
    counts = {f"{name} conversations": len(turns) for name, turns in parts.items()}
    if given.kind != "posttrain":
        tokenizer = small_tokenizer((turn.lower() for turns in parts["train"] for turn in turns), given.vocab)
        tokenizer.save(str(given.out / "tokenizer.json"), pretty=False)
        counts |= write(given.out, "pretrain", parts, tokenizer, small_turn)
    if given.kind != "pretrain":
        counts |= write(given.out, "posttrain", parts, prepare_base(given.out / "base"), chat_turn)
    print(json.dumps(counts, indent=1))


if __name__ == "__main__":
    main()
