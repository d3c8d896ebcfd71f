"""What the network sees beside x_t (paper Fig. 3, Tab. 1): the upsampled latent, and a picture or features with it."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
import torch.nn.functional as F
from einops import rearrange
from torch import Tensor, nn

from .config import ContextEncoderConfig, FlowConfig
from .images.resize import enlarge
from .vae.protocol import VAE

Encode = Callable[[Tensor], Tensor]


def make_context(flow: FlowConfig, low: Tensor, *, vae: VAE | None = None, encoder: Encode | None = None) -> Tensor:
    """The context (B, C', scale*h, scale*w) of a scaled low latent (B, C, h, w); its first C channels are upsampled.

    ``nearest`` and ``bilinear`` interpolate the latent. ``psu`` decodes it, enlarges the picture and encodes it again
    (pixel-space upsampling), which needs `vae`; with `flow.picture_context` the decoded picture joins the context.
    ``learned`` asks the model's context encoder. Raises ValueError for a missing `vae`.
    """
    if flow.upsampling == "learned":
        assert encoder is not None
        return encoder(low)
    if flow.upsampling != "psu":
        return interpolate(low, flow.scale, flow.upsampling)
    if vae is None:
        raise ValueError(
            "this model starts from pixel-space upsampling (psu) and no vae was given: "
            "pass the autoencoder of its latents as vae="
        )
    picture = vae.decode(low)
    upsampled = vae.encode(enlarge(picture, flow.scale)).to(low)
    return join_context(flow, upsampled, picture)


def join_context(flow: FlowConfig, upsampled: Tensor, picture: Tensor) -> Tensor:
    """The context of ``psu``: the upsampled latent (B, C, H, W) and, if it is used, the low picture (B, 3, h, w)."""
    if not flow.picture_context:
        return upsampled
    pixels = picture.shape[3] // upsampled.shape[3]
    return torch.cat([upsampled, fold_picture(picture, pixels).to(upsampled)], dim=1)


def fold_picture(picture: Tensor, pixels: int) -> Tensor:
    """(B, 3, H, W) in [0, 1] -> (B, 3 * pixels^2, H / pixels, W / pixels) in [-1, 1]: blocks of pixels as channels."""
    return rearrange(2 * picture - 1, "b c (h p) (w q) -> b (c p q) h w", p=pixels, q=pixels)


def interpolate(low: Tensor, scale: int, mode: str) -> Tensor:
    """(B, C, h, w) -> (B, C, scale*h, scale*w) by ``nearest``, ``bilinear`` or ``bicubic`` interpolation."""
    return F.interpolate(low, scale_factor=scale, mode=mode, align_corners=None if mode == "nearest" else False)


class ContextEncoder(nn.Module):
    """Low latent (B, C, h, w) -> context (B, C + features, scale*h, scale*w). Not in the paper.

    It replaces pixel-space upsampling: the first C channels are the bilinearly enlarged latent and a learned
    correction, trained to be the mean of x1 given the low latent; the features stand in for the decoded picture. It
    runs once per lift, at the low resolution, so that the lift needs no VAE.
    """

    def __init__(
        self,
        channels: int,
        scale: int,
        config: ContextEncoderConfig,
        *,
        operations: Any = nn,
        dtype: torch.dtype | None = None,
        device: torch.device | str | None = None,
    ) -> None:
        super().__init__()
        kw = {"padding": 1, "dtype": dtype, "device": device}
        self.channels, self.scale, self.tail = channels, scale, 64
        self.stem = operations.Conv2d(channels, config.width, 3, **kw)
        self.blocks = nn.ModuleList(_Residual(config.width, operations, kw) for _ in range(config.depth))
        self.up = operations.Conv2d(config.width, self.tail * scale**2, 3, **kw)
        self.head = operations.Conv2d(self.tail, channels + config.features, 3, **kw)

    def forward(self, low: Tensor) -> Tensor:
        h = self.stem(low)
        for block in self.blocks:
            h = block(h)
        h = self.up(F.silu(h))
        h = rearrange(h, "b (c p q) h w -> b c (h p) (w q)", p=self.scale, q=self.scale)
        correction, features = self.head(F.silu(h)).split([self.channels, self.head.out_channels - self.channels], 1)
        return torch.cat([interpolate(low, self.scale, "bilinear") + correction, features], dim=1)


class _Residual(nn.Module):
    def __init__(self, width: int, operations: Any, kw: dict[str, Any]) -> None:
        super().__init__()
        self.first = operations.Conv2d(width, width, 3, **kw)
        self.second = operations.Conv2d(width, width, 3, **kw)
        for parameter in self.second.parameters():
            parameter.detach().zero_()

    def forward(self, x: Tensor) -> Tensor:
        return x + self.second(F.silu(self.first(F.silu(x))))
