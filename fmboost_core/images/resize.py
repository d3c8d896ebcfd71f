"""Images as tensors, made larger and smaller."""

from __future__ import annotations

from collections.abc import Sequence

import torch.nn.functional as F
from torch import Tensor


def enlarge(images: Tensor, scale: int) -> Tensor:
    """(B, 3, H, W) -> (B, 3, scale*H, scale*W), bilinear, as in pixel-space upsampling."""
    return F.interpolate(images, scale_factor=scale, mode="bilinear", align_corners=False)


def reduce(images: Tensor, scale: int) -> Tensor:
    """(B, 3, H, W) -> (B, 3, H/scale, W/scale), bicubic with antialiasing, clamped to [0, 1]."""
    return resize(images, [side // scale for side in images.shape[2:]])


def resize(images: Tensor, size: Sequence[int]) -> Tensor:
    """(B, 3, H, W) -> (B, 3, *size), bicubic with antialiasing, clamped to [0, 1]; images of that size pass through."""
    if list(images.shape[2:]) == list(size):
        return images
    return F.interpolate(images, tuple(size), mode="bicubic", align_corners=False, antialias=True).clamp(0, 1)


def centre_square(image: Tensor, side: int) -> Tensor:
    """The middle (B, 3, side, side) of an image (B, 3, H, W) at least that large."""
    top, left = ((length - side) // 2 for length in image.shape[2:])
    return image[:, :, top : top + side, left : left + side]
