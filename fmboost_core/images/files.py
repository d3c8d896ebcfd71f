"""Pictures on disk as tensors, and back: colours in sRGB, transparency beside them. Needs Pillow."""

from __future__ import annotations

import io
import logging
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
import torch.nn.functional as F
from PIL import Image, ImageCms, ImageOps, UnidentifiedImageError
from torch import Tensor

from ..storage import check_folder, replacing
from .folders import IMAGE_SUFFIXES, Photo, read_bytes

log = logging.getLogger(__name__)

LARGEST = {".png": 2**31 - 1, ".jpg": 65535, ".jpeg": 65535, ".webp": 16383, ".tif": 2**31 - 1, ".tiff": 2**31 - 1}
"""The kinds of files that are written, and the longest side of each, in px."""
TRANSPARENT = {".png", ".webp", ".tif", ".tiff"}


@dataclass(frozen=True)
class Picture:
    """A picture in memory."""

    colour: Tensor  # (1, 3, H, W) in [0, 1], sRGB; where alpha is 0 the nearest visible colours
    alpha: Tensor | None = None  # (1, 1, H, W) in [0, 1], not premultiplied; None for an opaque picture

    def over_white(self) -> Tensor:
        """(1, 3, H, W): as it looks on white paper."""
        return self.colour if self.alpha is None else self.colour * self.alpha + 1 - self.alpha


def read_picture(path: Photo) -> Picture:
    """The picture in a file, upright, its colours converted to sRGB by its own profile.

    Raises ValueError, one sentence, where the file is no whole still picture, or of numbers whose range is unknown.
    """
    try:
        with Image.open(io.BytesIO(read_bytes(path))) as file:
            if getattr(file, "n_frames", 1) > 1 and file.format != "MPO":  # a camera's file with a preview beside it
                raise ValueError(f"{path} has {file.n_frames} frames: save the one you want as a picture of its own")
            file.load()
            image = ImageOps.exif_transpose(file)
            return _picture(image, file.info.get("icc_profile"), str(path))
    except UnidentifiedImageError as error:
        raise ValueError(f"{path} is not a picture: expected one of {', '.join(sorted(IMAGE_SUFFIXES))}") from error
    except Image.DecompressionBombError as error:
        raise ValueError(f"{path} is too large ({error}): reduce it first") from error
    except SyntaxError as error:  # Pillow raises it for a damaged chunk of a PNG
        raise ValueError(f"{path} is damaged ({error}): get the file again") from error


def load_photo(path: str | Photo, short_side: int | None, multiple: int, flip: bool = False) -> Tensor:
    """(1, 3, H, W) in [0, 1]: reduced so that the short side is `short_side`, cropped to multiples of `multiple`.

    A photo is never enlarged; None keeps its size. The crop is central, `flip` mirrors left to right, and what is
    transparent becomes white. Raises ValueError where the file is no whole picture or smaller than `multiple`.
    """
    photo = read_picture(Path(path) if isinstance(path, str) else path).over_white()
    height, width = photo.shape[2:]
    if short_side is not None and short_side < min(height, width):
        ratio = short_side / min(height, width)
        size = (max(multiple, round(width * ratio)), max(multiple, round(height * ratio)))
        photo = _tensor(_image(photo).resize(size, Image.Resampling.LANCZOS))
        height, width = photo.shape[2:]
    new_h, new_w = height // multiple * multiple, width // multiple * multiple
    if new_w == 0 or new_h == 0:
        raise ValueError(f"{path} is {width} x {height} px: expected at least {multiple} px on each side")
    top, left = (height - new_h) // 2, (width - new_w) // 2
    photo = photo[:, :, top : top + new_h, left : left + new_w]
    return photo.flip(-1) if flip else photo


def check_picture(path: str | Path, size: tuple[int, int] = (1, 1)) -> None:
    """Raise ValueError or FileNotFoundError where a picture of `size` (height, width) cannot be written to `path`."""
    suffix, longest = Path(path).suffix.lower(), max(size)
    if suffix not in LARGEST:
        raise ValueError(f"{path} names no kind of picture that is written: expected one of {', '.join(LARGEST)}")
    if longest > LARGEST[suffix]:
        raise ValueError(
            f"{path} would be {size[1]} x {size[0]} px, and {suffix} files end at {LARGEST[suffix]} px: choose .png"
        )
    check_folder(path)


def save_photo(image: Tensor, path: str | Path, alpha: Tensor | None = None) -> None:
    """Write (1, 3, H, W) in [0, 1], with transparency where the kind of file has it, as sRGB with its profile.

    The file is replaced whole or not at all. Raises what `check_picture` raises, and OSError.
    """
    check_picture(path, (image.shape[2], image.shape[3]))
    suffix = Path(path).suffix.lower()
    if alpha is not None and suffix not in TRANSPARENT:
        image, alpha = Picture(image, alpha).over_white(), None
        log.warning("%s: %s files have no transparency, so the picture lies on white", path, suffix)
    picture = _image(image if alpha is None else torch.cat([image, alpha.to(image)], dim=1))
    profile = ImageCms.ImageCmsProfile(ImageCms.createProfile("sRGB")).tobytes()
    with replacing(path) as partial:
        picture.save(partial, format=Image.registered_extensions()[suffix], quality=95, icc_profile=profile)


def _picture(image: Image.Image, profile: bytes | None, path: str) -> Picture:
    image = _eight_bits(image, path)
    alpha = None
    if image.mode in {"LA", "PA", "La", "RGBa", "RGBA"} or "transparency" in image.info:
        image = image.convert("RGBA")
        alpha, image = image.getchannel("A"), image.convert("RGB")
    image = _to_srgb(image, profile, path)
    colour = _tensor(image)
    if alpha is None or alpha.getextrema() == (255, 255):
        return Picture(colour)
    opacity = _tensor(alpha)
    return Picture(_bled(colour, opacity), opacity)


def _eight_bits(image: Image.Image, path: str) -> Image.Image:
    """Grey of 16 bits and of floating-point numbers brought to 8 bits, which `convert` would cut off."""
    if not image.mode.startswith(("I", "F")):
        return image
    values = np.asarray(image, dtype=np.float64)
    most = 1.0 if image.mode == "F" else 65535.0
    if not np.isfinite(values).all() or values.min() < 0 or values.max() > most:
        raise ValueError(
            f"{path} holds grey values from {values.min():g} to {values.max():g}: expected 0 to {most:g}; save it with "
            "8 or 16 bits"
        )
    return Image.fromarray((values / most * 255).round().astype(np.uint8))


def _to_srgb(image: Image.Image, profile: bytes | None, path: str) -> Image.Image:
    if image.mode not in {"RGB", "CMYK", "L"}:
        image = image.convert("RGB")
    if profile:
        try:
            source = ImageCms.ImageCmsProfile(io.BytesIO(profile))
            converted = ImageCms.profileToProfile(image, source, ImageCms.createProfile("sRGB"), outputMode="RGB")
            if converted is not None:
                return converted
        except (ImageCms.PyCMSError, OSError) as error:
            log.warning("%s: its colour profile is not usable (%s), so its colours are taken as sRGB", path, error)
    return image.convert("RGB")


def _bled(colour: Tensor, alpha: Tensor) -> Tensor:
    """The colour where it is visible, and beneath transparency the mean of what is visible around.

    A pyramid of premultiplied means, filled from the coarsest level down, so that what is resized or lifted next to
    an edge meets no colour that nobody has seen.
    """
    height, width = colour.shape[2:]
    if min(height, width) > 1:
        total, weight = (
            F.interpolate(x, (-(-height // 2), -(-width // 2)), mode="area") for x in (colour * alpha, alpha)
        )
        means = _bled(total / weight.clamp(min=1e-6), weight.clamp(max=1))
        filled = F.interpolate(means, (height, width), mode="bilinear", align_corners=False)
    else:
        filled = (colour * alpha).sum(dim=(2, 3), keepdim=True) / alpha.sum().clamp(min=1e-6) + torch.zeros_like(colour)
    visible = (alpha > 0).float()
    return colour * visible + filled.clamp(0, 1) * (1 - visible)


def _tensor(image: Image.Image) -> Tensor:
    """(1, C, H, W) in [0, 1]."""
    pixels = torch.from_numpy(np.array(image))
    pixels = pixels[:, :, None] if pixels.ndim == 2 else pixels
    return pixels.permute(2, 0, 1)[None].float() / 255


def _image(picture: Tensor) -> Image.Image:
    pixels = (picture[0].permute(1, 2, 0).clamp(0, 1) * 255).round().to(torch.uint8)
    return Image.fromarray(pixels.cpu().numpy())
