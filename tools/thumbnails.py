"""Draw the thumbnail of each template: a photo enlarged in pixels, and beside it lifted as the template does. And the
pictures of the help pages: the same pair, and one photo lifted with noise steps 0, 200 and 400.

    python -m tools.thumbnails --photos FOLDER --taesd FOLDER [--only NAME]

The templates that sample start from the latents of a photo here, so that no checkpoint is needed. `photos` is the
folder with the held-out photos named below, all of them free to use (Unsplash, Pexels, Pixabay, public domain).
"""

from __future__ import annotations

import argparse
from pathlib import Path

import torch
from PIL import Image, ImageDraw, ImageFont
from torch import Tensor

from fmboost_core import cascade, load_model, load_vae
from fmboost_core.images.files import load_photo
from fmboost_core.images.resize import centre_square, enlarge, reduce

from .workflow_specs import TEMPLATES

ROOT = Path(__file__).parents[1]
SIDE, WIDTH, HEIGHT, LABEL = 768, 512, 320, 26  # px of the photo, of the part of it that is shown, of the label
HELP = "Hires fix 2x - SDXL 1024 to 2048"
PHOTOS = {
    "Photo upscale 2x - SD1.5": "0060.jpg",
    "Photo upscale 2x - FLUX": "0071.jpg",
    "Photo upscale 2x in tiles - SD1.5 2048 to 4096": "0369.jpg",
    "Hires fix 2x - SD1.5 512 to 1024": "0669.jpg",
    "Hires fix 2x - SDXL 1024 to 2048": "0246.jpg",
    "Hires fix 2x - Z-Image 1024 to 2048": "0733.jpg",
    "Hires fix 2x - FLUX.2 Klein 1024 to 2048": "0410.jpg",
    "Hires fix 2x - SD3.5 1024 to 2048": "0044.jpg",
    "Hires fix 2x - SD1.5 LCM in 8 steps": "0615.jpg",
    "Hires fix 2x with Noise Augment - SD1.5": "0120.jpg",
    "Hires fix 4x in two lifts - SD1.5 512 to 2048": "0162.jpg",
    "Hires fix 4x - SD1.5 256 to 1024": "0180.jpg",
}


def pair(name: str, photo: Path, taesd: Path) -> tuple[Tensor, Tensor]:
    """The photo made small and enlarged again, and made small and lifted: the middle (1, 3, WIDTH, WIDTH) of each."""
    nodes = [node for column in TEMPLATES[name].columns for _, group in column for node in group]
    lifts = [node for node in nodes if node.kind == "FMBoost_CFMLatentUpscale"]
    (loader,) = (node for node in nodes if node.kind == "FMBoost_LoadCFMModel")
    noise = next((node.values["noise_step"] for node in nodes if node.kind == "FMBoost_NoiseAugment"), None)
    model = load_model(loader.values["model_name"])
    vae = load_vae(taesd / f"{model.space.taesd}_encoder.safetensors", space=model.space.name)
    scale = model.scale ** len(lifts)
    small = reduce(centre_square(load_photo(photo, SIDE, 8), SIDE), scale)
    lifted = cascade([model] * len(lifts), vae.encode(small), vae=vae, steps=4, noise_step=noise)
    return centre_square(enlarge(small, scale), WIDTH), centre_square(vae.decode(lifted), WIDTH)


def noises(photo: Path, taesd: Path) -> Image.Image:
    """The same strip of a photo lifted from less and more noise."""
    model = load_model("fmboost-sd15-x2")
    vae = load_vae(taesd / f"{model.space.taesd}_encoder.safetensors", space=model.space.name)
    low = vae.encode(reduce(centre_square(load_photo(photo, SIDE, 8), SIDE), model.scale))
    steps = (0, 200, 400)
    lifted = [centre_square(vae.decode(model.upscale(low, vae=vae, noise_step=step)), WIDTH) for step in steps]
    width, left = WIDTH // 3, WIDTH // 3
    strips = torch.cat([image[..., left : left + width] for image in lifted], dim=3)
    return labelled(strips, [f"noise_step {step}" for step in steps])


def draw(before: Tensor, after: Tensor, scale: str) -> Image.Image:
    """The left half of one picture beside the right half of the other."""
    half = WIDTH // 2
    joined = torch.cat([before[..., :half], after[..., half:]], dim=3)
    return labelled(joined, ["enlarged pixels", f"FMBoost {scale}"])


def labelled(image: Tensor, labels: list[str]) -> Image.Image:
    """The middle of (1, 3, WIDTH, W) with labels under its parts, and lines between them."""
    top, width = (WIDTH - HEIGHT) // 2, image.shape[3]
    pixels = (image[0, :, top : top + HEIGHT].clamp(0, 1) * 255).round().to(torch.uint8).permute(1, 2, 0).contiguous()
    picture = Image.new("RGB", (width, HEIGHT + LABEL), "#171718")
    picture.paste(Image.fromarray(pixels.numpy()), (0, 0))
    pen, font = ImageDraw.Draw(picture), ImageFont.load_default(15)
    for k, text in enumerate(labels):
        left, part = k * width // len(labels), width // len(labels)
        if k:
            pen.line([(left, 0), (left, HEIGHT + LABEL)], fill="white", width=2)
        pen.text((left + part // 2, HEIGHT + LABEL // 2), text, fill="white", font=font, anchor="mm")
    return picture


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--photos", type=Path, required=True)
    parser.add_argument("--taesd", type=Path, required=True)
    parser.add_argument("--only", help="the name of one template, or noise")
    options = parser.parse_args()
    with torch.inference_mode():
        for name, file in PHOTOS.items():
            if options.only in (None, name):
                before, after = pair(name, options.photos / file, options.taesd)
                picture = draw(before, after, "4x" if "4x" in name else "2x")
                save(picture, ROOT / "workflows" / f"{name}.jpg")
                if name == HELP:
                    save(picture, ROOT / "web" / "docs" / "upscale.jpg")
        if options.only in (None, "noise"):
            save(noises(options.photos / "0060.jpg", options.taesd), ROOT / "web" / "docs" / "noise.jpg")


def save(picture: Image.Image, path: Path) -> None:
    picture.save(path, quality=85, optimize=True)


if __name__ == "__main__":
    main()
