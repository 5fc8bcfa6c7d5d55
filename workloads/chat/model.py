"""A Llama-style language model in plain PyTorch, and LoRA on top of it. Read top to bottom.

RMSNorm, rotary positions, grouped-query attention, SwiGLU, tied embeddings: the shape of SmolLM2 and of most open
models, with the parameter names of Hugging Face's Llama (a test compares the logits). `pretrain.py` trains it
from scratch; `posttrain.py` loads SmolLM2-135M into it and trains only low-rank updates.

Sequences are padded on the right, so that a causal mask alone keeps padding out of what counts.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor, nn

IGNORE = -100  # label of a position that the loss leaves out
Cache = dict[int, tuple[Tensor, Tensor]]  # layer → keys and values so far, for token-by-token generation


@dataclass(frozen=True)
class Shape:
    """The sizes of a model; stored beside the weights as JSON."""

    vocab: int
    width: int
    layers: int
    heads: int
    kv_heads: int
    inner: int  # width inside the feed-forward part
    theta: float = 10000.0  # base of the rotary frequencies
    eps: float = 1e-5


class Linear(nn.Module):
    """A matrix, not yet filled: its values come from `initialise` or from a file (drawing them takes seconds)."""

    def __init__(self, inside: int, outside: int) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.empty(outside, inside))

    def forward(self, x: Tensor) -> Tensor:
        return F.linear(x, self.weight)


class RMSNorm(nn.Module):
    """Root-mean-square normalisation (Zhang and Sennrich, 2019)."""

    def __init__(self, width: int, eps: float) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.ones(width))
        self.eps = eps

    def forward(self, x: Tensor) -> Tensor:
        return F.rms_norm(x, self.weight.shape, self.weight, self.eps)


def rotary(start: int, length: int, size: int, theta: float) -> tuple[Tensor, Tensor]:
    """Cosines and sines, each [length, size], of rotary position embedding (Su et al., 2021)."""
    frequencies = theta ** -(torch.arange(0, size, 2, dtype=torch.float32) / size)
    angles = torch.outer(torch.arange(start, start + length, dtype=torch.float32), frequencies)
    angles = torch.cat((angles, angles), dim=-1)
    return angles.cos(), angles.sin()


def rotate(x: Tensor, turn: tuple[Tensor, Tensor]) -> Tensor:
    """Turn the halves of each head of `x` [batch, heads, length, size] by its position's angle."""
    left, right = x.chunk(2, dim=-1)
    return x * turn[0] + torch.cat((-right, left), dim=-1) * turn[1]


class Attention(nn.Module):
    """Causal self-attention whose query heads share fewer key and value heads."""

    def __init__(self, shape: Shape, layer: int) -> None:
        super().__init__()
        self.layer = layer
        self.heads, self.kv_heads, self.size = shape.heads, shape.kv_heads, shape.width // shape.heads
        self.q_proj = Linear(shape.width, self.heads * self.size)
        self.k_proj = Linear(shape.width, self.kv_heads * self.size)
        self.v_proj = Linear(shape.width, self.kv_heads * self.size)
        self.o_proj = Linear(self.heads * self.size, shape.width)

    def forward(self, x: Tensor, turn: tuple[Tensor, Tensor], cache: Cache | None) -> Tensor:
        batch, length, _ = x.shape
        q = rotate(self.q_proj(x).view(batch, length, self.heads, self.size).transpose(1, 2), turn)
        k = rotate(self.k_proj(x).view(batch, length, self.kv_heads, self.size).transpose(1, 2), turn)
        v = self.v_proj(x).view(batch, length, self.kv_heads, self.size).transpose(1, 2)
        if cache is not None:
            if self.layer in cache:
                k, v = (torch.cat(pair, dim=2) for pair in zip(cache[self.layer], (k, v), strict=True))
            cache[self.layer] = (k, v)
        k, v = (t.repeat_interleave(self.heads // self.kv_heads, dim=1) for t in (k, v))
        mixed = F.scaled_dot_product_attention(q, k, v, is_causal=length > 1)
        return self.o_proj(mixed.transpose(1, 2).reshape(batch, length, -1))


class FeedForward(nn.Module):
    """SwiGLU (Shazeer, 2020)."""

    def __init__(self, shape: Shape) -> None:
        super().__init__()
        self.gate_proj = Linear(shape.width, shape.inner)
        self.up_proj = Linear(shape.width, shape.inner)
        self.down_proj = Linear(shape.inner, shape.width)

    def forward(self, x: Tensor) -> Tensor:
        return self.down_proj(F.silu(self.gate_proj(x)) * self.up_proj(x))


class Block(nn.Module):
    """One layer: attention, then feed-forward, each on the normalised input and added back to it."""

    def __init__(self, shape: Shape, layer: int) -> None:
        super().__init__()
        self.input_layernorm = RMSNorm(shape.width, shape.eps)
        self.self_attn = Attention(shape, layer)
        self.post_attention_layernorm = RMSNorm(shape.width, shape.eps)
        self.mlp = FeedForward(shape)

    def forward(self, x: Tensor, turn: tuple[Tensor, Tensor], cache: Cache | None) -> Tensor:
        x = x + self.self_attn(self.input_layernorm(x), turn, cache)
        return x + self.mlp(self.post_attention_layernorm(x))


class Llama(nn.Module):
    """The model: tokens [batch, length] in; the mean loss over labelled positions, or logits, out."""

    def __init__(self, shape: Shape) -> None:
        super().__init__()
        self.shape = shape
        self.embed_tokens = Linear(
            shape.width, shape.vocab
        )  # read by rows on the way in, used as a matrix on the way out
        self.layers = nn.ModuleList(Block(shape, layer) for layer in range(shape.layers))
        self.norm = RMSNorm(shape.width, shape.eps)

    def forward(self, tokens: Tensor, labels: Tensor | None = None, cache: Cache | None = None) -> Tensor:
        past = cache[0][0].shape[2] if cache else 0
        turn = rotary(past, tokens.shape[1], self.shape.width // self.shape.heads, self.shape.theta)
        x = F.embedding(tokens, self.embed_tokens.weight)
        for layer in self.layers:
            x = layer(x, turn, cache)
        if labels is None:
            return self.embed_tokens(self.norm(x))
        counted = labels != IGNORE  # the output layer is a quarter of the work: only where it is needed
        logits = self.embed_tokens(self.norm(x[counted]))
        return F.cross_entropy(logits, labels[counted])

    def initialise(self) -> None:
        """Draw fresh weights from the default generator, residual outputs scaled down by depth (GPT-2)."""
        for name, parameter in self.named_parameters():
            if parameter.ndim == 2:
                shrink = (2 * self.shape.layers) ** -0.5 if name.endswith(("o_proj.weight", "down_proj.weight")) else 1
                nn.init.normal_(parameter, std=0.02 * shrink)


class LoRA(nn.Module):
    """A frozen linear layer plus a trained low-rank update (Hu et al., 2021), which starts as nothing.

    Dropout falls on the low-rank side: on the full width, drawing its mask took an eighth of a step on a CPU.
    """

    def __init__(self, frozen: Linear, rank: int, alpha: float, dropout: float) -> None:
        super().__init__()
        self.frozen = frozen.requires_grad_(False)
        self.down = nn.Parameter(torch.empty(rank, frozen.weight.shape[1]))
        self.up = nn.Parameter(torch.zeros(frozen.weight.shape[0], rank))
        nn.init.kaiming_uniform_(self.down, a=5**0.5)
        self.dropout = nn.Dropout(dropout)
        self.scale = alpha / rank

    def forward(self, x: Tensor) -> Tensor:
        return self.frozen(x) + F.linear(self.dropout(F.linear(x, self.down)), self.up) * self.scale


def add_lora(model: Llama, rank: int, alpha: float, dropout: float, layers: int) -> None:
    """Freeze `model` and put a LoRA around every linear layer of its last `layers` blocks."""
    model.requires_grad_(False)
    for block in list(model.layers)[-layers:]:
        for part in (block.self_attn, block.mlp):
            for name, layer in list(part.named_children()):
                setattr(part, name, LoRA(layer, rank, alpha, dropout))
