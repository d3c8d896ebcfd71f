"""How much noise the second lift of a cascade should start with: 128 px to 512 px by x2 and x2, as a Markdown table.

    python benchmarks/cascade.py --data photos/val --vae taesd --limit 8

Every photo is cut to a square of --side px, reduced four times, encoded and lifted twice; the first lift is the same in
all rows. PSNR is to the photo, the same reduced to the size of the input beside it; high-frequency energy and sliced
Wasserstein distance are to the decoded true latent, as in `fmboost evaluate`.
"""

from __future__ import annotations

import argparse

import torch
from torch import Tensor
from tqdm import tqdm

from fmboost_core import load_model, load_vae, metrics
from fmboost_core.cascade import cascade
from fmboost_core.photos import centre_square, find_photos, load_photo
from fmboost_core.solver import STEPS
from fmboost_core.upsample import reduce_pixels, upsample


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", default="fmboost-sd15-x2")
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
    vae = load_vae(args.vae, space=model.space.name)
    photos = find_photos(args.data)
    noise_steps = [int(n) for n in args.noise_steps.split(",")]
    pictures: dict[str, list[Tensor]] = {}
    with torch.inference_mode():
        for index, path in enumerate(tqdm(photos[:: max(1, len(photos) // args.limit)][: args.limit])):
            photo = centre_square(load_photo(path, args.side, 4 * model.space.pixels), args.side)
            low = vae.encode(reduce_pixels(photo, 4))
            found = {
                "photo": photo,
                "reconstruction": vae.decode(vae.encode(photo)),
                "psu x4": vae.decode(upsample(low, 4, "psu", vae)),
            }
            for step in noise_steps:
                high = cascade(
                    [model, model], low, steps=args.steps, noise_steps=[None, step], vae=vae, batch_index=[index]
                )
                found[f"x2, x2 from noise step {step}"] = vae.decode(high)
            for name, picture in found.items():
                pictures.setdefault(name, []).append(picture)
    print(table({name: torch.cat(those) for name, those in pictures.items()}))


def table(pictures: dict[str, Tensor]) -> str:
    """Markdown; `pictures` are sets (B, 3, H, W), among them the ``photo`` and its ``reconstruction``."""
    photo, truth = pictures["photo"], pictures["reconstruction"]
    small, energy = reduce_pixels(photo, 4), metrics.high_frequency_energy(truth).sum()
    lines = ["| method | PSNR | PSNR low | HF | SWD | finest level |", "| --- | --: | --: | --: | --: | --: |"]
    for name, found in pictures.items():
        if name == "photo":
            continue
        sharpness = (metrics.high_frequency_energy(found).sum() / energy).item()
        distance = metrics.sliced_wasserstein(found, truth)
        low = metrics.psnr(reduce_pixels(found, 4), small).mean().item()
        lines.append(
            f"| {name} | {metrics.psnr(found, photo).mean().item():.2f} | {low:.2f} | {sharpness:.2f} | "
            f"{distance.mean:.4f} | {distance.levels[0]:.4f} |"
        )
    return "\n".join(lines)


if __name__ == "__main__":
    main()
