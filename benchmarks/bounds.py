"""What a bar of distortion asks of a model, and what the model's own mean allows: error split by frequency.

    python -m benchmarks.bounds fmboost-flux-x2 --data photos/val --vae taesd --vae-dtype bfloat16 --limit 12

Two lifts d, d' of a photo p that differ in their noise alone split the error of a lift, S = |d - p|^2, in two: what
differs between them, V = |d - d'|^2 / 2, and the error of the mean of all lifts, S - V. A perfect sampler of the
posterior has V = S / 2: it costs 3 dB against its mean (Blau and Michaeli 2018). No picture made of the same small
latent correlates more with p than the posterior's mean does; the model's mean stands in for it here, with correlation
r. A picture of energy e then has an error of at least

    |p|^2 + e - 2 r |p| sqrt(e)

in every band. It is printed for the energies of the reconstruction ("least"), and for `--energy` of them in the finest
band, which the small picture does not have ("least, soft"). Sums are over all photos, so that decibels are those of the
mean square error, not the mean of each photo's as `fmboost evaluate` prints them.
"""

from __future__ import annotations

import argparse
import math
from collections.abc import Sequence
from dataclasses import dataclass, field

import torch
from torch import Tensor

from fmboost_core import CFMModel, load_model
from fmboost_core.flow import make_context
from fmboost_core.photos import find_photos, load_photo
from fmboost_core.upsample import reduce_pixels, upsample
from fmboost_core.vae import TinyVAE, load_vae

BANDS = ("1/4 to 1/2", "1/8 to 1/4", "1/16 to 1/8", "to 1/16")  # cycles a pixel, of the faster axis


def bands(images: Tensor) -> Tensor:
    """Coefficients of the orthonormal cosine transform of (1, C, H, W), sorted by band: (BANDS, C, H, W), each zero
    outside its own. Their sum of squares is that of the images."""
    height, width = images.shape[2:]
    spectrum = cosines(height).to(images) @ images[0] @ cosines(width).to(images).T
    rows, columns = torch.arange(height)[:, None] / (2 * height), torch.arange(width) / (2 * width)
    fastest = torch.maximum(rows.expand(height, width), columns.expand(height, width)).to(images.device)
    limits = [0.5, 0.25, 0.125, 0.0625, -1.0]
    inside = [(fastest < above) & (fastest >= below) for above, below in zip(limits, limits[1:], strict=False)]
    return torch.stack([spectrum * mask for mask in inside])


def cosines(n: int) -> Tensor:
    """The orthonormal DCT-II, (n, n)."""
    place, frequency = torch.arange(n) + 0.5, torch.arange(n)
    matrix = torch.cos(math.pi / n * frequency[:, None] * place) * math.sqrt(2 / n)
    matrix[0] /= math.sqrt(2)
    return matrix


def dot(a: Tensor, b: Tensor) -> Tensor:
    """Inner product in every band, (BANDS,)."""
    return (a * b).double().sum(dim=(1, 2, 3)).cpu()


@dataclass
class Sums:
    """Over all photos, a number a band; one for the reduced pictures."""

    values: dict[str, Tensor] = field(default_factory=dict)
    pixels: int = 0

    def add(self, **values: Tensor) -> None:
        for name, value in values.items():
            self.values[name] = self.values.get(name, torch.zeros(())) + value

    def __getitem__(self, name: str) -> Tensor:
        return self.values[name]

    def psnr(self, error: Tensor) -> float:
        return -10 * math.log10(error.sum().item() / self.pixels)


def least_error(photo: Tensor, energy: Tensor, correlation: Tensor) -> Tensor:
    """Of a picture of `energy` whose correlation with a photo of energy `photo` is at most `correlation`."""
    return photo + energy - 2 * correlation * (photo * energy).sqrt()


def compare(sums: Sums, photo: Tensor, first: Tensor, second: Tensor, reconstruction: Tensor, psu: Tensor) -> None:
    """Add what one photo has to say; `first` and `second` are lifts that differ in their noise."""
    p, a, b, r, q = map(bands, (photo, first, second, reconstruction, psu))
    sums.pixels += photo.numel()
    sums.add(photo=dot(p, p), reconstruction=dot(r, r), ceiling=dot(r - p, r - p), psu=dot(q - p, q - p))
    sums.add(error=(dot(a - p, a - p) + dot(b - p, b - p)) / 2, variance=dot(a - b, a - b) / 2)
    sums.add(mean_energy=dot(a, b), shared=dot(a + b, p) / 2)


@torch.inference_mode()
def measure(model: CFMModel, paths: Sequence, vae: TinyVAE, short_side: int, steps: int) -> tuple[Sums, Sums]:
    """Sums of the pictures and of the pictures reduced to the size of the small one."""
    sums, small, scale = Sums(), Sums(), model.scale
    for i, path in enumerate(paths):
        photo = load_photo(path, short_side, model.space.pixels * scale)
        low = vae.encode(reduce_pixels(photo, scale))
        picture = vae.decode(low)
        context = make_context(model.config.flow, low, vae, picture)
        lifts = [
            vae.decode(model.upscale(low, steps=steps, seed=seed, batch_index=[i], vae=vae, context=context))
            for seed in (0, 1)
        ]
        images = [photo, *lifts, vae.decode(vae.encode(photo)), vae.decode(upsample(low, scale, "psu", vae, picture))]
        compare(sums, *images)
        compare(small, *(reduce_pixels(image, scale) for image in images))
    return sums, small


def report(name: str, sums: Sums, small: Sums, energy: float) -> None:
    correlation = sums["shared"] / (sums["photo"] * sums["mean_energy"]).sqrt()
    soft = sums["reconstruction"] * torch.tensor([energy, *[1.0] * (len(BANDS) - 1)], dtype=torch.float64)
    columns = {
        "psu": sums["psu"],
        "lift": sums["error"],
        "mean": sums["error"] - sums["variance"],
        "least": least_error(sums["photo"], sums["reconstruction"], correlation),
        "least, soft": least_error(sums["photo"], soft, correlation),
        "reconstruction": sums["ceiling"],
    }
    print(f"\n{name}: error over the photo's energy in the band\n")
    print(f"| cycles a pixel | photo, grey levels | correlation | {' | '.join(columns)} |")
    print("| --- | --: | --: |" + " --: |" * len(columns))
    for i, band in enumerate(BANDS):
        cells = [f"{255 * math.sqrt(sums['photo'][i].item() / sums.pixels):.1f}", f"{correlation[i]:.3f}"]
        cells += [f"{(error[i] / sums['photo'][i]).item():.4f}" for error in columns.values()]
        print(f"| {band} | {' | '.join(cells)} |")
    cells = [f"{sums.psnr(error):.2f}" for error in columns.values()]
    print(f"| PSNR, dB | | | {' | '.join(cells)} |")
    reduced = [small["psu"], small["error"], small["error"] - small["variance"], small["ceiling"]]
    p, l, m, r = (f"{small.psnr(error):.2f}" for error in reduced)
    print(f"| reduced, dB | | | {p} | {l} | {m} | | | {r} |", flush=True)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("models", nargs="+", help="files or names of one latent space and scale")
    parser.add_argument("--data", required=True, help="folder of photos")
    parser.add_argument("--vae", required=True, help="folder of the autoencoder")
    parser.add_argument("--vae-dtype", default="float32", choices=("float32", "bfloat16"))
    parser.add_argument("--short-side", type=int, default=512)
    parser.add_argument("--limit", type=int, help="so many photos, from the first")
    parser.add_argument("--steps", type=int, default=4)
    parser.add_argument("--energy", type=float, default=0.85)
    args = parser.parse_args()
    paths = find_photos(args.data)[: args.limit]
    models = {name: load_model(name) for name in args.models}
    spaces = sorted({model.space.name for model in models.values()})
    if len(spaces) > 1:
        parser.error(f"models of {' and '.join(spaces)} latents: expected those of one, which have one autoencoder")
    vae = load_vae(args.vae, space=spaces[0], dtype=getattr(torch, args.vae_dtype))
    for name, model in models.items():
        report(name, *measure(model, paths, vae, args.short_side, args.steps), args.energy)


if __name__ == "__main__":
    main()
