"""What an evaluation says of each method, and the table of it."""

from __future__ import annotations

import csv
import math
from collections.abc import Sequence
from dataclasses import asdict, dataclass, fields
from pathlib import Path

CEILING = "reconstruction"
"""The decoded latent of the photo itself: what every method is compared with, and the best it can do."""


@dataclass(frozen=True)
class Row:
    """One method over all photos: means, where nothing else is said."""

    method: str
    solver: str = ""
    steps: int | None = None
    disturbance: str = ""  # what was done to the low latent, or that another autoencoder made the context
    photos: int = 0
    evaluations: float = math.nan  # network evaluations (NFE) an image
    psnr: float = math.nan  # dB, to the photo
    lp: float = math.nan  # perceptual distance, to the reconstruction (`judge.perceptual_distance`)
    dists: float = math.nan  # structure and texture distance, likewise
    frechet4: float = math.nan  # of features at 4 px, between the sets
    frechet8: float = math.nan
    frechet16: float = math.nan
    high_frequency: float = math.nan  # summed energy over the reconstruction's; 1 is right
    flat: float = math.nan  # outliers in flat areas, in 1e-4 of the flat pixels
    colour: float = math.nan  # 1/255, of 32 px blocks against the reconstruction
    contrast: float = math.nan  # 1/255, of details of 1 to 8 px in such blocks
    lift_ms: float = math.nan  # median an image, with the VAE passes the method needs
    decode_ms: float = math.nan  # median an image, of the decode after the lift

    @property
    def label(self) -> str:
        run = f" {self.solver}" + (f" {self.steps}" if self.steps else "") if self.solver else ""
        return self.method + run + (f", {self.disturbance}" if self.disturbance else "")


COLUMNS: tuple[tuple[str, str, str], ...] = (
    ("NFE", "evaluations", ".0f"),
    ("PSNR", "psnr", ".2f"),
    ("lp", "lp", ".3f"),
    ("dists", "dists", ".3f"),
    ("FD /4", "frechet4", ".1f"),
    ("FD /8", "frechet8", ".1f"),
    ("FD /16", "frechet16", ".1f"),
    ("HF", "high_frequency", ".2f"),
    ("flat", "flat", ".1f"),
    ("colour", "colour", ".2f"),
    ("contrast", "contrast", ".2f"),
    ("lift ms", "lift_ms", ".0f"),
    ("decode ms", "decode_ms", ".0f"),
)


def table(rows: Sequence[Row]) -> str:
    """The rows as a Markdown table with aligned columns; a column without a single number is left out."""
    columns = [c for c in COLUMNS if not all(math.isnan(getattr(row, c[1])) for row in rows)]
    lines = [["method", *(title for title, _, _ in columns)]]
    lines += [[row.label, *(_cell(getattr(row, name), spec) for _, name, spec in columns)] for row in rows]
    widths = [max(len(line[i]) for line in lines) for i in range(len(lines[0]))]
    cells = [
        [line[0].ljust(widths[0]), *(c.rjust(w) for c, w in zip(line[1:], widths[1:], strict=True))] for line in lines
    ]
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
