"""Solvers against equations with closed solutions, and against torchdiffeq step by step."""

from __future__ import annotations

import math

import pytest
import torch
from torchdiffeq import odeint

from fmboost_core import solver as module
from fmboost_core.solver import SOLVERS, evaluations, integrate

ORDERS = {"euler": 1, "midpoint": 2, "heun": 2, "heun3": 3, "rk4": 4}
EVALUATIONS = {"euler": 1, "midpoint": 2, "heun": 2, "heun3": 3, "rk4": 4}
X0 = torch.tensor([0.5, 1.0, 2.0]).view(3, 1, 1, 1)

# name: (velocity, x0 -> x(1))
EQUATIONS = {
    "decay": (lambda x, t: -3 * x, lambda x: x * math.exp(-3)),
    "accelerating growth": (lambda x, t: 4 * t.view(-1, 1, 1, 1) * x, lambda x: x * math.exp(2)),
    "quadratic growth": (lambda x, t: 0.4 * x.square(), lambda x: x / (1 - 0.4 * x)),
    "forced": (lambda x, t: 3 * (t.view(-1, 1, 1, 1) - x), lambda x: 2 / 3 + (x + 1 / 3) * math.exp(-3)),
}


@pytest.fixture
def tight(monkeypatch):
    """A narrower tolerance for the adaptive solver."""
    monkeypatch.setattr(module, "RTOL", 1e-6)
    monkeypatch.setattr(module, "ATOL", 1e-7)


def error(equation, steps, solver):
    """The largest relative error of an image."""
    velocity, solution = EQUATIONS[equation]
    return (integrate(velocity, X0, steps=steps, solver=solver)[-1] / solution(X0) - 1).abs().max().item()


@pytest.mark.parametrize("equation", EQUATIONS)
@pytest.mark.parametrize("solver", ORDERS)
def test_order_of_convergence(solver, equation):
    """Twice the steps divide the error by 2^order, where steps are small and errors still above float32 rounding."""
    steps = {1: 64, 2: 32, 3: 16, 4: 8}[ORDERS[solver]]
    coarse, fine = error(equation, steps, solver), error(equation, 2 * steps, solver)
    assert math.log2(coarse / fine) == pytest.approx(ORDERS[solver], abs=0.25)


@pytest.mark.parametrize("reverse", [False, True])
@pytest.mark.parametrize("solver", ORDERS)
def test_every_state_is_that_of_torchdiffeq(solver, reverse):
    """Its fixed-grid solvers, which the authors' code uses, from the start of every step to the end."""

    def velocity(t, x):
        return 0.5 * x.square() - (3 * t.view(-1, 1, 1, 1) + x).sin()

    def ours(**settings):
        return integrate(lambda x, t: velocity(t, x), X0, steps=steps, solver=solver, reverse=reverse, **settings)

    steps, theirs = 3, {"heun": "heun2"}.get(solver, solver)
    times = torch.linspace(0, 1, steps + 1, dtype=torch.float64)
    expected = odeint(velocity, X0.double(), times.flip(0) if reverse else times, method=theirs)
    found = ours(frames=steps + 1)
    torch.testing.assert_close(found.double(), expected, rtol=2e-6, atol=1e-6)
    assert torch.equal(ours(), found[[0, -1]])


@pytest.mark.parametrize("equation", EQUATIONS)
def test_dopri5_keeps_its_tolerance(equation):
    assert 1e-6 < error(equation, 1, "dopri5") < 5e-3


@pytest.mark.parametrize("equation", EQUATIONS)
def test_dopri5_keeps_a_tighter_tolerance(equation, tight):
    assert error(equation, 1, "dopri5") < 5e-6


@pytest.mark.parametrize("frames", [2, 5])
@pytest.mark.parametrize("solver", ORDERS)
@pytest.mark.parametrize("steps", [1, 2, 7, 10, 50])
def test_steps_are_intervals_and_evaluations_are_counted(solver, steps, frames):
    calls, seen = [], []
    integrate(
        lambda x, t: calls.append(1) or x,
        X0,
        steps=steps,
        solver=solver,
        callback=lambda k, n, t, x: seen.append((k, n)),
        frames=frames,
    )
    expected = steps * EVALUATIONS[solver]
    assert len(calls) == evaluations(solver, steps) == expected
    assert seen == [(k, expected) for k in range(1, expected + 1)]


def test_euler_visits_the_start_of_every_interval():
    times = []
    integrate(lambda x, t: times.append(t[0].item()) or x, X0, steps=10)
    assert times == pytest.approx([k / 10 for k in range(10)], abs=1e-6)


def test_one_euler_step_is_one_evaluation_at_the_start():
    assert torch.equal(integrate(lambda x, t: x + 3 - t.view(-1, 1, 1, 1), X0, steps=1)[-1], 2 * X0 + 3)


def test_a_state_between_two_steps_is_interpolated():
    """dx/dt = -x by two Euler steps: 1, 1/2, 1/4; a third of the way lies at two thirds of the first step."""
    found = integrate(lambda x, t: -x, torch.ones(1, 1), steps=2, frames=4)
    assert found.flatten().tolist() == pytest.approx([1, 2 / 3, 5 / 12, 1 / 4])


@pytest.mark.parametrize("solver", SOLVERS)
@pytest.mark.parametrize("reverse", [False, True])
def test_frames_follow_the_closed_solution(solver, reverse):
    """dx/dt = -x: at s of the way x0 e^-s, or x0 e^s where time runs back."""
    found = integrate(lambda x, t: -x, torch.ones(2, 1, 1, 1), steps=200, solver=solver, reverse=reverse, frames=6)
    expected = (torch.linspace(0, 1, 6) * (1 if reverse else -1)).exp().view(6, 1, 1, 1, 1).expand(6, 2, 1, 1, 1)
    torch.testing.assert_close(found, expected, rtol=0, atol=2e-2 if solver == "euler" else 1e-3)


@pytest.mark.parametrize("reverse", [False, True])
@pytest.mark.parametrize("solver", SOLVERS)
def test_time_stays_inside_and_state_is_float32(solver, reverse):
    def velocity(x, t):
        assert x.dtype == t.dtype == torch.float32
        assert t.shape == (x.shape[0],)
        assert t.min() >= 0
        assert t.max() <= 1
        return -20 * (x - torch.sin(9 * t).view(-1, 1, 1, 1))  # stiff enough that dopri5 rejects steps

    for steps in (1, 3, 10, 49):
        states = integrate(velocity, X0.bfloat16(), steps=steps, solver=solver, reverse=reverse)
        assert states.dtype == torch.float32


@pytest.mark.parametrize("reverse", [False, True])
@pytest.mark.parametrize("solver", SOLVERS)
def test_callback_sees_the_end_point_of_a_straight_path(solver, reverse):
    """Along x_t = (1 - t) a + t b the estimate is b everywhere, and a where time runs back."""
    a, b = torch.full((1, 1, 2, 2), 0.5), torch.full((1, 1, 2, 2), 3.0)
    start, end = (b, a) if reverse else (a, b)
    seen, calls = [], []

    def callback(evaluation, total, t, estimate):
        seen.append((evaluation, total, t))
        torch.testing.assert_close(estimate, end, rtol=0, atol=1e-5)

    def velocity(x, t):
        calls.append(1)
        return b - a

    states = integrate(velocity, start, steps=5, solver=solver, reverse=reverse, callback=callback)
    torch.testing.assert_close(states[-1], end, rtol=0, atol=1e-5)
    total = 5 * EVALUATIONS[solver] if solver in EVALUATIONS else None
    assert [s[:2] for s in seen] == [(k, total) for k in range(1, len(calls) + 1)]
    assert seen[0][2] == (1 if reverse else 0)
    assert all(isinstance(t, float) for _, _, t in seen)


@pytest.mark.parametrize("solver", SOLVERS)
def test_raising_in_the_callback_stops_at_once(solver):
    class CancelledError(Exception):
        pass

    calls = []

    def cancel(evaluation, total, t, estimate):
        if evaluation == 3:
            raise CancelledError

    with pytest.raises(CancelledError):
        integrate(lambda x, t: calls.append(1) or -x, X0, steps=10, solver=solver, callback=cancel)
    assert len(calls) == 3


@pytest.mark.parametrize("solver", SOLVERS)
@pytest.mark.parametrize("equation", EQUATIONS)
def test_there_and_back(solver, equation, tight):
    velocity, solution = EQUATIONS[equation]
    steps = {"euler": 2000, "midpoint": 100, "heun": 100}.get(solver, 40)
    back = integrate(velocity, solution(X0), steps=steps, solver=solver, reverse=True)[-1]
    torch.testing.assert_close(back, X0, rtol=0, atol=2e-2 if solver == "euler" else 5e-3)


@pytest.mark.parametrize("solver", SOLVERS)
def test_no_graph_is_built_and_x0_is_left_alone(solver):
    weight = torch.ones(1, requires_grad=True)
    x0 = X0.clone()
    assert not integrate(lambda x, t: weight * x, x0, steps=2, solver=solver).requires_grad
    assert torch.equal(x0, X0)


def test_wrong_arguments_are_named():
    with pytest.raises(
        ValueError, match="unknown solver 'ode45': expected one of euler, midpoint, heun, heun3, rk4, dop"
    ):
        integrate(lambda x, t: x, X0, steps=1, solver="ode45")
    for steps in (0, -1):
        with pytest.raises(ValueError, match=f"steps is {steps}: expected a whole number from 1"):
            integrate(lambda x, t: x, X0, steps=steps)
    with pytest.raises(ValueError, match="frames is 1: expected at least 2, the start and the end"):
        integrate(lambda x, t: x, X0, steps=1, frames=1)
