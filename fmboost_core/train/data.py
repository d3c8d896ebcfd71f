"""Photos to latents, once; latents to random aligned crops, for ever.

A cached example is one photo at one size: the scaled latent of the photo (``high``), of the photo reduced by the
scale with antialiasing (``low``), and of the decoded, enlarged, re-encoded low latent (``psu``), as a model that
starts from pixel-space upsampling meets it at inference. Low latents are never reduced high latents: an
autoencoder does not commute with resizing.
"""

from __future__ import annotations

import json
import logging
import zlib
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from safetensors import SafetensorError
from safetensors.torch import load_file
from torch import Tensor
from torch.utils.data import IterableDataset

from ..photos import Photo, load_photo
from ..storage import write_tensors
from ..upsample import VAE, reduce_pixels, upsample

log = logging.getLogger(__name__)

ORDER = "order.json"
"""In a cache: its examples by name, in the order of the run that used it last."""


@torch.inference_mode()
def encode_example(
    photo: Tensor, scale: int, vae: VAE, noise: float = 0.0, rng: np.random.Generator | None = None
) -> dict[str, Tensor]:
    """One (1, 3, H, W) photo: ``high`` (C, h, w), ``psu`` (C, h, w) and ``low`` (C, h/scale, w/scale) latents, and the
    decoded low one, ``picture`` (3, H/scale, W/scale).

    With `noise` the low latent is disturbed first, as a sampler's is: by Gaussian noise from `rng` of a standard
    deviation drawn from 0 to `noise`. What is made of it passes the autoencoder as it would at inference.
    """
    low = vae.encode(reduce_pixels(photo, scale))
    if noise and rng is not None:
        drawn = torch.from_numpy(rng.standard_normal(low.shape, dtype=np.float32))
        low = low + noise * rng.random() * drawn.to(low)
    picture = vae.decode(low)
    psu = upsample(low, scale, "psu", vae, picture)
    return {"high": vae.encode(photo)[0], "low": low[0], "psu": psu[0], "picture": picture[0]}


@dataclass(frozen=True)
class Variant:
    """One way to look at every photo."""

    short_side: int | None
    flip: bool = False
    noise: float = 0.0  # greatest standard deviation on the low latent

    @property
    def name(self) -> str:
        return f"{self.short_side or 'full'}{'f' if self.flip else ''}{f'n{self.noise:g}' if self.noise else ''}"


def variants_of(short_sides: Sequence[int], flips: bool, latent_noise: float) -> list[Variant]:
    """Every size as it is; with `flips` mirrored, too; with `latent_noise` each of these once more, disturbed."""
    mirrored, noises = (False, True) if flips else (False,), (0.0, latent_noise) if latent_noise else (0.0,)
    return [Variant(side, flip, noise) for noise in noises for flip in mirrored for side in short_sides]


def cache_latents(
    photos: Sequence[Photo],
    variants: Sequence[Variant],
    cache: str | Path,
    *,
    vae: VAE,
    scale: int,
    multiple: int,
    identity: dict[str, str | int],
    reflow: Callable[[dict[str, Tensor], VAE, int], dict[str, Tensor]] | None = None,
    progress: Iterable[int] | None = None,
) -> list[Path]:
    """Encode every photo in every variant into `cache`, one file each; what is there already is kept.

    `identity` names what the latents depend on (autoencoder, scale); a cache made otherwise is refused. `reflow`
    (`reflow.Reflow`) puts a model's result in the place of the photo's latent. Photos that cannot be read are named
    in the log and skipped. Returns the files of these photos and variants.
    """
    cache = Path(cache)
    cache.mkdir(parents=True, exist_ok=True)
    _check_identity(cache, identity)
    jobs = [(photo, variant) for variant in variants for photo in photos]
    names = names_of(photos)
    files: list[Path] = []
    for i in progress if progress is not None else range(len(jobs)):
        photo, variant = jobs[i]
        target = cache / f"{names[photo]}.{variant.name}.safetensors"
        if not target.exists():
            try:
                image = load_photo(photo, variant.short_side, multiple, variant.flip)
            except (OSError, ValueError) as error:
                log.warning("skipped %s: %s", photo, error)
                continue
            rng = np.random.default_rng(zlib.crc32(target.name.encode()))  # a photo's noise is its own, for ever
            example = encode_example(image, scale, vae, variant.noise, rng)
            if reflow is not None:
                example = reflow(example, vae, int(rng.integers(2**63)))
            write_tensors(compact(example), target)
        files.append(target)
    if not files:
        raise ValueError(f"none of the {len(photos)} photos could be read")
    (cache / ORDER).write_text(json.dumps([file.name for file in files], indent=0), encoding="utf-8")
    return files


def names_of(photos: Sequence[Photo]) -> dict[Photo, str]:
    """Of their examples: the stem, and where two photos share it, a digest of the path beside it."""
    shared = Counter(photo.stem for photo in photos)
    return {p: p.stem if shared[p.stem] == 1 else f"{p.stem}-{zlib.crc32(str(p).encode()):08x}" for p in photos}


def compact(example: dict[str, Tensor]) -> dict[str, Tensor]:
    """Half precision for latents and bytes for the picture."""
    return {k: to_bytes(v) if k == "picture" else v.half().contiguous() for k, v in example.items()}


def to_bytes(picture: Tensor) -> Tensor:
    return (picture * 255).round().to(torch.uint8).contiguous()


def from_bytes(picture: Tensor) -> Tensor:
    return picture.float() / 255


def _check_identity(cache: Path, identity: dict[str, str | int]) -> None:
    record = cache / "cache.json"
    if not record.exists():
        record.write_text(json.dumps(identity, indent=1), encoding="utf-8")
        return
    found = json.loads(record.read_text(encoding="utf-8"))
    if found != identity:
        raise ValueError(f"the latent cache {cache} was made with {found}, this run has {identity}: use another folder")


GOLDEN = (5**0.5 - 1) / 2


class LatentCrops(IterableDataset[dict[str, Tensor]]):
    """Endless random aligned crops, each with its noise and its time. Example `n` depends on (seed, n) alone, so a
    run resumes exactly where it was, and several processes see together what one would.

    Yields ``high``, ``psu`` and ``noise`` (C, crop, crop), ``low`` (C, crop/scale, crop/scale), the decoded ``picture``
    of the latter (3, pixels, pixels) in [0, 1], and ``level`` and ``t`` (), uniform on [0, 1], all float32. A reflow's
    examples bring their noise, which is cropped with them. Times are evenly spread over successive examples. Process
    `rank` of `world` takes every `world`-th example from `start` on.
    """

    def __init__(
        self,
        files: Sequence[Path | dict[str, Tensor]],
        *,
        crop: int,
        scale: int,
        seed: int,
        start: int = 0,
        rank: int = 0,
        world: int = 1,
    ) -> None:
        if crop % scale:
            raise ValueError(f"a crop of {crop} latent pixels does not divide by the scale {scale}")
        self.crop, self.scale, self.seed = crop, scale, seed
        self.start, self.rank, self.world = start, rank, world
        self.examples = [e for e in map(read_example, files) if min(e["high"].shape[1:]) >= crop]
        if not self.examples:
            raise ValueError(f"no cached photo is as large as a crop of {crop} latent pixels: use a smaller crop")
        areas = np.array([e["high"].shape[1] * e["high"].shape[2] for e in self.examples], dtype=np.float64)
        self.cumulative = areas.cumsum() / areas.sum()
        self.phase = np.random.default_rng((seed, 2**32)).random()

    def __iter__(self) -> Iterator[dict[str, Tensor]]:
        n = self.start + self.rank
        while True:
            yield self.example(n)
            n += self.world

    def example(self, n: int) -> dict[str, Tensor]:
        rng = np.random.default_rng((self.seed, n))
        latents = self.examples[int(np.searchsorted(self.cumulative, rng.random()))]
        size = self.crop // self.scale
        _, height, width = latents["low"].shape
        y, x = int(rng.integers(height - size + 1)), int(rng.integers(width - size + 1))
        fold = latents["picture"].shape[2] // width  # pixels of a latent pixel
        high = crop(latents["high"], y * self.scale, x * self.scale, self.crop)
        if "noise" in latents:
            noise = crop(latents["noise"], y * self.scale, x * self.scale, self.crop)
        else:
            noise = torch.from_numpy(rng.standard_normal(high.shape, dtype=np.float32))
        return {
            "low": crop(latents["low"], y, x, size),
            "high": high,
            "psu": crop(latents["psu"], y * self.scale, x * self.scale, self.crop),
            "picture": crop(latents["picture"], y * fold, x * fold, size * fold) / 255,
            "noise": noise,
            "level": torch.tensor(rng.random(), dtype=torch.float32),
            "t": torch.tensor((n * GOLDEN + self.phase) % 1, dtype=torch.float32),
        }


def crop(latent: Tensor, top: int, left: int, size: int) -> Tensor:
    return latent[:, top : top + size, left : left + size].float()


def read_example(path: Path | dict[str, Tensor]) -> dict[str, Tensor]:
    """A cached example of its file; one that is read already as it is."""
    if isinstance(path, dict):
        return path
    try:
        return load_file(path)
    except SafetensorError as error:
        raise ValueError(f"the cached latents {path} are damaged ({error}): delete that file and run again") from error
