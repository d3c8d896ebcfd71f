"""One table of models and baselines on held-out pictures, and a sheet to look at.

Every photo is brought to `short_side` and encoded (the truth), and reduced by the scale and encoded (the low latent).
Each method makes a high latent of the low one. Its decoded picture is compared with the reconstruction, which is the
decoded truth and the best any method can do: perceptual distances, flat outliers, colour, contrast; its PSNR is to the
photo.
"""

from __future__ import annotations

import logging
import math
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from statistics import fmean, median

import torch
from torch import Tensor

from ..images.files import load_photo
from ..images.folders import Photo
from ..images.resize import reduce
from ..model import CFMModel
from ..sampling import STEPS, Sampling
from ..solver import check_solver
from ..vae.autoencoder import Autoencoder
from . import judge, metrics
from .methods import BASELINES, Method, baseline, disturbed, model_runs
from .sheet import Panels, Sheet
from .table import CEILING, Row

log = logging.getLogger(__name__)

SMALLEST = 128  # px: the features' coarsest maps are then 8 x 8

Progress = Callable[[int, int, str], None]
"""(lifts done, of how many, name of the method just done)."""

Observe = Callable[[str, Tensor, Tensor], None]
"""(label of the method, its picture, the photo), both (1, 3, H, W): for metrics of your own."""


@dataclass(frozen=True)
class EvaluationSettings:
    """What is compared, and on pictures of which size."""

    scale: int | None = None  # needed without a model
    short_side: int | None = 512  # px, photos are reduced to it; None keeps their size
    steps: tuple[int, ...] = (1, 2, 4)
    solvers: tuple[str, ...] = ("euler",)
    baselines: tuple[str, ...] = ("nearest", "psu")
    sampling: Sampling = Sampling()
    latent_noise: tuple[float, ...] = ()  # standard deviations: also lift low latents disturbed so much
    sheet_windows: int = 0  # worst windows to keep by each measure, 0 for no sheet

    def __post_init__(self) -> None:
        if not self.steps or min(self.steps) < 1:
            raise ValueError(f"steps are {list(self.steps)}: expected whole numbers from 1, such as 1,2,4")
        for solver in self.solvers:
            check_solver(solver)


@dataclass(frozen=True)
class Evaluation:
    rows: list[Row]
    sheet: Sheet


@torch.inference_mode()
def evaluate(
    models: Mapping[str, CFMModel],
    photos: Sequence[Photo],
    vae: Autoencoder,
    settings: EvaluationSettings | None = None,
    *,
    context_vae: Autoencoder | None = None,
    progress: Progress | None = None,
    observe: Observe | None = None,
) -> Evaluation:
    """Rows for the reconstruction, each baseline, and each model with each solver and number of steps.

    All models must lift by the same scale in the latent space of `vae`. Photos that cannot be read or are smaller than
    128 px are named in the log and skipped. Models are run again with contexts made by `context_vae`, if one is given:
    how well they stand an autoencoder that they were not trained with. Everything random depends on
    `settings.sampling.seed` alone. Raises ValueError where models do not belong together or no photo can be used.
    """
    settings = settings or EvaluationSettings()
    scale = _common_scale(models, vae, settings.scale)
    methods = [Method(Row(CEILING), lambda low, index: (low, 0))]
    methods += [baseline(name, scale, vae) for name in settings.baselines]
    shown: list[Method] = [m for m in methods if m.row.method == "psu"]
    for name, model in models.items():
        runs = model_runs(name, model, vae, settings.steps, settings.solvers, settings.sampling)
        methods += runs
        shown.append(next((m for m in runs if m.row.steps == STEPS), runs[-1]))
    methods += disturbed(shown, vae, settings.latent_noise, settings.sampling.seed)
    if context_vae is not None:
        for name, model in models.items():
            runs = model_runs(name, model, context_vae, settings.steps, settings.solvers, settings.sampling)
            methods += [replace(run, row=replace(run.row, disturbance="other VAE")) for run in runs]
    scores = [_Score() for _ in methods]
    sheet, features = Sheet(settings.sheet_windows), judge.Features().to(next(vae.parameters()).device)
    usable = _usable(photos, settings.short_side, vae.space.pixels * scale)
    for index, path in enumerate(usable):
        photo = load_photo(path, settings.short_side, vae.space.pixels * scale).to(next(vae.parameters()).device)
        high, low = vae.encode(photo), vae.encode(reduce(photo, scale))
        reference = vae.decode(high)
        truth = _Seen(reference, features(reference))
        panels = {"low": vae.decode(low)}
        for number, (method, score) in enumerate(zip(methods, scores, strict=True)):
            given = method.disturb(low, index)
            began = _now(given)
            latent, calls = (high, 0) if method.row.method == CEILING else method.lift(given, index)
            lifted = _now(latent)
            image = vae.decode(latent)
            score.add(lift_ms=1e3 * (lifted - began), decode_ms=1e3 * (_now(image) - lifted), evaluations=calls)
            score.compare(_Seen(image, features(image)), truth, photo)
            if method in shown:
                panels[method.row.label] = image
            if observe is not None:
                observe(method.row.label, image, photo)
            if progress is not None:
                progress(index * len(methods) + number + 1, len(usable) * len(methods), method.row.label)
        if settings.sheet_windows and shown:
            sheet.add(Panels(path.stem, {**panels, "truth": reference}), features)
    return Evaluation([s.row(m.row, scores[0]) for m, s in zip(methods, scores, strict=True)], sheet)


@dataclass(frozen=True)
class _Seen:
    """A picture and its features."""

    image: Tensor
    features: list[Tensor]


@dataclass
class _Score:
    """What one method leaves behind: numbers a photo, and samples for the distances between sets."""

    values: dict[str, list[float]] = field(default_factory=dict)
    fits: dict[str, metrics.GaussianFit] = field(
        default_factory=lambda: {level: metrics.GaussianFit() for level in judge.FRECHET_LEVELS}
    )

    def add(self, **values: float) -> None:
        for name, value in values.items():
            self.values.setdefault(name, []).append(value)

    def compare(self, seen: _Seen, truth: _Seen, photo: Tensor) -> None:
        outliers, flat = metrics.flat_outliers(seen.image, truth.image)
        self.add(
            psnr=metrics.psnr(seen.image, photo).item(),
            lp=judge.perceptual_distance(seen.features, truth.features).item(),
            dists=judge.structure_texture_distance(seen.features, truth.features).item(),
            colour=metrics.colour_error(seen.image, truth.image).item(),
            contrast=metrics.contrast_error(seen.image, truth.image).item(),
            energy=metrics.high_frequency_energy(seen.image).item(),
            outliers=outliers.sum().item(),
            flat=flat.sum().item(),
        )
        for level, fit in self.fits.items():
            fit.add(judge.vectors(seen.features, judge.FRECHET_LEVELS[level]).cpu())

    def row(self, row: Row, ceiling: _Score) -> Row:
        values = self.values
        means = ("psnr", "lp", "dists", "colour", "contrast", "evaluations")
        distances = {level: metrics.frechet_distance(fit, ceiling.fits[level]) for level, fit in self.fits.items()}
        return replace(
            row,
            photos=len(values["psnr"]),
            **{name: fmean(values[name]) for name in means},
            frechet4=distances["/4"],
            frechet8=distances["/8"],
            frechet16=distances["/16"],
            high_frequency=sum(values["energy"]) / sum(ceiling.values["energy"]),
            flat=1e4 * sum(values["outliers"]) / sum(values["flat"]) if sum(values["flat"]) else math.nan,
            lift_ms=median(values["lift_ms"]),
            decode_ms=median(values["decode_ms"]),
        )


def _common_scale(models: Mapping[str, CFMModel], vae: Autoencoder, scale: int | None) -> int:
    scales = {model.scale for model in models.values()} | ({scale} if scale else set())
    if len(scales) != 1:
        found = ", ".join(f"{s}x" for s in sorted(scales)) or "no model and no scale"
        raise ValueError(f"one table is for one scale: found {found}; give models that lift by the same scale")
    for name, model in models.items():
        if model.space != vae.space:
            raise ValueError(f"{name} lifts {model.space.name} latents, the autoencoder makes {vae.space.name} ones")
        if name in {CEILING, *BASELINES}:
            raise ValueError(f"a model cannot be called {name}, the name of a baseline: rename the file")
    return scales.pop()


def _usable(photos: Sequence[Photo], short_side: int | None, multiple: int) -> list[Photo]:
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


def _now(like: Tensor) -> float:
    """The time, once what was asked of the device of `like` is done."""
    if like.device.type == "cuda":
        torch.cuda.synchronize(like.device)
    return time.perf_counter()
