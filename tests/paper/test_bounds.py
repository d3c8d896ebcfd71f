"""Errors by frequency of pictures whose errors are known."""

from __future__ import annotations

import math

import pytest
import torch

from benchmarks.bounds import BANDS, Sums, bands, compare, least_error


def noise(seed, size=256):
    return torch.randn(1, 3, size, size, generator=torch.Generator().manual_seed(seed))


def test_bands_share_out_the_energy():
    images = noise(0)[:, :, :96]
    split = bands(images).square().sum(dim=(1, 2, 3))
    assert split.sum().item() == pytest.approx(images.square().sum().item(), rel=1e-5)
    # White noise has the same energy at every frequency: a band has its share of the unit square.
    shares = split / split.sum()
    assert shares.tolist() == pytest.approx([3 / 4, 3 / 16, 3 / 64, 1 / 64], rel=0.1)


@pytest.mark.parametrize(("period", "band"), [(3, 0), (6, 1), (12, 2), (64, 3)])
def test_a_wave_lies_in_the_band_of_its_frequency(period, band):
    wave = torch.cos(2 * math.pi * (torch.arange(192) + 0.5) / period).expand(1, 1, 64, 192)
    split = bands(wave).square().sum(dim=(1, 2, 3))
    assert (split[band] / split.sum()).item() > 0.999


def test_lifts_drawn_from_the_posterior():
    """All are a known part of variance 4 and an unknown one of variance 1: a lift's error is 2, that of its mean 1."""
    known, sums = 2 * noise(1), Sums()
    photo, first, second = (known + noise(seed) for seed in (2, 3, 4))
    compare(sums, photo, first, second, photo, known)
    n = sums["photo"] / 5  # so many coefficients are in each band
    assert len(n) == len(BANDS)
    torch.testing.assert_close(sums["error"] / n, torch.full_like(n, 2), rtol=0.05, atol=0)
    torch.testing.assert_close((sums["error"] - sums["variance"]) / n, torch.full_like(n, 1), rtol=0.1, atol=0)
    torch.testing.assert_close(sums["psu"] / n, torch.full_like(n, 1), rtol=0.05, atol=0)
    correlation = sums["shared"] / (sums["photo"] * sums["mean_energy"]).sqrt()
    torch.testing.assert_close(correlation, torch.full_like(n, math.sqrt(4 / 5)), rtol=0.02, atol=0)
    # The mean, enlarged to the photo's energy, reaches the least error there is at that energy.
    enlarged = known * math.sqrt(5 / 4)
    reached = (bands(enlarged) - bands(photo)).square().sum(dim=(1, 2, 3)).double()
    expected = least_error(sums["photo"], sums["photo"], correlation)
    torch.testing.assert_close(reached, expected, rtol=0.1, atol=0)
    assert (expected / n).tolist() == pytest.approx([10 - 2 * math.sqrt(20)] * len(n), rel=0.1)
