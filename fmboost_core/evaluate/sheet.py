"""Pages to look at: the worst windows of each method by each measure, and windows chosen once and for all."""

from __future__ import annotations

import csv
import heapq
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from itertools import count
from pathlib import Path

import torch
import torch.nn.functional as F
from PIL import Image, ImageDraw, ImageFont
from torch import Tensor, nn

from . import judge, metrics

WINDOW, STRIDE, ZOOM = 128, 64, 3  # px of the high picture; every pixel is drawn 3 x 3
GAP, LABEL = 6, 18
SMALLEST = 1e-6  # of a measure: below it is rounding
MEASURES = ("lp", "flat outliers", "colour")
CHOSEN = Path(__file__).with_name("chosen_windows.csv")
"""Windows of the project's held-out pictures: label, file stem, top and left px at a short side of 512 px."""


@dataclass(frozen=True)
class Panels:
    """One photo as the methods show it: label -> (1, 3, H, W). The first is the low picture, the last the truth."""

    name: str
    images: Mapping[str, Tensor]


@dataclass(frozen=True)
class Strip:
    """One window of one photo: label -> (WINDOW, WINDOW, 3) uint8."""

    title: str
    panels: Mapping[str, Tensor]


class Sheet:
    """Keeps, of every photo that is added, the windows worth looking at."""

    def __init__(self, worst: int) -> None:
        self.worst = worst
        self.pages: dict[str, list[tuple[float, int, Strip]]] = {}
        self.chosen: list[Strip] = []
        self._order = count()
        self._wanted = _read_chosen() if worst else []

    def add(self, photo: Panels, features: nn.Module) -> None:
        """Compare every method (all but the first and the last panel) with the truth, window by window."""
        labels, truth = list(photo.images), list(photo.images.values())[-1]
        truth_features = features(truth)
        for label in labels[1:-1]:
            for measure, values in _windows(photo.images[label], truth, features, truth_features).items():
                page = self.pages.setdefault(f"{label}, {measure}", [])
                for value, top, left in _peaks(values, truth.shape[2:], self.worst):
                    strip = _cut(photo, labels, top, left, f"{photo.name} {measure} {value:.3g}")
                    heapq.heappush(page, (value, next(self._order), strip))
                    if len(page) > self.worst:
                        heapq.heappop(page)
        for label, name, top, left in self._wanted:
            if name == photo.name and top + WINDOW <= truth.shape[2] and left + WINDOW <= truth.shape[3]:
                self.chosen.append(_cut(photo, labels, top, left, f"{label} ({name})"))

    def write(self, folder: str | Path) -> list[Path]:
        """Write ``worst-METHOD-MEASURE.png``, worst window first, and ``chosen.png``; returns what was written."""
        pages = {f"worst-{_slug(name)}": [s for *_, s in sorted(p, reverse=True)] for name, p in self.pages.items()}
        written = []
        for name, strips in {**pages, "chosen": self.chosen}.items():
            if strips:
                path = Path(folder) / f"{name}.png"
                page(strips).save(path)
                written.append(path)
        return written


def page(strips: Sequence[Strip], zoom: int = ZOOM) -> Image.Image:
    """The strips below each other, every panel enlarged by repeating pixels, with titles and labels."""
    columns = max(len(strip.panels) for strip in strips)
    side = WINDOW * zoom
    canvas = Image.new("RGB", (columns * (side + GAP) + GAP, len(strips) * (side + LABEL + GAP) + GAP), "white")
    draw, font = ImageDraw.Draw(canvas), ImageFont.load_default(13)
    for row, strip in enumerate(strips):
        top = GAP + row * (side + LABEL + GAP)
        for column, (label, pixels) in enumerate(strip.panels.items()):
            left = GAP + column * (side + GAP)
            draw.text((left, top), f"{strip.title}: {label}" if column == 0 else label, fill="black", font=font)
            picture = Image.fromarray(pixels.numpy()).resize((side, side), Image.Resampling.NEAREST)
            canvas.paste(picture, (left, top + LABEL))
    return canvas


def _windows(image: Tensor, truth: Tensor, features: nn.Module, truth_features: list[Tensor]) -> dict[str, Tensor]:
    """Each measure over all windows, (rows, columns)."""
    size = image.shape[2:]
    lp = F.interpolate(judge.perceptual_map(features(image), truth_features), size, mode="nearest")
    outliers, _ = metrics.flat_outliers(image, truth)
    block = metrics.BLOCK
    colour = 255 * F.avg_pool2d(image - truth, block, ceil_mode=True).abs().mean(dim=1, keepdim=True)
    colour = F.interpolate(colour, scale_factor=block, mode="nearest")[..., : size[0], : size[1]]
    maps = dict(zip(MEASURES, (lp, 1e4 * outliers.float(), colour), strict=True))
    return {name: _window_means(values) for name, values in maps.items()}


def _starts(length: int) -> list[int]:
    """Where windows begin along a side: every STRIDE, and once more so that the last one ends with it."""
    return sorted({*range(0, length - WINDOW + 1, STRIDE), length - WINDOW})


def _window_means(values: Tensor) -> Tensor:
    """(1, 1, H, W) -> the means of the windows, (rows, columns), by sums over all above and to the left."""
    sums = F.pad(values[0, 0].double().cumsum(0).cumsum(1), (1, 0, 1, 0)).cpu()
    top, left = (torch.tensor(_starts(length)) for length in values.shape[2:])
    low, right = top + WINDOW, left + WINDOW
    total = sums[low][:, right] - sums[low][:, left] - sums[top][:, right] + sums[top][:, left]
    return total.float() / WINDOW**2


def _peaks(values: Tensor, size: Sequence[int], most: int) -> list[tuple[float, int, int]]:
    """(value, top, left) of the largest windows that do not overlap, largest first; none where the measure is 0."""
    found: list[tuple[float, int, int]] = []
    values, tops, lefts = values.clone(), *(torch.tensor(_starts(length)) for length in size)
    while len(found) < most and (largest := float(values.max())) > SMALLEST:
        row, column = divmod(int(values.argmax()), values.shape[1])
        top, left = int(tops[row]), int(lefts[column])
        found.append((largest, top, left))
        values[((tops - top).abs() < WINDOW)[:, None] & ((lefts - left).abs() < WINDOW)] = 0
    return found


def _cut(photo: Panels, labels: Sequence[str], top: int, left: int, title: str) -> Strip:
    height = list(photo.images.values())[-1].shape[2]
    panels = {}
    for label in labels:
        image = photo.images[label]
        scale = height // image.shape[2]
        y, x, side = top // scale, left // scale, WINDOW // scale
        cut = image[0, :, y : y + side, x : x + side]
        cut = cut.repeat_interleave(scale, dim=1).repeat_interleave(scale, dim=2)
        panels[label] = (cut * 255).round().clamp(0, 255).to("cpu", torch.uint8).permute(1, 2, 0).contiguous()
    return Strip(title, panels)


def _read_chosen() -> list[tuple[str, str, int, int]]:
    with CHOSEN.open(encoding="utf-8", newline="") as file:
        return [(r["label"], r["file"], int(r["top"]), int(r["left"])) for r in csv.DictReader(file)]


def _slug(name: str) -> str:
    return re.sub(r"[^a-z0-9]+", "-", name.lower()).strip("-")
