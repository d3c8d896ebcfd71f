"""Solvers against equations with closed solutions: dx/dt = v(x, t), x(0) given, x(1) known."""

from __future__ import annotations

import math

import pytest
import torch

from fmboost_core.solver import SOLVERS, integrate

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


def error(equation, steps, solver, **kw):
    """The largest relative error of an image."""
    velocity, solution = EQUATIONS[equation]
    return (integrate(velocity, X0, steps=steps, solver=solver, **kw).x1 / solution(X0) - 1).abs().max().item()


@pytest.mark.parametrize("equation", EQUATIONS)
@pytest.mark.parametrize("solver", ORDERS)
def test_order_of_convergence(solver, equation):
    """Twice the steps divide the error by 2^order, where steps are small and errors still above float32 rounding."""
    steps = {1: 64, 2: 32, 3: 16, 4: 8}[ORDERS[solver]]
    coarse, fine = error(equation, steps, solver), error(equation, 2 * steps, solver)
    assert math.log2(coarse / fine) == pytest.approx(ORDERS[solver], abs=0.25)


# stage times and weights, and for each stage what of the earlier ones it starts from; rk4 is Kutta's 3/8 rule
TABLEAUS = {
    "euler": ([0], [1], [[]]),
    "midpoint": ([0, 1 / 2], [0, 1], [[], [1 / 2]]),
    "heun": ([0, 1], [1 / 2, 1 / 2], [[], [1]]),
    "heun3": ([0, 1 / 3, 2 / 3], [1 / 4, 0, 3 / 4], [[], [1 / 3], [0, 2 / 3]]),
    "rk4": ([0, 1 / 3, 2 / 3, 1], [1 / 8, 3 / 8, 3 / 8, 1 / 8], [[], [1 / 3], [-1 / 3, 1], [1, -1, 1]]),
}


@pytest.mark.parametrize("solver", TABLEAUS)
def test_a_step_is_its_butcher_tableau(solver):
    def v(x, t):
        return 0.5 * x.square() - (3 * t + x).sin()

    times, weights, stages = TABLEAUS[solver]
    x = X0.double()
    for step in range(2):
        k: list[torch.Tensor] = []
        for c, row in zip(times, stages, strict=True):
            k.append(v(x + 0.5 * sum(a * k_j for a, k_j in zip(row, k, strict=True)), (step + c) / 2))
        x = x + 0.5 * sum(b * k_j for b, k_j in zip(weights, k, strict=True))
    found = integrate(lambda x, t: v(x, t.view(-1, 1, 1, 1)), X0, steps=2, solver=solver).x1
    torch.testing.assert_close(found.double(), x, rtol=2e-6, atol=0)


@pytest.mark.parametrize("equation", EQUATIONS)
def test_dopri5_keeps_its_tolerance(equation):
    assert 1e-6 < error(equation, 0, "dopri5") < 5e-3
    assert error(equation, 0, "dopri5", rtol=1e-6, atol=1e-7) < 5e-6


@pytest.mark.parametrize("solver", ORDERS)
@pytest.mark.parametrize("steps", [1, 2, 7, 10, 50])
def test_steps_are_intervals_and_evaluations_are_counted(solver, steps):
    calls = []
    total = []
    solution = integrate(
        lambda x, t: calls.append(1) or x,
        X0,
        steps=steps,
        solver=solver,
        callback=lambda k, n, t, x: total.append((k, n)),
    )
    expected = steps * EVALUATIONS[solver]
    assert solution.evaluations == len(calls) == expected
    assert total == [(k, expected) for k in range(1, expected + 1)]


def test_euler_visits_the_start_of_every_interval():
    times = []
    integrate(lambda x, t: times.append(t[0].item()) or x, X0, steps=10)
    assert times == pytest.approx([k / 10 for k in range(10)], abs=1e-6)


def test_one_euler_step_is_one_evaluation_at_the_start():
    assert torch.equal(integrate(lambda x, t: x + 3 - t.view(-1, 1, 1, 1), X0, steps=1).x1, 2 * X0 + 3)


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
        x1 = integrate(velocity, X0.bfloat16(), steps=steps, solver=solver, reverse=reverse).x1
        assert x1.dtype == torch.float32


@pytest.mark.parametrize("reverse", [False, True])
@pytest.mark.parametrize("solver", SOLVERS)
def test_callback_sees_the_end_point_of_a_straight_path(solver, reverse):
    """Along x_t = (1 - t) a + t b the estimate is b everywhere, and a where time runs back."""
    a, b = torch.full((1, 1, 2, 2), 0.5), torch.full((1, 1, 2, 2), 3.0)
    start, end = (b, a) if reverse else (a, b)
    seen = []

    def callback(evaluation, total, t, estimate):
        seen.append((evaluation, total, t))
        torch.testing.assert_close(estimate, end, rtol=0, atol=1e-5)

    solution = integrate(lambda x, t: b - a, start, steps=5, solver=solver, reverse=reverse, callback=callback)
    torch.testing.assert_close(solution.x1, end, rtol=0, atol=1e-5)
    total = 5 * EVALUATIONS[solver] if solver in EVALUATIONS else None
    assert [s[:2] for s in seen] == [(k, total) for k in range(1, solution.evaluations + 1)]
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
def test_there_and_back(solver, equation):
    velocity, solution = EQUATIONS[equation]
    steps = {"euler": 2000, "midpoint": 100, "heun": 100}.get(solver, 40)
    back = integrate(velocity, solution(X0), steps=steps, solver=solver, reverse=True, rtol=1e-6, atol=1e-7).x1
    torch.testing.assert_close(back, X0, rtol=0, atol=2e-2 if solver == "euler" else 5e-3)


def test_adaptive_images_do_not_change_each_other():
    """A fast and a slow image together: each as when alone, evaluations summed."""
    rate = torch.tensor([0.1, 40.0, 3.0]).view(3, 1, 1, 1)

    def velocity(x, t, rate):
        return torch.cos(rate * t.view(-1, 1, 1, 1)) * rate * x

    together = integrate(velocity, X0, rate, steps=1, solver="dopri5")
    alone = [integrate(velocity, X0[i : i + 1], rate[i : i + 1], steps=1, solver="dopri5") for i in range(3)]
    assert torch.equal(together.x1, torch.cat([s.x1 for s in alone]))
    assert together.evaluations == sum(s.evaluations for s in alone)
    assert alone[1].evaluations > 2 * alone[0].evaluations
    torch.testing.assert_close(together.x1, X0 * torch.sin(rate).exp(), rtol=2e-2, atol=0)


@pytest.mark.parametrize("solver", SOLVERS)
def test_no_graph_is_built_and_x0_is_left_alone(solver):
    weight = torch.ones(1, requires_grad=True)
    x0 = X0.clone()
    assert not integrate(lambda x, t: weight * x, x0, steps=2, solver=solver).x1.requires_grad
    assert torch.equal(x0, X0)


def test_wrong_arguments_are_named():
    with pytest.raises(
        ValueError, match="unknown solver 'ode45': expected one of euler, midpoint, heun, heun3, rk4, dop"
    ):
        integrate(lambda x, t: x, X0, steps=1, solver="ode45")
    for steps in (0, -1):
        with pytest.raises(ValueError, match=f"steps is {steps}: expected a whole number from 1"):
            integrate(lambda x, t: x, X0, steps=steps)
