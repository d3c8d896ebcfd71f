"""One table of all models and baselines on held-out photos: error, sharpness, realism, colour, grids, time.

Every photo is brought to `short_side`, encoded (the truth) and reduced by the scale and encoded (what is lifted).
A method makes a high latent of the low one; its decoded picture is compared

- with the photo: PSNR, SSIM, periodicity of the residual at 2 and 8 px, and PSNR of both reduced by the scale;
- with the reconstruction (the decoded truth, the ceiling of every method): high-frequency energy, sliced Wasserstein
  distance of Laplacian patches, Frechet distance of patch features;
- with the decoded low latent: mean colour.

With the Inception weights at hand, also FID to the photos.
"""

from __future__ import annotations

import csv
import logging
import math
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass, field, fields
from pathlib import Path
from statistics import fmean, median
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from . import metrics
from .checkpoint import load_model, resolve
from .figures import Picture, picture_grid, plots
from .model import CFMModel
from .photos import find_photos, load_photo
from .solver import SOLVERS
from .upsample import reduce_pixels, upsample
from .vae import TinyVAE, load_vae

log = logging.getLogger(__name__)

BASELINES = ("nearest", "bilinear", "bicubic", "psu")
CEILING = "reconstruction"
SMALLEST = 160  # px: twenty periods of 8
MOST_PATCHES = 40_000  # a level and method, over all photos
MOST_FEATURES = 200_000

Progress = Callable[[int, int, str], None]
"""(methods done, of how many over all photos, name of the method just done)."""


@dataclass(frozen=True)
class Row:
    """One method over all photos: means, where nothing else is said."""

    method: str
    solver: str = ""
    steps: int | None = None
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
    frechet: float = math.nan  # of patch features
    fid: float = math.nan  # to the photos
    colour: float = math.nan  # 1/255, mean colour against the decoded low latent
    grid2: float = math.nan  # periodicity at 2 px, 1 is none
    grid8: float = math.nan  # at 8 and 4 px
    lift_ms: float = math.nan  # median an image, autoencoder included where the method needs it
    decode_ms: float = math.nan  # median an image, of the decode after the lift

    @property
    def label(self) -> str:
        if not self.solver:
            return self.method
        return f"{self.method} {self.solver}" + (f" {self.steps}" if self.steps else "")


@dataclass(frozen=True)
class Evaluation:
    rows: list[Row]
    pictures: list[Picture]


@dataclass(frozen=True)
class _Method:
    """A way from the low latent of photo `index` to a high one; also returns the network calls it made."""

    row: Row
    lift: Callable[[Tensor, int], tuple[Tensor, int]]


@dataclass
class _Scores:
    """What one method leaves behind: numbers a photo and samples for the distances between sets."""

    values: dict[str, list[float]] = field(default_factory=dict)
    patches: list[list[Tensor]] = field(default_factory=list)  # a photo: one tensor a level
    features: list[Tensor] = field(default_factory=list)
    harmonics: dict[int, list[Tensor]] = field(default_factory=dict)
    fid: Any = None

    def add(self, **values: float) -> None:
        for name, value in values.items():
            self.values.setdefault(name, []).append(value)

    def levels(self) -> list[Tensor]:
        return [torch.cat(level) for level in zip(*self.patches, strict=True)]

    def grid(self, period: int) -> float:
        return torch.cat(self.harmonics[period]).mean(dim=0).exp().max().item()


@torch.inference_mode()
def evaluate(
    models: Mapping[str, CFMModel],
    photos: Sequence[Path],
    vae: TinyVAE,
    *,
    scale: int | None = None,
    short_side: int | None = 512,
    steps: Sequence[int] = (1, 2, 4, 10),
    solvers: Sequence[str] = ("euler",),
    baselines: Sequence[str] = BASELINES,
    noise_step: int | None = None,
    seed: int = 0,
    tile: int = 0,
    pictures: int = 4,
    fid: str | Path | None = None,
    progress: Progress | None = None,
) -> Evaluation:
    """Rows for the reconstruction, each baseline, and each model with each solver and number of steps.

    All models must lift by the same scale (`scale` says which without models) in the latent space of `vae`. An
    adaptive solver has one row. `pictures` photos, evenly spread, are kept for the grid. Photos that cannot be read
    or are under 160 px are named in the log and skipped. `fid` is the file of `metrics.open_fid`. Randomness depends
    on `seed` alone.
    """
    scale = _common_scale(models, vae, scale)
    methods = _methods(models, baselines, vae, scale, steps, solvers, noise_step, seed, tile)
    images = _load(photos, short_side, vae.space.pixels * scale)
    device = next(vae.parameters()).device
    scores = [_Scores(fid=metrics.open_fid(fid).to(device) if fid else None) for _ in methods]
    shown = _spread(len(images), pictures)
    kept: list[Picture] = []
    for index, path in enumerate(images):
        photo = load_photo(path, short_side, vae.space.pixels * scale).to(device)
        high, low = vae.encode(photo), vae.encode(reduce_pixels(photo, scale))
        start = _now(high)
        truth = vae.decode(high)
        truth_ms, small = 1e3 * (_now(high) - start), vae.decode(low)
        panels = {"low": small}
        for m, method in enumerate(methods):
            score = scores[m]
            if method.row.method == CEILING:
                latent, image = high, truth
                score.add(lift_ms=0, decode_ms=truth_ms, evaluations=0)
            else:
                start = _now(low)
                latent, evaluations = method.lift(low, index)
                lifted = _now(low)
                image = vae.decode(latent)
                done = _now(low)
                score.add(lift_ms=1e3 * (lifted - start), decode_ms=1e3 * (done - lifted), evaluations=evaluations)
            score.add(
                latent_mse=F.mse_loss(latent, high).item(), colour=_number(metrics.mean_colour_error, image, small)
            )
            _compare(score, image, photo, truth, scale, index, len(images))
            if index in shown and _in_picture(method.row, methods):
                panels[method.row.label] = image
            if progress is not None:
                progress(index * len(methods) + m + 1, len(images) * len(methods), method.row.label)
        if index in shown:
            kept.append(Picture(path.stem, {k: _bytes(v) for k, v in _ordered(panels, photo).items()}))
    return Evaluation(_rows(methods, scores, seed), kept)


def evaluate_files(
    models: Sequence[str | Path],
    data: str | Path,
    vae: str | Path,
    *,
    scale: int | None = None,
    space: str | None = None,
    limit: int | None = None,
    out: str | Path | None = None,
    device: torch.device | str = "cpu",
    vae_dtype: torch.dtype = torch.float32,
    short_side: int | None = 512,
    steps: Sequence[int] = (1, 2, 4, 10),
    solvers: Sequence[str] = ("euler",),
    seed: int = 0,
    tile: int = 0,
    progress: Progress | None = None,
) -> Evaluation:
    """`evaluate` on model files or names, a folder of photos (the first `limit`) and a TAESD file or folder.

    With `out`, writes results.csv, table.md, pictures.png and, where matplotlib is installed, the plots there.
    `scale` and `space` are needed only without models.
    """
    loaded: dict[str, CFMModel] = {}
    for name in models:
        key = resolve(name).stem
        if key in loaded:
            raise ValueError(f"two models are called {key}: rename one of the files")
        loaded[key] = load_model(name, device=device)
    first = next(iter(loaded.values()), None)
    opened = load_vae(vae, space=first.space.name if first else space, device=device, dtype=vae_dtype)
    opened.to(memory_format=torch.channels_last)  # pyright: ignore[reportCallIssue]  # up to twice as fast on a CPU
    result = evaluate(
        loaded,
        find_photos(data)[:limit],
        opened,
        scale=scale,
        short_side=short_side,
        steps=steps,
        solvers=solvers,
        seed=seed,
        tile=tile,
        progress=progress,
    )
    if out is not None:
        folder = Path(out)
        folder.mkdir(parents=True, exist_ok=True)
        write_csv(result.rows, folder / "results.csv")
        (folder / "table.md").write_text(table(result.rows, markdown=True) + "\n", encoding="utf-8")
        picture_grid(result.pictures, folder / "pictures.png")
        plots(result.rows, folder)
    return result


COLUMNS: tuple[tuple[str, str, str], ...] = (
    ("NFE", "evaluations", ".0f"),
    ("PSNR", "psnr", ".2f"),
    ("SSIM", "ssim", ".3f"),
    ("PSNR low", "psnr_reduced", ".2f"),
    ("latent MSE", "latent_mse", ".4f"),
    ("HF", "high_frequency", ".2f"),
    ("SWD", "swd", ".4f"),
    ("of best", "swd_of_best", ".2f"),
    ("SWD each", "swd_each", ".4f"),
    ("Frechet", "frechet", ".3f"),
    ("colour", "colour", ".2f"),
    ("grid 2", "grid2", ".2f"),
    ("grid 8", "grid8", ".2f"),
    ("lift ms", "lift_ms", ".0f"),
    ("decode ms", "decode_ms", ".0f"),
)


def table(rows: Sequence[Row], markdown: bool = False) -> str:
    """The rows as aligned text, or as a Markdown table."""
    lines = [["method", *(title for title, _, _ in COLUMNS)]]
    lines += [[row.label, *(format(getattr(row, name), spec) for _, name, spec in COLUMNS)] for row in rows]
    widths = [max(len(line[i]) for line in lines) for i in range(len(lines[0]))]
    cells = [
        [line[0].ljust(widths[0]), *(c.rjust(w) for c, w in zip(line[1:], widths[1:], strict=True))] for line in lines
    ]
    if not markdown:
        return "\n".join("  ".join(line) for line in cells)
    rule = ["-" * widths[0], *("-" * (w - 1) + ":" for w in widths[1:])]
    return "\n".join(f"| {' | '.join(line)} |" for line in [cells[0], rule, *cells[1:]])


def write_csv(rows: Sequence[Row], path: str | Path) -> None:
    """One line a row, one column a field of `Row`, unrounded."""
    with open(path, "w", newline="", encoding="utf-8") as file:
        writer = csv.DictWriter(file, [f.name for f in fields(Row)])
        writer.writeheader()
        writer.writerows(asdict(row) for row in rows)


def _common_scale(models: Mapping[str, CFMModel], vae: TinyVAE, scale: int | None) -> int:
    scales = {model.scale for model in models.values()} | ({scale} if scale else set())
    if len(scales) != 1:
        found = ", ".join(f"{s}x" for s in sorted(scales)) or "no model and no scale"
        raise ValueError(f"one table is for one scale: found {found}; give models that lift by the same scale")
    for name, model in models.items():
        if model.space != vae.space:
            raise ValueError(f"{name} lifts {model.space.name} latents, the autoencoder makes {vae.space.name} ones")
        if name in {CEILING, *BASELINES}:
            raise ValueError(f"a model cannot be called {name}, as a baseline is: rename the file")
    return scales.pop()


def _methods(
    models: Mapping[str, CFMModel],
    baselines: Sequence[str],
    vae: TinyVAE,
    scale: int,
    steps: Sequence[int],
    solvers: Sequence[str],
    noise_step: int | None,
    seed: int,
    tile: int,
) -> list[_Method]:
    unknown = [b for b in baselines if b not in BASELINES] + [s for s in solvers if s not in SOLVERS]
    if unknown:
        raise ValueError(f"unknown {unknown[0]!r}: expected baselines of {BASELINES} and solvers of {tuple(SOLVERS)}")

    def interpolate(kind: str) -> _Method:
        def lift(low: Tensor, index: int) -> tuple[Tensor, int]:
            if kind == "bicubic":
                return F.interpolate(low, scale_factor=scale, mode="bicubic", align_corners=False), 0
            return upsample(low, scale, kind, vae), 0

        return _Method(Row(kind), lift)

    def run(name: str, model: CFMModel, solver: str, n: int | None) -> _Method:
        def lift(low: Tensor, index: int) -> tuple[Tensor, int]:
            calls = 0

            def count(evaluation: int, *_: object) -> None:
                nonlocal calls
                calls = evaluation

            x1 = model.upscale(
                low,
                steps=n or 1,
                solver=solver,
                seed=seed,
                noise_step=noise_step,
                vae=vae,
                callback=count,
                batch_index=[index],
                tile=tile,
            )
            return x1, calls

        return _Method(Row(name, solver, n), lift)

    methods = [_Method(Row(CEILING), lambda low, index: (low, 0)), *map(interpolate, baselines)]
    for name, model in models.items():
        for solver in solvers:
            grid = list(steps) if SOLVERS[solver].evaluations else [None]
            methods += [run(name, model, solver, n) for n in grid]
    return methods


def _load(photos: Sequence[Path], short_side: int | None, multiple: int) -> list[Path]:
    if short_side is not None and short_side // multiple * multiple < SMALLEST:
        raise ValueError(f"a short side of {short_side} px is too small to judge: expected at least {SMALLEST} px")
    good = []
    for path in photos:
        try:
            size = load_photo(path, short_side, multiple).shape[2:]
            if min(size) < SMALLEST:
                raise ValueError(f"it is {size[1]} x {size[0]} px: expected at least {SMALLEST} px on each side")
            good.append(path)
        except (OSError, ValueError) as error:
            log.warning("skipped %s: %s", path, error)
    if not good:
        raise ValueError(f"none of the {len(photos)} photos could be used: expected images of at least {SMALLEST} px")
    return good


def _compare(score: _Scores, image: Tensor, photo: Tensor, truth: Tensor, scale: int, index: int, photos: int) -> None:
    reduced = _number(metrics.psnr, reduce_pixels(image, scale), reduce_pixels(photo, scale))
    score.add(psnr=_number(metrics.psnr, image, photo), ssim=_number(metrics.ssim, image, photo), psnr_reduced=reduced)
    score.add(energy=metrics.high_frequency_energy(image).item())
    if score.fid is not None:
        score.fid.update(photo, real=True)
        score.fid.update(image, real=False)
    patches = min(128, max(1, MOST_PATCHES // photos))
    score.patches.append([level.cpu() for level in metrics.laplacian_patches(image, patches=patches, seed=index)])
    features = metrics.patch_features(image).cpu()
    score.features.append(features[:: max(1, math.ceil(len(features) * photos / MOST_FEATURES))])
    for period, besides in ((2, 1), (8, 2)):
        ratios = metrics.harmonic_ratios(image - photo, period, besides)
        score.harmonics.setdefault(period, []).append(ratios.log().cpu())


def _rows(methods: Sequence[_Method], scores: Sequence[_Scores], seed: int) -> list[Row]:
    ceiling = scores[0]
    reference, features = ceiling.levels(), torch.cat(ceiling.features)
    energy = sum(ceiling.values["energy"])
    rows: list[Row] = []
    for method, score in zip(methods, scores, strict=True):
        patches, values = score.levels(), score.values
        names = ("psnr", "ssim", "psnr_reduced", "latent_mse", "colour", "evaluations")
        rows.append(
            Row(
                method.row.method,
                method.row.solver,
                method.row.steps,
                photos=len(values["psnr"]),
                **{name: fmean(values[name]) for name in names},
                high_frequency=sum(values["energy"]) / energy,
                swd=metrics.patch_distances(patches, reference, seed=seed).mean,
                swd_each=metrics.patch_distances(patches, reference, normalise="each", seed=seed).mean,
                frechet=metrics.frechet_distance(torch.cat(score.features), features),
                fid=score.fid.compute().item() if score.fid else math.nan,
                grid2=score.grid(2),
                grid8=score.grid(8),
                lift_ms=median(values["lift_ms"]),
                decode_ms=median(values["decode_ms"]),
            )
        )
    best = min((row.swd for row in rows if row.method in BASELINES), default=math.nan)
    return [Row(**{**asdict(row), "swd_of_best": row.swd / best}) for row in rows]


def _in_picture(row: Row, methods: Sequence[_Method]) -> bool:
    """Nearest, psu, the reconstruction, and of each model the first solver with 10 steps or the most there are."""
    own = [m.row for m in methods if m.row.method == row.method]
    if not row.solver:
        return row.method in {"nearest", "psu", CEILING}
    first = [r for r in own if r.solver == own[0].solver]
    chosen = next((r for r in first if r.steps == 10), max(first, key=lambda r: r.steps or 0))
    return row == chosen


def _ordered(panels: dict[str, Tensor], photo: Tensor) -> dict[str, Tensor]:
    truth = panels.pop(CEILING)
    return {**panels, CEILING: truth, "photo": photo}


def _spread(n: int, k: int) -> set[int]:
    return {round((i + 0.5) * n / min(k, n) - 0.5) for i in range(min(k, n))}


def _bytes(image: Tensor) -> Tensor:
    return (image[0] * 255).round().to("cpu", torch.uint8).permute(1, 2, 0).contiguous()


def _number(metric: Callable[[Tensor, Tensor], Tensor], image: Tensor, reference: Tensor) -> float:
    return metric(image, reference).item()


def _now(like: Tensor) -> float:
    """Seconds, after all work on the device of `like` is done."""
    if like.device.type == "cuda":
        torch.cuda.synchronize(like.device)
    return time.perf_counter()
