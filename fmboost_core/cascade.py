"""Several lifts one after the other: x2 and then x2 is x4 (paper Fig. 17)."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from itertools import count, pairwise
from typing import Any

from torch import Tensor

from .model import CFMModel
from .sampling import Sampling
from .solver import Callback
from .vae.protocol import VAE


def lifts(model_scale: int, scale: float) -> int:
    """The number of lifts by `model_scale` that reach `scale`, or the next size above it.

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
    """The seed of lift number `stage`, from 0, of a cascade. The first has the given one, as `upscale` alone would."""
    return seed + (stage << 64)  # no seed a person gives is that large


def cascade(
    models: Sequence[CFMModel],
    low: Tensor,
    sampling: Sampling | None = None,
    *,
    vae: VAE | None = None,
    callback: Callback | None = None,
    **settings: Any,
) -> Tensor:
    """Lift scaled latents (B, C, h, w) through all `models`, each from the result of the one before.

    Every lift is a `CFMModel.upscale` with noise of its own; arguments are those of `upscale`. `callback` counts
    evaluations over all lifts and sees estimates of the size of the lift. Raises ValueError where the models work in
    different latent spaces.
    """
    if not models:
        raise ValueError("a cascade of no models: expected at least one")
    for first, second in pairwise(models):
        if first.space != second.space:
            raise ValueError(
                f"a cascade from {first.space.name} to {second.space.name} latents: expected models of one family"
            )
    sampling = replace(sampling or Sampling(), **settings)
    if callback is not None:
        callback = _counting(callback, len(models))
    latents = low
    for stage, model in enumerate(models):
        this = replace(sampling, seed=stage_seed(sampling.seed, stage))
        latents = model.upscale(latents, this, vae=vae, callback=callback)
    return latents


def _counting(callback: Callback, stages: int) -> Callback:
    """One callback for all lifts, which counts their evaluations together."""
    evaluations = count(1)

    def counted(_: int, total: int | None, t: float, estimate: Tensor) -> None:
        callback(next(evaluations), None if total is None else total * stages, t, estimate)

    return counted
