"""Low latents as a sampler leaves them, where those of photos are cleaner: for a share of the training crops."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor

GAIN, DRIFT, NOISE = 0.1, 0.05, 0.08
"""Largest change of contrast; standard deviations of low-frequency drift and of white noise, at most."""
COARSE = 4  # low latent pixels of one value of the drift


def disturb(batch: dict[str, Tensor], share: float, rng: torch.Generator) -> dict[str, Tensor]:
    """Change a share of a batch of `LatentCrops`; which, and how, `rng` (a CPU generator) decides.

    Contrast and low-frequency drift are part of what the sampler means, so the high latents follow; white noise is
    not, so they do not. Pictures and pixel-space upsamplings are left as they are.
    """
    low, high = batch["low"], batch["high"]
    count, channels, height, width = low.shape
    draw = torch.rand(4, count, 1, 1, 1, generator=rng)
    chosen = (draw[0] < share).float()
    gain = 1 + GAIN * chosen * (2 * draw[1] - 1)
    coarse = torch.randn(count, channels, -(-height // COARSE) + 1, -(-width // COARSE) + 1, generator=rng)
    drift = DRIFT * chosen * draw[2] * F.interpolate(coarse, (height, width), mode="bilinear", align_corners=True)
    white = NOISE * chosen * draw[3] * torch.randn(low.shape, generator=rng)
    gain, drift, white = (x.to(low) for x in (gain, drift, white))
    wide = F.interpolate(drift, high.shape[2:], mode="bilinear", align_corners=False)
    return {**batch, "low": gain * low + drift + white, "high": gain * high + wide}
