"""Tiny autoencoders in the layout of TAESD (madebyollin/taesd).

Their latents agree with those of the full autoencoder of the same family, so a model trained on one serves the other.
"""

from __future__ import annotations

from collections.abc import Mapping

import torch
from torch import Tensor, nn

from ..latent_spaces import LatentSpace
from .autoencoder import Autoencoder


class Clamp(nn.Module):
    def forward(self, x: Tensor) -> Tensor:
        return torch.tanh(x / 3) * 3


class Block(nn.Module):
    """Three convolutions around which the input passes; with `normed`, after a step that sees the whole picture."""

    def __init__(self, width: int, normed: bool = False) -> None:
        super().__init__()
        self.conv = nn.Sequential(_conv(width, width), nn.ReLU(), _conv(width, width), nn.ReLU(), _conv(width, width))
        self.fuse = nn.ReLU()
        wide = 4 * width
        self.pool = (
            nn.Sequential(
                nn.Conv2d(width, wide, 1, bias=False),
                nn.GroupNorm(4, wide),
                nn.ReLU(),
                nn.Conv2d(wide, width, 1, bias=False),
            )
            if normed
            else None
        )

    def forward(self, x: Tensor) -> Tensor:
        if self.pool is not None:
            x = x + self.pool(x)
        return self.fuse(self.conv(x) + x)


def tiny_encoder(channels: int, width: int = 64, normed: bool = False) -> nn.Sequential:
    """(B, 3, H, W) in [0, 1] -> (B, channels, H/8, W/8). FLUX.2's is `normed` at the lowest resolution."""
    layers: list[nn.Module] = [_conv(3, width), Block(width)]
    for level in range(3):
        blocks = (Block(width, normed and level == 2) for _ in range(3))
        layers += [_conv(width, width, stride=2, bias=False), *blocks]
    return nn.Sequential(*layers, _conv(width, channels))


def tiny_decoder(channels: int, width: int = 64, normed: bool = False) -> nn.Sequential:
    """(B, channels, h, w) -> (B, 3, 8h, 8w), about [0, 1]. FLUX.2's is `normed` at the lowest resolution."""
    layers: list[nn.Module] = [Clamp(), _conv(channels, width), nn.ReLU()]
    for level in range(3):
        blocks = (Block(width, normed and level == 0) for _ in range(3))
        layers += [*blocks, nn.Upsample(scale_factor=2), _conv(width, width, bias=False)]
    return nn.Sequential(*layers, Block(width), _conv(width, 3))


def tiny_autoencoder(
    space: LatentSpace, encoder: Mapping[str, Tensor], decoder: Mapping[str, Tensor], origin: object
) -> Autoencoder:
    """The autoencoder of these weights, which tell its width and whether it is normed. Raises ValueError that names
    `origin`."""
    normed = "11.pool.0.weight" in encoder
    nets = (
        tiny_encoder(space.channels, encoder["0.weight"].shape[0], normed),
        tiny_decoder(space.channels, decoder["1.weight"].shape[0], normed),
    )
    # Norms see the whole of a picture of 2048 px: windows of a smaller one have statistics, so tones, of their own.
    vae = Autoencoder(space, *nets, tile=256, overlap=64) if normed else Autoencoder(space, *nets)
    try:
        vae.encoder.load_state_dict(encoder)
        vae.decoder.load_state_dict(decoder)
    except RuntimeError as error:
        raise ValueError(f"{origin} is not a TAESD autoencoder: {' '.join(str(error).split())[:300]}") from error
    return vae


def _conv(c_in: int, c_out: int, stride: int = 1, bias: bool = True) -> nn.Conv2d:
    return nn.Conv2d(c_in, c_out, 3, stride=stride, padding=1, bias=bias)
