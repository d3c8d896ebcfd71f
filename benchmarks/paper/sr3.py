"""SR3 (Saharia et al. 2022) as the paper compares with it: the same network, diffusion instead of flow, DDIM."""

from __future__ import annotations

from typing import Literal

import torch
from torch import Tensor

from fmboost_core import CFMModel, Sampling
from fmboost_core.noise import draw_noise
from fmboost_core.solver import Callback
from fmboost_core.train.objectives import DIFFUSION_STEPS, diffusion_schedule


class DiffusionModel(CFMModel):
    """Starts from noise as a Gaussian flow does; its network predicts noise, and DDIM takes the place of the solver.

    DDIM without noise of its own (Song et al. 2021) is a solver of the probability-flow ODE, one network evaluation
    a step. `spacing` as in `diffusion_schedule`.
    """

    spacing: Literal["leading", "trailing"] = "leading"

    def make_source(self, context: Tensor, sampling: Sampling, source: Tensor | None = None) -> Tensor:
        """Noise of the seed; a `source` has no place in it."""
        shape = (context.shape[0], self.space.channels, *context.shape[2:])
        return draw_noise(shape, sampling.seed, sampling.batch_index).to(context)

    @torch.no_grad()
    def integrate(
        self,
        x0: Tensor,
        context: Tensor,
        sampling: Sampling,
        callback: Callback | None = None,
        *,
        reverse: bool = False,
        frames: int = 0,
    ) -> Tensor:
        """As `CFMModel.integrate`, by DDIM. Raises ValueError for `reverse`, and `frames` between two steps."""
        steps = sampling.steps
        if reverse or (frames and steps % (frames - 1)):
            raise ValueError(f"{steps} steps of DDIM have no {frames} even states, and none backwards")
        schedule = diffusion_schedule(self.spacing)
        schedule.set_timesteps(steps)
        states = [x0.float()]
        for i, step in enumerate(schedule.timesteps):
            t = torch.full((x0.shape[0],), float(step) / DIFFUSION_STEPS, device=x0.device)
            predicted = self.velocity(states[-1], t, context, tile=sampling.tile)
            moved = schedule.step(predicted, int(step), states[-1])
            states.append(moved.prev_sample)
            if callback is not None:
                callback(i + 1, steps, 1 - float(t[0]), moved.pred_original_sample)
        return torch.stack(states[:: steps // (frames - 1)]) if frames else states[-1]
