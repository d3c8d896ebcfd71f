"""The last step of a lift: a linear map that gives its latents the statistics of the photos'. Not in the paper.

A small network's results have too little contrast in some directions of the latent and too much in others. The map that
takes their Gaussian to that of the truth at the least cost is known in closed form (optimal transport; for restoration
in an autoencoder's latents: Adrai et al. 2023, arXiv 2306.02342). It is fitted to a trained model in minutes, and is a
convolution of a few hundred numbers. Back projection changes the statistics, so a model that has it has two maps: for
lifts with it and without.
"""

from __future__ import annotations

from typing import NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor

PATCH = 3  # latent pixels on a side
SIDE = 2 * PATCH - 1
"""Of the convolution: a pixel's patches reach so far."""
TINY = 1e-5  # variance below which a direction counts as empty; latents have about 1


class Transport(NamedTuple):
    """A convolution of latents (B, C, H, W): what patch-wise transport, averaged where patches overlap, comes to."""

    weight: Tensor  # (C, C, SIDE, SIDE)
    bias: Tensor  # (C,)

    def __call__(self, latents: Tensor) -> Tensor:
        around = (self.weight.shape[-1] // 2,) * 4
        return F.conv2d(F.pad(latents, around, mode="replicate"), self.weight.to(latents), self.bias.to(latents))


class Moments:
    """Means of the channels and covariance of the 3 x 3 patches of many latents (B, C, H, W), in float64."""

    def __init__(self) -> None:
        self.count, self.channels = 0, 0
        self.total = self.square = torch.zeros((), dtype=torch.float64)

    def add(self, latents: Tensor) -> None:
        patches = F.unfold(latents.double(), PATCH).movedim(1, 0).flatten(1).cpu()
        self.count, self.channels = self.count + patches.shape[1], latents.shape[1]
        self.total = self.total + patches.sum(dim=1)
        self.square = self.square + patches @ patches.T

    @property
    def mean(self) -> Tensor:
        return self.total.view(self.channels, -1).mean(dim=1) / self.count

    @property
    def covariance(self) -> Tensor:
        mean = self.total / self.count
        return self.square / self.count - torch.outer(mean, mean)


def optimal_transport(results: Moments, truths: Moments, strength: float = 1.0) -> Transport:
    """From the moments of a model's results to those of the photos' latents; `strength` 0 stays, 1 goes all the way.

    With covariances A and B of their patches the map is A^(-1/2) (A^(1/2) B A^(1/2))^(1/2) A^(-1/2) (Olkin and
    Pukelsheim 1982), and means go to means.
    """
    root, inverse = _root(results.covariance)
    transport = inverse @ _root(root @ truths.covariance @ root)[0] @ inverse  # symmetric, (C 3 3, C 3 3)
    channels = results.channels
    pixels = transport.view(channels, PATCH, PATCH, channels, PATCH, PATCH) / PATCH**2
    weight = torch.zeros(channels, channels, SIDE, SIDE, dtype=torch.float64)
    for y in range(PATCH):  # of the pixel in the patch; the patch begins PATCH - 1 - y rows into the window around it
        for x in range(PATCH):
            top, left = PATCH - 1 - y, PATCH - 1 - x
            weight[:, :, top : top + PATCH, left : left + PATCH] += pixels[:, y, x]
    identity = torch.zeros_like(weight)
    identity[range(channels), range(channels), SIDE // 2, SIDE // 2] = 1
    weight = identity + strength * (weight - identity)
    mean = results.mean
    moved = mean + strength * (truths.mean - mean)
    return Transport(weight.float(), (moved - weight.sum(dim=(2, 3)) @ mean).float())


def _root(covariance: Tensor) -> tuple[Tensor, Tensor]:
    """Its symmetric square root, and the inverse of that."""
    values, vectors = torch.linalg.eigh(covariance)
    values = values.clamp(min=TINY).sqrt()
    return (vectors * values) @ vectors.T, (vectors / values) @ vectors.T
