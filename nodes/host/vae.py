"""A VAE of the host as the library wants it, for models that start from pixel-space upsampling."""

from __future__ import annotations

import logging
from collections.abc import Callable
from functools import partial

import comfy.sd
from torch import Tensor

import nodes as comfy_nodes

from ...fmboost_core import LatentSpace
from ...fmboost_core.vae.family import mistaken_for
from ...fmboost_core.vae.protocol import VAE
from .files import TROUBLE
from .latents import LatentFormat
from .memory import HostModel

log = logging.getLogger(__name__)

Passed = Callable[[int], None]
MakeVAE = Callable[..., VAE | None]  # of a tile size and a `passed`
VAE_TILE = 64  # latent pixels; smaller ones see too little of their surroundings


class HostVAE:
    """(B, 3, H, W) images in [0, 1] to scaled latents and back.

    With `tile` above 0 in tiles of that many latent pixels on a side, at least `VAE_TILE`, where the VAE can be tiled;
    otherwise the host decides.
    `passed` hears of each of the two passes of a lift.
    """

    def __init__(self, vae: comfy.sd.VAE, space: LatentSpace, tile: int, passed: Passed) -> None:
        pixels, channels = vae.spacial_compression_decode(), vae.latent_channels
        # The host says 8 of the TAESD of FLUX.2, whose latent pixels are 16, and so cannot decode it in tiles.
        tiles = pixels == space.folded_pixels
        fits = channels == space.folded_channels and (tiles or pixels == space.pixels)
        if getattr(vae, "latent_dim", 2) != 2 or not fits:
            raise ValueError(
                f"the VAE has latents of {channels} channels and {pixels} pixels a side, the CFM model works on "
                f"{space.name} latents of {space.folded_channels} and {space.folded_pixels}: connect the VAE these "
                "latents come from"
            )
        self.vae, self.format, self.space = vae, LatentFormat(space), space
        self.tile, self.passed = max(tile, VAE_TILE) if tile and tiles else 0, passed

    def decode(self, latents: Tensor) -> Tensor:
        raw = self.format.process_out(latents)
        tile = self.tile // self.space.fold
        if tile and max(raw.shape[2:]) > tile:
            images = self.vae.decode_tiled(raw, tile_x=tile, tile_y=tile, overlap=tile // 4)
        else:
            images = self.vae.decode(raw)
        self.passed(1)
        return images.movedim(-1, 1).to(latents)  # the host leaves them on a device of its own choice

    def encode(self, images: Tensor) -> Tensor:
        images, tile = images.movedim(1, -1), self.tile * self.space.pixels
        if tile and max(images.shape[1:3]) > tile:
            raw = self.vae.encode_tiled(images, tile_x=tile, tile_y=tile, overlap=tile // 4)
        else:
            raw = self.vae.encode(images)
        self.passed(2)
        return self.format.process_in(raw)


def find_vae(model: HostModel, vae: comfy.sd.VAE | None, space: LatentSpace) -> MakeVAE:
    """The autoencoder for pixel-space upsampling, by tile size and listener; none for models that need none.

    It is the one connected, otherwise the TAESD of the family in the host's folders. Raises ValueError where a model
    needs one and there is none.
    """
    if model.config.flow.upsampling != "psu":
        return lambda tile, passed: None
    if vae is None:
        loader = comfy_nodes.VAELoader
        if space.taesd not in loader.vae_list(loader):
            raise ValueError(
                f"the CFM model '{model.name}' starts from pixel-space upsampling and has no autoencoder: connect the "
                f"VAE of your checkpoint to the vae input, or put {space.taesd}_encoder and {space.taesd}_decoder into "
                "models/vae_approx"
            )
        log.info("CFM Latent Upscale: no VAE connected, using %s from models/vae_approx", space.taesd)
        vae = loader().load_vae(space.taesd)[0]
    return partial(HostVAE, vae, space)


def doubts_about(vae: comfy.sd.VAE | None, model: HostModel, space: LatentSpace) -> str:
    """A sentence about a VAE of another family with as many channels, which would lift into wrong colours; otherwise
    empty. It costs one encode of 64x128 pixels."""
    if vae is None or model.config.flow.upsampling != "psu":
        return ""
    other = mistaken_for(HostVAE(vae, space, 0, lambda number: None), space)
    if other is None:
        return ""
    return (
        f"the VAE makes latents with the colours of {other.name} and the CFM model works on {space.name} latents: if "
        f"the result has wrong colours, connect the VAE that the samples come from ({TROUBLE})"
    )
