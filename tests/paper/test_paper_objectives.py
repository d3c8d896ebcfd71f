"""The four objectives against answers known without training."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch
from torch import nn

from benchmarks.paper.sr3 import DiffusionModel
from fmboost_core import CFMModel, FlowConfig, ModelConfig, NetConfig
from fmboost_core.train.objectives import diffusion_schedule, objective_loss
from fmboost_core.train.settings import DataSettings, RunSettings, TrainSettings

SPREAD = 0.6  # of x1 about the context
CONFIG = ModelConfig(net=NetConfig(model_channels=32, channel_mult=(1,)), flow=FlowConfig(path="gaussian"))


class Field(nn.Module):
    """A network that is a formula of (x, t, context)."""

    def __init__(self, formula):
        super().__init__()
        self.formula = formula
        self.nothing = nn.Parameter(torch.zeros(1))

    def forward(self, x, t, context):
        return self.formula(x, t.view(-1, 1, 1, 1), context)


def exact_velocity(x, t, mean):
    """E[x1 - x0 | x_t] for x0 ~ N(0, 1), x1 ~ N(mean, SPREAD^2), x_t = (1 - t) x0 + t x1."""
    variance = (1 - t) ** 2 + (t * SPREAD) ** 2
    return mean + (t * SPREAD**2 - (1 - t)) / variance * (x - t * mean)


def exact_noise(x, t, mean):
    """E[noise | x_t] for x_t = sqrt(a) x1 + sqrt(1 - a) noise, x1 ~ N(mean, SPREAD^2)."""
    alpha = diffusion_schedule().alphas_cumprod[(1000 * t).round().long()]
    return (1 - alpha).sqrt() * (x - alpha.sqrt() * mean) / (alpha * SPREAD**2 + 1 - alpha)


def test_fm_with_the_exact_velocity_moves_every_noise_to_its_quantile():
    low = torch.randn(2, 4, 6, 6, generator=torch.Generator().manual_seed(1))
    model = CFMModel(CONFIG, Field(exact_velocity))
    noise, context = model.start(low, seed=3)
    high = model.upscale(low, seed=3, steps=64, solver="rk4")
    torch.testing.assert_close(high, context + SPREAD * noise, atol=1e-4, rtol=0)


def test_ddim_with_the_exact_noise_reaches_the_gaussian_posterior():
    low = torch.randn(2, 4, 6, 6, generator=torch.Generator().manual_seed(1)).clamp(-2, 2)
    model = DiffusionModel(CONFIG, Field(exact_noise))
    start, mean = model.start(low, seed=3)
    schedule = diffusion_schedule()
    schedule.set_timesteps(500)
    alpha = schedule.alphas_cumprod[int(schedule.timesteps[0])]
    quantile = (start - alpha.sqrt() * mean) / (alpha * SPREAD**2 + 1 - alpha).sqrt()  # the ODE keeps it
    high = model.upscale(low, seed=3, steps=500)
    torch.testing.assert_close(high, mean + SPREAD * quantile, atol=0.02, rtol=0)


@pytest.mark.parametrize("steps", [1, 10])
def test_sr3_counts_one_evaluation_a_step(steps):
    seen = []
    model = DiffusionModel(CONFIG, Field(exact_noise))
    model.upscale(torch.zeros(1, 4, 4, 4), steps=steps, callback=lambda n, total, *_: seen.append((n, total)))
    assert seen == [(n + 1, steps) for n in range(steps)]


def batch_of(n=4):
    rng = torch.Generator().manual_seed(0)
    draw = {k: torch.randn(n, 4, 8, 8, generator=rng) for k in ("high", "psu", "noise")}
    return {**draw, "low": torch.randn(n, 4, 4, 4, generator=rng), "t": torch.rand(n, generator=rng)}


def test_sr3_shows_a_variance_preserving_mixture_and_asks_for_its_noise():
    batch, seen = batch_of(), {}

    def net(x, t, context):
        seen.update(x=x, t=t, context=context)
        return torch.zeros_like(x)

    loss = objective_loss("sr3", net, FlowConfig(path="diffusion"), batch)
    torch.testing.assert_close(loss, batch["noise"].square().mean())
    step = (1000 * batch["t"]).floor()
    torch.testing.assert_close(seen["t"], step / 1000)
    # Nichol and Dhariwal 2021, Eq. 17: the product of the betas telescopes to this while none is clipped.
    f = torch.cos(((step + 1) / 1000 + 0.008) / 1.008 * torch.pi / 2) ** 2
    alpha = (f / torch.cos(torch.tensor(0.008 / 1.008 * torch.pi / 2)) ** 2).view(-1, 1, 1, 1)
    expected = alpha.sqrt() * batch["high"] + (1 - alpha).sqrt() * batch["noise"]
    torch.testing.assert_close(seen["x"], expected, atol=2e-4, rtol=1e-3)
    assert torch.equal(seen["context"], batch["low"].repeat_interleave(2, 2).repeat_interleave(2, 3))


def test_fm_starts_from_noise_and_keeps_the_low_latent_as_its_context():
    batch = batch_of()

    def net(x, t, context):
        t = t.view(-1, 1, 1, 1)
        torch.testing.assert_close(x, (1 - t) * batch["noise"] + t * batch["high"])
        return batch["high"] - batch["noise"]

    assert objective_loss("fm", net, FlowConfig(path="gaussian"), batch) < 1e-10


def test_regression_is_the_conditional_mean_and_many_steps_of_cfm_are_not():
    """x1 is the context + 1 with probability 3/4, - 1 else; the best constant answer is + 1/2."""
    rng = torch.Generator().manual_seed(0)
    shift = nn.Parameter(torch.zeros(()))
    optimizer = torch.optim.SGD([shift], lr=0.2)
    flow = FlowConfig()
    for _ in range(300):
        signs = torch.where(torch.rand(512, 1, 1, 1, generator=rng) < 0.75, 1.0, -1.0)
        low = torch.randn(512, 1, 1, 1, generator=rng)
        batch = {
            "low": low,
            "high": (low + signs).expand(-1, 1, 2, 2),
            "noise": torch.zeros(512, 1, 2, 2),
            "t": torch.rand(512, generator=rng),
        }
        loss = objective_loss("regression", lambda x, t, c: shift + 0 * x, flow, batch)
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
    assert abs(shift.item() - 0.5) < 0.05
    assert abs(loss.item() - 0.75) < 0.1  # the variance left

    def exact(x, t, context):
        """E[x1 - x0 | x_t] of the coupling from the context with noise of deviation 1/2 on it."""
        d, spread = x - context, 0.5 * (1 - t).clamp(min=1e-3)
        odds = torch.log(torch.tensor(3.0)) + 2 * d * t / spread**2
        target = torch.tanh(odds / 2)  # E[x1 - context | x_t]
        return (target - d) / (1 - t).clamp(min=1e-3)

    start = torch.zeros(1, 4, 2, 2) + 0.5 * torch.randn(1, 4, 2, 2, generator=rng)
    end = CFMModel(CONFIG, Field(exact)).integrate(start, torch.zeros(1, 4, 2, 2), steps=200)
    torch.testing.assert_close(end.abs(), torch.ones_like(end), atol=0.02, rtol=0)


def settings(objective, path, **data):
    photos = DataSettings(cache="c", photos="p", vae="v", **data)
    return RunSettings("x", photos, TrainSettings(1, objective=objective), flow=FlowConfig(path=path))


def test_an_objective_on_another_path_is_refused():
    assert settings("fm", "gaussian").flow.path == "gaussian"
    with pytest.raises(ValueError, match="objective fm goes with flow.path 'gaussian'"):
        settings("fm", "coupling")
    with pytest.raises(ValueError, match="validation"):
        settings("sr3", "diffusion", validation="photos")


def test_a_diffusion_model_is_not_mistaken_for_a_flow():
    model = CFMModel(replace(CONFIG, flow=FlowConfig(path="diffusion")), Field(exact_noise))
    with pytest.raises(ValueError, match="diffusion model"):
        model.upscale(torch.zeros(1, 4, 4, 4))
