"""Linear maps that end a lift, fitted to a trained model on photos. Not in the paper.

Corrections are the rounds of back projection (`upsample.back_project`): what the reduced picture lacks is given to the
latents by a convolution, where without one it passes the autoencoder's encoder twice. Least squares against the photos'
latents (`Regression`): only what the low picture shows can be corrected, so detail finer than that stays.

The transport gives the latents the statistics of the photos'.

A small network's results have too little contrast in some directions of the latent and too much in others. The map that
takes their Gaussian to that of the truth at the least cost is known in closed form (optimal transport; for restoration
in an autoencoder's latents: Adrai et al. 2023, arXiv 2306.02342). It is fitted to a trained model in minutes, and is a
convolution of a few hundred numbers. Back projection changes the statistics, so a model that has it has two transports:
for lifts with it and without.
"""

from __future__ import annotations

from typing import NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor

PATCH = 3  # latent pixels on a side, of transports and of corrections
SIDE = 2 * PATCH - 1
"""Of a transport's convolution: a pixel's patches reach so far."""
TINY = 1e-5  # variance below which a direction counts as empty; latents have about 1
RIDGE = 1e-4  # of the mean square of the inputs


class Convolution(NamedTuple):
    """A linear map of images (B, inputs, H, W) to (B, outputs, H, W), their borders repeated."""

    weight: Tensor  # (outputs, inputs, side, side)
    bias: Tensor  # (outputs,)

    def __call__(self, images: Tensor) -> Tensor:
        around = (self.weight.shape[-1] // 2,) * 4
        return F.conv2d(F.pad(images, around, mode="replicate"), self.weight.to(images), self.bias.to(images))


class Regression:
    """The convolution of PATCH x PATCH that takes images (B, inputs, H, W) closest to targets (B, outputs, H, W), by
    least squares in float64 over all that was added, the weights held small by `RIDGE`."""

    def __init__(self) -> None:
        self.inputs = 0
        self.square = self.shared = torch.zeros((), dtype=torch.float64)

    def add(self, images: Tensor, targets: Tensor) -> None:
        self.inputs = images.shape[1]
        padded = F.pad(images.double(), (PATCH // 2,) * 4, mode="replicate")
        patches = F.unfold(padded, PATCH).movedim(1, 0).flatten(1).cpu()
        patches = torch.cat([patches, torch.ones_like(patches[:1])])  # of the bias
        wanted = targets.double().movedim(1, 0).flatten(1).cpu()
        self.square = self.square + patches @ patches.T
        self.shared = self.shared + patches @ wanted.T

    def solve(self) -> Convolution:
        small = torch.full((len(self.square),), RIDGE * self.square.diagonal()[:-1].mean().item(), dtype=torch.float64)
        small[-1] = 0
        found = torch.linalg.solve(self.square + torch.diag(small), self.shared).T
        return Convolution(found[:, :-1].reshape(-1, self.inputs, PATCH, PATCH).float(), found[:, -1].float())


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


def optimal_transport(results: Moments, truths: Moments, strength: float = 1.0) -> Convolution:
    """From the moments of a model's results to those of the photos' latents; `strength` 0 stays, 1 goes all the way.

    What patch-wise transport, averaged where patches overlap, comes to, (C, C, SIDE, SIDE).

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
    return Convolution(weight.float(), (moved - weight.sum(dim=(2, 3)) @ mean).float())


def _root(covariance: Tensor) -> tuple[Tensor, Tensor]:
    """Its symmetric square root, and the inverse of that."""
    values, vectors = torch.linalg.eigh(covariance)
    values = values.clamp(min=TINY).sqrt()
    return (vectors * values) @ vectors.T, (vectors / values) @ vectors.T
