"""A small autoencoder that agrees with a larger one: pictures to its latents, its latents to its pictures.

The student has the layout of TAESD with fewer channels. Both of its halves learn from the larger one alone, on random
crops of photos, so its latents can be exchanged with the teacher's.
"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

import numpy as np
import torch
import torch.nn.functional as F
from accelerate import Accelerator
from torch import Tensor, nn

from ..images.files import load_photo
from ..images.folders import find_photos
from ..storage import write_tensors
from ..vae.autoencoder import Autoencoder
from ..vae.files import load_vae
from ..vae.tiny import tiny_decoder, tiny_encoder
from .latents import Ragged
from .loop import NETWORK, Losses
from .settings import RunSettings

LATENT_NOISE = 0.05  # so that the decoder also takes latents that are slightly off
DECODER_WEIGHT = 10.0


class AutoencoderTask:
    """The task of a run with objective ``autoencoder``; see `loop.Task`. `train.crop` is in px."""

    def __init__(self, settings: RunSettings, accelerator: Accelerator, out: Path, fresh: bool) -> None:
        self.settings, self.out = settings, out
        data, train, device = settings.data, settings.train, accelerator.device
        self.teacher = load_vae(data.vae, space=data.latent_space, device=device)
        space = self.teacher.space
        if train.crop % space.pixels:
            raise ValueError(f"train.crop is {train.crop} px: expected a multiple of {space.pixels}, a latent pixel")
        self.rank, self.size = accelerator.process_index, train.batch // accelerator.num_processes
        torch.manual_seed(train.seed)
        width = settings.autoencoder.width
        student = Autoencoder(space, tiny_encoder(space.channels, width), tiny_decoder(space.channels, width))
        self.modules: dict[str, nn.Module] = {NETWORK: _Halves(student)}
        self.rates = {NETWORK: 1.0}
        self.photos = Ragged.join([_pixels(p, data.short_sides[0]) for f in data.photos for p in find_photos(f)])
        smallest = int(torch.minimum(self.photos.heights, self.photos.widths).min())
        if smallest < train.crop:
            raise ValueError(f"a photo is {smallest} px on its short side: expected train.crop of at most that")
        self.photos = self.photos.to(device)

    def batch(self, step: int) -> dict[str, Tensor]:
        """``images`` (B, 3, crop, crop) in [0, 1], mirrored at random, and the ``noise`` of their latents."""
        train, photos, space = self.settings.train, self.photos, self.teacher.space
        rng = np.random.default_rng((train.seed, step, self.rank))
        device = photos.values.device
        chosen = torch.from_numpy(rng.integers(len(photos), size=self.size)).to(device)
        tops, lefts = (
            (torch.from_numpy(rng.random(self.size)).to(device) * (sides[chosen] - train.crop + 1)).long()
            for sides in (photos.heights, photos.widths)
        )
        images = photos.crops(chosen, tops, lefts, train.crop).float() / 255
        mirrored = torch.from_numpy(rng.random(self.size) < 0.5).to(device).view(-1, 1, 1, 1)
        side = train.crop // space.pixels
        amount = LATENT_NOISE * rng.random((self.size, 1, 1, 1), np.float32)
        noise = amount * rng.standard_normal((self.size, space.channels, side, side), np.float32)
        return {"images": images.flip(-1).where(mirrored, images), "noise": torch.from_numpy(noise).to(device)}

    def losses(self, modules: dict[str, nn.Module], batch: dict[str, Tensor], step: int) -> Losses:
        with torch.no_grad():
            latents = self.teacher.encode(batch["images"])
            given = latents + batch["noise"]
            pictures = self.teacher.decode(given)
        made, decoded = modules[NETWORK](batch["images"], given)
        encoder = (made.float() - latents).square().mean()
        decoded = decoded.float()
        decoder = F.l1_loss(decoded, pictures) + _edge_error(decoded, pictures)
        yield NETWORK, encoder + DECODER_WEIGHT * decoder, {"encoder": encoder.detach(), "decoder": decoder.detach()}

    def validate(self, weights: dict[str, Tensor], picture: Path) -> dict[str, float]:
        return {}

    def export(self, weights: dict[str, Tensor], facts: Mapping[str, object]) -> Path:
        path = self.out / f"{self.settings.name}.safetensors"
        write_tensors({k.removeprefix("student."): v.half().cpu().contiguous() for k, v in weights.items()}, path)
        return path


class _Halves(nn.Module):
    """Both halves in one forward pass, as distributed training wants it."""

    def __init__(self, student: Autoencoder) -> None:
        super().__init__()
        self.student = student

    def forward(self, images: Tensor, latents: Tensor) -> tuple[Tensor, Tensor]:
        return self.student.encoder(images), self.student.decoder(latents)


def _pixels(photo: object, short_side: int) -> Tensor:
    """(3, H, W) uint8."""
    return (load_photo(photo, short_side, 8)[0] * 255).round().to(torch.uint8)  # pyright: ignore[reportArgumentType]


def _edge_error(a: Tensor, b: Tensor) -> Tensor:
    """L1 error of the differences of neighbouring pixels: it keeps edges sharp where a mean would blur them."""
    return F.l1_loss(a.diff(dim=2), b.diff(dim=2)) + F.l1_loss(a.diff(dim=3), b.diff(dim=3))
