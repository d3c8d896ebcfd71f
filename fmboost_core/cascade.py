"""Several models one after the other: x2 then x2 is x4 (paper Fig. 17)."""

from __future__ import annotations

from collections.abc import Sequence
from itertools import count, pairwise

from torch import Tensor

from .model import CFMModel
from .solver import STEPS, Callback
from .upsample import VAE


def lifts(model_scale: int, scale: float) -> int:
    """How many lifts by `model_scale` in a row reach `scale`, or the next size above it.

    Raises ValueError for a `scale` that is not above 1, and for a model that does not enlarge.
    """
    if scale <= 1:
        raise ValueError(f"scale is {scale:g}: expected more than 1, such as the model's own, {model_scale}")
    if model_scale < 2:
        raise ValueError(f"a model of scale {model_scale} does not enlarge: use one of scale 2 or more")
    number = 1
    while model_scale**number < scale:
        number += 1
    return number


def stage_seed(seed: int, stage: int) -> int:
    """The seed of a lift (from 0) of a cascade: the first has the given one, so that it is `upscale` alone."""
    return seed + (stage << 64)  # no seed a person gives is that large


def cascade(
    models: Sequence[CFMModel],
    low: Tensor,
    *,
    steps: int = STEPS,
    solver: str = "euler",
    seed: int = 0,
    noise_steps: Sequence[int | None] | None = None,
    vae: VAE | None = None,
    callback: Callback | None = None,
    batch_index: Sequence[int] | None = None,
    tile: int = 0,
) -> Tensor:
    """Lift scaled latents (B, C, h, w) through all `models`, each from the result of the one before.

    Every stage is a `CFMModel.upscale` with noise of its own, the first one's being that of `upscale` alone.
    `noise_steps` has one entry a stage, None for the step in its model's settings. Measured with fmboost-sd15-x2 from
    96 to 384 px on five photos (benchmarks/cascade.py), that step, 200, is a compromise for the second stage: 250 has
    the texture of photos, and grain on flat surfaces; 0 and 100 leave it blurred. `callback` counts evaluations over
    all stages and gets estimates of the size of the stage. Raises ValueError where the models live in different latent
    spaces or the entries are not one a stage.
    """
    if not models:
        raise ValueError("a cascade of no models: expected at least one")
    for first, second in pairwise(models):
        if first.space != second.space:
            raise ValueError(
                f"a cascade from {first.space.name} to {second.space.name} latents: expected models of one family"
            )
    noise_steps = [None] * len(models) if noise_steps is None else noise_steps
    if len(noise_steps) != len(models):
        raise ValueError(f"{len(noise_steps)} noise steps for {len(models)} models: expected one each")
    if callback is not None:
        callback = _counting(callback, len(models))
    latents = low
    for stage, (model, noise_step) in enumerate(zip(models, noise_steps, strict=True)):
        latents = model.upscale(
            latents,
            steps=steps,
            solver=solver,
            seed=stage_seed(seed, stage),
            noise_step=noise_step,
            vae=vae,
            callback=callback,
            batch_index=batch_index,
            tile=tile,
        )
    return latents


def _counting(callback: Callback, stages: int) -> Callback:
    """One callback for all stages: it counts their evaluations together."""
    evaluations = count(1)

    def counted(_: int, total: int | None, t: float, estimate: Tensor) -> None:
        callback(next(evaluations), None if total is None else total * stages, t, estimate)

    return counted
