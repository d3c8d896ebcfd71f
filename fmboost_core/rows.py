"""What an evaluation says of one method, and the table of them."""

from __future__ import annotations

import csv
import math
from collections.abc import Sequence
from dataclasses import asdict, dataclass, fields
from pathlib import Path

BASELINES = ("nearest", "bilinear", "bicubic", "psu")
CEILING = "reconstruction"
SMALL = "low"  # the decoded low latent itself, which has no size but its own to be compared at


@dataclass(frozen=True)
class Row:
    """One method over all photos: means, where nothing else is said."""

    method: str
    solver: str = ""
    steps: int | None = None
    low: str = ""  # what was done to the low latent before
    evaluations: float = 0  # network calls an image
    photos: int = 0
    psnr: float = math.nan  # dB, to the photo
    ssim: float = math.nan
    psnr_reduced: float = math.nan  # dB, of the reduced output to the reduced photo
    latent_mse: float = math.nan  # to the latent of the photo
    high_frequency: float = math.nan  # energy of the finest band over the reconstruction's, over the whole set
    swd: float = math.nan  # normalised by the reconstruction
    swd_of_best: float = math.nan  # over the smallest of the baselines
    swd_each: float = math.nan  # each set normalised by itself, as published
    gain_kept: float = math.nan  # of what the same run with the most steps gains in swd over the best baseline
    frechet: float = math.nan  # of patch features
    fid: float = math.nan  # to the photos, with the user's Inception weights
    lpips: float = math.nan  # to the photo, with the user's weights
    colour: float = math.nan  # 1/255, mean colour against the decoded low latent
    grid2: float = math.nan  # periodicity at 2 px, 1 is none
    grid8: float = math.nan  # at 8 and 4 px
    lift_ms: float = math.nan  # median an image, autoencoder included where the method needs it
    decode_ms: float = math.nan  # median an image, of the decode after the lift

    @property
    def label(self) -> str:
        run = f" {self.solver}" + (f" {self.steps}" if self.steps else "") if self.solver else ""
        return self.method + run + (f", {self.low}" if self.low else "")


COLUMNS: tuple[tuple[str, str, str], ...] = (
    ("NFE", "evaluations", ".0f"),
    ("PSNR", "psnr", ".2f"),
    ("SSIM", "ssim", ".3f"),
    ("PSNR low", "psnr_reduced", ".2f"),
    ("latent MSE", "latent_mse", ".4f"),
    ("HF", "high_frequency", ".2f"),
    ("SWD", "swd", ".4f"),
    ("of best", "swd_of_best", ".2f"),
    ("gain kept", "gain_kept", ".0%"),
    ("SWD each", "swd_each", ".4f"),
    ("Frechet", "frechet", ".3f"),
    ("FID", "fid", ".2f"),
    ("LPIPS", "lpips", ".4f"),
    ("colour", "colour", ".2f"),
    ("grid 2", "grid2", ".2f"),
    ("grid 8", "grid8", ".2f"),
    ("lift ms", "lift_ms", ".0f"),
    ("decode ms", "decode_ms", ".0f"),
)


def table(rows: Sequence[Row], markdown: bool = False) -> str:
    """The rows as aligned text, or as a Markdown table; columns that nothing has a number for are left out."""
    columns = [c for c in COLUMNS if not all(math.isnan(getattr(row, c[1])) for row in rows)]
    lines = [["method", *(title for title, _, _ in columns)]]
    lines += [[row.label, *(_cell(getattr(row, name), spec) for _, name, spec in columns)] for row in rows]
    widths = [max(len(line[i]) for line in lines) for i in range(len(lines[0]))]
    cells = [
        [line[0].ljust(widths[0]), *(c.rjust(w) for c, w in zip(line[1:], widths[1:], strict=True))] for line in lines
    ]
    if not markdown:
        return "\n".join("  ".join(line) for line in cells)
    rule = ["-" * widths[0], *("-" * (w - 1) + ":" for w in widths[1:])]
    return "\n".join(f"| {' | '.join(line)} |" for line in [cells[0], rule, *cells[1:]])


def _cell(value: float, spec: str) -> str:
    return "" if math.isnan(value) else format(value, spec)


def write_csv(rows: Sequence[Row], path: str | Path) -> None:
    """One line a row, one column a field of `Row`, unrounded."""
    with open(path, "w", newline="", encoding="utf-8") as file:
        writer = csv.DictWriter(file, [f.name for f in fields(Row)])
        writer.writeheader()
        writer.writerows(asdict(row) for row in rows)
