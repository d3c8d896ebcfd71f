"""The states a flow passes through (paper Fig. 8)."""

from __future__ import annotations

from dataclasses import replace
from typing import Any, NamedTuple

import torch
from torch import Tensor

from .model import CFMModel
from .sampling import Sampling
from .vae.protocol import VAE


class Trajectory(NamedTuple):
    times: Tensor
    """(frames,) from 0 to 1."""
    states: Tensor
    """(frames, B, C, scale*h, scale*w): x_t, from x0 to the result."""
    estimates: Tensor
    """The same shape: the x1 that each state points at, x_t + (1 - t) v(x_t, t); the last is the result."""


def trajectory(
    model: CFMModel,
    low: Tensor,
    sampling: Sampling | None = None,
    *,
    frames: int = 5,
    vae: VAE | None = None,
    **settings: Any,
) -> Trajectory:
    """`model.upscale(low, ...)`, keeping `frames` scaled latents at even times; each costs one more evaluation.

    Where `frames` - 1 divides `steps`, every frame is a state of the solver; otherwise some are interpolated.
    """
    sampling = replace(sampling or Sampling(), **settings)
    context = model.make_context(low, vae)
    states = model.integrate(model.make_source(context, sampling), context, sampling, frames=frames)
    times = torch.linspace(0, 1, frames)
    estimates = [
        x + (1 - t) * model.velocity(x, t.to(x).expand(x.shape[0]), context, tile=sampling.tile)
        for x, t in zip(states[:-1], times[:-1], strict=True)
    ]
    return Trajectory(times, states, torch.stack([*estimates, states[-1]]))
