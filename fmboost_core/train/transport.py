"""Give a reflow's pairs the statistics of the photos' latents: not in the paper.

A small network's results have too little contrast in some directions of the latent and too much in others. The linear
map that takes their Gaussian to that of the truth at the least cost is known in closed form (optimal transport; for
restoration in an autoencoder's latents: Adrai et al. 2023, arXiv 2306.02342). It is fitted on the results themselves,
applied to them, and learnt with them: nothing is added to the model.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor

PATCH = 3  # latent pixels on a side
TINY = 1e-5  # variance below which a direction counts as empty; latents have about 1


class Transport(NamedTuple):
    """A convolution of latents (B, C, H, W): what patch-wise transport, averaged where patches overlap, comes to."""

    weight: Tensor
    bias: Tensor

    def __call__(self, latents: Tensor) -> Tensor:
        around = (self.weight.shape[-1] // 2,) * 4
        return F.conv2d(F.pad(latents, around, mode="replicate"), self.weight, self.bias)


def fit_transport(results: Sequence[Tensor], truths: Sequence[Tensor], strength: float = 1.0) -> Transport:
    """From latents (C, H, W) of any size, each list over the same photos; `strength` 0 is the identity, 1 all of it.

    With covariances A of the results' and B of the truths' patches of 3 x 3 latent pixels, the map is
    A^(-1/2) (A^(1/2) B A^(1/2))^(1/2) A^(-1/2) (Olkin and Pukelsheim 1982), and means go to means.
    """
    (mean, a), (wanted, b) = _moments(results), _moments(truths)
    root, inverse = _root(a)
    transport = inverse @ _root(root @ b @ root)[0] @ inverse  # symmetric, (C 3 3, C 3 3)
    channels, side = len(mean), 2 * PATCH - 1
    pixels = transport.view(channels, PATCH, PATCH, channels, PATCH, PATCH) / PATCH**2
    weight = torch.zeros(channels, channels, side, side, dtype=a.dtype)
    for y in range(PATCH):  # of the pixel in the patch; the patch begins PATCH - 1 - y rows into the window around it
        for x in range(PATCH):
            top, left = PATCH - 1 - y, PATCH - 1 - x
            weight[:, :, top : top + PATCH, left : left + PATCH] += pixels[:, y, x]
    identity = torch.zeros_like(weight)
    identity[range(channels), range(channels), side // 2, side // 2] = 1
    weight = identity + strength * (weight - identity)
    moved = mean + strength * (wanted - mean)
    return Transport(weight.float(), (moved - weight.sum(dim=(2, 3)) @ mean).float())


def transported(examples: Iterable[dict[str, Tensor]], strength: float) -> list[dict[str, Tensor]]:
    """Examples of a reflow with their results moved towards the statistics of the photos' latents, their ``truth``.

    Raises ValueError where they bring no truth: they are not a reflow's, or were made before it was kept.
    """
    examples = list(examples)
    if any("truth" not in example for example in examples):
        raise ValueError(
            "data.reflow_transport needs the photos' latents beside the results, and this cache has none: it goes with "
            "data.reflow_model, and a cache that was made without it has to be made again"
        )
    transport = fit_transport([e["high"] for e in examples], [e.pop("truth") for e in examples], strength)
    return [{**e, "high": transport(e["high"][None].float())[0].half()} for e in examples]


def _moments(latents: Sequence[Tensor]) -> tuple[Tensor, Tensor]:
    """Means of the channels and the covariance of patches, in float64."""
    channels = latents[0].shape[0]
    count, total = 0, torch.zeros(channels * PATCH**2, dtype=torch.float64)
    square = torch.zeros(len(total), len(total), dtype=torch.float64)
    for latent in latents:
        patches = F.unfold(latent[None].double(), PATCH)[0]
        count, total, square = count + patches.shape[1], total + patches.sum(dim=1), square + patches @ patches.T
    mean = total / count
    return mean.view(channels, -1).mean(dim=1), square / count - torch.outer(mean, mean)


def _root(covariance: Tensor) -> tuple[Tensor, Tensor]:
    """Its symmetric square root, and the inverse of that."""
    values, vectors = torch.linalg.eigh(covariance)
    values = values.clamp(min=TINY).sqrt()
    return (vectors * values) @ vectors.T, (vectors / values) @ vectors.T
