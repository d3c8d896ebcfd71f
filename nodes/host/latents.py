"""LATENT dicts: what nodes exchange, and what networks see."""

from __future__ import annotations

from typing import Any

import comfy.latent_formats
import comfy.model_management as mm
import torch
import torch.nn.functional as F
from torch import Tensor

from ...fmboost_core import LATENT_SPACES, CFMModel, LatentSpace
from .files import TROUBLE

_FORMATS = {
    "sd15": comfy.latent_formats.SD15,
    "sdxl": comfy.latent_formats.SDXL,
    "sd3": comfy.latent_formats.SD3,
    "flux": comfy.latent_formats.Flux,
    "flux2": comfy.latent_formats.Flux2,
}


class Latents:
    """The tensor in a LATENT as rows (N, C, h, w) float32, and the way back to what nodes pass on.

    A row is an image, or one frame of an image (B, C, T, h, w), whose frames follow one another.
    """

    def __init__(self, latent: dict[str, Any], what: str = "samples") -> None:
        """Raises ValueError for what is no picture: sound, nested, not finite or all-zero latents."""
        samples = latent["samples"]
        if getattr(samples, "is_nested", False):
            raise ValueError(f"{what} holds several latents in one (video with sound): expected latents of pictures")
        if samples.ndim not in (4, 5):
            raise ValueError(
                f"{what} has shape {tuple(samples.shape)}: expected the latents of pictures, "
                "(batch, channels, height, width)"
            )
        if not samples.isfinite().all():
            raise ValueError(
                f"{what} holds values that are not finite (NaN or infinity): the node before it failed; "
                f"if that is a VAE or a sampler in half precision, run it in float32 ({TROUBLE})"
            )
        if not samples.any():
            raise ValueError(
                f"{what} is all zeros, as from Empty Latent Image: connect the latent of a picture, "
                "from KSampler or VAE Encode"
            )
        self.origin, self.frames = latent, samples.shape[2] if samples.ndim == 5 else 0
        rows = samples.movedim(2, 1).flatten(0, 1) if self.frames else samples
        self.raw = rows.float()

    @property
    def batch_index(self) -> tuple[int, ...]:
        """What chooses the noise of each row: all frames of an image have its entry. Raises ValueError where entries
        and images are not as many."""
        per_image = max(self.frames, 1)
        images = self.raw.shape[0] // per_image
        entries = list(self.origin.get("batch_index") or range(images))
        if len(entries) != images:
            raise ValueError(
                f"the samples are {_count(images, 'image', 'images')} and their batch_index has "
                f"{_count(len(entries), 'entry', 'entries')}: expected one entry for each image; a node before this "
                "one changed the batch and did not keep its batch_index"
            )
        return tuple(entry for entry in entries for _ in range(per_image))

    def repack(self, rows: Tensor, **entries: Any) -> dict[str, Any]:
        """A LATENT with `rows` in place of those that came in, `entries` set, and every other key kept."""
        latent = self.origin.copy()
        latent.pop("downscale_ratio_spacial", None)  # newer hosts: of empty latents only
        latent.pop("downscale_ratio_temporal", None)
        samples = rows.unflatten(0, (-1, self.frames)).movedim(1, 2) if self.frames else rows
        return {**latent, "samples": _passed_on(samples), **entries}

    def pack(self, rows: Tensor) -> dict[str, Any]:
        """A LATENT of `rows` alone, which are not those that came in: each is an image, of one frame."""
        return {"samples": _passed_on(rows.unsqueeze(2) if self.frames else rows)}


def _passed_on(samples: Tensor) -> Tensor:
    return samples.to(mm.intermediate_device(), getattr(mm, "intermediate_dtype", lambda: torch.float32)())


def _count(number: int, one: str, many: str) -> str:
    return f"{number} {one if number == 1 else many}"


class LatentFormat:
    """Raw latents, which nodes pass on, as scaled ones, which networks see, and back."""

    def __init__(self, space: LatentSpace) -> None:
        self.host: comfy.latent_formats.LatentFormat = _FORMATS[space.name]()  # which also knows colours of previews
        self.side = space.fold

    def process_in(self, raw: Tensor) -> Tensor:
        """Raw (N, C * fold^2, h, w) -> scaled (N, C, fold * h, fold * w)."""
        return F.pixel_shuffle(self.host.process_in(raw), self.side)

    def process_out(self, scaled: Tensor) -> Tensor:
        """Scaled (N, C, fold * h, fold * w) -> raw (N, C * fold^2, h, w)."""
        return self.host.process_out(self.fold(scaled))

    def fold(self, scaled: Tensor) -> Tensor:
        """Scaled latents in the layout of the host."""
        return F.pixel_unshuffle(scaled, self.side)


def choose_space(model: CFMModel, choice: str, latents: Latents) -> LatentSpace:
    """The latent space of the model, or the one chosen instead.

    Raises ValueError where channels differ, and for frames of 16 channels unless their space is chosen by name: they
    mostly come from models with another latent space of as many channels.
    """
    if choice == "auto":
        if latents.frames and model.space.channels == 16:
            raise ValueError(
                f"the samples have frames and 16 channels, as latents of Wan, Qwen-Image and HunyuanVideo do, and the "
                f"model was trained on {model.space.name} latents: use a model of their family; if they are "
                f"{model.space.name} latents all the same, set latent_space to {model.space.name}"
            )
        return model.space
    space = LATENT_SPACES[choice]
    if space.channels != model.space.channels:
        raise ValueError(
            f"latent_space is {choice} ({space.folded_channels} channels) and the model was trained on "
            f"{model.space.name} ({model.space.folded_channels} channels): choose auto, or a model of that family"
        )
    return space
