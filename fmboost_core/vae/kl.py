"""The full autoencoders of the diffusion models, as diffusers stores them."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from ..latent_spaces import LatentSpace, latent_space
from .autoencoder import Autoencoder

CLASSES = ("AutoencoderKL", "AutoencoderKLFlux2")


class _Encoder(nn.Module):
    def __init__(self, kl: Any, space: LatentSpace) -> None:
        super().__init__()
        self.kl, self.space = kl, space

    def forward(self, images: Tensor) -> Tensor:
        shift, scale = _scaling(self.kl, self.space)
        folded = F.pixel_unshuffle(self.kl.encode(2 * images - 1).latent_dist.mode(), self.space.fold)
        return F.pixel_shuffle((folded - shift) * scale, self.space.fold)


class _Decoder(nn.Module):
    def __init__(self, kl: Any, space: LatentSpace) -> None:
        super().__init__()
        self.kl, self.space = kl, space

    def forward(self, latents: Tensor) -> Tensor:
        shift, scale = _scaling(self.kl, self.space)
        folded = F.pixel_unshuffle(latents, self.space.fold) / scale + shift
        return (self.kl.decode(F.pixel_shuffle(folded, self.space.fold)).sample + 1) / 2


def _scaling(kl: Any, space: LatentSpace) -> tuple[Tensor | float, Tensor | float]:
    """Shift and scale of the folded latents: the numbers of the space, or those of each channel that FLUX.2's
    autoencoder keeps."""
    if space.fold == 1:
        return space.shift, space.scale
    mean, variance = (value.view(1, -1, 1, 1) for value in (kl.bn.running_mean, kl.bn.running_var))
    return mean, torch.rsqrt(variance + kl.config.batch_norm_eps)


def is_kl_folder(folder: Path) -> bool:
    """Whether one of diffusers' `CLASSES` wrote this folder. Raises ValueError for a config.json that is not JSON."""
    config = folder / "config.json"
    if not config.is_file():
        return False
    try:
        found = json.loads(config.read_text(encoding="utf-8"))
    except ValueError as error:
        raise ValueError(f"{config} is not JSON ({error}): get the file again") from error
    return isinstance(found, dict) and found.get("_class_name") in CLASSES


def load_kl(folder: Path, space: str | None) -> Autoencoder:
    """The autoencoder in `folder`, with latents scaled by the numbers of `space`, those of FLUX.2 by its own.

    `encode` returns the mode. Raises ValueError where diffusers is missing or too old, or the space is not named or
    has another number of channels.
    """
    try:
        from diffusers import AutoencoderKL, AutoencoderKLFlux2
    except ImportError as error:
        raise ValueError(f"{folder} needs diffusers: install it with pip install 'fmboost[paper]'") from error
    if space is None:
        raise ValueError(f"{folder} does not tell its latent space: name it with space=")
    found = latent_space(space)
    kind: Any = AutoencoderKL if found.fold == 1 else AutoencoderKLFlux2
    kl: Any = kind.from_pretrained(folder, local_files_only=True)
    if kl.config.latent_channels != found.channels:
        raise ValueError(
            f"{folder} makes latents of {kl.config.latent_channels} channels: {space} latents have {found.channels}; "
            "choose the autoencoder of that family"
        )
    # Attention and norms see the whole of a 1024 px picture.
    return Autoencoder(found, _Encoder(kl, found), _Decoder(kl, found), tile=128, overlap=32)
