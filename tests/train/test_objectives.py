"""Objectives on networks whose loss is known without training."""

from __future__ import annotations

import pytest
import torch
import torch.nn.functional as F

from fmboost_core.config import FlowConfig
from fmboost_core.noise import alpha_bar
from fmboost_core.train.objectives import DecodedLoss, objective_loss, spread_times
from fmboost_core.train.settings import TrainSettings


@pytest.fixture
def batch():
    rng = torch.Generator().manual_seed(0)
    draw = {k: torch.randn(3, 4, 16, 16, generator=rng) for k in ("high", "psu", "noise")}
    return {**draw, "low": torch.randn(3, 4, 8, 8, generator=rng), "t": torch.rand(3, generator=rng)}


def still(x, t, context):
    return torch.zeros_like(x)


@pytest.mark.parametrize("step", [0, 200])
@pytest.mark.parametrize("upsampling", ["psu", "nearest"])
def test_a_net_that_stands_still_loses_the_distance(batch, upsampling, step):
    flow = FlowConfig(upsampling=upsampling, noise_step=step)
    start = batch["psu"] if upsampling == "psu" else batch["low"].repeat_interleave(2, 2).repeat_interleave(2, 3)
    x0 = alpha_bar(step) ** 0.5 * start + (1 - alpha_bar(step)) ** 0.5 * batch["noise"]
    expected = (batch["high"] - x0).square().mean()
    torch.testing.assert_close(objective_loss("cfm", still, flow, batch), expected)


def test_the_network_meets_the_straight_line_and_a_clean_context(batch):
    flow = FlowConfig(upsampling="psu", noise_step=400)
    seen = {}

    def net(x, t, context):
        seen.update(x=x, t=t, context=context)
        return torch.zeros_like(x)

    objective_loss("cfm", net, flow, batch)
    x0 = 0.653904**0.5 * batch["psu"] + (1 - 0.653904) ** 0.5 * batch["noise"]
    for b, t in enumerate(batch["t"].tolist()):
        torch.testing.assert_close(seen["x"][b], (1 - t) * x0[b] + t * batch["high"][b], atol=1e-5, rtol=1e-5)
    assert torch.equal(seen["context"], batch["psu"])
    assert torch.equal(seen["t"], batch["t"])


def test_regression_asks_for_the_whole_way_from_a_clean_start(batch):
    flow = FlowConfig(upsampling="psu", noise_step=200)
    assert objective_loss("regression", lambda x, t, c: batch["high"] - c, flow, batch) == 0

    def net(x, t, context):
        assert torch.equal(x, context)
        assert not t.any()
        return torch.zeros_like(x)

    torch.testing.assert_close(
        objective_loss("regression", net, flow, batch), (batch["high"] - batch["psu"]).square().mean()
    )


def test_a_flow_from_the_mean_learns_both_on_the_examples_their_times_give_them(batch):
    """Of v = 2 context - x + 1: the mean from a clean start is 2 psu + 1, and without context v is 1 - x."""
    flow = FlowConfig(upsampling="psu", noise_step=100, posterior_mean=True)
    batch["t"] = torch.tensor([0.1, 0.4, 0.9])
    calls = []

    def net(x, t, context):
        calls.append(t)
        return 2 * context - x + 1

    loss = objective_loss("cfm", net, flow, batch)
    assert not calls[0].any() and calls[1].tolist() == pytest.approx([0, 0.2, 0.65 / 0.75])
    errors = [2 * batch["psu"][0] + 1 - batch["high"][0]]
    for b, t in ((1, 0.2), (2, 0.65 / 0.75)):
        x0 = alpha_bar(100) ** 0.5 * (2 * batch["psu"][b] + 1) + (1 - alpha_bar(100)) ** 0.5 * batch["noise"][b]
        errors.append(1 - ((1 - t) * x0 + t * batch["high"][b]) - (batch["high"][b] - x0))
    torch.testing.assert_close(loss, torch.stack(errors).square().mean())


def test_the_mean_has_a_decoded_weight_of_its_own(batch):
    class Third:
        def decode(self, latents):
            return latents[:, :3] / 3

    flow = FlowConfig(upsampling="psu", posterior_mean=True)
    batch["t"], batch["picture"] = torch.tensor([0.1, 0.4, 0.9]), torch.rand(3, 3, 64, 64)
    decoded = DecodedLoss(Third(), weight=3.0, window=16, top=0, left=0, mean_weight=40.0)
    extra = objective_loss("cfm", still, flow, batch, decoded=decoded) - objective_loss("cfm", still, flow, batch)
    errors = (batch["psu"] - batch["high"])[:, :3].square().mean(dim=(1, 2, 3)) / 9  # at t = 0
    expected = (40 * errors[0] + 3 * (0.8**2 * errors[1] + (0.1 / 0.75) ** 2 * errors[2])) / 3
    torch.testing.assert_close(extra, expected, atol=1e-5, rtol=1e-4)


def test_noise_is_drawn_between_two_steps(batch):
    batch["level"] = torch.tensor([0.0, 0.5, 0.9999])
    loss = objective_loss("cfm", still, FlowConfig(upsampling="psu", noise_step=120), batch, noise_from=20)
    expected = []
    for b, step in enumerate((20, 70, 120)):
        x0 = alpha_bar(step) ** 0.5 * batch["psu"][b] + (1 - alpha_bar(step)) ** 0.5 * batch["noise"][b]
        expected.append((batch["high"][b] - x0).square().mean())
    torch.testing.assert_close(loss, torch.stack(expected).mean())


def test_the_decoded_loss_is_the_window_s_error_in_pixels(batch):
    class Half:
        def decode(self, latents):
            return F.interpolate(latents[:, :3] / 2, scale_factor=8)

    flow = FlowConfig(upsampling="psu")
    decoded = DecodedLoss(Half(), weight=3.0, window=4, top=5, left=2)
    t = batch["t"].view(-1, 1, 1, 1)
    x_t = t * batch["high"] + (1 - t) * batch["psu"]  # where a net that stands still ends as well
    batch["picture"] = torch.rand(3, 3, 64, 64)  # no part of it
    window = (x_t - batch["high"])[:, :3, 5:9, 2:6]
    extra = objective_loss("cfm", still, flow, batch, decoded=decoded) - objective_loss("cfm", still, flow, batch)
    torch.testing.assert_close(extra, 3 * (window / 2).square().mean(), atol=1e-5, rtol=1e-4)


def test_the_colour_loss_is_that_of_block_means_against_the_small_picture(batch):
    """By reshaping: blocks of 2 latent pixels are 16 px of the decoded window and 8 px of the picture."""

    class Half:
        def decode(self, latents):
            return F.interpolate(latents[:, :3] / 2, scale_factor=8)

    flow = FlowConfig(upsampling="psu")
    batch["picture"] = torch.rand(3, 3, 64, 64, generator=torch.Generator().manual_seed(1))
    decoded = DecodedLoss(Half(), weight=0.0, window=6, top=4, left=2, colour_weight=5.0)
    t = batch["t"].view(-1, 1, 1, 1)
    x_t = t * batch["high"] + (1 - t) * batch["psu"]
    colours = (x_t[:, :3, 4:10, 2:8] / 2).reshape(3, 3, 3, 2, 3, 2).mean(dim=(3, 5))
    small = batch["picture"].reshape(3, 3, 8, 8, 8, 8).mean(dim=(3, 5))[:, :, 2:5, 1:4]
    extra = objective_loss("cfm", still, flow, batch, decoded=decoded) - objective_loss("cfm", still, flow, batch)
    torch.testing.assert_close(extra, 5 * (colours - small).square().mean(), atol=1e-5, rtol=1e-4)


def test_logit_normal_times_have_the_quantiles_of_their_name():
    uniform = torch.tensor([0.0228, 0.1587, 0.5, 0.8413, 0.9772])
    expected = torch.sigmoid(torch.tensor([-2.0, -1.0, 0.0, 1.0, 2.0]))
    torch.testing.assert_close(spread_times(uniform, "logit_normal"), expected, atol=1e-3, rtol=0)
    assert spread_times(uniform, "uniform") is uniform


@pytest.mark.parametrize("window", [7, 34])
def test_a_window_that_does_not_fit_is_refused(window):
    with pytest.raises(ValueError, match=f"decoded_window is {window}: expected an even number"):
        TrainSettings(steps=1, crop=32, colour_weight=1.0, decoded_window=window)
    TrainSettings(steps=1, crop=32, decoded_window=window)  # of no use, and no harm, without a loss on it
