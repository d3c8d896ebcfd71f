"""One table of all models and baselines on held-out photos: error, sharpness, realism, colour, grids, time.

Every photo is brought to `short_side`, encoded (the truth) and reduced by the scale and encoded (what is lifted).
A method makes a high latent of the low one; its decoded picture is compared

- with the photo: PSNR, SSIM, periodicity of the residual at 2 and 8 px, and PSNR of both reduced by the scale; FID and
  LPIPS where the user has their weights;
- with the reconstruction (the decoded truth, the ceiling of every method): high-frequency energy, sliced Wasserstein
  distance of Laplacian patches, Frechet distance of patch features;
- with the decoded low latent: mean colour.

The decoded low latent is printed beside them, with the PSNR to the reduced photo alone: what a method that knew no
more than the small picture shows would get there.
"""

from __future__ import annotations

import logging
import math
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from functools import partial
from pathlib import Path
from statistics import fmean, median

import torch
import torch.nn.functional as F
from torch import Tensor

from . import metrics
from .checkpoint import load_model, resolve
from .figures import Picture, picture_grid, plots
from .methods import Method, is_shown, make_methods
from .model import CFMModel
from .photos import Photo, find_photos, load_photo
from .rows import BASELINES, CEILING, SMALL, Row, table, write_csv
from .upsample import reduce_pixels
from .vae import TinyVAE, load_vae

log = logging.getLogger(__name__)

SMALLEST = 160  # px: twenty periods of 8
PATCHES = 2048  # a level, method and photo: with few, the chance of where they lie outweighs what methods differ by
MOST_PATCHES = 40_000  # a level and method, over all photos
PROJECTIONS = 128
MOST_FEATURES = 200_000

Progress = Callable[[int, int, str], None]
"""(methods done, of how many over all photos, name of the method just done)."""


@dataclass(frozen=True)
class Evaluation:
    rows: list[Row]
    pictures: list[Picture]
    low: Row
    """The decoded low latent, which is no method and has the PSNR to the reduced photo alone."""

    @property
    def printed(self) -> list[Row]:
        """`rows` with `low` below the reconstruction."""
        return [self.rows[0], self.low, *self.rows[1:]]


@dataclass
class Perceptual:
    """Metrics with learned weights, which only the user may have.

    `features` maps (B, 3, H, W) in [0, 1] to (B, D) of which FID is the Frechet distance to those of the photos;
    `lpips` maps two such images to a distance.
    """

    features: Callable[[Tensor], Tensor] | None = None
    lpips: Callable[[Tensor, Tensor], Tensor] | None = None
    photos: list[Tensor] = field(default_factory=list)

    def see(self, photo: Tensor) -> None:
        if self.features is not None:
            self.photos.append(self.features(photo).cpu())

    def compare(self, score: _Scores, image: Tensor, photo: Tensor) -> None:
        if self.features is not None:
            score.learned.append(self.features(image).cpu())
        if self.lpips is not None:
            score.add(lpips=float(self.lpips(image, photo)))

    def fid(self, score: _Scores) -> float:
        if len(self.photos) < 2:
            return math.nan
        return metrics.frechet_distance(torch.cat(score.learned), torch.cat(self.photos))


def open_perceptual(fid: str | Path | None, lpips: str | None, device: torch.device | str) -> Perceptual:
    """FID from a file of Inception weights and LPIPS with the named network, each where it is given."""
    inception = metrics.open_fid(fid).to(device).inception if fid else None
    distance = metrics.open_lpips(lpips).to(device) if lpips else None
    return Perceptual(None if inception is None else lambda images: inception(_to_bytes(images)), distance)


@dataclass
class _Scores:
    """What one method leaves behind: numbers a photo and samples for the distances between sets."""

    values: dict[str, list[float]] = field(default_factory=dict)
    patches: list[list[Tensor]] = field(default_factory=list)  # a photo: one tensor a level
    features: list[Tensor] = field(default_factory=list)
    learned: list[Tensor] = field(default_factory=list)
    harmonics: dict[int, list[Tensor]] = field(default_factory=dict)

    def add(self, **values: float) -> None:
        for name, value in values.items():
            self.values.setdefault(name, []).append(value)

    def levels(self) -> list[Tensor]:
        return [torch.cat(level).float() for level in zip(*self.patches, strict=True)]

    def grid(self, period: int) -> float:
        return torch.cat(self.harmonics[period]).mean(dim=0).exp().max().item()


@torch.inference_mode()
def evaluate(
    models: Mapping[str, CFMModel],
    photos: Sequence[Photo],
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
    latent_noise: Sequence[float] = (),
    perceptual: Perceptual | None = None,
    progress: Progress | None = None,
) -> Evaluation:
    """Rows for the reconstruction, each baseline, and each model with each solver and number of steps.

    All models must lift by the same scale (`scale` says which without models) in the latent space of `vae`. An
    adaptive solver has one row, and so has a model whose file says it is a regression. `latent_noise` adds rows on
    disturbed low latents (`methods.make_methods`). `pictures` photos, evenly spread, are kept for the grid. Photos that
    cannot be read or are under 160 px are named in the log and skipped. Randomness depends on `seed` alone.
    """
    scale = _common_scale(models, vae, scale)
    methods = make_methods(
        models,
        vae,
        scale,
        baselines=baselines,
        steps=steps,
        solvers=solvers,
        noise_step=noise_step,
        seed=seed,
        tile=tile,
        latent_noise=latent_noise,
    )
    perceptual = perceptual or Perceptual()
    images = _load(photos, short_side, vae.space.pixels * scale)
    scores = [_Scores() for _ in methods]
    shown = _spread(len(images), pictures)
    kept: list[Picture] = []
    agreement: list[float] = []
    for index, path in enumerate(images):
        photo = load_photo(path, short_side, vae.space.pixels * scale).to(next(vae.parameters()).device)
        reduced = reduce_pixels(photo, scale)
        high, low = vae.encode(photo), vae.encode(reduced)
        start = _now(high)
        truth = vae.decode(high)
        truth_ms, small = 1e3 * (_now(high) - start), vae.decode(low)
        panels = {SMALL: small}
        agreement.append(_number(metrics.psnr, small, reduced))
        for m, method in enumerate(methods):
            score = scores[m]
            if method.row.method == CEILING:
                latent, image = high, truth
                score.add(lift_ms=0, decode_ms=truth_ms, evaluations=0)
            else:
                given = method.disturb(low, index)
                start = _now(low)
                latent, evaluations = method.lift(given, index)
                lifted = _now(low)
                image = vae.decode(latent)
                done = _now(low)
                score.add(lift_ms=1e3 * (lifted - start), decode_ms=1e3 * (done - lifted), evaluations=evaluations)
            score.add(
                latent_mse=F.mse_loss(latent, high).item(), colour=_number(metrics.mean_colour_error, image, small)
            )
            _compare(score, image, photo, scale, index, len(images))
            perceptual.compare(score, image, photo)
            if index in shown and is_shown(method.row, [m.row for m in methods]):
                panels[method.row.label] = image
            if progress is not None:
                progress(index * len(methods) + m + 1, len(images) * len(methods), method.row.label)
        perceptual.see(photo)
        if index in shown:
            kept.append(Picture(path.stem, {k: _bytes(v) for k, v in _ordered(panels, photo).items()}))
    decoded_low = Row(SMALL, photos=len(agreement), psnr_reduced=fmean(agreement))
    return Evaluation(_rows(methods, scores, perceptual, seed), kept, decoded_low)


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
    latent_noise: Sequence[float] = (),
    fid: str | Path | None = None,
    lpips: str | None = None,
    progress: Progress | None = None,
) -> Evaluation:
    """`evaluate` on model files or names, a folder of photos (the first `limit`) and a TAESD file or folder.

    With `out`, writes results.csv, table.md, pictures.png and, where matplotlib is installed, the plots there.
    `scale` and `space` are needed only without models. `fid` is the user's file of Inception weights, `lpips` the name
    of a network whose weights lie in torch's hub folder.
    """
    if out is not None:
        Path(out).mkdir(parents=True, exist_ok=True)  # now, not after the work
    loaded: dict[str, CFMModel] = {}
    stems = [resolve(name).stem for name in models]
    for name, stem in zip(models, stems, strict=True):
        key = stem if stems.count(stem) == 1 else str(name)  # a training is often called as what ships
        if key in loaded:
            raise ValueError(f"the model {key} is given twice: name each once")
        loaded[key] = load_model(name, device=device)
    first = next(iter(loaded.values()), None)
    opened = load_vae(vae, space=first.space.name if first else space, device=device, dtype=vae_dtype)
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
        latent_noise=latent_noise,
        perceptual=open_perceptual(fid, lpips, device),
        progress=progress,
    )
    if out is not None:
        folder = Path(out)
        write_csv(result.printed, folder / "results.csv")
        (folder / "table.md").write_text(table(result.printed, markdown=True) + "\n", encoding="utf-8")
        picture_grid(result.pictures, folder / "pictures.png")
        plots(result.rows, folder)
    return result


def _common_scale(models: Mapping[str, CFMModel], vae: TinyVAE, scale: int | None) -> int:
    scales = {model.scale for model in models.values()} | ({scale} if scale else set())
    if len(scales) != 1:
        found = ", ".join(f"{s}x" for s in sorted(scales)) or "no model and no scale"
        raise ValueError(f"one table is for one scale: found {found}; give models that lift by the same scale")
    for name, model in models.items():
        if model.space != vae.space:
            raise ValueError(f"{name} lifts {model.space.name} latents, the autoencoder makes {vae.space.name} ones")
        if name in {CEILING, SMALL, *BASELINES}:
            raise ValueError(f"a model cannot be called {name}, as a baseline is: rename the file")
    return scales.pop()


def _load(photos: Sequence[Photo], short_side: int | None, multiple: int) -> list[Photo]:
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


def _compare(score: _Scores, image: Tensor, photo: Tensor, scale: int, index: int, photos: int) -> None:
    reduced = _number(metrics.psnr, reduce_pixels(image, scale), reduce_pixels(photo, scale))
    score.add(psnr=_number(metrics.psnr, image, photo), ssim=_number(metrics.ssim, image, photo), psnr_reduced=reduced)
    score.add(energy=metrics.high_frequency_energy(image).item())
    patches = min(PATCHES, max(1, MOST_PATCHES // photos))
    levels = metrics.laplacian_patches(image, patches=patches, seed=index)
    score.patches.append([level.half().cpu() for level in levels])  # half the memory, for an error of 1 in 2000
    features = metrics.patch_features(image).cpu()
    score.features.append(features[:: max(1, math.ceil(len(features) * photos / MOST_FEATURES))])
    for period, besides in ((2, 1), (8, 2)):
        ratios = metrics.harmonic_ratios(image - photo, period, besides)
        score.harmonics.setdefault(period, []).append(ratios.log().cpu())


def _rows(methods: Sequence[Method], scores: Sequence[_Scores], perceptual: Perceptual, seed: int) -> list[Row]:
    ceiling = scores[0]
    distances = partial(metrics.patch_distances, projections=PROJECTIONS, seed=seed)
    reference, features = ceiling.levels(), torch.cat(ceiling.features)
    energy = sum(ceiling.values["energy"])
    rows: list[Row] = []
    for method, score in zip(methods, scores, strict=True):
        patches, values = score.levels(), score.values
        names = ("psnr", "ssim", "psnr_reduced", "latent_mse", "colour", "evaluations", "lpips")
        rows.append(
            replace(
                method.row,
                photos=len(values["psnr"]),
                **{name: fmean(values[name]) for name in names if name in values},
                high_frequency=sum(values["energy"]) / energy,
                swd=distances(patches, reference).mean,
                swd_each=distances(patches, reference, normalise="each").mean,
                frechet=metrics.frechet_distance(torch.cat(score.features), features),
                fid=perceptual.fid(score),
                grid2=score.grid(2),
                grid8=score.grid(8),
                lift_ms=median(values["lift_ms"]),
                decode_ms=median(values["decode_ms"]),
            )
        )
    best = min((row.swd for row in rows if row.method in BASELINES and not row.low), default=math.nan)
    return [replace(row, swd_of_best=row.swd / best, gain_kept=gain_kept(row, rows, best)) for row in rows]


def gain_kept(row: Row, rows: Sequence[Row], best: float) -> float:
    """What `row` gains in sliced Wasserstein distance over the `best` baseline, as a share of what the same model and
    solver gain with the most steps in `rows`; NaN where that is nothing or there is one number of steps alone."""
    own = [r for r in rows if r.steps and (r.method, r.solver, r.low) == (row.method, row.solver, row.low)]
    most = max(own, key=lambda r: r.steps or 0, default=row)
    return (best - row.swd) / (best - most.swd) if len(own) > 1 and most.swd < best else math.nan


def _ordered(panels: dict[str, Tensor], photo: Tensor) -> dict[str, Tensor]:
    truth = panels.pop(CEILING)
    return {**panels, CEILING: truth, "photo": photo}


def _spread(n: int, k: int) -> set[int]:
    return {round((i + 0.5) * n / min(k, n) - 0.5) for i in range(min(k, n))}


def _bytes(image: Tensor) -> Tensor:
    return _to_bytes(image[0]).cpu().permute(1, 2, 0).contiguous()


def _to_bytes(images: Tensor) -> Tensor:
    return (images * 255).round().to(torch.uint8)


def _number(metric: Callable[[Tensor, Tensor], Tensor], image: Tensor, reference: Tensor) -> float:
    return metric(image, reference).item()


def _now(like: Tensor) -> float:
    """Seconds, after all work on the device of `like` is done."""
    if like.device.type == "cuda":
        torch.cuda.synchronize(like.device)
    return time.perf_counter()
