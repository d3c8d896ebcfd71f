"""The ways from a low latent to a high one that an evaluation compares."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace

import torch.nn.functional as F
from torch import Tensor

from .model import CFMModel
from .noise import draw_noise
from .rows import BASELINES, CEILING, Row
from .solver import SOLVERS, STEPS
from .upsample import upsample
from .vae import TinyVAE

DISTURBED = 2**32
"""Added to the index of a photo: its disturbance is drawn apart from the noise of the model's start."""


def _as_it_is(low: Tensor, index: int) -> Tensor:
    return low


@dataclass(frozen=True)
class Method:
    """A way from the low latent of photo `index` to a high one; also returns the network calls it made."""

    row: Row
    lift: Callable[[Tensor, int], tuple[Tensor, int]]
    disturb: Callable[[Tensor, int], Tensor] = _as_it_is
    """What happens to the low latent before, outside the time that is measured."""


def is_regression(model: CFMModel) -> bool:
    """Whether the file says that it was trained to answer in one step from a clean start."""
    return model.config.trained_on.get("objective") == "regression"


def make_methods(
    models: Mapping[str, CFMModel],
    vae: TinyVAE,
    scale: int,
    *,
    baselines: Sequence[str] = BASELINES,
    steps: Sequence[int],
    solvers: Sequence[str],
    noise_step: int | None = None,
    seed: int = 0,
    tile: int = 0,
    latent_noise: Sequence[float] = (),
) -> list[Method]:
    """The reconstruction, the baselines, each model with each solver and number of steps; a regression net runs as
    it was trained, in one Euler step. With `latent_noise` then also PSU and the shown run of each model on low
    latents with noise of each of these standard deviations, and on low latents decoded and encoded again.
    """
    unknown = [b for b in baselines if b not in BASELINES] + [s for s in solvers if s not in SOLVERS]
    if unknown:
        raise ValueError(f"unknown {unknown[0]!r}: expected baselines of {BASELINES} and solvers of {tuple(SOLVERS)}")
    if not steps or min(steps) < 1:
        raise ValueError(f"steps are {list(steps)}: expected whole numbers from 1, such as [4, 10]")

    def run(name: str, model: CFMModel, solver: str, n: int | None) -> Method:
        start = 0 if is_regression(model) else noise_step

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
                noise_step=start,
                vae=vae,
                callback=count,
                batch_index=[index],
                tile=tile,
            )
            return x1, calls + model.config.flow.posterior_mean  # the mean is one more

        return Method(Row(name, solver, n), lift)

    methods = [Method(Row(CEILING), lambda low, index: (low, 0)), *(_baseline(b, scale, vae) for b in baselines)]
    for name, model in models.items():
        if is_regression(model):
            methods.append(run(f"{name}, regression", model, "euler", 1))
            continue
        for solver in solvers:
            grid = list(steps) if SOLVERS[solver].evaluations else [None]
            methods += [run(name, model, solver, n) for n in grid]
    shown = [m for m in methods if m.row.method == "psu" or is_shown(m.row, [m.row for m in methods])]
    shown = [m for m in shown if m.row.solver or m.row.method == "psu"]
    return methods + [_disturbed(m, *how) for how in _disturbances(latent_noise, seed, vae) for m in shown]


def is_shown(row: Row, rows: Sequence[Row]) -> bool:
    """Nearest, psu, the reconstruction, and of each model the first solver with `STEPS` or the most there are."""
    if row.low:
        return False
    if not row.solver:
        return row.method in {"nearest", "psu", CEILING}
    own = [r for r in rows if r.method == row.method and not r.low]
    first = [r for r in own if r.solver == own[0].solver]
    return row == next((r for r in first if r.steps == STEPS), max(first, key=lambda r: r.steps or 0))


def _baseline(kind: str, scale: int, vae: TinyVAE) -> Method:
    def lift(low: Tensor, index: int) -> tuple[Tensor, int]:
        if kind == "bicubic":
            return F.interpolate(low, scale_factor=scale, mode="bicubic", align_corners=False), 0
        return upsample(low, scale, kind, vae), 0

    return Method(Row(kind), lift)


Disturbance = tuple[str, Callable[[Tensor, int], Tensor]]


def _disturbances(deviations: Sequence[float], seed: int, vae: TinyVAE) -> list[Disturbance]:
    """Noise of each standard deviation above 0, and, where any is asked for, the way through the autoencoder."""
    if not deviations:
        return []
    if min(deviations) < 0:
        raise ValueError(f"latent noise of {min(deviations)}: expected standard deviations from 0")

    def noise(deviation: float) -> Disturbance:
        def add(low: Tensor, index: int) -> Tensor:
            return low + deviation * draw_noise(low.shape, seed, [DISTURBED + index]).to(low)

        return f"noise {deviation:g}", add

    return [*(noise(d) for d in deviations if d), ("round trip", lambda low, index: vae.encode(vae.decode(low)))]


def _disturbed(method: Method, how: str, disturb: Callable[[Tensor, int], Tensor]) -> Method:
    return Method(replace(method.row, low=how), method.lift, disturb)
