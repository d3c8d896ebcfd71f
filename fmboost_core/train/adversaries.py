"""Discriminators of the third stage: on pictures, on frozen features of pictures, and on latents."""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

import torch
import torch.nn.functional as F
from einops import rearrange
from torch import Tensor, nn
from torch.nn.utils.parametrizations import spectral_norm


class Views(NamedTuple):
    """What the adversaries see of a batch, each with what it is judged against."""

    picture: Tensor  # (B, 3, H, W) in [0, 1]
    low_picture: Tensor  # the decoded low latent, enlarged to the same size
    features: Sequence[Tensor]  # of the picture
    low_features: Sequence[Tensor]
    latents: Tensor  # (B, C, h, w)
    upsampled: Tensor  # of the context

    def detached(self) -> Views:
        """The same without gradients."""
        features, low = ([f.detach() for f in maps] for maps in (self.features, self.low_features))
        return Views(self.picture.detach(), self.low_picture, features, low, self.latents.detach(), self.upsampled)


class Scores(NamedTuple):
    """Of every place, higher for real: one map of the pictures, one a level of features, one of the latents."""

    picture: Sequence[Tensor]
    features: Sequence[Tensor]
    latents: Sequence[Tensor]


class Adversaries(nn.Module):
    """Spectrally normalised convolutions over small neighbourhoods, so that each judges texture, not content.

    The one on latents keeps results among real latents where decoded windows cannot see. Each is given what the model
    was given, so that a sharp picture of something else does not pass.
    """

    def __init__(self, channels: int, feature_channels: Sequence[int]) -> None:
        super().__init__()
        self.picture = nn.Sequential(
            _conv(24, 48, 3), nn.LeakyReLU(0.2), _conv(48, 96, 4, stride=2), nn.LeakyReLU(0.2), *_tail(96)
        )
        self.features = nn.ModuleList(
            nn.Sequential(_conv(2 * c, 64, 1), nn.LeakyReLU(0.2), *_tail(64)) for c in feature_channels
        )
        self.latents = nn.Sequential(
            _conv(2 * channels, 96, 3),
            nn.LeakyReLU(0.2),
            _conv(96, 96, 3),
            nn.LeakyReLU(0.2),
            _conv(96, 128, 4, stride=2),
            nn.LeakyReLU(0.2),
            *_tail(128),
        )

    def forward(self, views: Views) -> Scores:
        pictures = 2 * torch.cat([views.picture, views.low_picture], dim=1) - 1
        folded = rearrange(pictures, "b c (h p) (w q) -> b (c p q) h w", p=2, q=2)
        pairs = zip(self.features, views.features, views.low_features, strict=True)
        return Scores(
            [self.picture(folded)],
            [head(torch.cat([map_, low], dim=1)) for head, map_, low in pairs],
            [self.latents(torch.cat([views.latents, views.upsampled], dim=1))],
        )


def hinge(real: Sequence[Tensor], made: Sequence[Tensor]) -> Tensor:
    """The adversaries' loss (Lim and Ye 2017): real places above 1, made ones below -1."""
    losses = [F.relu(1 - r).mean() + F.relu(1 + m).mean() for r, m in zip(real, made, strict=True)]
    return torch.stack(losses).mean()


def deceived(made: Sequence[Tensor]) -> Tensor:
    """The network's loss against them."""
    return -torch.stack([m.mean() for m in made]).mean()


def _conv(c_in: int, c_out: int, side: int, stride: int = 1) -> nn.Module:
    return spectral_norm(nn.Conv2d(c_in, c_out, side, stride=stride, padding=side // 2 if stride == 1 else 1))


def _tail(width: int) -> list[nn.Module]:
    return [_conv(width, width, 3), nn.LeakyReLU(0.2), nn.Conv2d(width, 1, 3, padding=1)]
