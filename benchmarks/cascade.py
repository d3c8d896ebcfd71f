"""How much noise the second lift of a cascade should start with: 128 px to 512 px by x2 and x2, as a Markdown table.

    python benchmarks/cascade.py --data photos/val --vae taesd --limit 8 --once fmboost-sd15-x4

Every photo is cut to a square of --side px, reduced four times, encoded and lifted twice; the first lift is the same in
all rows. `--once` adds one lift of the same latent by a model of x4. Columns are those of `fmboost evaluate`.
"""

from __future__ import annotations

import argparse
from collections.abc import Callable
from dataclasses import replace

import torch
from torch import Tensor
from tqdm import tqdm

from fmboost_core import Sampling, load_model, load_vae
from fmboost_core.cascade import stage_seed
from fmboost_core.evaluate import judge, metrics
from fmboost_core.images.files import load_photo
from fmboost_core.images.folders import find_photos
from fmboost_core.images.resize import centre_square, enlarge, reduce
from fmboost_core.sampling import STEPS

LEVEL = "/8"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", default="fmboost-sd15-x2")
    parser.add_argument("--once", help="a model of x4 to compare with")
    parser.add_argument("--data", required=True, help="folder of photos")
    parser.add_argument("--vae", required=True, help="TAESD file or folder")
    parser.add_argument("--noise-steps", default="0,100,200,250,300", help="of the second lift (default: %(default)s)")
    parser.add_argument("--side", type=int, default=512, help="px of the result (default: %(default)s)")
    parser.add_argument("--limit", type=int, default=8, help="photos, evenly spread (default: %(default)s)")
    parser.add_argument("--steps", type=int, default=STEPS)
    args = parser.parse_args()
    model = load_model(args.model)
    if model.scale != 2:
        parser.error(f"{args.model} lifts x{model.scale}: two lifts are compared here with x4, expected a model of x2")
    once = load_model(args.once) if args.once else None
    if once and once.scale != 4:
        parser.error(f"{args.once} lifts x{once.scale}: expected a model of x4")
    vae = load_vae(args.vae, space=model.space.name)
    photos = find_photos(args.data)
    noise_steps = [int(n) for n in args.noise_steps.split(",")]
    pictures: dict[str, list[Tensor]] = {}
    with torch.inference_mode():
        for index, path in enumerate(tqdm(photos[:: max(1, len(photos) // args.limit)][: args.limit])):
            photo = centre_square(load_photo(path, args.side, 4 * model.space.pixels), args.side)
            low = vae.encode(reduce(photo, 4))
            found = {
                "photo": photo,
                "reconstruction": vae.decode(vae.encode(photo)),
                "psu x4": vae.decode(vae.encode(enlarge(vae.decode(low), 4))),
            }
            sampling = Sampling(args.steps, batch_index=(index,))
            if once:
                found["x4"] = vae.decode(once.upscale(low, sampling, vae=vae))
            first = model.upscale(low, sampling, vae=vae)
            for step in noise_steps:
                second = replace(sampling, seed=stage_seed(0, 1), noise_step=step)
                found[f"x2, x2 from noise step {step}"] = vae.decode(model.upscale(first, second, vae=vae))
            for name, picture in found.items():
                pictures.setdefault(name, []).append(picture)
        print(table({name: torch.cat(those) for name, those in pictures.items()}, judge.Features()))


def table(pictures: dict[str, Tensor], features: Callable[[Tensor], list[Tensor]]) -> str:
    """Markdown; `pictures` are sets (B, 3, H, W), among them the ``photo`` and its ``reconstruction``."""
    photo, truth = pictures["photo"], pictures["reconstruction"]
    seen, energy = features(truth), metrics.high_frequency_energy(truth).sum()
    lines = [f"| method | PSNR | lp | FD {LEVEL} | HF |", "| --- | --: | --: | --: | --: |"]
    for name, found in pictures.items():
        if name == "photo":
            continue
        maps = features(found)
        distance = judge.perceptual_distance(maps, seen).mean().item()
        sets = metrics.frechet_distance(_fit(maps), _fit(seen))
        sharpness = (metrics.high_frequency_energy(found).sum() / energy).item()
        psnr = metrics.psnr(found, photo).mean().item()
        lines.append(f"| {name} | {psnr:.2f} | {distance:.3f} | {sets:.1f} | {sharpness:.2f} |")
    return "\n".join(lines)


def _fit(maps: list[Tensor]) -> metrics.GaussianFit:
    fit = metrics.GaussianFit()
    fit.add(judge.vectors(maps, judge.FRECHET_LEVELS[LEVEL]))
    return fit


if __name__ == "__main__":
    main()
