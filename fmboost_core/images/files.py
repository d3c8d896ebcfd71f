"""Pictures on disk as tensors, and back. Needs Pillow."""

from __future__ import annotations

import io
import tarfile
from dataclasses import dataclass
from pathlib import Path, PurePosixPath
from typing import BinaryIO

import numpy as np
import torch
from PIL import Image, ImageOps, UnidentifiedImageError
from torch import Tensor

from ..storage import check_folder

IMAGE_SUFFIXES = {".jpg", ".jpeg", ".png", ".webp", ".bmp", ".tif", ".tiff"}


@dataclass(frozen=True)
class ShardPhoto:
    """A picture inside a shard: an uncompressed tar file, as the webdataset format has it."""

    shard: Path
    name: str  # inside the shard
    offset: int  # bytes
    size: int

    @property
    def stem(self) -> str:
        return f"{self.shard.stem}.{PurePosixPath(self.name).with_suffix('').as_posix().replace('/', '_')}"

    def __str__(self) -> str:
        return f"{self.shard}/{self.name}"

    def open(self) -> BinaryIO:
        with self.shard.open("rb") as file:
            file.seek(self.offset)
            return io.BytesIO(file.read(self.size))


Photo = Path | ShardPhoto


def read_bytes(photo: Photo) -> bytes:
    """The file's contents."""
    return photo.open().read() if isinstance(photo, ShardPhoto) else photo.read_bytes()


def find_photos(folder: str | Path) -> list[Photo]:
    """Every image file under `folder`, sorted, and then every image in the shards (.tar) under it; or those of one
    shard. Only the headers of a shard are read, not its pictures.

    Raises ValueError where there is none, or a shard is damaged or compressed.
    """
    folder = Path(folder)
    files = sorted(folder.rglob("*")) if folder.is_dir() else [folder] if folder.is_file() else []
    photos: list[Photo] = [p for p in files if p.suffix.lower() in IMAGE_SUFFIXES and folder.is_dir()]
    for shard in (p for p in files if p.suffix.lower() == ".tar"):
        photos += _shard_photos(shard)
    if not photos:
        raise ValueError(
            f"no photos in {folder}: expected a folder with {', '.join(sorted(IMAGE_SUFFIXES))} files, or with .tar "
            "shards of them"
        )
    return photos


def _shard_photos(shard: Path) -> list[ShardPhoto]:
    try:
        with tarfile.open(shard, "r:") as tar:
            members = [ShardPhoto(shard, m.name, m.offset_data, m.size) for m in tar if m.isfile()]
    except tarfile.TarError as error:
        raise ValueError(f"{shard} is no shard ({error}): expected a whole, uncompressed tar file") from error
    return [m for m in members if PurePosixPath(m.name).suffix.lower() in IMAGE_SUFFIXES]


def load_photo(path: str | Photo, short_side: int | None, multiple: int, flip: bool = False) -> Tensor:
    """(1, 3, H, W) in [0, 1]: upright, reduced so that the short side is `short_side` (never enlarged; None keeps
    the size), and cropped about the centre to multiples of `multiple`. `flip` mirrors it left to right.

    Raises ValueError where the file is not a whole picture, is smaller than `multiple` or larger than Pillow takes.
    """
    try:
        with Image.open(path.open() if isinstance(path, ShardPhoto) else path) as file:
            image = _eight_bits(ImageOps.exif_transpose(file)).convert("RGB")
    except UnidentifiedImageError as error:
        raise ValueError(f"{path} is not a picture: expected one of {', '.join(sorted(IMAGE_SUFFIXES))}") from error
    except Image.DecompressionBombError as error:
        raise ValueError(f"{path} is too large ({error}): reduce it first") from error
    except SyntaxError as error:  # Pillow's word for a damaged chunk of a PNG
        raise ValueError(f"{path} is damaged ({error}): get the file again") from error
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


def _eight_bits(image: Image.Image) -> Image.Image:
    """Grey of 16 bits brought to 8, which `convert` would cut off at 255."""
    if not image.mode.startswith("I"):
        return image
    return Image.fromarray((np.asarray(image).clip(0, 65535) / 257).round().astype(np.uint8))


def check_picture(path: str | Path) -> None:
    """Raise ValueError or FileNotFoundError where `save_photo` could not write there, before the work is done."""
    Image.init()
    if Path(path).suffix.lower() not in Image.EXTENSION:
        raise ValueError(f"{path} names no kind of picture: expected an ending such as .png or .jpg")
    check_folder(path)


def save_photo(image: Tensor, path: str | Path) -> None:
    """Write (1, 3, H, W) in [0, 1] to a file of the kind its suffix names."""
    pixels = (image[0].permute(1, 2, 0).clamp(0, 1) * 255).round().to(torch.uint8)
    Image.fromarray(pixels.cpu().numpy()).save(path, quality=95)
