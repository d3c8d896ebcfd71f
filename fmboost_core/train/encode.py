"""Photos to cached examples, one file each, named after everything that decides its contents."""

from __future__ import annotations

import hashlib
import json
import logging
import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import Tensor
from tqdm import tqdm

from ..config import FlowConfig
from ..images.files import load_photo
from ..images.folders import Photo, read_bytes
from ..images.resize import enlarge, reduce
from ..storage import write_tensors
from ..vae.autoencoder import Autoencoder
from ..vae.protocol import VAE

log = logging.getLogger(__name__)

VERSION = 1
"""Of what `encode_example` does: a new one makes every cached example new."""


@dataclass(frozen=True)
class Variant:
    """One way to look at a photo: its size and whether it is mirrored."""

    short_side: int | None
    flip: bool


@dataclass(frozen=True)
class Encoder:
    """What turns photos into examples."""

    vae: Autoencoder
    flow: FlowConfig

    @property
    def identity(self) -> dict[str, str | int]:
        """What the examples depend on beside the photos."""
        return {
            "version": VERSION,
            "latent_space": self.vae.space.name,
            "scale": self.flow.scale,
            "autoencoder": self.vae.fingerprint(),
            "dtype": str(self.vae.dtype).removeprefix("torch."),  # latents of bfloat16 are rounded
            "psu": int(self.flow.upsampling == "psu"),
        }


@torch.inference_mode()
def encode_example(photo: Tensor, flow: FlowConfig, vae: VAE) -> dict[str, Tensor]:
    """One (1, 3, H, W) photo as latents: ``high`` (C, h, w) and ``low`` (C, h/scale, w/scale), and what else is needed.

    For a model of scale 2 also ``lower``, that of the photo reduced twice, to train cascades from; for pixel-space
    upsampling ``psu``, and ``picture``, the decoded low latent (3, H/scale, W/scale).
    """
    reduced = reduce(photo, flow.scale)
    low = vae.encode(reduced)
    example = {"high": vae.encode(photo)[0], "low": low[0]}
    if flow.scale == 2:
        example["lower"] = vae.encode(reduce(reduced, flow.scale))[0]
    if flow.upsampling == "psu":
        picture = vae.decode(low)
        example |= {"picture": picture[0], "psu": vae.encode(enlarge(picture, flow.scale))[0]}
    return example


def compact(example: dict[str, Tensor]) -> dict[str, Tensor]:
    """Half precision for latents and bytes for the picture."""
    return {
        kind: ((value * 255).round().to(torch.uint8) if kind == "picture" else value.half()).cpu().contiguous()
        for kind, value in example.items()
    }


def encode_photos(
    photos: Sequence[Photo], variants: Sequence[Variant], cache: str | Path, encoder: Encoder, share: tuple[int, int]
) -> list[Path]:
    """Encode every photo in every variant into the folder `cache`; what is there already is kept.

    Returns the files, photo by photo, without those of photos that cannot be used, which the log names. A file's
    name is a digest of the photo's contents, the variant and the encoder, so it is never taken for another's. `share`
    is (number, of how many): a process encodes its own share and waits for the files of the others.
    """
    cache = Path(cache)
    cache.mkdir(parents=True, exist_ok=True)
    multiple = encoder.vae.space.pixels * encoder.flow.scale * (2 if encoder.flow.scale == 2 else 1)
    key = json.dumps(encoder.identity, sort_keys=True)
    jobs: list[tuple[Photo, Variant, Path]] = []
    for photo in photos:
        try:
            contents = read_bytes(photo)
        except OSError as error:
            log.warning("skipped %s: %s", photo, error)
            continue
        for variant in variants:
            digest = hashlib.sha256(f"{key} {variant}".encode() + contents)
            jobs.append((photo, variant, cache / f"{digest.hexdigest()[:40]}.safetensors"))
    for photo, variant, file in tqdm(
        jobs[share[0] :: share[1]], desc="encoding photos", unit="photo", disable=share[0] > 0
    ):
        if file.exists() or _unusable(file).exists():
            continue
        try:
            image = load_photo(photo, variant.short_side, multiple, variant.flip)
        except (OSError, ValueError) as error:
            _unusable(file).write_text(str(error), encoding="utf-8")
            continue
        write_tensors(compact(encode_example(image, encoder.flow, encoder.vae)), file)
    for photo, _, file in jobs:  # no collective here: it would run into the process group's time limit
        while not file.exists() and not _unusable(file).exists():
            time.sleep(1)
        if not file.exists() and share[0] == 0:
            log.warning("skipped %s: %s", photo, _unusable(file).read_text(encoding="utf-8"))
    usable = [file for _, _, file in jobs if file.exists()]
    if not usable:
        raise ValueError(f"none of the {len(photos)} photos could be used")
    return usable


def _unusable(file: Path) -> Path:
    return file.with_suffix(".unusable")
