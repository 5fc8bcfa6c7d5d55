"""A pixel diffusion transformer: a prompt and a noisy clip in, the clean clip out. Read top to bottom.

A clip [batch, frames, height, width, 3] in -1…1 is cut into patches of some frames by some pixels, one token each;
three more tokens say object, motion and background. Time and prompt also scale, shift and gate what every block does
(adaLN of Peebles and Xie, 2023). What the tokens say then lies over whole frames, a place for every two by two pixels,
with the noisy pixels beside it, and three small convolutions draw the clean ones: no seams show between patches, and
what is fine need not pass through a token. It is a `ModelMixin` of Hugging Face's diffusers, and its shape is a
diffusers config.
"""

from __future__ import annotations

import math

import torch
import torch.nn.functional as F
from diffusers import ConfigMixin, ModelMixin
from diffusers.configuration_utils import register_to_config
from torch import Tensor, nn
from words import LONGEST, ROLES

FINE = 2  # pixels a side that are drawn as one place
NOTHING = 0  # token that fills up; tokens 1 … ROLES say that a role is left open


class Block(nn.Module):
    """Attention among all tokens, then a feed-forward part, each scaled, shifted and gated by the condition."""

    def __init__(self, width: int, heads: int) -> None:
        super().__init__()
        self.heads = heads
        self.qkv = nn.Linear(width, 3 * width, bias=False)
        self.out = nn.Linear(width, width, bias=False)
        self.up = nn.Linear(width, 4 * width)
        self.down = nn.Linear(4 * width, width)
        self.adapt = nn.Linear(width, 6 * width)
        nn.init.zeros_(self.adapt.weight)
        nn.init.zeros_(self.adapt.bias)

    def forward(self, x: Tensor, condition: Tensor) -> Tensor:
        scale, shift, gate, scale_ff, shift_ff, gate_ff = self.adapt(condition)[:, None].chunk(6, dim=-1)
        h = F.layer_norm(x, x.shape[-1:]) * (1 + scale) + shift
        q, k, v = self.qkv(h).unflatten(-1, (3, self.heads, -1)).permute(2, 0, 3, 1, 4)
        q, k = (F.rms_norm(t, t.shape[-1:]) for t in (q, k))
        # written out: with so few tokens PyTorch's fused attention takes four times as long on a CPU
        mixed = (q @ k.transpose(-1, -2) * q.shape[-1] ** -0.5).softmax(-1).to(v.dtype) @ v
        x = x + (1 + gate) * self.out(mixed.transpose(1, 2).flatten(2))
        h = F.layer_norm(x, x.shape[-1:]) * (1 + scale_ff) + shift_ff
        return x + (1 + gate_ff) * self.down(F.gelu(self.up(h), approximate="tanh"))


class VideoDiT(ModelMixin, ConfigMixin):
    """The model; `known` is every word it knows, with its role."""

    @register_to_config
    def __init__(
        self, known: list[tuple[str, int]], width: int = 192, layers: int = 6, heads: int = 3,
        frames: int = 8, size: int = 32, patch_frames: int = 4, patch: int = 8,
        channels: int = 24, brush: int = 48,
    ) -> None:  # fmt: skip
        super().__init__()
        self.role_of = dict(known)
        self.token_of = {word: 1 + ROLES + i for i, (word, _) in enumerate(known)}
        self.grid = (frames // patch_frames, size // patch, size // patch)
        self.cut = (patch_frames, patch, patch)
        volume = patch_frames * patch * patch
        self.words = nn.Embedding(1 + ROLES + len(known), width, padding_idx=NOTHING)
        self.roles = nn.Linear(ROLES * width, width)
        self.clock = nn.Sequential(nn.Linear(128, width), nn.SiLU(), nn.Linear(width, width))
        self.enter = nn.Linear(3 * volume, width)
        self.places = nn.Parameter(torch.randn(math.prod(self.grid) + ROLES, width) * 0.5)  # as loud as the patches
        self.blocks = nn.ModuleList(Block(width, heads) for _ in range(layers))
        self.norm = nn.LayerNorm(width)
        self.leave = nn.Linear(width, channels * volume // FINE**2)
        self.mix = nn.Conv2d(channels + 3 * FINE**2, brush, 3, padding=1)
        self.blend = nn.Conv2d(brush, brush, 3, padding=1)
        self.paint = nn.Conv2d(brush, 3 * FINE**2, 3, padding=1)
        nn.init.zeros_(self.paint.weight)
        nn.init.zeros_(self.paint.bias)

    def read(self, prompts: list[str]) -> Tensor:
        """Tokens [prompts, ROLES, LONGEST] of what each prompt says in each role."""
        tokens = torch.zeros(len(prompts), ROLES, LONGEST, dtype=torch.int64)
        tokens[:, :, 0] = torch.arange(1, 1 + ROLES)
        for i, prompt in enumerate(prompts):
            said = [word.strip(".,!?") for word in prompt.lower().split()]
            for role in range(ROLES):
                ids = [self.token_of[w] for w in said if self.role_of.get(w) == role][:LONGEST]
                tokens[i, role, : len(ids)] = torch.tensor(ids, dtype=torch.int64)
        return tokens

    def forward(self, noisy: Tensor, time: Tensor, tokens: Tensor) -> Tensor:
        """The clean clips behind `noisy` [batch, frames, height, width, 3] at `time` [batch] (1: all noise)."""
        said = self.words(tokens).sum(2)
        condition = F.silu(self.clock(waves(time)) + self.roles(said.flatten(1)))
        x = torch.cat((said, self.enter(self.patches(noisy))), dim=1) + self.places
        for block in self.blocks:
            x = block(x, condition)
        features = self.frames(self.leave(self.norm(x[:, ROLES:])), FINE)
        pixels = F.pixel_unshuffle(noisy.to(features.dtype).movedim(-1, 2), FINE).movedim(2, -1)
        drawn = torch.cat((features, pixels), dim=-1).flatten(0, 1).permute(0, 3, 1, 2)
        painted = self.paint(F.silu(self.blend(F.silu(self.mix(drawn)))))
        return F.pixel_shuffle(painted, FINE).permute(0, 2, 3, 1).unflatten(0, noisy.shape[:2])

    def patches(self, clips: Tensor) -> Tensor:
        """[batch, frames, height, width, channels] → [batch, tokens, values of a patch]."""
        (t, h, w), (dt, dh, dw) = self.grid, self.cut
        return (
            clips.reshape(-1, t, dt, h, dh, w, dw, clips.shape[-1])
            .permute(0, 1, 3, 5, 2, 4, 6, 7)
            .flatten(4)
            .flatten(1, 3)
        )

    def frames(self, patches: Tensor, fine: int = 1) -> Tensor:
        """The way back: [batch, tokens, values of a patch] → [batch, frames, height / fine, width / fine, channels]."""
        (t, h, w), (dt, dh, dw) = self.grid, (self.cut[0], self.cut[1] // fine, self.cut[2] // fine)
        clips = patches.reshape(len(patches), t, h, w, dt, dh, dw, -1).permute(0, 1, 4, 2, 5, 3, 6, 7)
        return clips.reshape(len(patches), t * dt, h * dh, w * dw, -1)


def waves(time: Tensor) -> Tensor:
    """Sines and cosines [batch, 128] of `time` [batch] at frequencies from 1 to 1,000 (Vaswani et al., 2017)."""
    angles = 1000 * time[:, None] * torch.exp(-math.log(1e4) * torch.arange(64) / 64)
    return torch.cat((angles.cos(), angles.sin()), dim=-1)
