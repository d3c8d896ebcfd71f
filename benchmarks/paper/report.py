"""What an experiment leaves behind: NAME.md, NAME.csv and pictures, and what exactly was run."""

from __future__ import annotations

import csv
import math
import os
import platform
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any, NamedTuple

import diffusers
import torch
import torch.nn.functional as F
from matplotlib.figure import Figure
from torch import Tensor

from fmboost_core import __version__
from fmboost_core.evaluate.sheet import WINDOW, ZOOM, Strip, page
from fmboost_core.images.resize import centre_square, resize

SIDE = WINDOW * ZOOM  # px of a panel
CROP = 96  # px of a photo that are shown enlarged


class Picture(NamedTuple):
    """One photo as the methods show it: label -> (1, 3, H, W). The last is the photo; the small one may be smaller."""

    name: str
    panels: Mapping[str, Tensor]


class Column(NamedTuple):
    title: str
    key: str
    spec: str = ""


class Plot(NamedTuple):
    x: str
    y: str
    curves: Mapping[str, Sequence[tuple[float, float]]]
    log_x: bool = False
    log_y: bool = False


class Bars(NamedTuple):
    y: str
    heights: Mapping[str, float]


@dataclass
class Report:
    title: str
    columns: Sequence[Column]
    rows: list[dict[str, Any]]
    """One dict a line, with the keys of the columns; other keys go to the CSV alone."""
    notes: list[str] = field(default_factory=list)
    plots: list[Plot | Bars] = field(default_factory=list)
    pictures: list[Picture] = field(default_factory=list)


def write(report: Report, name: str, folder: Path, settings: Mapping[str, Any]) -> Path:
    """Write ``NAME.md``, ``NAME.csv``, ``NAME.png`` (plots) and ``NAME.jpg`` (pictures); returns the first."""
    folder.mkdir(parents=True, exist_ok=True)
    with (folder / f"{name}.csv").open("w", newline="", encoding="utf-8") as file:
        writer = csv.DictWriter(file, list(report.rows[0]))
        writer.writeheader()
        writer.writerows(report.rows)
    parts = [f"# {report.title}", table(report.columns, report.rows)]
    if report.plots:
        _plot(report.plots, folder / f"{name}.png")
        parts.append(f"![{report.title}]({name}.png)")
    if report.pictures:
        strips = [strip for picture in report.pictures for strip in _strips(picture)]
        page(strips).save(folder / f"{name}.jpg", quality=90)
        parts.append(f"![{report.title}]({name}.jpg)")
    parts += report.notes
    parts.append("\n".join(f"- {key}: {value}" for key, value in {**settings, **surroundings()}.items()))
    path = folder / f"{name}.md"
    path.write_text("\n\n".join(parts) + "\n", encoding="utf-8")
    return path


def table(columns: Sequence[Column], rows: Sequence[Mapping[str, Any]]) -> str:
    """Markdown; a column without a single number (a metric whose weights are not at hand) is left out."""
    columns = [c for c in columns if not all(_missing(row.get(c.key)) for row in rows)]
    lines = [[c.title for c in columns], ["---" if c.key == columns[0].key else "---:" for c in columns]]
    lines += [["" if _missing(row.get(c.key)) else format(row[c.key], c.spec) for c in columns] for row in rows]
    return "\n".join(f"| {' | '.join(line)} |" for line in lines)


def surroundings() -> dict[str, str]:
    return {
        "versions": f"fmboost {__version__}, torch {torch.__version__}, diffusers {diffusers.__version__}, "
        f"Python {platform.python_version()}",
        "machine": f"{_processor()}, {os.cpu_count()} cores, {torch.get_num_threads()} threads used"
        + (f", {torch.cuda.get_device_name()}" if torch.cuda.is_available() else ""),
    }


def described(preset: Any) -> str:
    """The settings of a preset on one line."""
    return ", ".join(f"{key} {value}" for key, value in asdict(preset).items() if not isinstance(value, dict))


def _strips(picture: Picture) -> list[Strip]:
    """The middle of the photo, and below it the square with the finest detail."""
    photo = list(picture.panels.values())[-1]
    top, left = _finest(photo)
    whole, detail = {}, {}
    for label, panel in picture.panels.items():
        share = panel.shape[2] / photo.shape[2]
        y, x, side = (round(value * share) for value in (top, left, CROP))
        cut = panel[:, :, y : y + side, x : x + side]
        whole[label] = _pixels(resize(centre_square(panel, min(panel.shape[2:])), (SIDE, SIDE)))
        detail[label] = _pixels(F.interpolate(cut, (SIDE, SIDE), mode="nearest"))
    return [Strip(picture.name, whole), Strip(f"{picture.name}, {CROP} px", detail)]


def _finest(photo: Tensor) -> tuple[int, int]:
    """Top left corner of the square with the largest mean gradient."""
    grey = photo.mean(dim=1, keepdim=True)
    energy = grey.diff(dim=2)[..., :-1].abs() + grey.diff(dim=3)[:, :, :-1].abs()
    means = F.avg_pool2d(energy, CROP - 1, stride=8)
    index = int(means.argmax())
    return 8 * (index // means.shape[3]), 8 * (index % means.shape[3])


def _pixels(panel: Tensor) -> Tensor:
    return (panel[0] * 255).round().clamp(0, 255).to("cpu", torch.uint8).permute(1, 2, 0).contiguous()


def _processor() -> str:
    try:
        lines = Path("/proc/cpuinfo").read_text(encoding="utf-8").splitlines()
        return next(line.split(":", 1)[1].strip() for line in lines if line.startswith("model name"))
    except (OSError, StopIteration):
        return platform.processor() or platform.machine()


def _missing(value: Any) -> bool:
    return value is None or (isinstance(value, float) and math.isnan(value))


def _plot(plots: Sequence[Plot | Bars], path: Path) -> None:
    sheet = Figure(figsize=((6 if isinstance(plots[0], Plot) else 4) * len(plots), 4), layout="constrained")
    for axes, plot in zip(sheet.subplots(1, len(plots), squeeze=False)[0], plots, strict=True):
        axes.set(ylabel=plot.y)
        if isinstance(plot, Bars):
            axes.bar(list(plot.heights), list(plot.heights.values()))
            axes.tick_params("x", rotation=20)
            continue
        for label, points in plot.curves.items():
            axes.plot([x for x, _ in points], [y for _, y in points], "o-", label=label)
        axes.set(xlabel=plot.x)
        if plot.log_x:
            axes.set_xscale("log")
        if plot.log_y:
            axes.set_yscale("log")
        axes.legend(fontsize="small")
    sheet.savefig(path, dpi=110)
