"""Whether an autoencoder is of the family that it is taken for, told by the colours that its latents stand for."""

from __future__ import annotations

from itertools import product

import torch
import torch.nn.functional as F

from ..latent_spaces import LATENT_SPACES, LatentSpace
from .protocol import VAE

# The best linear map from a scaled latent pixel to the colour it decodes to, by least squares on photographs: for red,
# green and blue the weights of the channels, in thousandths.
COLOURS = {
    "sd15": ((155, 112, -61, -107), (139, 123, 70, -179), (133, 85, 137, -255)),
    "sdxl": ((205, -106, 61, -150), (231, -14, 38, -132), (233, 47, -3, -118)),
    "sd3": (
        (-26, -8, 75, 61, 26, 32, 74, -11, -56, -19, 11, 10, -1, -10, -40, -53),
        (19, 9, 19, 35, 7, 75, 41, 46, -37, 16, 18, 40, 11, -16, -29, -52),
        (62, 25, -14, 57, -24, 29, 37, 65, 0, 8, 31, -17, 35, -59, -20, -46),
    ),
    "flux": (
        (-21, 19, 24, -12, 44, -11, 41, -21, -25, 63, -1, 49, 32, -48, -8, -57),
        (18, 29, -24, 8, 32, 7, 56, -22, 8, 40, 35, 20, 27, -19, -39, -40),
        (46, 50, -22, 32, 13, 6, 50, -25, 59, -19, 28, 10, 26, -57, -26, -25),
    ),
    "flux2": (
        (1, -5, -14, 91, 18, -3, -20, 0, -136, 23, -38, 18, 10, -3, -18, -36,
         16, 14, 24, 29, -2, -2, 8, 14, -8, -11, 2, -17, -9, -17, 13, 5),
        (3, -1, 1, 121, 3, 0, 13, 7, -104, 11, -20, -5, 15, -11, -9, -14,
         8, 14, 18, -8, -5, -2, -3, 11, 8, -9, -5, -16, -12, 0, 9, -10),
        (-5, 20, 21, 156, -2, -6, -28, 8, -62, 0, -7, -43, 18, -16, -3, -3,
         4, 22, 20, -9, -3, -4, -11, 21, 6, -5, -4, -16, -10, 15, 8, -20),
    ),
}  # fmt: skip
MARGIN = 0.15
LEAST = 0.4  # of the variance of the colours explained; the right family explains 0.64 and more


@torch.no_grad()
def mistaken_for(vae: VAE, space: LatentSpace) -> LatentSpace | None:
    """The family whose colours `vae` has much rather than those of `space`; None where it is what it is taken for."""
    corners = torch.tensor(list(product((0.15, 0.85), repeat=3))).T.reshape(1, 3, 2, 4)
    picture = F.interpolate(corners, scale_factor=4 * space.pixels, mode="bilinear")
    latents = vae.encode(picture).cpu()
    wanted = _centred(F.avg_pool2d(picture, space.pixels))
    fits = {}
    for name, weights in COLOURS.items():
        if len(weights[0]) == space.channels:
            found = _centred(torch.einsum("bchw,kc->bkhw", latents, torch.tensor(weights) / 1000))
            fits[name] = 1 - ((found - wanted).square().sum() / wanted.square().sum()).item()
    best = max(fits, key=fits.__getitem__)
    clearly = fits[best] > max(fits[space.name] + MARGIN, LEAST)
    return LATENT_SPACES[best] if clearly else None


def _centred(picture: torch.Tensor) -> torch.Tensor:
    return picture - picture.mean(dim=(2, 3), keepdim=True)
