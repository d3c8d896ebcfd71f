"""Noise augmentation of the source (paper 3.2.3): a cosine variance-preserving schedule, and seeded noise."""

from __future__ import annotations

import math
from collections.abc import Sequence

import numpy as np
import torch
from torch import Tensor

NOISE_STEPS = 1000


def alpha_bar(step: int) -> float:
    """Signal power left at `step` (0..999) of the cosine schedule: 1 at 0, 0.904318 at 200, 0.653904 at 400.

    As in the authors' code: sigmoid(-2 log(tan(pi t / 2) + 1e-5)) with t = step / 999, without the offset of Nichol
    and Dhariwal. Raises ValueError outside 0..999.
    """
    check_noise_step(step)
    if step == 0:
        return 1.0
    return 1 / (1 + (math.tan(math.pi * step / (NOISE_STEPS - 1) / 2) + 1e-5) ** 2)


def check_noise_step(step: int) -> None:
    """Raise ValueError outside 0..999."""
    if not 0 <= step < NOISE_STEPS:
        raise ValueError(f"noise_step is {step}: expected 0 (no noise) to {NOISE_STEPS - 1}")


def augment(x0: Tensor, step: int, noise: Tensor) -> Tensor:
    """sqrt(alpha_bar) x0 + sqrt(1 - alpha_bar) noise; step 0 returns x0."""
    signal = alpha_bar(step)
    return x0 if step == 0 else math.sqrt(signal) * x0 + math.sqrt(1 - signal) * noise


def draw_noise(shape: Sequence[int], seed: int, batch_index: Sequence[int] | None = None) -> Tensor:
    """Standard normal (B, C, H, W) float32 on the CPU; image b depends on (seed, batch_index[b]) alone.

    An image is therefore the same alone, in a batch, and on any device. `batch_index` defaults to 0..B-1.
    """
    indices = range(shape[0]) if batch_index is None else batch_index
    if len(indices) != shape[0]:
        raise ValueError(f"batch_index has {len(indices)} entries for {shape[0]} images: expected one for each image")
    return torch.stack([torch.randn(shape[1:], generator=_generator(seed, i)) for i in indices])


def _generator(seed: int, index: int) -> torch.Generator:
    state = np.random.SeedSequence([seed, index]).generate_state(1, np.uint64)[0]
    return torch.Generator().manual_seed(int(state))
