"""An early look at quality while a model trains: numbers against interpolation, and a picture."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import Tensor

from ..model import CFMModel
from ..photos import Photo, load_photo, save_photo
from ..upsample import VAE, upsample
from .data import encode_example
from .objectives import context_of


@dataclass(frozen=True)
class Held:
    """One held-out photo as latents, centre-cropped, and the pixels under it."""

    photo: Tensor  # (1, 3, H, W)
    low: Tensor  # (1, C, h, w)
    high: Tensor
    psu: Tensor
    picture: Tensor  # the low latent decoded


def held_out(photos: Sequence[Photo], vae: VAE, scale: int, short_side: int | None, size: int) -> list[Held]:
    """Centre crops of `size` high latent pixels, less where the scale does not divide it, of photos brought to
    `short_side`, on the device of the autoencoder's latents."""
    result, size = [], size // scale * scale
    for path in photos:
        photo = load_photo(path, short_side, 8 * scale)
        top = max(0, (photo.shape[2] - 8 * size) // 2 // (8 * scale) * 8 * scale)
        left = max(0, (photo.shape[3] - 8 * size) // 2 // (8 * scale) * 8 * scale)
        photo = photo[:, :, top : top + 8 * size, left : left + 8 * size]
        example = {k: v[None] for k, v in encode_example(photo, scale, vae).items()}
        result.append(Held(photo.to(example["high"].device), **example))
    return result


@torch.inference_mode()
def validate(
    model: CFMModel, held: Sequence[Held], vae: VAE, *, steps: int, seed: int = 0, picture: Path | None = None
) -> dict[str, float]:
    """Latent MSE to the truth and decoded PSNR (dB) to the photo, of the model and of what it must beat.

    `picture` is where to write rows of: low, nearest, pixel-space upsampling, model, truth, each decoded.
    """
    sums: dict[str, float] = {}
    rows: list[Tensor] = []
    for i, example in enumerate(held):
        candidates = {
            "nearest": upsample(example.low, model.scale, "nearest"),
            "bilinear": upsample(example.low, model.scale, "bilinear"),
            "psu": example.psu,
            "model": model.upscale(
                example.low,
                steps=steps,
                seed=seed,
                batch_index=[i],
                context=context_of(model.config.flow, vars(example)),
                back_projection=0,  # the flow alone is what learns
            ),
            "truth": example.high,
        }
        decoded = {name: vae.decode(latent) for name, latent in candidates.items()}
        for name, latent in candidates.items():
            mse = (decoded[name] - example.photo).square().mean()
            sums[f"mse_{name}"] = sums.get(f"mse_{name}", 0) + float((latent - example.high).square().mean())
            sums[f"psnr_{name}"] = sums.get(f"psnr_{name}", 0) - 10 * float(torch.log10(mse))
            sums[f"sharp_{name}"] = sums.get(f"sharp_{name}", 0) + float(_gradient(decoded[name]))
        small = example.picture
        canvas = torch.zeros_like(example.photo)
        canvas[:, :, : small.shape[2], : small.shape[3]] = small
        rows.append(torch.cat([canvas, *(decoded[n] for n in ("nearest", "psu", "model", "truth"))], dim=3))
    if picture is not None:
        save_photo(torch.cat([r for r in rows if r.shape == rows[0].shape][:8], dim=2), picture)
    return {k: v / len(held) for k, v in sums.items()}


def _gradient(images: Tensor) -> Tensor:
    """Mean squared difference of neighbouring pixels: sharpness."""
    return (images.diff(dim=2).square().mean() + images.diff(dim=3).square().mean()) / 2
