"""dx/dt = v(x, t) from 0 to 1, on torchdiffeq."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import NamedTuple

import torch
from torch import Tensor
from torchdiffeq import odeint

Velocity = Callable[..., Tensor]
"""(x (B, ...), t (B,), *conditions) -> velocity (B, ...)."""

Callback = Callable[[int, "int | None", float, Tensor], None]
"""(evaluation from 1, total or None, t, estimate of the end point). Raising stops the solver."""


STEPS = 4
"""Where none are asked for: what the models that ship are trained for. Models without a reflow need 10 or more."""


class _Method(NamedTuple):
    name: str  # in torchdiffeq
    evaluations: int  # a step; 0 where the solver chooses its own steps


SOLVERS = {
    "euler": _Method("euler", 1),
    "midpoint": _Method("midpoint", 2),
    "heun": _Method("heun2", 2),
    "heun3": _Method("heun3", 3),
    "rk4": _Method("rk4", 4),
    "dopri5": _Method("dopri5", 0),
}


class Solution(NamedTuple):
    x1: Tensor
    evaluations: int
    """Network calls made; for an adaptive solver summed over the images, which it solves one by one."""
    states: Tensor
    """(frames, B, ...): the flow at even times from its start, x0, to its end."""


@torch.no_grad()
def integrate(
    velocity: Velocity,
    x0: Tensor,
    *conditions: Tensor,
    steps: int,
    solver: str = "euler",
    callback: Callback | None = None,
    reverse: bool = False,
    rtol: float = 1e-3,
    atol: float = 1e-6,
    frames: int = 2,
) -> Solution:
    """Carry x0 (B, ...) along the flow; `reverse` runs from 1 back to 0.

    `conditions` (B, ...) go to `velocity` behind x and t, unchanged. `frames` states are kept, the two ends among
    them; those that fall between two steps are interpolated.

    `steps` are intervals of equal length: Euler with 10 makes 10 evaluations. ``dopri5`` chooses its own steps to
    `rtol` and `atol`, image by image, so that no image changes another. State and time are float32 throughout and
    time never leaves [0, 1]. Raises ValueError for an unknown solver or steps < 1.
    """
    if frames < 2:
        raise ValueError(f"frames is {frames}: expected at least 2, the start and the end")
    if solver not in SOLVERS:
        raise ValueError(f"unknown solver {solver!r}: expected one of {', '.join(SOLVERS)}")
    method = SOLVERS[solver]
    if method.evaluations == 0:
        return _adaptive(velocity, x0, conditions, method, callback, reverse, rtol, atol, frames)
    if steps < 1:
        raise ValueError(f"steps is {steps}: expected a whole number from 1")
    counter = _Counted(velocity, conditions, steps * method.evaluations, callback, reverse)
    grid = torch.linspace(0, 1, steps + 1, device=x0.device)
    options = {"grid_constructor": lambda *_: grid}
    states = _solve(counter, x0.float(), method.name, options, rtol, atol, frames)
    return Solution(states[-1], counter.evaluations, states)


def _adaptive(
    velocity: Velocity,
    x0: Tensor,
    conditions: Sequence[Tensor],
    method: _Method,
    callback: Callback | None,
    reverse: bool,
    rtol: float,
    atol: float,
    frames: int,
) -> Solution:
    counter = _Counted(velocity, conditions, None, callback, reverse)
    # A last step that is not overshot, to t > 1; and times in float32, as not every device has float64.
    options = {"step_t": torch.ones(1, device=x0.device), "dtype": torch.float32}
    images = []
    for i in range(x0.shape[0]):
        counter.conditions = [c[i : i + 1] for c in conditions]
        images.append(_solve(counter, x0[i : i + 1].float(), method.name, options, rtol, atol, frames))
    states = torch.cat(images, dim=1)
    return Solution(states[-1], counter.evaluations, states)


def _solve(
    counter: _Counted, x0: Tensor, method: str, options: Mapping[str, object], rtol: float, atol: float, frames: int
) -> Tensor:
    times = torch.linspace(0, 1, frames, device=x0.device)
    return odeint(counter, x0, times, method=method, rtol=rtol, atol=atol, options=options)  # pyright: ignore


class _Counted:
    """The right-hand side as torchdiffeq wants it: scalar time, evaluations counted and reported."""

    def __init__(
        self,
        velocity: Velocity,
        conditions: Sequence[Tensor],
        total: int | None,
        callback: Callback | None,
        reverse: bool,
    ) -> None:
        self.velocity, self.conditions = velocity, conditions
        self.total, self.callback, self.reverse = total, callback, reverse
        self.evaluations = 0

    def __call__(self, s: Tensor, x: Tensor) -> Tensor:
        t = (1 - s if self.reverse else s).clamp(0, 1)
        v = self.velocity(x, t.expand(x.shape[0]), *self.conditions)
        self.evaluations += 1
        if self.callback is not None:
            end = 0 if self.reverse else 1
            self.callback(self.evaluations, self.total, float(t), x + (end - t) * v)
        return -v if self.reverse else v
