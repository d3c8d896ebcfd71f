"""The README's picture and a thumbnail for every workflow without one, from the demo's latents.

python benchmarks/make_pictures.py --vae taesd

With --photos, only 512 to 2048 px (paper Fig. 17) of those: two lifts by x2, and one by x4.
"""

from __future__ import annotations

import argparse
from pathlib import Path

import torch
from PIL import Image

from fmboost_core import load_model, load_vae
from fmboost_core.cascade import cascade
from fmboost_core.demo import read_examples
from fmboost_core.figures import Picture, picture_grid
from fmboost_core.photos import centre_square, load_photo, save_photo
from fmboost_core.train.data import to_bytes
from fmboost_core.train.objectives import context_of
from fmboost_core.upsample import upsample

ROOT = Path(__file__).parents[1]
CROP = (128, 128, 384, 384)  # px of 512
THUMBNAIL = (400, 250)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--vae", type=Path, required=True)
    parser.add_argument("--photos", type=Path, nargs="+")
    args = parser.parse_args()
    if args.photos:
        large(args.photos, args.vae)
        return
    model, vae = load_model("fmboost-sd15-x2"), load_vae(args.vae, space="sd15")
    images = ROOT / "docs" / "images"
    strips, pairs = [], []
    with torch.inference_mode():
        for i, example in enumerate(read_examples()):
            lifted = model.upscale(
                example["low"], steps=4, batch_index=[i], context=context_of(model.config.flow, example), vae=vae
            )
            small = vae.decode(example["low"]).repeat_interleave(2, 2).repeat_interleave(2, 3)
            nearest = vae.decode(upsample(example["low"], 2, "nearest"))
            ours, truth = vae.decode(lifted), vae.decode(example["high"])
            left, top, right, bottom = CROP
            strips.append(torch.cat([x[:, :, top:bottom, left:right] for x in (small, nearest, ours, truth)], dim=3))
            pairs.append(torch.cat([small[..., :256], ours[..., 256:]], dim=3))
    save_photo(torch.cat(strips, dim=2), images / "models.jpg")
    for i, workflow in enumerate(sorted((ROOT / "workflows").glob("*.json"))):
        if not workflow.with_suffix(".jpg").exists():
            save_photo(pairs[i % len(pairs)], workflow.with_suffix(".jpg"))
            with Image.open(workflow.with_suffix(".jpg")) as picture:
                wide = picture.crop((0, 96, 512, 416)).resize(THUMBNAIL, Image.Resampling.LANCZOS)
            wide.save(workflow.with_suffix(".jpg"), quality=90)


@torch.inference_mode()
def large(photos: list[Path], where: Path) -> None:
    twice, once, vae = load_model("fmboost-sd15-x2"), load_model("fmboost-sd15-x4"), load_vae(where, space="sd15")
    rows = []
    for i, path in enumerate(photos):
        photo = centre_square(load_photo(path, 512, 8), 512)
        low = vae.encode(photo)
        panels = {
            "512 px": photo,
            "enlarged pixels": vae.decode(upsample(low, 4, "psu", vae)),
            "x4, 4 steps": vae.decode(once.upscale(low, steps=4, vae=vae, batch_index=[i])),
            "x2, x2, 4 steps each": vae.decode(cascade([twice, twice], low, steps=4, vae=vae, batch_index=[i])),
        }
        rows.append(Picture(path.stem, {name: to_bytes(panel)[0].permute(1, 2, 0) for name, panel in panels.items()}))
    picture_grid(rows, ROOT / "docs" / "images" / "large.jpg", crop=320)


if __name__ == "__main__":
    main()
