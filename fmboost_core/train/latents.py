"""Examples in memory: many images of different sizes in one flat tensor, and aligned crops cut by index.

An example is one photo: the scaled latent of the photo (``high``), of the photo reduced by the scale with antialiasing
(``low``), and what else `encode.encode_example` made. Low latents are never reduced high latents: an autoencoder does
not commute with resizing.
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import load_file
from torch import Tensor

from ..storage import write_tensors

METADATA_KEY = "fmboost_latents"


@dataclass(frozen=True)
class Ragged:
    """Images of different sizes and one number of channels, one after the other."""

    values: Tensor  # (total,), image after image, each (C, h, w)
    heights: Tensor  # (N,)
    widths: Tensor
    offsets: Tensor  # of the first value of an image
    channels: int

    @classmethod
    def join(cls, images: Sequence[Tensor]) -> Ragged:
        """`images` are (C, h, w) each."""
        sizes = torch.tensor([image.shape[1:] for image in images])
        counts = torch.tensor([image.numel() for image in images])
        values = torch.cat([image.reshape(-1) for image in images])
        return cls(values, sizes[:, 0], sizes[:, 1], counts.cumsum(0) - counts, images[0].shape[0])

    def __len__(self) -> int:
        return len(self.heights)

    def __getitem__(self, n: int) -> Tensor:
        size = (self.channels, int(self.heights[n]), int(self.widths[n]))
        start = int(self.offsets[n])
        return self.values[start : start + size[0] * size[1] * size[2]].view(size)

    def crops(self, images: Tensor, tops: Tensor, lefts: Tensor, size: int) -> Tensor:
        """Squares of `size` at (tops, lefts) of the images of these numbers, all (B,): (B, C, size, size)."""
        heights, widths = self.heights[images], self.widths[images]
        span = torch.arange(size, device=self.values.device)
        channel = torch.arange(self.channels, device=self.values.device)
        rows = (tops[:, None] + span) * widths[:, None]  # (B, size)
        columns = lefts[:, None] + span
        plane = (rows[:, :, None] + columns[:, None, :])[:, None]  # (B, 1, size, size)
        start = self.offsets[images][:, None] + channel * (heights * widths)[:, None]  # (B, C)
        return self.values[start[:, :, None, None] + plane]

    def to(self, device: torch.device | str) -> Ragged:
        values, heights, widths = (part.to(device) for part in (self.values, self.heights, self.widths))
        return Ragged(values, heights, widths, self.offsets.to(device), self.channels)


@dataclass(frozen=True)
class LatentSet:
    """All examples of a run, by kind (``high``, ``low`` and so on), and what they were made from."""

    kinds: Mapping[str, Ragged]
    identity: Mapping[str, str | int]

    @classmethod
    def read(cls, files: Sequence[Path], identity: Mapping[str, str | int]) -> LatentSet:
        """The cached examples in `files`. Raises ValueError that names a damaged one."""
        examples = []
        for file in files:
            try:
                examples.append(load_file(file))
            except SafetensorError as error:
                raise ValueError(
                    f"the cached latents {file} are damaged ({error}): delete that file and run again"
                ) from error
        return cls({kind: Ragged.join([e[kind] for e in examples]) for kind in examples[0]}, identity)

    @classmethod
    def load(cls, path: str | Path) -> LatentSet:
        """A file written by `save`. Raises ValueError or FileNotFoundError with one sentence."""
        try:
            with safe_open(path, framework="pt") as file:
                text = (file.metadata() or {}).get(METADATA_KEY)
                if text is None:
                    raise ValueError(f"{path} is not a file of packed latents: expected one written by 'fmboost pack'")
                tensors = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118
        except FileNotFoundError as error:
            raise FileNotFoundError(
                f"no packed latents at {path}: make them with 'fmboost pack CONFIG.toml {path}'"
            ) from error
        except SafetensorError as error:
            raise ValueError(f"the packed latents {path} are damaged ({error}): pack them again") from error
        kinds = sorted({name.partition(".")[0] for name in tensors})
        return cls({kind: _unpack(tensors, kind) for kind in kinds}, json.loads(text))

    def save(self, path: str | Path, limit: int | None = None) -> int:
        """Write the examples into one file, with `limit` as many as fit into so many bytes, evenly spread.

        Returns their number. Raises ValueError where the name does not end in .safetensors or nothing fits.
        """
        if not is_packed(path):
            raise ValueError(f"{path} would not be recognised as packed latents: expected a name in .safetensors")
        chosen = self._fitting(limit)
        tensors: dict[str, Tensor] = {}
        for kind, ragged in self.kinds.items():
            some = Ragged.join([ragged[n] for n in chosen])
            tensors[f"{kind}.values"] = some.values
            tensors[f"{kind}.sizes"] = torch.stack([some.heights, some.widths])
            tensors[f"{kind}.channels"] = torch.tensor(some.channels)
        write_tensors(tensors, path, {METADATA_KEY: json.dumps(dict(self.identity))})
        return len(chosen)

    def _fitting(self, limit: int | None) -> list[int]:
        total = len(self)
        if limit is None:
            return list(range(total))
        sizes = np.zeros(total)
        for ragged in self.kinds.values():
            count = (ragged.heights * ragged.widths * ragged.channels).numpy()
            sizes += count * ragged.values.element_size()
        for count in range(total, 0, -1):
            chosen = ((np.arange(count) + 0.5) * total / count).astype(int)
            if sizes[chosen].sum() + 65536 <= limit:  # the file's header
                return chosen.tolist()
        raise ValueError(f"no example fits into {limit / 2**20:g} MiB: the smallest has {sizes.min() / 2**20:.2f} MiB")

    def __len__(self) -> int:
        return len(self.kinds["high"])

    def of(self, kinds: Sequence[str]) -> LatentSet:
        """Without the other kinds. Raises KeyError where one is missing."""
        return LatentSet({kind: self.kinds[kind] for kind in kinds}, self.identity)

    def to(self, device: torch.device | str) -> LatentSet:
        return LatentSet({kind: ragged.to(device) for kind, ragged in self.kinds.items()}, self.identity)


def is_packed(cache: str | Path) -> bool:
    """Whether a cache of that name is one file of packed latents rather than a folder."""
    return Path(cache).suffix == ".safetensors"


def _unpack(tensors: Mapping[str, Tensor], kind: str) -> Ragged:
    heights, widths = tensors[f"{kind}.sizes"]
    channels = int(tensors[f"{kind}.channels"])
    counts = heights * widths * channels
    return Ragged(tensors[f"{kind}.values"], heights, widths, counts.cumsum(0) - counts, channels)


GOLDEN = (5**0.5 - 1) / 2


class LatentCrops:
    """Endless batches of random aligned crops, cut on the device that holds the examples.

    Batch n depends on (seed, n, rank) alone, so a run resumes exactly where it was. Examples are drawn in proportion
    to their area within a group and to `shares` between groups; `groups` gives the group of every example. Times are
    spread evenly over successive crops.
    """

    def __init__(
        self,
        examples: LatentSet,
        *,
        crop: int,
        scale: int,
        seed: int,
        groups: Sequence[int] = (),
        shares: Sequence[float] = (),
    ) -> None:
        if crop % scale:
            raise ValueError(f"a crop of {crop} latent pixels does not divide by the scale {scale}")
        self.examples, self.crop, self.scale, self.seed = examples, crop, scale, seed
        low = examples.kinds["low"]
        areas = (low.heights * low.widths).double().cpu()
        areas[torch.minimum(low.heights, low.widths).cpu() < crop // scale] = 0
        if not areas.any():
            raise ValueError(f"no example is as large as a crop of {crop} latent pixels: use a smaller train.crop")
        self.weights = _weighted(areas, groups, shares)
        self.chances = self.weights.cumsum() / self.weights.sum()
        self.sides = [lengths.cpu().numpy() for lengths in (low.heights, low.widths)]
        first = int(low.heights[0])
        self.units = {kind: int(ragged.heights[0]) / first for kind, ragged in examples.kinds.items()}
        self.align = max(1, round(1 / min(self.units.values())))  # low pixels; some kinds have fewer than ``low``
        if crop // scale % self.align:
            raise ValueError(
                f"a crop of {crop} latent pixels does not divide by {scale * self.align}: change train.crop"
            )
        self.phase = np.random.default_rng((seed, 2**32)).random()

    def batch(self, step: int, size: int, rank: int = 0, world: int = 1) -> dict[str, Tensor]:
        """Crops of this step: each kind (B, C, k, k) in float32, ``noise`` as ``high``, ``t`` (B,).

        The noise depends on the kind of device, too.
        """
        rng = np.random.default_rng((self.seed, step, rank))
        high, small = self.examples.kinds["high"], self.crop // self.scale
        device = high.values.device
        chosen = np.searchsorted(self.chances, rng.random(size), side="right")
        corners = [
            (rng.random(size) * ((sides[chosen] - small) // self.align + 1)).astype(np.int64) * self.align
            for sides in self.sides
        ]
        # One copy to the device a step, and noise that is drawn there.
        images, tops, lefts = torch.from_numpy(np.stack([chosen, *corners])).to(device)
        number = (step * world + rank) * size + np.arange(size)
        draw = torch.Generator(device).manual_seed(int(rng.integers(2**63)))
        result = {
            "noise": torch.randn(size, high.channels, self.crop, self.crop, generator=draw, device=device),
            "t": torch.from_numpy(((number * GOLDEN + self.phase) % 1).astype(np.float32)).to(device),
        }
        for kind, ragged in self.examples.kinds.items():
            unit = self.units[kind]
            values = ragged.crops(images, (tops * unit).long(), (lefts * unit).long(), round(small * unit))
            result[kind] = values.float() / 255 if kind == "picture" else values.float()
        return result


def _weighted(areas: Tensor, groups: Sequence[int], shares: Sequence[float]) -> np.ndarray:
    weights = areas.numpy()
    if not shares:
        return weights / weights.sum()
    of = np.asarray(groups)
    scaled = np.zeros_like(weights)
    for group, share in enumerate(shares):
        total = weights[of == group].sum()
        if total == 0:
            raise ValueError(f"data.shares asks for {share:g} of folder {group + 1}, which has no usable photo")
        scaled[of == group] = share * weights[of == group] / total
    return scaled / scaled.sum()
