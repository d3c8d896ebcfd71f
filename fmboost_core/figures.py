"""What an evaluation looks like: a grid of pictures with crops, and curves."""

from __future__ import annotations

import importlib
import logging
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch.nn.functional as F
from PIL import Image, ImageDraw, ImageFont
from torch import Tensor

if TYPE_CHECKING:
    from .rows import Row

log = logging.getLogger(__name__)

PANEL = 320  # width of a panel, px
GAP = 8
LABEL = 20

# Field of a row, title, and the row whose value is drawn as a line across.
CURVES = (
    ("psnr", "PSNR to the photo, dB"),
    ("high_frequency", "high-frequency energy"),
    ("swd", "sliced Wasserstein distance"),
    ("frechet", "Frechet distance of patch features"),
)


@dataclass(frozen=True)
class Picture:
    """One photo as the methods show it."""

    name: str
    panels: dict[str, Tensor]
    """Label -> (H, W, 3) uint8; the last is the photo, and the low one is smaller."""


def picture_grid(pictures: Sequence[Picture], path: str | Path, *, crop: int = 128) -> None:
    """Write a picture with two rows a photo: the whole, and the `crop` px square with the finest detail, enlarged."""
    if not pictures:
        raise ValueError("a picture grid needs at least one photo: keep some with pictures=")
    strips = [_strip(picture, crop) for picture in pictures]
    canvas = Image.new("RGB", (max(s.width for s in strips), sum(s.height for s in strips)), "white")
    top = 0
    for strip in strips:
        canvas.paste(strip, (0, top))
        top += strip.height
    canvas.save(path)


def _strip(picture: Picture, crop: int) -> Image.Image:
    photo = list(picture.panels.values())[-1]
    height, width = photo.shape[:2]
    crop = min(crop, height, width)
    y, x = _finest(photo, crop)
    tall = round(PANEL * height / width)
    canvas = Image.new("RGB", ((PANEL + GAP) * len(picture.panels) + GAP, LABEL + tall + PANEL + 3 * GAP), "white")
    draw, font = ImageDraw.Draw(canvas), ImageFont.load_default(13)
    for i, (label, pixels) in enumerate(picture.panels.items()):
        left = GAP + i * (PANEL + GAP)
        draw.text((left, 3), f"{picture.name} {label}" if i == 0 else label, fill="black", font=font)
        whole = Image.fromarray(pixels.numpy())
        box = tuple(v * pixels.shape[1] / width for v in (x, y, x + crop, y + crop))
        detail = whole.resize((PANEL, PANEL), Image.Resampling.NEAREST, box=box)  # pyright: ignore[reportArgumentType]
        canvas.paste(whole.resize((PANEL, tall), Image.Resampling.LANCZOS), (left, LABEL))
        canvas.paste(detail, (left, LABEL + tall + GAP))
    return canvas


def _finest(photo: Tensor, crop: int) -> tuple[int, int]:
    """Top left corner of the square with the largest mean gradient."""
    grey = photo.float().mean(dim=2)[None, None]
    energy = grey.diff(dim=2)[..., :-1].abs() + grey.diff(dim=3)[:, :, :-1].abs()
    means = F.avg_pool2d(energy, crop - 1, stride=8)
    index = int(means.argmax())
    return 8 * (index // means.shape[3]), 8 * (index % means.shape[3])


def plots(rows: Sequence[Row], folder: str | Path) -> list[Path]:
    """Write quality-steps.png and quality-ms.png and return them; without matplotlib says so in the log and writes
    nothing."""
    try:
        figure: Any = importlib.import_module("matplotlib.figure")
    except ImportError:
        log.warning("no plots: they need matplotlib (pip install matplotlib)")
        return []
    written = []
    for name, field, title in (
        ("quality-steps.png", "evaluations", "network evaluations"),
        ("quality-ms.png", "lift_ms", "ms an image, lift only"),
    ):
        sheet = figure.Figure(figsize=(12, 8), layout="constrained")
        for axes, (quality, label) in zip(sheet.subplots(2, 2).flat, CURVES, strict=True):
            _curves(axes, rows, field, quality)
            axes.set(xlabel=title, ylabel=label, xscale="log")
        sheet.legend(*sheet.axes[0].get_legend_handles_labels(), loc="outside lower center", ncols=4)
        path = Path(folder) / name
        sheet.savefig(path, dpi=110)
        written.append(path)
    return written


def _curves(axes: Any, rows: Sequence[Row], field: str, quality: str) -> None:
    """A line for each model and solver, a dashed level for each method without a network."""
    curves: dict[str, list[Row]] = {}
    for i, row in enumerate(row for row in rows if not row.low):
        if row.solver:
            curves.setdefault(f"{row.method} {row.solver}", []).append(row)
        else:
            axes.axhline(getattr(row, quality), color=f"C{i}", ls="--", lw=1, label=row.method)
    for i, (name, points) in enumerate(curves.items(), start=5):
        points.sort(key=lambda row: getattr(row, field))
        x, y = [getattr(row, field) for row in points], [getattr(row, quality) for row in points]
        axes.plot(x, y, "o-", color=f"C{i}", label=name)
