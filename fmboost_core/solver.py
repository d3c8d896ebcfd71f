"""dx/dt = v(x, t) from t = 0 to 1: explicit Runge-Kutta steps, and an adaptive solver by torchdiffeq."""

from __future__ import annotations

from collections.abc import Callable
from typing import NamedTuple

import torch
from torch import Tensor
from torchdiffeq import odeint

Velocity = Callable[[Tensor, Tensor], Tensor]
"""(x (B, ...), t (B,)) -> velocity (B, ...)."""

Callback = Callable[[int, "int | None", float, Tensor], None]
"""(evaluation from 1, total or None, t, estimate of the end point). Raising stops the solver."""

RTOL, ATOL = 1e-3, 1e-6
"""Tolerances of the adaptive solver, those of the authors' code."""


class Tableau(NamedTuple):
    """The Butcher tableau of an explicit Runge-Kutta method; without stages, the solver chooses its own steps."""

    nodes: tuple[float, ...] = ()
    matrix: tuple[tuple[float, ...], ...] = ()
    weights: tuple[float, ...] = ()


SOLVERS = {
    "euler": Tableau((0,), ((),), (1,)),
    "midpoint": Tableau((0, 1 / 2), ((), (1 / 2,)), (0, 1)),
    "heun": Tableau((0, 1), ((), (1,)), (1 / 2, 1 / 2)),
    "heun3": Tableau((0, 1 / 3, 2 / 3), ((), (1 / 3,), (0, 2 / 3)), (1 / 4, 0, 3 / 4)),
    "rk4": Tableau(  # Kutta's 3/8 rule, as in torchdiffeq and so in the authors' code
        (0, 1 / 3, 2 / 3, 1), ((), (1 / 3,), (-1 / 3, 1), (1, -1, 1)), (1 / 8, 3 / 8, 3 / 8, 1 / 8)
    ),
    "dopri5": Tableau(),
}


def check_solver(solver: str) -> None:
    """Raise ValueError for an unknown solver."""
    if solver not in SOLVERS:
        raise ValueError(f"unknown solver {solver!r}: expected one of {', '.join(SOLVERS)}")


def evaluations(solver: str, steps: int) -> int | None:
    """Network evaluations (NFE) of `steps` steps; None for an adaptive solver."""
    return steps * len(SOLVERS[solver].nodes) or None


@torch.no_grad()
def integrate(
    velocity: Velocity,
    x0: Tensor,
    *,
    steps: int,
    solver: str = "euler",
    callback: Callback | None = None,
    reverse: bool = False,
    frames: int = 2,
) -> Tensor:
    """Carry x0 (B, ...) along the flow; returns (frames, B, ...) states at even times, x0 first and x1 last.

    `steps` are intervals of equal length; ``dopri5`` ignores them and chooses its own for the whole batch, to `RTOL`
    and `ATOL`. A state between two steps is interpolated. `reverse` runs from t = 1 back to 0. State and time are
    float32 throughout, and time never leaves [0, 1]. Raises ValueError for an unknown solver or steps < 1.
    """
    check_solver(solver)
    if steps < 1:
        raise ValueError(f"steps is {steps}: expected a whole number from 1")
    if frames < 2:
        raise ValueError(f"frames is {frames}: expected at least 2, the start and the end")
    total, count = evaluations(solver, steps), 0
    sign, end = (-1, 0) if reverse else (1, 1)

    def slope(progress: float, x: Tensor) -> Tensor:
        nonlocal count
        t = 1 - progress if reverse else progress
        # Times are Python numbers: reading them back from a device would stop it at every evaluation.
        v = velocity(x, torch.full((x.shape[0],), t, device=x.device))
        count += 1
        if callback is not None:
            callback(count, total, t, x + (end - t) * v)
        return sign * v

    if total is None:
        return _adaptive(slope, x0.float(), solver, frames)
    tableau, step, states = SOLVERS[solver], 1 / steps, [x0.float()]
    for k in range(steps):
        x, slopes = states[-1], []
        for node, row in zip(tableau.nodes, tableau.matrix, strict=True):
            slopes.append(slope((k + node) / steps, _moved(x, step, row, slopes)))
        x = _moved(x, step, tableau.weights, slopes)
        states = [*states, x] if frames > 2 else [states[0], x]
    return torch.stack([_between(states, i * (len(states) - 1) / (frames - 1)) for i in range(frames)])


def _moved(x: Tensor, step: float, weights: tuple[float, ...], slopes: list[Tensor]) -> Tensor:
    for weight, slope in zip(weights, slopes, strict=True):
        if weight:
            x = x + step * weight * slope
    return x


def _between(states: list[Tensor], position: float) -> Tensor:
    before = min(int(position), len(states) - 1)
    share = position - before
    return states[before] if share < 1e-6 else torch.lerp(states[before], states[before + 1], share)


def _adaptive(slope: Callable[[float, Tensor], Tensor], x0: Tensor, method: str, frames: int) -> Tensor:
    times = torch.linspace(0, 1, frames, device=x0.device)
    # The last step must not overshoot to t > 1, and times stay float32: not every device has float64.
    options = {"step_t": torch.ones(1, device=x0.device), "dtype": torch.float32}
    return odeint(  # pyright: ignore[reportReturnType]
        lambda t, x: slope(float(t.clamp(0, 1)), x), x0, times, method=method, rtol=RTOL, atol=ATOL, options=options
    )
