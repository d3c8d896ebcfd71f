"""Paths between x0 and x1, the velocity along them, and the loss (paper Eq. 6-13)."""

from __future__ import annotations

from typing import NamedTuple

from torch import Tensor

from .config import FlowConfig
from .noise import augment


class PathSample(NamedTuple):
    x_t: Tensor
    velocity: Tensor


def make_source(flow: FlowConfig, upsampled: Tensor, noise: Tensor, noise_step: int | None = None) -> Tensor:
    """x0: pure noise on the Gaussian path (3.2.1), otherwise the upsampled latent noised to `noise_step` (3.2.3).

    `noise_step` None is the model's own. Raises ValueError for a `noise_step` on the Gaussian path, where it has no
    meaning, and for a diffusion model, which has no velocity to follow.
    """
    if flow.path == "diffusion":
        raise ValueError(
            "this is a diffusion model (SR3), trained for comparison, and not a CFM model: choose a model with path "
            "coupling or gaussian, or sample this one with 'python -m benchmarks.paper'"
        )
    if flow.path == "gaussian":
        if noise_step:
            raise ValueError(f"this model starts from pure noise: noise_step is {noise_step}, expected 0 or none")
        return noise
    return augment(upsampled, flow.noise_step if noise_step is None else noise_step, noise)


def sample_path(flow: FlowConfig, x0: Tensor, x1: Tensor, t: Tensor, noise: Tensor | None = None) -> PathSample:
    """The point at time t (B,) between x0 and x1 (B, C, h, w), and the velocity there.

    ``coupling``: x_t = t x1 + (1 - t) x0 + sigma_min noise, velocity x1 - x0 (Eq. 10-12).
    ``gaussian``: x_t = (1 - (1 - sigma_min) t) x0 + t x1, velocity x1 - (1 - sigma_min) x0 (Eq. 8, 9).
    `noise` is needed only on the coupling path with sigma_min > 0.
    """
    t = t.view(-1, 1, 1, 1)
    if flow.path == "gaussian":
        keep = 1 - flow.sigma_min
        return PathSample((1 - keep * t) * x0 + t * x1, x1 - keep * x0)
    x_t = t * x1 + (1 - t) * x0
    if flow.sigma_min:
        if noise is None:
            raise ValueError(f"sigma_min is {flow.sigma_min}: the coupling path then needs noise")
        x_t = x_t + flow.sigma_min * noise
    return PathSample(x_t, x1 - x0)


def velocity_loss(predicted: Tensor, velocity: Tensor) -> Tensor:
    """Mean squared error over all elements (Eq. 9, 13)."""
    return (predicted.float() - velocity.float()).square().mean()
