"""What the flow passes through on its way (paper Fig. 8)."""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

import torch
from torch import Tensor

from .model import CFMModel
from .solver import STEPS, integrate
from .upsample import VAE


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
    *,
    frames: int = 5,
    steps: int = STEPS,
    solver: str = "euler",
    seed: int = 0,
    noise_step: int | None = None,
    vae: VAE | None = None,
    batch_index: Sequence[int] | None = None,
    tile: int = 0,
) -> Trajectory:
    """`model.upscale(low, ...)`, keeping `frames` scaled latents at even times; each costs one evaluation more.

    With `frames` - 1 a divisor of `steps` every frame is a state the solver was in, else some are interpolated. The
    path ends where the flow does: back projection comes after it.
    """
    x0, context = model.start(low, seed=seed, noise_step=noise_step, vae=vae, batch_index=batch_index, tile=tile)

    def velocity(x: Tensor, t: Tensor, context: Tensor) -> Tensor:
        return model.velocity(x, t, context, tile=tile)

    states = integrate(velocity, x0, context, steps=steps, solver=solver, frames=frames).states
    times = torch.linspace(0, 1, frames)
    estimates = [x + (1 - t) * velocity(x, t.to(x), context) for x, t in zip(states[:-1], times[:-1], strict=True)]
    return Trajectory(times, states, torch.stack([*estimates, states[-1]]))
