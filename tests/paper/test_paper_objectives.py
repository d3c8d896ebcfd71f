"""The paper's samplers against answers known without training."""

from __future__ import annotations

import pytest
import torch
from torch import nn

from benchmarks.paper.sr3 import DiffusionModel
from fmboost_core import CFMModel, FlowConfig, ModelConfig, NetConfig, Sampling
from fmboost_core.train.objectives import diffusion_schedule

SPREAD = 0.6  # of x1 about the context
NET = NetConfig(model_channels=32, channel_mult=(1,))


class Field(nn.Module):
    """A network that is a formula of (x, t, context)."""

    def __init__(self, formula):
        super().__init__()
        self.formula = formula
        self.nothing = nn.Parameter(torch.zeros(1))

    def forward(self, x, t, context):
        return self.formula(x, t.view(-1, 1, 1, 1), context)


def model_of(kind, path, formula):
    return kind(ModelConfig(net=NET, flow=FlowConfig(path=path)), Field(formula))


def exact_velocity(x, t, mean):
    """E[x1 - x0 | x_t] for x0 ~ N(0, 1), x1 ~ N(mean, SPREAD^2), x_t = (1 - t) x0 + t x1."""
    variance = (1 - t) ** 2 + (t * SPREAD) ** 2
    return mean + (t * SPREAD**2 - (1 - t)) / variance * (x - t * mean)


def exact_noise(x, t, mean):
    """E[noise | x_t] for x_t = sqrt(a) x1 + sqrt(1 - a) noise, x1 ~ N(mean, SPREAD^2)."""
    alpha = diffusion_schedule().alphas_cumprod[(1000 * t).round().long()]
    return (1 - alpha).sqrt() * (x - alpha.sqrt() * mean) / (alpha * SPREAD**2 + 1 - alpha)


def started(model):
    """A low latent, its context and its source."""
    low = torch.randn(2, 4, 6, 6, generator=torch.Generator().manual_seed(1)).clamp(-2, 2)
    context = model.make_context(low)
    return low, context, model.make_source(context, Sampling(seed=3))


def test_fm_with_the_exact_velocity_moves_every_noise_to_its_quantile():
    model = model_of(CFMModel, "gaussian", exact_velocity)
    low, context, noise = started(model)
    high = model.upscale(low, seed=3, steps=64, solver="rk4")
    torch.testing.assert_close(high, context + SPREAD * noise, atol=1e-4, rtol=0)


def test_ddim_with_the_exact_noise_reaches_the_gaussian_posterior():
    model = model_of(DiffusionModel, "diffusion", exact_noise)
    low, mean, start = started(model)
    schedule = diffusion_schedule()
    schedule.set_timesteps(500)
    alpha = schedule.alphas_cumprod[int(schedule.timesteps[0])]
    quantile = (start - alpha.sqrt() * mean) / (alpha * SPREAD**2 + 1 - alpha).sqrt()  # the ODE keeps it
    high = model.upscale(low, seed=3, steps=500)
    torch.testing.assert_close(high, mean + SPREAD * quantile, atol=0.02, rtol=0)


@pytest.mark.parametrize("steps", [1, 10])
def test_sr3_counts_one_evaluation_a_step(steps):
    seen = []
    model = model_of(DiffusionModel, "diffusion", exact_noise)
    model.upscale(torch.zeros(1, 4, 4, 4), steps=steps, callback=lambda n, total, *_: seen.append((n, total)))
    assert seen == [(n + 1, steps) for n in range(steps)]


def test_sr3_shows_its_states_on_the_way():
    model = model_of(DiffusionModel, "diffusion", exact_noise)
    _, context, start = started(model)
    every, some = (model.integrate(start, context, Sampling(steps=6), frames=frames) for frames in (7, 3))
    assert torch.equal(every[0], start)
    assert torch.equal(every[[0, 3, 6]], some)
    assert torch.equal(every[-1], model.integrate(start, context, Sampling(steps=6)))
    with pytest.raises(ValueError, match="6 steps of DDIM have no 5 even states"):
        model.integrate(start, context, Sampling(steps=6), frames=5)


def test_a_coupling_with_noise_on_its_start_reaches_one_of_two_answers():
    """x1 is the context + 1 with probability 3/4, - 1 else; the start has noise of deviation 1/2."""

    def exact(x, t, context):
        d, spread = x - context, 0.5 * (1 - t).clamp(min=1e-3)
        odds = torch.log(torch.tensor(3.0)) + 2 * d * t / spread**2
        return (torch.tanh(odds / 2) - d) / (1 - t).clamp(min=1e-3)  # E[x1 - x0 | x_t]

    start = 0.5 * torch.randn(1, 4, 2, 2, generator=torch.Generator().manual_seed(0))
    model = model_of(CFMModel, "coupling", exact)
    end = model.integrate(start, torch.zeros(1, 4, 2, 2), Sampling(steps=200))
    torch.testing.assert_close(end.abs(), torch.ones_like(end), atol=0.02, rtol=0)


def test_a_diffusion_model_is_not_mistaken_for_a_flow():
    with pytest.raises(ValueError, match="diffusion model"):
        model_of(CFMModel, "diffusion", exact_noise).upscale(torch.zeros(1, 4, 4, 4))
