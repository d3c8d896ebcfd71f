"""Paths, velocities and the loss, recomputed from the paper's equations in numpy."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from fmboost_core.config import FlowConfig
from fmboost_core.flow import make_source, sample_path, velocity_loss

SHAPE = (5, 4, 6, 7)
T = torch.tensor([0.0, 0.1, 0.5, 0.93, 1.0])


def draw(count):
    generator = torch.Generator().manual_seed(3)
    return [torch.randn(SHAPE, generator=generator) for _ in range(count)]


def per_image(t):
    return t.numpy()[:, None, None, None].astype(np.float64)


@pytest.mark.parametrize("sigma_min", [0.0, 1e-4, 0.25])
def test_coupling_path(sigma_min):
    """Eq. 10, 11: x_t ~ N(t x1 + (1 - t) x0, sigma_min^2), u = x1 - x0."""
    x0, x1, noise = draw(3)
    x_t, u = sample_path(FlowConfig(sigma_min=sigma_min), x0, x1, T, noise)
    a, b, e, t = x0.double().numpy(), x1.double().numpy(), noise.double().numpy(), per_image(T)
    np.testing.assert_allclose(x_t, a + t * (b - a) + sigma_min * e, atol=1e-6)
    np.testing.assert_allclose(u, b - a, atol=1e-6)


@pytest.mark.parametrize("sigma_min", [0.0, 1e-4, 0.25])
def test_gaussian_path(sigma_min):
    """Eq. 6, 8: at t the noise has the standard deviation t sigma_min - t + 1."""
    noise, x1 = draw(2)
    x_t, _ = sample_path(FlowConfig(path="gaussian", sigma_min=sigma_min), noise, x1, T)
    t = per_image(T)
    expected = (t * sigma_min - t + 1) * noise.double().numpy() + t * x1.double().numpy()
    np.testing.assert_allclose(x_t, expected, atol=1e-6)


@pytest.mark.parametrize("sigma_min", [1e-2, 0.25])
def test_gaussian_velocity_is_the_conditional_field(sigma_min):
    """Eq. 7 at the point of the path: u_t(x) = (x1 - (1 - sigma_min) x) / (1 - (1 - sigma_min) t)."""
    noise, x1 = draw(2)
    x_t, u = sample_path(FlowConfig(path="gaussian", sigma_min=sigma_min), noise, x1, T)
    keep, t = 1 - sigma_min, per_image(T)
    expected = (x1.double().numpy() - keep * x_t.double().numpy()) / (1 - keep * t)
    np.testing.assert_allclose(u, expected, atol=1e-4)


@pytest.mark.parametrize("path", ["coupling", "gaussian"])
@pytest.mark.parametrize("sigma_min", [0.0, 0.1])
def test_velocity_is_the_derivative_of_the_path(path, sigma_min):
    x0, x1, noise = (x.double() for x in draw(3))
    flow, t, h = FlowConfig(path=path, sigma_min=sigma_min), T.double().clamp(0.01, 0.99), 1e-4
    after, before = (sample_path(flow, x0, x1, t + s, noise).x_t for s in (h, -h))
    torch.testing.assert_close((after - before) / (2 * h), sample_path(flow, x0, x1, t, noise).velocity)


def test_sigma_min_on_the_coupling_path_needs_noise():
    x0, x1 = draw(2)
    with pytest.raises(ValueError, match="sigma_min is 0.1: the coupling path then needs noise"):
        sample_path(FlowConfig(sigma_min=0.1), x0, x1, T)


def test_loss_is_the_mean_over_all_elements():
    """Eq. 9, 13; accumulated in float32 for half-precision predictions."""
    v, u = draw(2)
    expected = np.mean((v.numpy().astype(np.float64) - u.numpy().astype(np.float64)) ** 2)
    assert velocity_loss(v, u).item() == pytest.approx(expected, rel=1e-6)
    large = velocity_loss(torch.full(SHAPE, 300.0, dtype=torch.float16), torch.zeros(SHAPE, dtype=torch.float16))
    assert large.item() == pytest.approx(90000.0)  # beyond the largest float16


def test_source_of_a_coupling_path_is_the_noised_upsampled_latent():
    up, noise = draw(2)
    flow = FlowConfig(noise_step=400)
    expected = 0.808643 * up + 0.588299 * noise  # square roots of alpha_bar[400] = 0.653904 and of the rest
    torch.testing.assert_close(make_source(flow, up, noise), expected, rtol=0, atol=1e-5)
    torch.testing.assert_close(make_source(flow, up, noise, 200), 0.950957 * up + 0.309325 * noise, rtol=0, atol=1e-5)
    assert torch.equal(make_source(flow, up, noise, 0), up)
    assert torch.equal(make_source(FlowConfig(), up, noise), up)


def test_source_of_a_gaussian_path_is_the_noise():
    up, noise = draw(2)
    flow = FlowConfig(path="gaussian")
    assert torch.equal(make_source(flow, up, noise), noise)
    assert torch.equal(make_source(flow, up, noise, 0), noise)
    with pytest.raises(ValueError, match="starts from pure noise: noise_step is 200, expected 0"):
        make_source(flow, up, noise, 200)
