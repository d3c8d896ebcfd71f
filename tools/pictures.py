"""The README's picture and a thumbnail for every workflow without one, from the demo's latents.

python tools/pictures.py --vae taesd

With --photos, only 512 to 2048 px (paper Fig. 17) of those: two lifts by x2, and one by x4.
"""

from __future__ import annotations

import argparse
from pathlib import Path

import torch
from PIL import Image
from torch import Tensor

from fmboost_core import cascade, load_model, load_vae
from fmboost_core.context import interpolate
from fmboost_core.demo import SPACE, read_examples
from fmboost_core.evaluate.sheet import WINDOW, ZOOM, Strip, page
from fmboost_core.images.files import load_photo, save_photo
from fmboost_core.images.resize import centre_square, enlarge, resize

ROOT = Path(__file__).parents[1]
CROP = (128, 128, 384, 384)  # px of 512
THUMBNAIL = (400, 250)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--vae", type=Path, required=True)
    parser.add_argument("--photos", type=Path, nargs="+")
    parser.add_argument("--root", type=Path, default=ROOT, help="folder with docs/ and workflows/ (default: this one)")
    args = parser.parse_args()
    with torch.inference_mode():
        if args.photos:
            large(args.photos, args.vae, args.root / "docs" / "images")
        else:
            small(args.vae, args.root)


def small(vae_path: Path, root: Path) -> None:
    """``models.jpg``: the small latent, nearest, the lift and the truth of every example; and the thumbnails."""
    model, vae = load_model(f"fmboost-{SPACE}-x2"), load_vae(vae_path, space=SPACE)
    left, top, right, bottom = CROP
    strips, pairs = [], []
    for i, example in enumerate(read_examples()):
        lifted = model.upscale(example["low"], batch_index=(i,), vae=vae)
        low = interpolate(vae.decode(example["low"]), 2, "nearest")
        nearest = vae.decode(interpolate(example["low"], 2, "nearest"))
        ours, truth = vae.decode(lifted), vae.decode(example["high"])
        strips.append(torch.cat([x[:, :, top:bottom, left:right] for x in (low, nearest, ours, truth)], dim=3))
        pairs.append(torch.cat([low[..., :256], ours[..., 256:]], dim=3))
    save_photo(torch.cat(strips, dim=2), root / "docs" / "images" / "models.jpg")
    for i, workflow in enumerate(sorted((root / "workflows").glob("*.json"))):
        thumbnail = workflow.with_suffix(".jpg")
        if not thumbnail.exists():
            save_photo(pairs[i % len(pairs)], thumbnail)
            with Image.open(thumbnail) as picture:
                wide = picture.crop((0, 96, 512, 416)).resize(THUMBNAIL, Image.Resampling.LANCZOS)
            wide.save(thumbnail, quality=90)


def large(photos: list[Path], vae_path: Path, images: Path) -> None:
    """``large.jpg``: each photo whole, and a part of its middle in full size."""
    twice, once, vae = (
        load_model(f"fmboost-{SPACE}-x2"),
        load_model(f"fmboost-{SPACE}-x4"),
        load_vae(vae_path, space=SPACE),
    )
    strips = []
    for i, path in enumerate(photos):
        photo = centre_square(load_photo(path, 512, 8), 512)
        low = vae.encode(photo)
        panels = {
            "512 px": photo,
            "enlarged pixels": enlarge(photo, 4),
            "x4": vae.decode(once.upscale(low, vae=vae, batch_index=(i,))),
            "x2, x2": vae.decode(cascade([twice, twice], low, vae=vae, batch_index=(i,))),
        }
        side = WINDOW * ZOOM  # px of a panel
        whole = {name: _pixels(resize(panel, (side, side))) for name, panel in panels.items()}
        detail = {name: _pixels(centre_square(panel, side * panel.shape[2] // 2048)) for name, panel in panels.items()}
        strips += [Strip(path.stem, whole), Strip(f"{path.stem}, middle", detail)]
    page(strips).save(images / "large.jpg", quality=90)


def _pixels(image: Tensor) -> Tensor:
    """(1, 3, H, W) in [0, 1] -> (H, W, 3) uint8."""
    return (image[0] * 255).round().to(torch.uint8).permute(1, 2, 0).contiguous()


if __name__ == "__main__":
    main()
