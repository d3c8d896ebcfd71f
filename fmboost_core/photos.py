"""Pictures on disk as tensors, and back. Needs Pillow."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import torch
from PIL import Image, ImageOps, UnidentifiedImageError
from torch import Tensor

IMAGE_SUFFIXES = {".jpg", ".jpeg", ".png", ".webp", ".bmp", ".tif", ".tiff"}


def find_photos(folder: str | Path) -> list[Path]:
    """Every image file under `folder`, sorted. Raises ValueError where there is none."""
    folder = Path(folder)
    photos = sorted(p for p in folder.rglob("*") if p.suffix.lower() in IMAGE_SUFFIXES) if folder.is_dir() else []
    if not photos:
        raise ValueError(f"no photos in {folder}: expected a folder with {', '.join(sorted(IMAGE_SUFFIXES))} files")
    return photos


def load_photo(path: str | Path, short_side: int | None, multiple: int, flip: bool = False) -> Tensor:
    """(1, 3, H, W) in [0, 1]: upright, reduced so that the short side is `short_side` (never enlarged; None keeps
    the size), and cropped about the centre to multiples of `multiple`. `flip` mirrors it left to right.

    Raises ValueError where the file is not a picture or is smaller than `multiple`.
    """
    try:
        with Image.open(path) as file:
            image = ImageOps.exif_transpose(file).convert("RGB")
    except UnidentifiedImageError as error:
        raise ValueError(f"{path} is not a picture: expected one of {', '.join(sorted(IMAGE_SUFFIXES))}") from error
    width, height = image.size
    ratio = min(1.0, short_side / min(width, height)) if short_side else 1.0
    if ratio < 1:
        size = (max(multiple, round(width * ratio)), max(multiple, round(height * ratio)))
        image = image.resize(size, Image.Resampling.LANCZOS)
    width, height = image.size
    new_w, new_h = width // multiple * multiple, height // multiple * multiple
    if new_w == 0 or new_h == 0:
        raise ValueError(f"{path} is {width} x {height} px: expected at least {multiple} px on each side")
    left, top = (width - new_w) // 2, (height - new_h) // 2
    pixels = torch.from_numpy(np.array(image.crop((left, top, left + new_w, top + new_h))))
    photo = pixels.permute(2, 0, 1)[None].float() / 255
    return photo.flip(-1) if flip else photo


def centre_square(photo: Tensor, side: int) -> Tensor:
    """The middle (B, 3, side, side) of a photo (B, 3, H, W) at least that large."""
    top, left = ((length - side) // 2 for length in photo.shape[2:])
    return photo[:, :, top : top + side, left : left + side]


def save_photo(image: Tensor, path: str | Path) -> None:
    """Write (1, 3, H, W) in [0, 1] to a file of the kind its suffix names."""
    pixels = (image[0].permute(1, 2, 0).clamp(0, 1) * 255).round().to(torch.uint8)
    Image.fromarray(pixels.cpu().numpy()).save(path, quality=95)
