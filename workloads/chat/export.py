"""Make a checkpoint into a folder that stands alone: the form that servers, transformers and vLLM read.

    torchrun --nproc-per-node 2 workloads/chat/train.py --data data/chat --out out/chat --steps 24 --alone
    python workloads/chat/export.py --data data/chat --checkpoint out/chat/step-000024 --out out/chat/export-24

A checkpoint of post-training is a LoRA; what it stands on lies elsewhere, where nobody verifies it when it is served.
So base and LoRA are added up once, here, and the sum is what is cleared and promoted. The same command gives the same
bytes.

With --alone training does that itself, for its last step: a guarded run has then recorded the folder, OUT/alone-000024,
a replay makes it again, and `trainwarden clear` takes no person's word for where it comes from.

Written: model.safetensors, config.json, generation_config.json, tokenizer.json, tokenizer_config.json (with the chat
template), state.json.
"""

from __future__ import annotations

import argparse
import json
import shutil
from pathlib import Path
from typing import Any

import torch
from chat import CHAT, tokenizer_file
from load import model_at
from model import Llama, LoRA
from safetensors.torch import save_file

# what Speaker.written does, as a template
TEMPLATES = {
    "posttrain": (
        "{% for message in messages %}<|im_start|>{{ message['role'] }}\n{{ message['content'] }}<|im_end|>\n"
        "{% endfor %}{% if add_generation_prompt %}<|im_start|>assistant\n{% endif %}"
    ),
    "pretrain": (
        "{% for message in messages %}{% if message['role'] == 'assistant' %}<|second|>{% else %}<|first|>{% endif %}"
        "{{ message['content'] | lower }}{% endfor %}{% if add_generation_prompt %}<|second|>{% endif %}"
    ),
}


@torch.no_grad()
def added_up(model: Llama) -> dict[str, torch.Tensor]:
    """The weights of `model` by their names in Hugging Face's Llama, each LoRA added to what it stands on."""
    loras = {name: part for name, part in model.named_modules() if isinstance(part, LoRA)}
    weights = {name: p for name, p in model.named_parameters() if name.rpartition(".")[0] not in loras}
    for name, lora in loras.items():
        weights.pop(f"{name}.frozen.weight")
        weights[f"{name}.weight"] = lora.frozen.weight + lora.up @ lora.down * lora.scale
    return {f"model.{name}": tensor.detach().contiguous() for name, tensor in sorted(weights.items())}


def config(model: Llama, stop: int) -> dict[str, Any]:
    """`config.json` of transformers' Llama."""
    shape = model.shape
    return {
        "architectures": ["LlamaForCausalLM"],
        "model_type": "llama",
        "vocab_size": shape.vocab,
        "hidden_size": shape.width,
        "num_hidden_layers": shape.layers,
        "num_attention_heads": shape.heads,
        "num_key_value_heads": shape.kv_heads,
        "intermediate_size": shape.inner,
        "rope_theta": shape.theta,
        "rms_norm_eps": shape.eps,
        "hidden_act": "silu",
        "max_position_embeddings": 2048,
        "tie_word_embeddings": True,
        "torch_dtype": "float32",
        "eos_token_id": stop,
    }


def _text(folder: Path, name: str, content: dict[str, Any]) -> None:
    (folder / name).write_text(json.dumps(content, indent=1, sort_keys=True) + "\n", encoding="utf-8")


def write(out: Path, model: Llama, state: dict[str, Any], data: Path) -> None:
    """Write `model`, a checkpoint with `state` as its state.json, to the folder `out`, which is there whole or not."""
    from tokenizers import Tokenizer

    tokens = tokenizer_file(data, state["kind"])
    mark = "<|im_end|>" if state["kind"] == CHAT else "<|first|>"
    partial = out.with_name(f".{out.name}.partial")
    shutil.rmtree(partial, ignore_errors=True)
    partial.mkdir(parents=True)
    save_file(added_up(model), partial / "model.safetensors", metadata={"format": "pt"})
    shutil.copyfile(tokens, partial / "tokenizer.json")
    stop = Tokenizer.from_file(str(tokens)).token_to_id(mark)
    _text(partial, "config.json", config(model, stop))
    _text(partial, "generation_config.json", {"eos_token_id": stop, "do_sample": True})
    told = {"tokenizer_class": "PreTrainedTokenizerFast", "eos_token": mark, "chat_template": TEMPLATES[state["kind"]]}
    _text(partial, "tokenizer_config.json", told)
    _text(partial, "state.json", {key: state[key] for key in ("kind", "step", "seed") if key in state})
    shutil.rmtree(out, ignore_errors=True)
    partial.rename(out)


def main() -> None:
    options = argparse.ArgumentParser(description="Make a checkpoint into a folder that stands alone.")
    options.add_argument("--data", type=Path, required=True, help="folder written by data.py")
    options.add_argument("--checkpoint", type=Path, required=True)
    options.add_argument("--out", type=Path, required=True, help="a new folder")
    given = options.parse_args()
    if given.out.exists():
        raise SystemExit(f"error: {given.out} is there already\nhint: name a new folder")
    model, state = model_at(given.checkpoint, given.data)
    write(given.out, model, state, given.data)
    print(f"{given.out}: {sum(p.stat().st_size for p in given.out.iterdir()):,} bytes")


if __name__ == "__main__":
    main()
