"""SR3 (Saharia et al. 2022) as the paper compares with it: the same network, diffusion instead of flow, DDIM."""

from __future__ import annotations

from typing import Any, Literal

import torch
from torch import Tensor

from fmboost_core.model import CFMModel
from fmboost_core.solver import Callback
from fmboost_core.train.objectives import DIFFUSION_STEPS, diffusion_schedule


class DiffusionModel(CFMModel):
    """Starts from noise as a Gaussian flow does; its network predicts noise, and DDIM takes the place of the solver.

    DDIM without noise of its own (Song et al. 2021) is a solver of the probability-flow ODE, one network evaluation
    a step. `spacing` as in `diffusion_schedule`.
    """

    spacing: Literal["leading", "trailing"] = "leading"

    def integrate(
        self, x0: Tensor, context: Tensor, *, steps: int = 10, callback: Callback | None = None, tile: int = 0, **_: Any
    ) -> Tensor:
        return self.states(x0, context, steps, callback, tile)[-1]

    @torch.no_grad()
    def states(
        self, noise: Tensor, context: Tensor, steps: int, callback: Callback | None = None, tile: int = 0
    ) -> Tensor:
        """(steps + 1, B, C, h, w): from `noise` to the result, by DDIM."""
        schedule = diffusion_schedule(self.spacing)
        schedule.set_timesteps(steps)
        states = [noise.float()]
        for i, step in enumerate(schedule.timesteps):
            time = torch.tensor(float(step) / DIFFUSION_STEPS)
            predicted = self.velocity(states[-1], time, context, tile=tile)
            moved = schedule.step(predicted, int(step), states[-1])
            states.append(moved.prev_sample)
            if callback is not None:
                callback(i + 1, steps, 1 - float(time), moved.pred_original_sample)
        return torch.stack(states)
