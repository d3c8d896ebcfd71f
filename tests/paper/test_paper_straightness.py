"""Straightness of curves whose length and curvature have a formula."""

from __future__ import annotations

import math

import pytest
import torch

from benchmarks.paper.paths import acceleration, distance, length_ratio, turning
from fmboost_core.solver import integrate


def states_of(curve, steps=50):
    t = torch.linspace(0, 1, steps + 1, dtype=torch.float64)
    return torch.stack([torch.stack(curve(s)) for s in t])[:, None]  # (steps + 1, 1, D)


def test_a_straight_field_has_no_curvature():
    x0 = torch.randn(3, 4, 5, 5, generator=torch.Generator().manual_seed(0))
    velocity = torch.randn(3, 4, 5, 5, generator=torch.Generator().manual_seed(1))
    states = integrate(lambda x, t: velocity, x0, steps=20, frames=21)
    torch.testing.assert_close(length_ratio(states), torch.ones(3), atol=1e-5, rtol=0)
    torch.testing.assert_close(distance(states), velocity.square().mean(dim=(1, 2, 3)).sqrt())
    assert turning(states).max() < 0.01
    assert acceleration(states).max() < 1e-8


def test_a_straight_way_walked_unevenly_is_straight_but_accelerated():
    states = states_of(lambda s: (s**2, 3 * s**2))
    torch.testing.assert_close(length_ratio(states), torch.ones(1, dtype=torch.float64))
    assert turning(states).item() < 1e-4
    # velocity 2s against a mean of 1: the integral of (2s - 1)^2 is 1/3.
    assert acceleration(states).item() == pytest.approx(1 / 3, rel=1e-3)


@pytest.mark.parametrize("steps", [2, 10, 100])
def test_a_quarter_circle(steps):
    """The way of a variance-preserving mixture between two points at a right angle."""
    states = states_of(lambda s: (torch.cos(s * math.pi / 2), torch.sin(s * math.pi / 2)), steps)
    assert turning(states).item() == pytest.approx(90 * (steps - 1) / steps, rel=1e-9)
    chord = 2 * math.sin(math.pi / 4 / steps)
    assert length_ratio(states).item() == pytest.approx(steps * chord / math.sqrt(2), rel=1e-9)


def test_the_turning_of_a_zigzag_and_of_a_rest():
    corner = torch.tensor([[0.0, 0], [1, 0], [1, 0], [1, 1], [2, 1]])[:, None]
    assert turning(corner).item() == pytest.approx(180)
    assert length_ratio(corner).item() == pytest.approx(3 / math.sqrt(5))
