"""The settings of a lift as a value: checked where it is made, and the same afterwards."""

from __future__ import annotations

from dataclasses import FrozenInstanceError

import pytest

from fmboost_core.sampling import Sampling


@pytest.mark.parametrize(
    ("settings", "sentence"),
    [
        ({"steps": 0}, "steps is 0: expected a whole number from 1"),
        ({"steps": -3}, "steps is -3: expected a whole number from 1"),
        ({"solver": "ddim"}, "unknown solver 'ddim': expected one of euler, midpoint, heun, heun3, rk4, dopri5"),
        ({"noise_step": 1000}, "noise_step is 1000: expected 0 (no noise) to 999"),
        ({"noise_step": -1}, "noise_step is -1: expected 0 (no noise) to 999"),
        ({"seed": -2}, "seed is -2: expected a whole number from 0"),
        ({"tile": 1}, "tile is 1: expected 0 (no tiles) or a whole number from 2"),
        ({"tile": -64}, "tile is -64: expected 0 (no tiles) or a whole number from 2"),
    ],
)
def test_a_value_out_of_range_is_one_sentence(settings, sentence):
    with pytest.raises(ValueError) as error:
        Sampling(**settings)
    assert str(error.value) == sentence


def test_limits_are_inside():
    Sampling(steps=1, noise_step=0, seed=0, tile=2)
    Sampling(steps=1000, noise_step=999, seed=2**64 - 1, tile=0)


def test_a_list_of_indices_is_kept_as_it_was_given():
    indices = [3, 1]
    sampling = Sampling(batch_index=indices)
    indices.append(7)
    assert sampling.batch_index == (3, 1)
    assert hash(sampling) == hash(Sampling(batch_index=(3, 1)))
    with pytest.raises(FrozenInstanceError):
        sampling.steps = 5
