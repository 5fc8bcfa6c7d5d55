"""Diffusion as flow matching: clips become noise along straight lines, and the model says where a line began.

At time t a clip x is (1 - t)·x + t·noise. Times are drawn from a logit-normal and pushed towards noise by `SHIFT`
(Esser et al., 2024): neighbouring pixels of such clips say much the same, so only a lot of noise hides anything.
"""

from __future__ import annotations

import itertools

import numpy as np
import torch
from model import VideoDiT
from torch import Tensor, nn
from words import ROLES

SHIFT = 6.0
SPREAD = 1.25  # of the normal that times in training come from: wider than 1, so that what is left of noise is met too
STEPS, GUIDANCE = 16, 1.75  # of sampling
FLOOR = 0.3  # times below it count no more than this one


def pushed(time: Tensor) -> Tensor:
    """`time` in 0…1, moved towards 1."""
    return SHIFT * time / (1 + (SHIFT - 1) * time)


def left_open(tokens: Tensor) -> Tensor:
    """The tokens [batch, ROLES, words] of a prompt that asks for nothing."""
    nothing = torch.zeros_like(tokens)
    nothing[:, :, 0] = torch.arange(1, 1 + ROLES)
    return nothing


def drop(tokens: Tensor, whole: float, role: float) -> Tensor:
    """Leave the whole prompt open with chance `whole`, and each of its roles with chance `role`."""
    chances = torch.rand(len(tokens), 1 + ROLES)
    gone = (chances[:, :1] < whole) | (chances[:, 1:] < role)
    return torch.where(gone[:, :, None], left_open(tokens), tokens)


def loss(model: nn.Module, clips: Tensor, tokens: Tensor) -> Tensor:
    """Mean squared error of the clean clips, in units of the noise on them (that is, of the velocity)."""
    # one draw from every part of 0…1 (Kingma et al., 2021)
    even = (torch.arange(len(clips)) + torch.rand(len(clips))) / len(clips)
    time = pushed(torch.sigmoid(SPREAD * torch.special.ndtri(even)))
    mix = time[:, None, None, None, None]
    noisy = (1 - mix) * clips + mix * torch.randn_like(clips)
    error = (model(noisy, time, tokens).float() - clips).square().mean((1, 2, 3, 4))
    return (error / time.clamp(min=FLOOR) ** 2).mean()


@torch.no_grad()
def sample(
    model: VideoDiT, prompts: list[str], seed: int, steps: int = STEPS, guidance: float = GUIDANCE
) -> np.ndarray:
    """A clip, uint8 [frames, height, width, 3], for every prompt: from noise back along the line in `steps` steps.

    Each clip has noise of its own, given by `seed` and its place. What the prompt adds to what an open prompt would
    give is taken `guidance` times (Ho and Salimans, 2022).
    """
    shape = (model.config.frames, model.config.size, model.config.size, 3)
    draws = [torch.Generator().manual_seed(seed + i) for i in range(len(prompts))]
    x = torch.stack([torch.randn(shape, generator=draw) for draw in draws])
    tokens = model.read(prompts)
    tokens = torch.cat((tokens, left_open(tokens)))
    times = pushed(torch.linspace(1, 0, steps + 1))
    for now, then in itertools.pairwise(times):
        asked, any_clip = model(torch.cat((x, x)), now.expand(len(tokens)), tokens).chunk(2)
        clean = any_clip + guidance * (asked - any_clip)
        x = clean + (x - clean) * (then / now)
    return ((x.clamp(-1, 1) + 1) * 127.5).round().byte().numpy()
