"""What the library needs of an autoencoder, whoever made it."""

from __future__ import annotations

from typing import Protocol

from torch import Tensor


class VAE(Protocol):
    """Images (B, 3, H, W) in [0, 1] to scaled latents (B, C, h, w), and back."""

    def encode(self, images: Tensor) -> Tensor: ...

    def decode(self, latents: Tensor) -> Tensor: ...
