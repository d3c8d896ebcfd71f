"""LATENT dicts: what nodes exchange, and what networks see."""

from __future__ import annotations

from typing import Any

import comfy.latent_formats
import comfy.model_management as mm
import torch
from torch import Tensor

from ...fmboost_core import LATENT_SPACES, CFMModel, LatentSpace

_FORMATS = {
    "sd15": comfy.latent_formats.SD15,
    "sdxl": comfy.latent_formats.SDXL,
    "sd3": comfy.latent_formats.SD3,
    "flux": comfy.latent_formats.Flux,
}


class Latents:
    """The tensor in a LATENT as (B, C, h, w) float32, and the way back to what nodes pass on."""

    def __init__(self, latent: dict[str, Any], what: str = "samples") -> None:
        """Raises ValueError for what is no picture: video, audio, nested, not finite or all-zero latents."""
        samples = latent["samples"]
        if getattr(samples, "is_nested", False):
            raise ValueError(f"{what} holds several latents in one (video with sound): expected latents of pictures")
        self.origin, self.frames = latent, samples.ndim == 5
        if self.frames:
            if samples.shape[2] != 1:
                raise ValueError(
                    f"{what} is a video latent of {samples.shape[2]} frames: expected pictures; lift frames one by one"
                )
            samples = samples.squeeze(2)
        if samples.ndim != 4:
            raise ValueError(
                f"{what} has shape {tuple(samples.shape)}: expected the latents of pictures, "
                "(batch, channels, height, width)"
            )
        if not samples.isfinite().all():
            raise ValueError(
                f"{what} holds values that are not finite (NaN or infinity): the node before it failed; "
                "if that is a VAE or a sampler in half precision, run it in float32"
            )
        if not samples.any():
            raise ValueError(
                f"{what} is all zeros, as from Empty Latent Image: connect the latent of a picture, "
                "from KSampler or VAE Encode"
            )
        self.raw = samples.float()

    @property
    def batch_index(self) -> list[int]:
        return list(self.origin.get("batch_index") or range(self.raw.shape[0]))

    def repack(self, raw: Tensor, **entries: Any) -> dict[str, Any]:
        """A LATENT with `raw` in place of the samples, `entries` set, and every other key kept."""
        latent = self.origin.copy()
        latent.pop("downscale_ratio_spacial", None)  # newer hosts: of empty latents only
        latent.pop("downscale_ratio_temporal", None)
        return {**latent, **self.pack(raw), **entries}

    def pack(self, raw: Tensor) -> dict[str, Any]:
        """A LATENT of `raw` alone, where its rows are not those that came in."""
        dtype = getattr(mm, "intermediate_dtype", lambda: torch.float32)()
        raw = raw.to(mm.intermediate_device(), dtype)
        return {"samples": raw.unsqueeze(2) if self.frames else raw}


def latent_format(space: str) -> comfy.latent_formats.LatentFormat:
    """Scaling to and from what nodes pass on (``process_in``, ``process_out``), and the colours of previews."""
    return _FORMATS[space]()


def choose_space(model: CFMModel, choice: str) -> LatentSpace:
    """The latent space of the model, or the one chosen instead. Raises ValueError where channels differ."""
    if choice == "auto":
        return model.space
    space = LATENT_SPACES[choice]
    if space.channels != model.space.channels:
        raise ValueError(
            f"latent_space is {choice} ({space.channels} channels) and the model was trained on {model.space.name} "
            f"({model.space.channels} channels): choose auto, or a model of that family"
        )
    return space
