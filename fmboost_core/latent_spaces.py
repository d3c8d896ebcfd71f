"""The latent spaces a model can work in.

Networks see *scaled* latents, ``(raw - shift) * scale``; ComfyUI nodes exchange *raw* ones, those of FLUX.2 with
blocks of 2x2 pixels folded into channels.
"""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True)
class LatentSpace:
    """What distinguishes the latents of one family of autoencoders."""

    name: str
    channels: int
    scale: float
    shift: float
    pixels: int
    """Image pixels along one side of a latent pixel."""
    taesd: str
    """Stem of the TAESD file names of this family, as madebyollin/taesd and ComfyUI use it."""
    fold: int = 1
    """Side of the blocks of latent pixels that ComfyUI folds into one pixel."""

    @property
    def folded_channels(self) -> int:
        """Channels of latents in ComfyUI."""
        return self.channels * self.fold**2

    @property
    def folded_pixels(self) -> int:
        """Image pixels along one side of a latent pixel in ComfyUI."""
        return self.pixels * self.fold


LATENT_SPACES = {
    space.name: space
    for space in (
        LatentSpace("sd15", channels=4, scale=0.18215, shift=0.0, pixels=8, taesd="taesd"),
        LatentSpace("sdxl", channels=4, scale=0.13025, shift=0.0, pixels=8, taesd="taesdxl"),
        LatentSpace("sd3", channels=16, scale=1.5305, shift=0.0609, pixels=8, taesd="taesd3"),
        LatentSpace("flux", channels=16, scale=0.3611, shift=0.1159, pixels=8, taesd="taef1"),
        LatentSpace("flux2", channels=32, scale=1.0, shift=0.0, pixels=8, taesd="taef2", fold=2),
    )
}


def latent_space(name: str) -> LatentSpace:
    """Return the space called `name`. Raises ValueError that lists the known names."""
    if name not in LATENT_SPACES:
        raise ValueError(f"unknown latent space {name!r}: expected one of {', '.join(LATENT_SPACES)}")
    return LATENT_SPACES[name]
