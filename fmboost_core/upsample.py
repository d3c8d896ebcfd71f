"""From the small latent to a latent of the target size: the deterministic part of x0 (paper Fig. 3, Tab. 1)."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Protocol

import torch.nn.functional as F
from torch import Tensor

from .transport import Convolution

UPSAMPLINGS = ("nearest", "bilinear", "psu")


class VAE(Protocol):
    """What pixel-space upsampling and back projection need of an autoencoder: images in [0, 1], latents scaled."""

    @property
    def coarse(self) -> bool:
        """Too far from the autoencoder the latents come from to correct them by: no back projection."""
        ...

    def encode(self, images: Tensor) -> Tensor: ...

    def decode(self, latents: Tensor) -> Tensor: ...


def upsample(low: Tensor, scale: int, kind: str, vae: VAE | None = None, picture: Tensor | None = None) -> Tensor:
    """(B, C, h, w) scaled latents -> (B, C, scale*h, scale*w).

    `kind`: ``nearest`` or ``bilinear`` interpolate the latent; ``psu`` decodes it, interpolates the picture
    bilinearly and encodes it again, which needs `vae`; `picture` is the decoded low latent, where it is at hand.
    Raises ValueError for another kind or a missing `vae`.
    """
    if kind == "psu":
        if vae is None:
            raise ValueError(
                "this model starts from pixel-space upsampling (psu) and no vae was given: "
                "pass the autoencoder of its latents as vae="
            )
        return vae.encode(resize_pixels(vae.decode(low) if picture is None else picture, scale)).to(low)
    if kind == "nearest":
        return F.interpolate(low, scale_factor=scale, mode="nearest")
    if kind == "bilinear":
        return F.interpolate(low, scale_factor=scale, mode="bilinear", align_corners=False)
    raise ValueError(f"unknown upsampling {kind!r}: expected one of {', '.join(UPSAMPLINGS)}")


def fold_picture(picture: Tensor, pixels: int) -> Tensor:
    """(B, 3, H, W) in [0, 1] -> (B, 3 * pixels^2, H / pixels, W / pixels) in [-1, 1]: each block of pixels becomes the
    channels of one."""
    return F.pixel_unshuffle(2 * picture - 1, pixels)


def reduce_pixels(images: Tensor, scale: int) -> Tensor:
    """(B, 3, H, W) -> (B, 3, H/scale, W/scale), bicubic with antialiasing, kept in [0, 1]."""
    return reduce_to(images, [side // scale for side in images.shape[2:]])


def reduce_to(images: Tensor, size: Sequence[int]) -> Tensor:
    """(B, 3, H, W) -> (B, 3, *size), bicubic with antialiasing, kept in [0, 1]; images of that size as they are."""
    if list(images.shape[2:]) == list(size):
        return images
    return F.interpolate(images, tuple(size), mode="bicubic", align_corners=False, antialias=True).clamp(0, 1)


def back_project(
    high: Tensor, picture: Tensor, scale: int, vae: VAE, rounds: int = 1, corrections: Sequence[Convolution] = ()
) -> Tensor:
    """Move a lifted latent so that its decoded image, reduced by `scale`, agrees with the `picture` of the low latent.

    Iterative back projection (Irani and Peleg 1991) across the autoencoder. With `corrections`, fitted to the model,
    what the reduced picture lacks, its pixels below a latent pixel folded to channels, moves the latent by the round's
    convolution, the last one's where there are more rounds. Without, it is enlarged and added in pixels, and the
    latent moves by the difference of the encodings with and without it. Detail finer than the low picture stays as it
    is, because the latent itself never passes the autoencoder. `high` is scaled, (B, C, H, W), `picture` (B, 3,
    p H / scale, p W / scale) in [0, 1] with p pixels a latent pixel.
    """
    for n in range(rounds):
        image = vae.decode(high)
        lacking = picture - reduce_pixels(image, scale)
        if corrections:
            correction = corrections[min(n, len(corrections) - 1)]
            high = high + correction(fold_lacking(lacking, high)).to(high)
        else:
            corrected = (image + resize_pixels(lacking, scale)).clamp(0, 1)
            high = high + (vae.encode(corrected) - vae.encode(image)).to(high)
    return high


def fold_lacking(lacking: Tensor, high: Tensor) -> Tensor:
    """(B, 3, H, W) at the size of the low picture -> (B, 3 f^2, h, w), its f x f pixels below each pixel of `high`."""
    return F.pixel_unshuffle(lacking, lacking.shape[3] // high.shape[3])


def resize_pixels(images: Tensor, scale: int) -> Tensor:
    """Bilinear enlargement of (B, 3, H, W) images, as in pixel-space upsampling."""
    return F.interpolate(images, scale_factor=scale, mode="bilinear", align_corners=False)
