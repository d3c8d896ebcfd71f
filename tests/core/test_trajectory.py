"""The frames of a flow: the states a solver passes through, and what each points at."""

from __future__ import annotations

import pytest
import torch

from fmboost_core.solver import SOLVERS, integrate
from fmboost_core.trajectory import trajectory


def low(batch=1):
    return torch.randn(batch, 4, 4, 6, generator=torch.Generator().manual_seed(0))


@pytest.mark.parametrize("solver", SOLVERS)
def test_the_ends_are_the_source_and_the_result(solver, random_model):
    model = random_model(noise_step=300)
    x0, _ = model.start(low(2), seed=3)
    found = trajectory(model, low(2), frames=4, steps=6, solver=solver, seed=3)
    assert found.times.tolist() == pytest.approx([0, 1 / 3, 2 / 3, 1])
    assert found.states.shape == found.estimates.shape == (4, 2, 4, 8, 12)
    assert torch.equal(found.states[0], x0)
    torch.testing.assert_close(
        found.states[-1], model.upscale(low(2), steps=6, solver=solver, seed=3), rtol=0, atol=1e-4
    )
    assert torch.equal(found.estimates[-1], found.states[-1])


def test_euler_frames_are_its_steps(random_model):
    """Written out: x_(i+1) = x_i + v_i / 4, and x_i + (1 - t_i) v_i points at the end."""
    model = random_model(noise_step=300)
    x, context = model.start(low(), seed=1)
    found = trajectory(model, low(), frames=5, steps=4, seed=1)
    for i in range(4):
        v = model.velocity(x, torch.tensor(i / 4), context)
        torch.testing.assert_close(found.states[i], x, rtol=0, atol=1e-5)
        torch.testing.assert_close(found.estimates[i], x + (1 - i / 4) * v, rtol=0, atol=1e-5)
        x = x + v / 4
    torch.testing.assert_close(found.states[4], x, rtol=0, atol=1e-5)


@pytest.mark.parametrize("solver", SOLVERS)
@pytest.mark.parametrize("reverse", [False, True])
def test_frames_follow_the_closed_solution(solver, reverse):
    """dx/dt = -x: at s of the way x0 e^-s, or x0 e^s where time runs back."""
    x0 = torch.ones(2, 1, 1, 1)
    found = integrate(lambda x, t: -x, x0, steps=200, solver=solver, reverse=reverse, frames=6)
    expected = (torch.linspace(0, 1, 6) * (1 if reverse else -1)).exp().view(6, 1, 1, 1, 1).expand(6, 2, 1, 1, 1)
    torch.testing.assert_close(found.states, expected, rtol=0, atol=2e-2 if solver == "euler" else 1e-3)
    assert torch.equal(found.x1, found.states[-1])


def test_frames_cost_the_solver_nothing():
    counts = {integrate(lambda x, t: -x, torch.ones(1, 1), steps=7, frames=n).evaluations for n in (2, 3, 8, 50)}
    assert counts == {7}


def test_too_few_frames(random_model):
    with pytest.raises(ValueError, match="frames is 1: expected at least 2"):
        trajectory(random_model(), low(), frames=1)
