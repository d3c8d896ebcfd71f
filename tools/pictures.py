"""The pictures of the documentation: rows of an evaluation's sheet, and 512 to 2048 px (paper Fig. 17).

python tools/pictures.py rows results/chosen.png:0,3,7 docs/images/models.jpg
python tools/pictures.py large photos/val/0180.jpg photos/val/0036.jpg --vae taesd
"""

from __future__ import annotations

import argparse
from pathlib import Path

import torch
from PIL import Image
from torch import Tensor

from fmboost_core import cascade, load_model, load_vae
from fmboost_core.evaluate.sheet import GAP, LABEL, WINDOW, ZOOM, Strip, page
from fmboost_core.images.files import load_photo
from fmboost_core.images.resize import centre_square, enlarge, resize

IMAGES = Path(__file__).parents[1] / "docs" / "images"
SPACE = "sd15"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    commands = parser.add_subparsers(dest="command", required=True)
    command = commands.add_parser("rows")
    command.add_argument("parts", nargs="+", metavar="PAGE:ROWS", help="a page of evaluate --out, and rows from 0")
    command.add_argument("out", type=Path)
    command.add_argument("--width", type=int, help="px of the result (default: that of the page)")
    command = commands.add_parser("large")
    command.add_argument("photos", type=Path, nargs="+")
    command.add_argument("--vae", type=Path, required=True)
    args = parser.parse_args()
    if args.command == "rows":
        rows(args.parts, args.out, args.width)
    else:
        with torch.inference_mode():
            large(args.photos, args.vae, IMAGES)


def rows(parts: list[str], out: Path, width: int | None) -> None:
    """Cut rows out of pages of the sheet, and write them below each other."""
    height, strips = WINDOW * ZOOM + LABEL + GAP, []
    for part in parts:
        sheet, _, numbers = part.rpartition(":")
        with Image.open(sheet) as whole:
            for top in (GAP + int(number) * height for number in numbers.split(",")):
                strips.append(whole.crop((0, top, whole.width, top + height)))
    canvas = Image.new("RGB", (strips[0].width, height * len(strips) + GAP), "white")
    for i, strip in enumerate(strips):
        canvas.paste(strip, (0, GAP + i * height))
    if width:
        canvas = canvas.resize((width, round(canvas.height * width / canvas.width)), Image.Resampling.LANCZOS)
    canvas.save(out, quality=80)


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
