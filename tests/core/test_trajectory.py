"""The frames of a flow: the states a solver passes through, and what each points at."""

from __future__ import annotations

import pytest
import torch

from fmboost_core.sampling import Sampling
from fmboost_core.solver import SOLVERS
from fmboost_core.trajectory import trajectory


def low(batch=1):
    return torch.randn(batch, 4, 4, 6, generator=torch.Generator().manual_seed(0))


@pytest.mark.parametrize("solver", SOLVERS)
def test_the_ends_are_the_source_and_the_result(solver, random_model):
    model, sampling = random_model(noise_step=300), Sampling(steps=6, solver=solver, seed=3)
    found = trajectory(model, low(2), sampling, frames=4)
    assert found.times.tolist() == pytest.approx([0, 1 / 3, 2 / 3, 1])
    assert found.states.shape == found.estimates.shape == (4, 2, 4, 8, 12)
    assert torch.equal(found.states[0], model.make_source(model.make_context(low(2)), sampling))
    torch.testing.assert_close(found.states[-1], model.upscale(low(2), sampling), rtol=0, atol=1e-4)
    assert torch.equal(found.estimates[-1], found.states[-1])


def test_euler_frames_are_its_steps(random_model):
    """Written out: x_(i+1) = x_i + v_i / 4, and x_i + (1 - t_i) v_i points at the end."""
    model = random_model(noise_step=300)
    context = model.make_context(low())
    x = model.make_source(context, Sampling(seed=1))
    found = trajectory(model, low(), frames=5, steps=4, seed=1)
    for i in range(4):
        v = model.velocity(x, torch.tensor([i / 4]), context)
        torch.testing.assert_close(found.states[i], x, rtol=0, atol=1e-5)
        torch.testing.assert_close(found.estimates[i], x + (1 - i / 4) * v, rtol=0, atol=1e-5)
        x = x + v / 4
    torch.testing.assert_close(found.states[4], x, rtol=0, atol=1e-5)


def test_a_model_of_pixel_space_upsampling_takes_its_vae(random_model, block_vae):
    model = random_model(upsampling="psu")
    found = trajectory(model, low(), frames=2, steps=1, vae=block_vae)
    torch.testing.assert_close(found.states[-1], model.upscale(low(), steps=1, vae=block_vae))


def test_too_few_frames(random_model):
    with pytest.raises(ValueError, match="frames is 1: expected at least 2"):
        trajectory(random_model(), low(), frames=1)
