"""Crops as users have them: low latents as a sampler leaves them, contexts as another autoencoder makes them."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor

GAIN, DRIFT, NOISE = 0.1, 0.05, 0.08
"""Largest change of contrast; standard deviations of low-frequency drift and of white noise, at most."""
COARSE = 4  # low latent pixels of one value of the drift
SOFTER, CRISPER = -1.0, 0.5
"""Of the finest detail of a context, the most that is taken away and added."""
CONTEXT_GAIN, CONTEXT_DRIFT, CONTEXT_NOISE, PICTURE_NOISE = 0.06, 0.05, 0.08, 0.03


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


def disturb_context(batch: dict[str, Tensor], share: float, rng: torch.Generator) -> dict[str, Tensor]:
    """Change what pixel-space upsampling made for a share of a batch; which, and how, `rng` (a CPU generator) decides.

    A model is trained on the context of one autoencoder and gets that of the user's: softer or crisper, with other
    contrast, drift and noise. None of that is to be seen in the result, so the high latents stay.
    """
    upsampled, picture = batch["psu"], batch["picture"]
    count, channels, height, width = upsampled.shape
    draw = torch.rand(7, count, 1, 1, 1, generator=rng)
    chosen = (draw[0] < share).float()
    sharpness = chosen * (SOFTER + (CRISPER - SOFTER) * draw[1])
    gains = 1 + CONTEXT_GAIN * chosen * (2 * draw[2:4] - 1)
    coarse = torch.randn(count, channels, -(-height // COARSE) + 1, -(-width // COARSE) + 1, generator=rng)
    drift = (
        CONTEXT_DRIFT * chosen * draw[4] * F.interpolate(coarse, (height, width), mode="bilinear", align_corners=True)
    )
    drift = drift + CONTEXT_NOISE * chosen * draw[5] * torch.randn(upsampled.shape, generator=rng)
    grain = PICTURE_NOISE * chosen * draw[6] * torch.randn(picture.shape, generator=rng)
    sharpness, gains, drift, grain = (x.to(upsampled) for x in (sharpness, gains, drift, grain))
    upsampled = gains[0] * (upsampled + sharpness * (upsampled - _blurred(upsampled))) + drift
    picture = picture + sharpness * (picture - _blurred(_blurred(picture))) + grain
    mean = picture.mean(dim=(1, 2, 3), keepdim=True)
    return {**batch, "psu": upsampled, "picture": (mean + gains[1] * (picture - mean)).clamp(0, 1)}


def _blurred(x: Tensor) -> Tensor:
    """Each channel by the binomial filter of 3x3."""
    line = x.new_tensor([0.25, 0.5, 0.25])
    kernel = (line[:, None] * line).expand(x.shape[1], 1, 3, 3)
    return F.conv2d(F.pad(x, (1, 1, 1, 1), mode="replicate"), kernel, groups=x.shape[1])
